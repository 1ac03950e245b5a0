"""Config, tokenizer and weights of a Hugging Face model, with errors a person can act on.

safetensors only and never remote code: a model repository is data, not a program.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as hf_logging

from lit_tune.errors import ConfigError, LitTuneError, ModelError, nearest

log = logging.getLogger("lit_tune")
hf_logging.disable_progress_bar()
KEY = "model.model_name_or_path"


def quiet_transformers() -> None:
    """Errors only: what matters of its load report is said in one line of ours."""
    hf_logging.set_verbosity_error()


def explain(error: BaseException, name: str, revision: str | None) -> ModelError:
    """Turn what transformers raises into what is wrong and what to do."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    text = " ".join(str(c) for c in chain)
    folder = Path(name)
    if any(isinstance(c, GatedRepoError) for c in chain):
        return ModelError(
            f"{name} is gated: its licence must be accepted first",
            where=KEY,
            fix=f"open https://huggingface.co/{name}, accept, then run `hf auth login`",
        )
    if any(isinstance(c, RevisionNotFoundError) for c in chain):
        return ModelError(
            f"{name} has no revision {revision!r}", where="model.revision", fix="an existing branch, tag or commit"
        )
    if "trust_remote_code" in text or "custom code" in text:
        return ModelError(
            f"{name} needs code from its repository, which lit-tune never runs",
            where=KEY,
            fix="a model whose architecture is part of transformers",
        )
    if folder.exists():
        return explain_folder(folder, text)
    if any(isinstance(c, RepositoryNotFoundError) for c in chain):
        return ModelError(
            f"no model {name!r} on the Hub (or it is private)", where=KEY, fix="check the spelling, or `hf auth login`"
        )
    if "connect" in text or "offline" in text.lower():
        return ModelError(
            f"{name} is not in the local cache and the Hub cannot be reached",
            where=KEY,
            fix="connect once to download it, or give a folder with the model's files",
        )
    parent = folder.parent if folder.parent.is_dir() else Path()
    close = nearest(folder.name, (p.name for p in parent.iterdir() if p.is_dir()))
    hint = f"{parent / close}, " if close else ""
    return ModelError(
        f"there is no folder {name!r} and it is not a Hub id", where=KEY, fix=f"{hint}a folder or a Hub id"
    )


def explain_folder(folder: Path, text: str) -> ModelError:
    """Why a local folder does not load."""
    files = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    if "config.json" not in files:
        return ModelError(f"{folder} has no config.json", where=KEY, fix="a folder written by save_pretrained")
    broken = [p.name for p in folder.glob("*.safetensors") if not reads(p)]
    if broken:
        return ModelError(f"{folder / broken[0]} is damaged or cut short", where=KEY, fix="copy or download it again")
    if any(f.endswith((".bin", ".pt", ".ckpt")) for f in files) and not any(f.endswith(".safetensors") for f in files):
        return ModelError(
            f"{folder} holds pickled weights only, which can run code when read",
            where=KEY,
            fix="load it once with transformers and save_pretrained(), which writes model.safetensors",
        )
    if not any(f.endswith(".safetensors") for f in files):
        return ModelError(
            f"{folder} has no weights", where=KEY, fix="add model.safetensors, or model.from_scratch: true"
        )
    return ModelError(
        f"{folder}: {text.strip().splitlines()[0][:300]}", where=KEY, fix="a folder that transformers loads"
    )


def reads(path: Path) -> bool:
    """Whether the header of a safetensors file agrees with its size."""
    from safetensors import safe_open

    try:
        with safe_open(str(path), framework="pt"):
            return True
    except (SafetensorError, OSError):
        return False


def load_config(name: str, revision: str | None = None, overrides: dict[str, Any] | None = None) -> PretrainedConfig:
    """The model's config with fields changed.

    Args:
        name: Hub id or folder.
        revision: Branch, tag or commit.
        overrides: Field -> value; any field of the config.

    Raises:
        ModelError: Not found, gated, offline, or not a model.
        ConfigError: A field the config does not have.
    """
    quiet_transformers()
    try:
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    except LitTuneError:
        raise
    except Exception as e:
        raise explain(e, name, revision) from e
    for key, value in (overrides or {}).items():
        if not hasattr(config, key):
            known = sorted(k for k in config.to_dict() if not k.startswith("_"))
            close = nearest(key, known)
            raise ConfigError(
                f"{type(config).__name__} has no field {key!r}",
                where="model.config_overrides",
                fix=f"{close}" if close else f"one of {', '.join(known[:12])} ...",
            )
        setattr(config, key, value)
    return config


def load_tokenizer(name: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a model.

    Raises:
        ModelError: There is none, or it cannot be read.
    """
    quiet_transformers()
    try:
        return AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
    except Exception as e:
        error = explain(e, name, revision)
        if Path(name).is_dir() and (Path(name) / "config.json").is_file():
            error = ModelError(
                f"{name} has no usable tokenizer", where=KEY, fix="data.tokenizer: where its tokenizer is"
            )
        raise error from e


def max_positions(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Most tokens the model can read, or None where nothing limits it (relative positions)."""
    limits = []
    positions = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    if isinstance(positions, int) and positions > 0:
        # RoBERTa counts positions from padding_idx + 1, so that two of its 514 rows are never used
        offset = (config.pad_token_id or 0) + 1 if config.model_type in ROBERTA_LIKE else 0
        limits.append(positions - offset)
    if 0 < tokenizer.model_max_length < 1_000_000:  # "no limit" is stored as 1e30
        limits.append(tokenizer.model_max_length)
    return min(limits) if limits else None


ROBERTA_LIKE = (
    "roberta",
    "xlm-roberta",
    "camembert",
    "xlm-roberta-xl",
    "roberta-prelayernorm",
    "longformer",
    "xmod",
    "mpnet",
)


@dataclass(frozen=True)
class LoadReport:
    """What loading did. ``new_parameters`` were not in the weights and start from random values."""

    new_parameters: list[str]
    unused_parameters: list[str]


def build_model(
    auto_class: Any,
    name: str,
    config: PretrainedConfig,
    *,
    revision: str | None = None,
    from_scratch: bool = False,
    dtype: str = "float32",
    attn_implementation: str | None = None,
    new_head: bool = False,
) -> tuple[PreTrainedModel, LoadReport]:
    """The model with its head, in eval mode as transformers gives it.

    Args:
        auto_class: HF Auto class of the task.
        name: Hub id or folder.
        config: From :func:`load_config`, with the labels set.
        revision: Branch, tag or commit.
        from_scratch: Random weights.
        dtype: ``float32``, ``bfloat16``, ``float16`` or ``auto`` (as stored).
        attn_implementation: Attention kernel.
        new_head: A head of another size in the weights is replaced instead of refused.

    Raises:
        ModelError: Weights that cannot be read or do not fit, or an attention kernel the model lacks.
    """
    quiet_transformers()
    torch_dtype: Any = dtype if dtype == "auto" else getattr(torch, dtype)
    options: dict[str, Any] = {"trust_remote_code": False}
    if attn_implementation:
        options["attn_implementation"] = attn_implementation
    try:
        if from_scratch:
            model = auto_class.from_config(config, dtype=None if dtype == "auto" else torch_dtype, **options)
            return model, LoadReport([], [])
        model, info = auto_class.from_pretrained(
            name,
            config=config,
            revision=revision,
            dtype=torch_dtype,
            use_safetensors=True,
            ignore_mismatched_sizes=new_head,
            output_loading_info=True,
            **options,
        )
    except (ImportError, ValueError) as e:
        if attn_implementation and ("attention" in str(e).lower() or "attn" in str(e).lower()):
            raise ModelError(
                f"{type(config).__name__} cannot use {attn_implementation!r} here: {str(e).splitlines()[0][:200]}",
                where="model.attn_implementation",
                fix="sdpa or eager",
            ) from e
        raise explain(e, name, revision) from e
    except Exception as e:
        raise explain(e, name, revision) from e
    mismatched = [entry[0] if isinstance(entry, tuple) else entry for entry in info["mismatched_keys"]]
    return model, LoadReport(sorted({*info["missing_keys"], *mismatched}), sorted(info["unexpected_keys"]))


def set_pad_token(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> str | None:
    """Give a decoder without a pad token one; returns the sentence to say, or None where there was one.

    A classifier of the GPT-2 kind reads the last token that is not padding, found by ``config.pad_token_id``: so both
    sides must agree. An existing token is taken (unk, else eos), because a new one would need a new embedding row.

    Raises:
        ModelError: A tokenizer without any special token.
    """
    said = None
    if tokenizer.pad_token_id is None:
        token = tokenizer.unk_token if tokenizer.unk_token != tokenizer.eos_token else None
        token = token or tokenizer.eos_token
        if token is None:
            raise ModelError(
                "the tokenizer has no pad, unk or eos token", where="data.tokenizer", fix="add a pad token"
            )
        tokenizer.pad_token = token
        said = f"pad token: the tokenizer has none, {token!r} (id {tokenizer.pad_token_id}) is used and saved with it"
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = tokenizer.pad_token_id
    return said
