"""Question and context -> tokens: a long context becomes several windows, each behind the whole question.

Features of a row hold one item per window: ``input_ids`` (and ``token_type_ids``), ``context_begins`` (place of the
first token of the context), ``char_starts`` and ``char_ends`` (characters of each token of the context),
``null_places`` (the token that says "no answer here").
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from lit_tune.errors import ConfigError

USUAL_STRIDE = 128
"""Tokens that neighbouring windows share (BERT's run_squad.py)."""
CHARS_AT_ONCE = 1_000_000
"""Of contexts that are tokenized together: Python's lists of their tokens take about 100 MB."""


def stride_of(stride: int | None, max_length: int, num_special: int) -> int:
    """Tokens that neighbouring windows share.

    Args:
        stride: What was asked for; None: 128, or a third of a window where that is less.
        max_length: Tokens of a window.
        num_special: Special tokens among them.

    Raises:
        ConfigError: More than a window behind a long question has room for.

    >>> stride_of(None, 384, 3), stride_of(None, 60, 3), stride_of(100, 384, 3)
    (128, 20, 100)
    """
    if stride is None:
        return min(USUAL_STRIDE, max_length // 3)
    room = max_length - num_special - max_question_tokens(max_length, num_special)
    if not 0 <= stride < room:
        raise ConfigError(
            f"{stride} is not from 0 to {room - 1}, what windows of {max_length} tokens can share",
            where="task.init_args.stride",
            fix=f"task.init_args.stride: {min(USUAL_STRIDE, max_length // 3)}, or a larger data.max_length",
        )
    return stride


def max_question_tokens(max_length: int, num_special: int) -> int:
    """Half of a window is always left to the context."""
    return max(1, (max_length - num_special) // 2)


def tokenize_windows(
    questions: Sequence[str],
    contexts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    stride: int | None,
) -> dict[str, list[Any]]:
    """Windows of B rows; what they hold is told above, numbers are numpy int32.

    Returns:
        The features, and ``num_tokens`` (of question and context), ``num_windows`` and ``num_cut_questions``.
    """
    num_special = tokenizer.num_special_tokens_to_add(pair=True)
    shared = stride_of(stride, max_length, num_special)
    limit = max_question_tokens(max_length, num_special)
    features: dict[str, list[Any]] = {name: [] for name in ("num_tokens", "num_windows", "num_cut_questions")}
    for rows in _groups(contexts):
        short, cut = short_questions([questions[i] for i in rows], tokenizer, limit)
        options = {"max_length": max_length, "stride": shared, "truncation": "only_second"}
        encoded: Any = tokenizer(
            short,
            [contexts[i] for i in rows],
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
            **options,
        )
        windows = [_window(encoded, i, tokenizer) for i in range(len(encoded["input_ids"]))]
        of_row = np.asarray(encoded["overflow_to_sample_mapping"])
        for row in range(len(rows)):
            own = [windows[i] for i in np.flatnonzero(of_row == row)]
            for name in own[0]:
                features.setdefault(name, []).append([window[name] for window in own])
            features["num_tokens"].append(_num_tokens(own))
            features["num_windows"].append(len(own))
        features["num_cut_questions"] += cut
    return features


def short_questions(
    questions: Sequence[str], tokenizer: PreTrainedTokenizerBase, limit: int
) -> tuple[list[str], list[int]]:
    """Questions of at most so many tokens, without white space at their beginning; and 1 for each that was cut."""
    tidy = [question.lstrip() for question in questions]
    encoded: Any = tokenizer(
        tidy, add_special_tokens=False, truncation=False, return_offsets_mapping=True, verbose=False
    )
    cut = [int(len(ids) > limit) for ids in encoded["input_ids"]]
    ends = [
        offsets[limit - 1][1] if is_cut else None
        for offsets, is_cut in zip(encoded["offset_mapping"], cut, strict=True)
    ]
    return [question[:end] for question, end in zip(tidy, ends, strict=True)], cut


def answer_places(window: dict[str, Any], start: int, end: int) -> tuple[int, int]:
    """First and last token of an answer; twice the null place where it does not stand in the window as a whole.

    Args:
        window: One window's features.
        start: The answer's first character in the context.
        end: The character after its last.
    """
    starts, ends, begin = window["char_starts"], window["char_ends"], int(window["context_begins"])
    null = int(window["null_places"])
    if not len(starts) or start < starts[0] or end > ends[-1]:
        return null, null
    # where tokens share characters: the last that begins so early, the first that ends so late
    first, last = np.searchsorted(starts, start, side="right") - 1, np.searchsorted(ends, end, side="left")
    return begin + int(first), begin + int(last)


def _window(encoded: Any, number: int, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """One window of an encoding."""
    ids = encoded["input_ids"][number]
    of_context = np.asarray([part == 1 for part in encoded.sequence_ids(number)], dtype=bool)
    places = np.flatnonzero(of_context)
    offsets = np.asarray(encoded["offset_mapping"][number], dtype=np.int32).reshape(-1, 2)[of_context]
    window: dict[str, Any] = {"input_ids": np.asarray(ids, dtype=np.int32)}
    if "token_type_ids" in encoded:
        window["token_type_ids"] = np.asarray(encoded["token_type_ids"][number], dtype=np.int32)
    return {
        **window,
        "context_begins": int(places[0]) if len(places) else len(ids),
        "char_starts": offsets[:, 0].copy(),
        "char_ends": offsets[:, 1].copy(),
        "null_places": _null_place(ids, tokenizer),
    }


def _null_place(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that stands for no answer: CLS, else the beginning of the text."""
    special = (tokenizer.cls_token_id, tokenizer.bos_token_id)
    return next((ids.index(token) for token in special if token is not None and token in ids), 0)


def _num_tokens(windows: list[dict[str, Any]]) -> int:
    """Tokens of question and context, each once."""
    own = 0
    seen = -1
    for window in windows:
        own += int((window["char_starts"] > seen).sum())
        seen = int(window["char_starts"][-1]) if len(window["char_starts"]) else seen
    return len(windows[0]["input_ids"]) - len(windows[0]["char_starts"]) + own


def _groups(contexts: Sequence[str]) -> Iterator[list[int]]:
    """Row numbers, as many at a time as are tokenized together."""
    group: list[int] = []
    chars = 0
    for row, context in enumerate(contexts):
        if group and chars + len(context) > CHARS_AT_ONCE:
            yield group
            group, chars = [], 0
        group.append(row)
        chars += len(context)
    if group:
        yield group
