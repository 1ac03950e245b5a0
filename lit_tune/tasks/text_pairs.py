"""Texts -> tokens: two read together, the first cut and the second kept; or each read by itself."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase


def encode_pairs(
    first: Sequence[str], second: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[dict[str, list[Any]], list[int]]:
    """Tokenize pairs; of those that are too long the first text is cut.

    Only where the second alone would fill ``max_length`` is it cut, too: then the longer of the two is, token by token.

    Args:
        first: N texts that may be cut.
        second: N texts that should not.
        tokenizer: Any.
        max_length: Tokens at which a pair is cut.

    Returns:
        Features, and the number of tokens of each pair before cutting.
    """
    whole: Any = tokenizer(list(first), list(second), truncation=False, **_OPTIONS)
    features: dict[str, list[Any]] = {name: list(values) for name, values in whole.items()}
    num_tokens = [len(ids) for ids in features["input_ids"]]
    long = [i for i, n in enumerate(num_tokens) if n > max_length]
    if not long:
        return features, num_tokens
    alone: Any = tokenizer([second[i] for i in long], add_special_tokens=False, **_OPTIONS)
    room = max_length - tokenizer.num_special_tokens_to_add(pair=True)
    fits = [len(ids) < room for ids in alone["input_ids"]]  # and at least a token of the first
    for how, wanted in (("only_first", True), ("longest_first", False)):
        rows = [i for i, found in zip(long, fits, strict=True) if found == wanted]
        if rows:
            texts = [first[i] for i in rows], [second[i] for i in rows]
            short: Any = tokenizer(*texts, truncation=how, max_length=max_length, **_OPTIONS)
            for name, values in short.items():
                for i, value in zip(rows, values, strict=True):
                    features[name][i] = value
    return features, num_tokens


def encode_alone(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[dict[str, list[Any]], list[int]]:
    """Tokenize texts, and cut the end off those that are too long.

    Args:
        texts: N texts.
        tokenizer: Any.
        max_length: Tokens at which a text is cut.

    Returns:
        Features, and the number of tokens of each text before cutting.
    """
    whole: Any = tokenizer(list(texts), truncation=False, **_OPTIONS)
    features: dict[str, list[Any]] = {name: list(values) for name, values in whole.items()}
    num_tokens = [len(ids) for ids in features["input_ids"]]
    long = [i for i, n in enumerate(num_tokens) if n > max_length]
    if long:
        short: Any = tokenizer([texts[i] for i in long], truncation=True, max_length=max_length, **_OPTIONS)
        for name, values in short.items():
            for i, value in zip(long, values, strict=True):
                features[name][i] = value
    return features, num_tokens


_OPTIONS: dict[str, Any] = {"return_attention_mask": False, "verbose": False}
