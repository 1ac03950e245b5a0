"""How a model reads text: its tokenizer, its config, and how many tokens it can take. No weights."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from lit_tune.errors import ConfigError, ModelError
from lit_tune.models import text_cnn
from lit_tune.models.load import load_config, load_tokenizer, set_pad_token
from lit_tune.models.positions import max_positions
from lit_tune.models.vocabulary import NewTokens, add_tokens, check_embedded, num_rows, read_tokens
from lit_tune.models.word_tokenizer import learn_words, of_words

log = logging.getLogger("lit_tune")
DEFAULT_MAX_LENGTH = 512
"""Attention costs the square of the length; longer texts are a decision to take, not a default."""


def as_it_is(tokenizer: PreTrainedTokenizerBase) -> None:
    """Nothing is set."""


@dataclass
class TextReader:
    """Tokenizer and config of a model, each read once.

    Args:
        model_name: Hub id or folder of the model.
        revision: Branch, tag or commit.
        tokenizer_name: Where another tokenizer is; default: the model's own.
        max_length_given: ``data.max_length``.
        config_overrides: ``model.config_overrides``: they may change how many tokens the model takes.
        num_texts: Texts that are read together, each of which wants a token at least.
        prepare: Sets what the task needs of the tokenizer.
        usual_max_length: What ``max_length`` is where nothing is given and the model takes so many.
        add_tokens: ``model.add_tokens``: a list, or a file with one per line.
        add_special_tokens: ``model.add_special_tokens``.
        config_class: Of ``model.model_class``.
    """

    model_name: str
    revision: str | None = None
    tokenizer_name: str | None = None
    max_length_given: int | None = None
    config_overrides: dict[str, Any] = field(default_factory=dict)
    num_texts: int = 1
    prepare: Callable[[PreTrainedTokenizerBase], None] = as_it_is
    usual_max_length: int = DEFAULT_MAX_LENGTH
    add_tokens: str | list[str] | None = None
    add_special_tokens: list[str] = field(default_factory=list)
    config_class: type[PretrainedConfig] | None = None
    new_tokens: NewTokens = field(default_factory=NewTokens, init=False)
    """What was added, once the tokenizer was read."""

    @property
    def learns(self) -> bool:
        """Whether the tokenizer is made of the training texts."""
        return self.tokenizer_name is None and text_cnn.is_new(self.model_name)

    def learn(self, texts: Iterable[str]) -> None:
        """Make the tokenizer, where it is made of the training texts.

        Args:
            texts: Of the rows that are trained on.
        """
        if self.learns:
            self.__dict__["tokenizer"] = learn_words(texts, self.config.vocab_size)

    @property
    def learned(self) -> str | None:
        """What was learned, for :meth:`recall`; None where nothing is."""
        return self.tokenizer.backend_tokenizer.to_str() if self.learns else None  # type: ignore[attr-defined]

    def recall(self, learned: str | None) -> None:
        """The tokenizer as it was learned before."""
        if self.learns and learned is not None:
            self.__dict__["tokenizer"] = of_words(learned)

    @cached_property
    def config(self) -> PretrainedConfig:
        """The model's config."""
        return load_config(self.model_name, self.revision, self.config_overrides, self.config_class)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, with a pad token.

        Raises:
            ModelError: It has tokens that the model does not embed.
        """
        if self.learns:
            raise ModelError(
                f"a new {self.model_name} knows no words: they are learned from train",
                where="model.model_name_or_path",
                fix="lit-tune fit; then --config RUN_DIR/config.yaml, or the folder RUN_DIR/best",
            )
        if self.tokenizer_name:
            tokenizer = load_tokenizer(self.tokenizer_name, key="data.tokenizer")
        else:
            tokenizer = load_tokenizer(self.model_name, self.revision)
        self.prepare(tokenizer)
        if said := set_pad_token(tokenizer, self.config):
            log.info(said)
        embedded = num_rows(self.config)
        if self.add_tokens or self.add_special_tokens:
            wanted = read_tokens(self.add_tokens), read_tokens(self.add_special_tokens)
            self.new_tokens = add_tokens(tokenizer, *wanted, embedded)
        check_embedded(tokenizer, self.new_tokens, embedded)
        return tokenizer

    @cached_property
    def max_length(self) -> int:
        """Tokens at which a text is cut.

        Raises:
            ModelError: More than the model has positions.
            ConfigError: So few that only special tokens fit.
        """
        limit = None if self.learns else max_positions(self.config, self.tokenizer)
        if self.max_length_given is None:
            return min(self.usual_max_length, limit or self.usual_max_length)
        if limit is not None and self.max_length_given > limit:
            raise ModelError(
                f"{self.max_length_given} is more than the {limit} tokens this model can read",
                where="data.max_length",
                fix=f"data.max_length: {limit}",
            )
        is_pair = self.num_texts > 1
        special = int(is_pair) if self.learns else self.tokenizer.num_special_tokens_to_add(pair=is_pair)
        least = special + 1 + is_pair
        if self.max_length_given < least:
            raise ConfigError(
                f"{self.max_length_given} tokens leave no room for text beside the special ones",
                where="data.max_length",
                fix=f"data.max_length: {least} at the very least",
            )
        return self.max_length_given
