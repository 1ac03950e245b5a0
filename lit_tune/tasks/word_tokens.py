"""Words -> tokens, and which token speaks for which word."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from lit_tune.losses import IGNORE_INDEX

UNREAD = -1
"""Place of the first token of a word that has none: it was cut off, or no token is left of it (control characters)."""


def tokenize_words(
    sentences: Sequence[Sequence[str]], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[dict[str, list[Any]], list[list[int | None]]]:
    """Tokenize once without cutting, so that what is cut can be counted; only rows that are too long go twice.

    Args:
        sentences: B lists of words.
        tokenizer: A fast one.
        max_length: Tokens at which a sentence is cut.

    Returns:
        Features with ``word_starts`` (place of each word's first token, or ``UNREAD``), ``num_tokens`` (before
        cutting), ``num_cut_words`` and ``num_words_without_tokens``; and for each row the word of every token, None for
        special ones.
    """
    whole: Any = tokenizer(sentences, is_split_into_words=True, truncation=False, **_OPTIONS)  # type: ignore[arg-type]
    features: dict[str, list[Any]] = {name: list(values) for name, values in whole.items()}
    words_of = [whole.word_ids(i) for i in range(len(sentences))]
    features["num_tokens"] = [len(ids) for ids in features["input_ids"]]
    starts = [word_starts(words, len(s)) for words, s in zip(words_of, sentences, strict=True)]
    features["num_words_without_tokens"] = [row.count(UNREAD) for row in starts]
    features["num_cut_words"] = [0] * len(sentences)
    long = [i for i, n in enumerate(features["num_tokens"]) if n > max_length]
    if long:
        short: Any = tokenizer(
            [sentences[i] for i in long], is_split_into_words=True, truncation=True, max_length=max_length, **_OPTIONS
        )
        for j, i in enumerate(long):
            for name in short:
                features[name][i] = short[name][j]
            words_of[i] = short.word_ids(j)
            kept = word_starts(words_of[i], len(sentences[i]))
            features["num_cut_words"][i] = kept.count(UNREAD) - starts[i].count(UNREAD)
            starts[i] = kept
    features["word_starts"] = starts
    return features, words_of


_OPTIONS: dict[str, Any] = {"return_attention_mask": False, "verbose": False}


def word_starts(words: Sequence[int | None], num_words: int) -> list[int]:
    """Place of the first token of each word.

    Args:
        words: The word of every token, None for special ones.
        num_words: Words of the sentence.

    >>> word_starts([None, 0, 0, 2, None], 4)
    [1, -1, 3, -1]
    """
    starts = [UNREAD] * num_words
    for place, word in enumerate(words):
        if word is not None and starts[word] == UNREAD:
            starts[word] = place
    return starts


def token_labels(words: Sequence[int | None], labels: Sequence[int], continuing: Sequence[int] | None) -> list[int]:
    """A label for each token, -100 where none counts.

    Args:
        words: The word of every token, None for special ones.
        labels: The label of every word.
        continuing: Label of a word -> label of its further tokens; None leaves those out.

    >>> token_labels([None, 0, 0, 1, None], [1, 0], continuing=[0, 2, 2])
    [-100, 1, 2, 0, -100]
    """
    found = [IGNORE_INDEX] * len(words)
    last: int | None = None
    for place, word in enumerate(words):
        if word is not None and (word != last or continuing is not None):
            label = labels[word]
            found[place] = label if word != last or continuing is None else continuing[label]
        last = word
    return found
