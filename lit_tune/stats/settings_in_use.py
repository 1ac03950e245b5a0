"""What :mod:`lit_tune.stats.advice` knows of a run's config: the keys it may name and the settings it reads."""

from collections.abc import Mapping
from typing import Any, TypedDict

ADVISED_KEYS = (
    "data.train",
    "data.val",
    "data.val_fraction",
    "early_stopping.patience",
    "lr_schedule.warmup",
    "model.config_overrides",
    "model.freeze",
    "optimizer.head_lr",
    "optimizer.lr",
    "optimizer.weight_decay",
    "overfit.probe_size",
    "task.init_args.label_column",
    "task.init_args.label_smoothing",
    "task.init_args.text_columns",
    "trainer.max_epochs",
    "trainer.max_steps",
)
"""Every key that advice can name; each is a key of the config."""

DROPOUT_FIELDS = (
    "hidden_dropout_prob",  # BERT, RoBERTa, DeBERTa, ELECTRA, ALBERT
    "resid_pdrop",  # GPT-2
    "dropout_rate",  # T5
    "hidden_dropout",  # Falcon, GPT-NeoX
    "mlp_dropout",  # ModernBERT
    "dropout",  # DistilBERT, BART, XLNet
    "attention_dropout",  # Llama, Mistral, Qwen: the only one there
)
"""Fields of transformers' configs for the dropout of hidden states; the first one that a config has is its main one."""


class SettingsInUse(TypedDict, total=False):
    """What the module says about its config; every entry may be missing (unknown), None means off or not set."""

    lr: float
    head_lr: float | None
    weight_decay: float
    warmup: float
    max_epochs: int | None
    max_steps: int | None
    patience: int | None  # early_stopping.patience
    dropout: Mapping[str, float]  # field of the model's config -> value in use; see dropout_in_use
    config_overrides: Mapping[str, Any]
    freeze: str | list[str] | None
    from_scratch: bool
    train_rows: int
    val_rows: int
    val_fraction: float | None  # None where val is a split or file of its own
    probe_size: int
    label_smoothing: float | None  # None where the problem has none (regression)
    label_column: str
    text_columns: list[str]


def dropout_in_use(model_config: Mapping[str, Any]) -> dict[str, float]:
    """The main dropout of a model's config, ``{}`` if none is known.

    >>> dropout_in_use({"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "classifier_dropout": None})
    {'hidden_dropout_prob': 0.1}
    """
    for field in DROPOUT_FIELDS:
        if isinstance(model_config.get(field), int | float):
            return {field: float(model_config[field])}
    return {}
