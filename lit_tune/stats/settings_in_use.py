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
    "task.init_args.answers_column",
    "task.init_args.context_column",
    "task.init_args.label_column",
    "task.init_args.label_smoothing",
    "task.init_args.question_column",
    "task.init_args.score_column",
    "task.init_args.source_column",
    "task.init_args.tags_column",
    "task.init_args.target_column",
    "task.init_args.text_columns",
    "task.init_args.tokens_column",
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


SettingsInUse = TypedDict(
    "SettingsInUse",
    {
        "optimizer.lr": float,
        "optimizer.head_lr": float | None,
        "optimizer.weight_decay": float,
        "lr_schedule.warmup": float,
        "trainer.max_epochs": int | None,
        "trainer.max_steps": int | None,
        "early_stopping.patience": int | None,
        "model.adapter": str | None,
        "model.freeze": list[str] | None,
        "model.unfreeze": bool,
        "model.from_scratch": bool,
        "model.config_overrides": Mapping[str, Any],
        "data.val_fraction": float | None,  # None where val is a split or file of its own
        "overfit.probe_size": int,
        "task.init_args.label_smoothing": float | None,  # None where the problem has none (regression)
        "label_key": str,  # the init argument that names the column with the labels; its value stands below
        "input_key": str,
        "task.init_args.label_column": str,
        "task.init_args.text_columns": list[str],
        "num_train_rows": int | None,  # None for a stream
        "num_val_rows": int | None,  # None or 0 where there is no val split
        "dropout_field": str | None,  # see main_dropout
        "dropout": float | None,
    },
    total=False,
)
"""Config key, or fact of the run -> value in use. Every entry may be missing (unknown); None means off or not there."""


def main_dropout(model_config: Mapping[str, Any]) -> tuple[str | None, float | None]:
    """Name and value of the dropout of hidden states in a model's config; ``(None, None)`` if none is known.

    >>> main_dropout({"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.2, "classifier_dropout": None})
    ('hidden_dropout_prob', 0.1)
    """
    for field in DROPOUT_FIELDS:
        if isinstance(model_config.get(field), int | float):
            return field, float(model_config[field])
    return None, None


def settings_in_use(module: Any) -> dict[str, Any]:
    """The settings of a run.

    Args:
        module: The LightningModule, attached to its trainer.
    """
    settings, trainer, data = module.optimizer_settings, module.trainer, module.trainer.datamodule
    field, dropout = main_dropout(module.model.config.to_dict())
    rows = {name: len(encoded) for name, encoded in data.encoded.items()}
    return {
        "optimizer.lr": settings.lr,
        "optimizer.weight_decay": settings.weight_decay,
        "optimizer.head_lr": settings.head_lr,
        "lr_schedule.warmup": module.schedule_settings.warmup,
        "trainer.max_epochs": trainer.max_epochs,
        "trainer.accumulate_grad_batches": trainer.accumulate_grad_batches,
        "trainer.precision": str(trainer.precision),
        "data.train_batch_size": data.train_batch_size,
        "data.eval_batch_size": data.eval_batch_size,
        "data.val_fraction": data.preparation.val_fraction_used,
        "num_train_rows": rows.get("train"),
        "num_val_rows": rows.get("val"),
        "model.adapter": module.adapter.type if module.adapter else None,
        "model.freeze": module.freeze_patterns or None,
        "model.unfreeze": module.unfreeze_settings is not None,
        "model.gradient_checkpointing": module.gradient_checkpointing,
        "model.from_scratch": module.from_scratch,
        "model.config_overrides": dict(module.config_overrides),
        "dropout_field": field,
        "dropout": dropout,
        "label_key": f"task.init_args.{module.task.label_key}",
        "input_key": f"task.init_args.{module.task.input_key}",
        **{f"task.init_args.{k}": v for k, v in module.task.settings().items()},
        "task.init_args.label_smoothing": getattr(module.task, "label_smoothing", None),
        "task.init_args.texts_at_once": getattr(module.task, "texts_at_once", None),
    }
