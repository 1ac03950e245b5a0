"""Tokens that are added to a model's vocabulary, and the rows that the model embeds them with.

A new row begins as the mean of the rows of the pieces that its token was cut into before, where there are any, else as
the mean of all rows: nothing is drawn at random, and what the model made of the text is kept. (transformers draws from
a normal distribution around the mean of all rows, 1e-9 times their covariance: the same row for every token, nearly.)
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lit_tune.errors import ConfigError, ModelError

log = logging.getLogger("lit_tune")
KEY = "model.add_tokens"
SPECIAL_KEY = "model.add_special_tokens"
FIRST_WITHOUT_SPACES = 0x0E00
"""Thai; scripts before it (Latin, Greek, Cyrillic, Hebrew, Arabic, Devanagari ...) put spaces between words."""
_SHOWN = 4


@dataclass(frozen=True)
class NewTokens:
    """What the model has to embed.

    Args:
        size: Tokens in all; the model embeds at least as many.
        pieces: Id of each added token -> ids of the pieces it was cut into before.
    """

    size: int = 0
    pieces: dict[int, list[int]] = field(default_factory=dict)


NO_TOKENS = NewTokens()


def read_tokens(given: str | Sequence[str] | None) -> list[str]:
    """``model.add_tokens``: a list, or a text file with one token per line.

    Raises:
        ConfigError: No such file, an empty token, or one that stands there twice.
    """
    if isinstance(given, str):
        try:
            tokens = [line.strip() for line in Path(given).expanduser().read_text("utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            what = f"{given} is no file with a token per line"
            raise ConfigError(what, where=KEY, fix=f"a file, or a list of tokens: [{given}]") from error
    else:
        tokens = list(given or [])
    repeated = sorted({token for token in tokens if tokens.count(token) > 1})
    if repeated or not all(isinstance(token, str) and token.strip() for token in tokens):
        said = f"{repeated[0]!r} stands there twice" if repeated else "there is an empty token"
        raise ConfigError(said, where=KEY, fix="name each token once")
    return tokens


def add_tokens(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str], special: Sequence[str], num_embedded: int | None
) -> NewTokens:
    """Teach the tokenizer new tokens.

    A token of letters and digits is found as a whole word only, in scripts that put spaces between words: ``art`` is
    not found in ``party``.

    Args:
        tokenizer: Changed by it.
        tokens: Words; one that the tokenizer knows stays as it is.
        special: Markers: left out when ids are decoded without special tokens, and never hidden by MaskedLM.
        num_embedded: Rows that the model has: a token of the tokenizer's own without a row is as new as any.
    """
    known = tokenizer.get_vocab()
    wanted = [*tokens, *special]
    limit = num_embedded or len(known)
    pieces = {token: _pieces(tokenizer, token, limit) for token in wanted if token not in known}
    is_new = [token for token in wanted if token not in known or known[token] >= limit]
    if old := [token for token in wanted if token not in is_new]:
        log.warning("%s: the tokenizer knows %s already, which stay as they are", KEY, ", ".join(old[:_SHOWN]))
    tokenizer.add_tokens([AddedToken(t, single_word=_is_word(t)) for t in tokens if t not in known])
    if markers := [t for t in special if t not in known]:
        extra: dict[str, Any] = {"additional_special_tokens": markers}
        tokenizer.add_special_tokens(extra, replace_extra_special_tokens=False)
    ids = {token: int(tokenizer.convert_tokens_to_ids(token)) for token in is_new}  # type: ignore[arg-type]
    return NewTokens(len(tokenizer), {ids[token]: pieces.get(token, []) for token in is_new})


def _pieces(tokenizer: PreTrainedTokenizerBase, token: str, limit: int) -> list[int]:
    """Ids that have rows already and mean something."""
    ids: Any = tokenizer(token, add_special_tokens=False)["input_ids"]
    return [i for i in ids if i != tokenizer.unk_token_id and i < limit]


def _is_word(token: str) -> bool:
    return all(c.isalnum() and ord(c) < FIRST_WITHOUT_SPACES for c in token)


def check_embedded(tokenizer: PreTrainedTokenizerBase, tokens: NewTokens, embedded: Any) -> None:
    """Refuse a tokenizer with tokens that the model embeds neither now nor then.

    Args:
        tokenizer: With the added tokens.
        tokens: The added ones.
        embedded: Rows that the model has; anything but a number says nothing.

    Raises:
        ModelError: There are such tokens.
    """
    if not isinstance(embedded, int) or len(tokenizer) <= embedded:
        return
    missing = [t for t, i in tokenizer.get_vocab().items() if i >= embedded and i not in tokens.pieces]
    if missing:
        count = len(tokenizer) - len(tokens.pieces)
        few = f"model.add_tokens: {sorted(missing)}" if len(missing) <= _SHOWN else "model.add_tokens with their names"
        raise ModelError(
            f"the tokenizer has {max(count, embedded + len(missing)):,} tokens, the model embeds {embedded:,}",
            where="data.tokenizer",
            fix=f"the tokenizer the model was trained with; or give them rows of their own: {few}",
        )


def num_rows(config: PretrainedConfig) -> int | None:
    """Rows that a model with this config has, or None."""
    found = getattr(config.get_text_config(), "vocab_size", None)
    return found if isinstance(found, int) else None


@torch.no_grad()
def embed(model: PreTrainedModel, tokens: NewTokens) -> None:
    """Give the model rows for added tokens: embeddings, a head over the vocabulary, its bias.

    Rows that pad the vocabulary are used up first; a tied head stays tied. The bias of a new token is the mean of all.

    Args:
        model: As it was loaded; changed by it, its config too.
        tokens: What it has to embed.

    Raises:
        ModelError: The architecture cannot.
    """
    if not tokens.pieces and not tokens.size:
        return
    inputs: Any = model.get_input_embeddings()
    old = int(inputs.weight.shape[0])
    if tokens.size > old:
        try:
            with torch.random.fork_rng(devices=[]):  # transformers' own rows are drawn, and then replaced
                model.resize_token_embeddings(tokens.size, mean_resizing=False)
        except Exception as error:
            said = " ".join(str(error).split())[:200] or type(error).__name__
            what = f"{type(model).__name__} cannot embed more tokens: {said}"
            raise ModelError(what, where=KEY, fix="leave it out, or another model") from error
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()  # type: ignore[operator]
    if inputs.weight.device.type == "meta":
        return
    new = {**{row: [] for row in range(old, tokens.size)}, **tokens.pieces}
    matrices = [inputs.weight]
    if isinstance(outputs, nn.Linear) and outputs.weight.data_ptr() != inputs.weight.data_ptr():
        matrices.append(outputs.weight)
    for matrix in matrices:
        _fill(matrix, new, old)
    bias = getattr(outputs, "bias", None)
    if bias is not None:
        bias[[*new]] = bias[:old].float().mean().to(bias.dtype)


def _fill(matrix: torch.Tensor, new: dict[int, list[int]], old: int) -> None:
    padding = [row for row in new if row < old]
    total = matrix[:old].sum(0, dtype=torch.float32) - matrix[padding].sum(0, dtype=torch.float32)
    mean = total / (old - len(padding))  # without a copy of what may be gigabytes
    for row, pieces in new.items():
        value = matrix[pieces].float().mean(0) if pieces else mean
        matrix[row] = value.to(matrix.dtype)
