"""Targets as tokens: a decoder's side of the tokenizer, languages, and where a text ends."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_tune.errors import ConfigError, ModelError, nearest

_OPTIONS: dict[str, Any] = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}


def end_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends a text.

    Raises:
        ModelError: There is none.
    """
    found = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    if found is None:
        raise ModelError(
            "the tokenizer has no token that ends a text", where="data.tokenizer", fix="a tokenizer with eos_token"
        )
    return int(found)  # type: ignore[arg-type]


def encode_sources(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[list[list[int]], list[int]]:
    """Sources as tokens, cut at ``max_length``, and the tokens of each before cutting."""
    found: Any = tokenizer(list(texts), truncation=False, **_OPTIONS)
    ids, counts = list(found["input_ids"]), [len(row) for row in found["input_ids"]]
    long = [i for i, n in enumerate(counts) if n > max_length]
    if long:
        cut: Any = tokenizer([texts[i] for i in long], truncation=True, max_length=max_length, **_OPTIONS)
        for i, row in zip(long, cut["input_ids"], strict=True):
            ids[i] = row
    return ids, counts


def encode_targets(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[list[list[int]], list[int]]:
    """The same of targets, by the tokenizer's rules for those; each ends with the end token, also where it is cut.

    Some tokenizers put a token for the language behind it (mBART).
    """
    end = end_token(tokenizer)
    found: Any = tokenizer(text_target=list(texts), truncation=False, **_OPTIONS)
    ids = [row if end in row[-2:] else [*row, end] for row in found["input_ids"]]
    counts = [len(row) for row in ids]
    long = [i for i, n in enumerate(counts) if n > max_length]
    if long:
        targets = [texts[i] for i in long]
        cut: Any = tokenizer(text_target=targets, truncation=True, max_length=max_length, **_OPTIONS)
        for i, row in zip(long, cut["input_ids"], strict=True):
            ids[i] = row if end in row[-2:] else [*row[: max_length - 1], end]
    return ids, counts


def set_languages(tokenizer: PreTrainedTokenizerBase, source: str | None, target: str | None) -> None:
    """Set the languages of a multilingual tokenizer; they are saved with it.

    Args:
        tokenizer: Changed by it.
        source: Its code for the language of the sources, as ``en_XX`` or ``eng_Latn``.
        target: That of the targets.

    Raises:
        ModelError: The tokenizer knows no languages.
        ConfigError: Not this one.
    """
    names = {"src_lang": source, "tgt_lang": target}
    if source is None and target is None:
        return
    if not hasattr(tokenizer, "src_lang"):
        raise ModelError(
            f"{type(tokenizer).__name__} has no languages", where="task.init_args.src_lang", fix="leave it out"
        )
    for name, code in names.items():
        if code is None:
            raise ConfigError("is missing beside the other language", where=f"task.init_args.{name}", fix="both")
        if language_token(tokenizer, code) is None:
            close = nearest(code, map(str, tokenizer.all_special_tokens))
            fix = close or "a code that the model's card lists"
            raise ConfigError(f"the tokenizer has no language {code!r}", where=f"task.init_args.{name}", fix=fix)
        setattr(tokenizer, name, code)
        tokenizer.init_kwargs[name] = code


def language_token(tokenizer: Any, code: str) -> int | None:
    """The token of a language; M2M100 writes ``__en__`` for ``en``."""
    for name in (code, f"__{code}__"):
        token = tokenizer.convert_tokens_to_ids(name)
        if token is not None and token != tokenizer.unk_token_id:
            return int(token)
    return None


def begin_in(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, code: str) -> None:
    """Have the model write in a language: its token stands where the tokenizer puts it in targets.

    Args:
        model: Changed by it: its generation config, and of mBART the config.
        tokenizer: With this language as that of targets.
        code: Of the language.
    """
    ids: Any = tokenizer(text_target="a", **_OPTIONS)["input_ids"]
    token, generation = language_token(tokenizer, code), model.generation_config
    assert generation is not None
    if ids[0] == token:
        generation.forced_bos_token_id = token
    elif ids[-1] == token:  # mBART of 25 languages begins with it in place of a start token
        generation.decoder_start_token_id = model.config.decoder_start_token_id = token
