"""How many optimizer steps a run has: plain arithmetic, so that it is known before there is a loader."""


def batches_used(num_batches: int, limit: int | float | None) -> int:
    """Micro-batches of an epoch that are used, by Lightning's ``limit_train_batches``: a count, or a share.

    >>> batches_used(10, None), batches_used(10, 3), batches_used(10, 0.25), batches_used(10, 1.0)
    (10, 3, 2, 10)
    """
    if isinstance(limit, int):
        return min(num_batches, limit)
    return int(num_batches * (1.0 if limit is None else limit))


def total_steps(batches: int | None, accumulate: int, max_epochs: int | None, max_steps: int | None) -> int | None:
    """Optimizer steps of a run, or None where nothing says when it ends.

    Args:
        batches: Micro-batches per epoch and rank; None: unknown, as of a stream.
        accumulate: Micro-batches per optimizer step; the last step of an epoch may have fewer.
        max_epochs: Lightning's; None or -1: no limit.
        max_steps: Lightning's; None or -1: no limit.

    >>> total_steps(10, 4, 3, None), total_steps(10, 4, 3, 5), total_steps(None, 4, 3, -1), total_steps(None, 1, 1, 9)
    (9, 5, None, 9)
    """
    limit = max_steps if max_steps and max_steps > 0 else None
    if batches is None or max_epochs is None or max_epochs < 0:
        return limit
    steps = -(-batches // accumulate) * max_epochs
    return min(steps, limit) if limit else steps
