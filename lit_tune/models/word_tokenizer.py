"""Tokenizers and words: one made of the words of the training texts, and words of a list kept apart."""

from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer, ByteLevel
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import WordLevelTrainer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "sep_token": "[SEP]"}
LEAST_COUNT = 2
"""Words that occur once are unknown, so that the vector of unknown words is trained."""


def learn_words(texts: Iterable[str], size: int) -> PreTrainedTokenizerBase:
    """A word-level tokenizer: lower case, accents off, punctuation and Chinese characters one by one.

    Args:
        texts: Of the rows that are trained on, and of no others.
        size: Most entries: the most frequent words, those of the same count in alphabetical order.
    """
    backend = Tokenizer(WordLevel(unk_token=SPECIAL["unk_token"]))
    backend.normalizer = BertNormalizer(lowercase=True)
    backend.pre_tokenizer = BertPreTokenizer()
    trainer = WordLevelTrainer(
        vocab_size=size, min_frequency=LEAST_COUNT, special_tokens=[*SPECIAL.values()], show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    return of_words(backend.to_str())


def of_words(state: str) -> PreTrainedTokenizerBase:
    """The tokenizer of :func:`learn_words` from what ``to_str`` of its backend gave."""
    backend = Tokenizer.from_str(state)
    separator = (SPECIAL["sep_token"], backend.token_to_id(SPECIAL["sep_token"]))
    backend.post_processor = TemplateProcessing(single="$A", pair=f"$A {separator[0]} $B:1", special_tokens=[separator])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, model_input_names=["input_ids", "attention_mask"], **SPECIAL
    )


def mark_words(tokenizer: PreTrainedTokenizerBase) -> None:
    """Have a byte-level tokenizer (RoBERTa, GPT-2, ModernBERT) take each word of a list for one, as behind a space.

    Without it ``["New", "York"]`` is read as "NewYork". It is saved with the tokenizer. ``add_prefix_space=True`` of
    ``from_pretrained`` does the same for a class of its own only (RobertaTokenizer), not for ModernBERT's.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    before: Any = getattr(backend, "pre_tokenizer", None)
    if backend is None or not isinstance(before, ByteLevel) or before.add_prefix_space:
        return
    backend.pre_tokenizer = ByteLevel(
        add_prefix_space=True, trim_offsets=before.trim_offsets, use_regex=before.use_regex
    )
    tokenizer.add_prefix_space = True  # type: ignore[attr-defined]
    tokenizer.init_kwargs["add_prefix_space"] = True  # a class of its own sets it from here when it is loaded again
