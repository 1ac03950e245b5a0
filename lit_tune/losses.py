"""Losses as (sum, denominator), never a mean: the module divides once, over the accumulation window and all ranks.

``loss_sum / denominator`` is what ``torch.nn.functional`` gives with ``reduction="mean"``; both parts add up over any
cut of the examples into batches. Logits are cast to float32 first (float64 stays): half precision overflows the sum.

Shapes: B examples, C classes.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from lit_tune.errors import ConfigError

IGNORE_INDEX = -100
"""Label of a target that does not count; torch's default (https://docs.pytorch.org/docs/stable/nn.functional.html)."""

LossParts = tuple[Tensor, Tensor]
"""(Sum of the losses, denominator), both 0-dim."""


def cross_entropy(
    logits: Tensor, labels: Tensor, *, class_weights: Tensor | None = None, label_smoothing: float = 0.0
) -> LossParts:
    """Softmax cross-entropy in nats.

    Args:
        logits: (B, C).
        labels: (B,) int64; -100 does not count.
        class_weights: (C,), or None for 1 each.
        label_smoothing: Share of the target mass spread evenly over all classes, in [0, 1).

    Returns:
        The sum, and the number of targets; with class weights the sum of the targets' weights.

    >>> loss_sum, denominator = cross_entropy(torch.zeros(4, 2), torch.tensor([0, 1, 1, 0]))
    >>> f"{loss_sum / denominator:.4f}"
    '0.6931'
    """
    logits = _full_precision(logits)
    weights = None if class_weights is None else class_weights.to(logits)
    loss_sum = functional.cross_entropy(
        logits, labels, weight=weights, ignore_index=IGNORE_INDEX, label_smoothing=label_smoothing, reduction="sum"
    )
    return loss_sum, _weights_of(labels, weights, logits).sum()


def token_losses(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Softmax cross-entropy in nats of each token: (N,), 0 where nothing is predicted.

    Logits in full precision, their logarithms of probabilities and their gradient are what takes memory here: 12 bytes
    x N x V. See :func:`in_chunks`.

    Args:
        logits: (N, V).
        labels: (N,) int64; -100 does not count.
        label_smoothing: Share of the target mass spread evenly over all tokens, in [0, 1).

    >>> token_losses(torch.zeros(2, 2), torch.tensor([1, -100]))
    tensor([0.6931, 0.0000])
    """
    return functional.cross_entropy(
        _full_precision(logits),
        labels,
        ignore_index=IGNORE_INDEX,
        label_smoothing=label_smoothing,
        reduction="none",
    )


def in_chunks(measure: Callable[[Tensor, Tensor], Tensor], states: Tensor, labels: Tensor, chunk: int) -> Tensor:
    """What is measured of each token, a few of them at a time; in training nothing in between is kept.

    It is computed again in the backward pass: of a language model's head that is a third more of work, and its logits
    never stand in memory together. Numbers and gradients are those of all tokens at once.

    Args:
        measure: Maps (n, H) and (n,) to (n, ...), each token by itself.
        states: (N, H).
        labels: (N,).
        chunk: Most tokens at a time; all of them in one are not computed again.

    >>> in_chunks(token_losses, torch.zeros(3, 2), torch.tensor([1, 0, 1]), chunk=2)
    tensor([0.6931, 0.6931, 0.6931])
    """
    parts = list(zip(states.split(chunk), labels.split(chunk), strict=True))
    if len(parts) == 1 or not torch.is_grad_enabled():
        return torch.cat([measure(*part) for part in parts])
    return torch.cat([checkpoint(measure, *part, use_reentrant=False) for part in parts])


def focal(logits: Tensor, labels: Tensor, *, gamma: float, class_weights: Tensor | None = None) -> LossParts:
    """Focal loss, ``-w (1 - p)^gamma log p`` with p the probability of the true class; cross-entropy where gamma is 0.

    Args:
        logits: (B, C).
        labels: (B,) int64; -100 does not count.
        gamma: How much examples that are already right count less, 0 or more; 2 in the paper.
        class_weights: (C,), the paper's alpha, or None for 1 each.

    Returns:
        The sum, and the denominator of :func:`cross_entropy`.

    Source: Lin et al. 2017, equation 5, https://arxiv.org/abs/1708.02002.
    """
    logits = _full_precision(logits)
    weight = _weights_of(labels, class_weights, logits)
    safe_labels = labels.clamp(min=0)  # a row that does not count has weight 0
    log_p = logits.log_softmax(-1).gather(-1, safe_labels[:, None]).squeeze(-1)
    return (weight * _modulate(-torch.expm1(log_p), gamma) * -log_p).sum(), weight.sum()


def binary_cross_entropy(
    logits: Tensor, labels: Tensor, *, pos_weight: Tensor | None = None, label_smoothing: float = 0.0
) -> LossParts:
    """Sigmoid cross-entropy of C independent labels, in nats.

    Args:
        logits: (B, C).
        labels: (B, C) float, 0 or 1.
        pos_weight: (C,) weight of the positive targets, or None for 1.
        label_smoothing: s in [0, 1): targets become ``y (1 - s) + s / 2``.

    Returns:
        The sum, and B * C (also with ``pos_weight``, as torch does).
    """
    logits = _full_precision(logits)
    targets = labels.to(logits) * (1 - label_smoothing) + label_smoothing / 2
    weight = None if pos_weight is None else pos_weight.to(logits)
    loss_sum = functional.binary_cross_entropy_with_logits(logits, targets, pos_weight=weight, reduction="sum")
    return loss_sum, _count(logits)


def binary_focal(logits: Tensor, labels: Tensor, *, gamma: float, pos_weight: Tensor | None = None) -> LossParts:
    """Focal loss of C independent labels: each sigmoid cross-entropy times ``(1 - p)^gamma``, p that of the true side.

    Args:
        logits: (B, C).
        labels: (B, C) float, 0 or 1.
        gamma: As in :func:`focal`.
        pos_weight: (C,) weight of the positive targets, or None for 1.

    Returns:
        The sum, and B * C.
    """
    logits = _full_precision(logits)
    targets = labels.to(logits)
    weight = None if pos_weight is None else pos_weight.to(logits)
    losses = functional.binary_cross_entropy_with_logits(logits, targets, pos_weight=weight, reduction="none")
    p_wrong = logits.sigmoid() * (1 - targets) + (-logits).sigmoid() * targets
    return (losses * _modulate(p_wrong, gamma)).sum(), _count(logits)


def mean_squared_error(preds: Tensor, labels: Tensor) -> LossParts:
    """Squared error of a regression head, summed, and B.

    Args:
        preds: (B,) or (B, 1).
        labels: (B,) or (B, 1).

    Raises:
        ConfigError: The head has more outputs than there are labels.
    """
    preds, labels = _regression_pair(preds, labels)
    return functional.mse_loss(preds, labels, reduction="sum"), _count(preds)


def mean_absolute_error(preds: Tensor, labels: Tensor) -> LossParts:
    """Absolute error of a regression head, summed, and B; arguments of :func:`mean_squared_error`."""
    preds, labels = _regression_pair(preds, labels)
    return functional.l1_loss(preds, labels, reduction="sum"), _count(preds)


def huber(preds: Tensor, labels: Tensor, *, delta: float = 1.0) -> LossParts:
    """Huber loss of a regression head, summed, and B: half the squared error up to ``delta``, linear beyond it."""
    preds, labels = _regression_pair(preds, labels)
    return functional.huber_loss(preds, labels, reduction="sum", delta=delta), _count(preds)


def imitation(logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> LossParts:
    """How far a student's distribution over classes is from its teacher's: ``T^2 KL(teacher || student)``, in nats.

    Both are softened: logits are divided by T; the factor T^2 keeps the gradient on the scale of the hard labels'.

    Args:
        logits: (N, C).
        teacher_logits: (N, C).
        temperature: T, above 0.

    Returns:
        The sum, and N.

    Source: Hinton et al. 2015, section 2, https://arxiv.org/abs/1503.02531.

    >>> loss_sum, count = imitation(torch.tensor([[2.0, 0.0]]), torch.tensor([[2.0, 0.0]]), temperature=2.0)
    >>> round(float(loss_sum), 6), int(count)
    (0.0, 1)
    """
    student = (_full_precision(logits) / temperature).log_softmax(-1)
    teacher = (_full_precision(teacher_logits) / temperature).log_softmax(-1).to(student)
    divergence = functional.kl_div(student, teacher, reduction="sum", log_target=True)
    return divergence * temperature**2, _count(student[:, 0])


def binary_imitation(logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> LossParts:
    """The same for C independent labels: each a distribution over yes and no.

    Args:
        logits: (B, C).
        teacher_logits: (B, C).
        temperature: T, above 0.

    Returns:
        The sum, and B * C.
    """
    student, teacher = (
        torch.stack([x, torch.zeros_like(x)], -1).flatten(0, -2) for x in (logits, teacher_logits.to(logits))
    )
    loss_sum, _ = imitation(student, teacher, temperature=temperature)
    return loss_sum, _count(logits)


def per_target(loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, labels: Tensor) -> LossParts:
    """A user's own loss: the sum of its per-target losses, and how many there are.

    Args:
        loss: Maps (logits, labels) to one loss per target, of any shape.
        logits: (B, ...).
        labels: (B, ...).

    Raises:
        ConfigError: The loss returns a mean or a sum, which hides the number of targets.
    """
    losses = loss(_full_precision(logits), labels)
    if not isinstance(losses, Tensor):
        raise ConfigError(
            f"the loss returned {type(losses).__name__}, not a tensor of per-target losses",
            where="task.init_args.loss",
            fix="return one loss per target",
        )
    if losses.ndim == 0 or losses.numel() < len(logits):
        raise ConfigError(
            f"the loss returned shape {tuple(losses.shape)} for {len(logits)} examples: a mean or sum hides how many "
            "targets it stands for",
            where="task.init_args.loss",
            fix='return one loss per target, e.g. reduction="none"',
        )
    losses = _full_precision(losses)
    return losses.sum(), _count(losses)


def balanced_class_weights(counts: Sequence[int]) -> list[float]:
    """Class weights that give each class the same total weight: ``n / (C * count)``, scikit-learn's ``balanced``.

    Args:
        counts: Rows of the train split per class.

    Raises:
        ConfigError: Nothing is known about the classes, or one has no rows.

    >>> balanced_class_weights([30, 10])
    [0.6666666666666666, 2.0]
    """
    where = "task.init_args.class_weights"
    _require_counts(counts, where)
    for i, count in enumerate(counts):
        if count == 0:
            raise ConfigError(f"class {i} has no train rows to balance", where=where, fix="a list of weights")
    return [sum(counts) / (len(counts) * count) for count in counts]


def balanced_pos_weight(counts: Sequence[int], num_rows: int) -> list[float]:
    """Weights of the positive targets that give both sides of each label the same total: negatives / positives.

    Args:
        counts: Train rows that carry the label, per label.
        num_rows: Rows of the train split.

    Raises:
        ConfigError: Nothing is known about the labels, or one is on no row or on every row.

    >>> balanced_pos_weight([25, 50], num_rows=100)
    [3.0, 1.0]
    """
    where = "task.init_args.pos_weight"
    _require_counts(counts, where)
    for i, count in enumerate(counts):
        if count in (0, num_rows):
            raise ConfigError(
                f"label {i} is on {count} of {num_rows} train rows: there is nothing to balance",
                where=where,
                fix="a list of weights",
            )
    return [(num_rows - count) / count for count in counts]


def _require_counts(counts: Sequence[int], where: str) -> None:
    if len(counts) == 0:
        raise ConfigError(
            "balanced needs the label counts of the train split, which a stream does not give",
            where=where,
            fix="a list of weights",
        )


def _full_precision(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _count(values: Tensor) -> Tensor:
    """Number of elements as a 0-dim tensor; filled on the device, so nothing waits for a copy from the host."""
    return torch.full((), values.numel(), dtype=values.dtype, device=values.device)


def _weights_of(labels: Tensor, class_weights: Tensor | None, like: Tensor) -> Tensor:
    """Each target's weight (B,): its class's, 1 without weights, 0 for :data:`IGNORE_INDEX`."""
    counts = (labels != IGNORE_INDEX).to(like)
    return counts if class_weights is None else counts * class_weights.to(like)[labels.clamp(min=0)]


def _modulate(p_wrong: Tensor, gamma: float) -> Tensor:
    """``p_wrong ** gamma``; clamped off 0, where the gradient is infinite for gamma < 1 and 0 * inf is NaN."""
    return p_wrong.clamp(min=torch.finfo(p_wrong.dtype).tiny) ** gamma


def _regression_pair(preds: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Both as (B,): (B, 1) against (B,) would broadcast to (B, B) without a word."""
    if preds.numel() != labels.numel():
        raise ConfigError(
            f"regression needs one output per example: outputs {tuple(preds.shape)}, labels {tuple(labels.shape)}",
            where="model.config_overrides",
            fix="a head of one output (num_labels: 1)",
        )
    preds = _full_precision(preds).reshape(-1)
    return preds, labels.to(preds).reshape(-1)
