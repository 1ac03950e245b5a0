"""Where the names of Hugging Face's TrainingArguments went. One table, for messages and for the README."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Replacement:
    """What stands for a TrainingArguments name here.

    Args:
        fix: What to write instead: a key, or a key with its value.
        note: What is different, one short clause.
    """

    fix: str
    note: str = ""


TRAINING_ARGUMENTS: dict[str, Replacement] = {
    "output_dir": Replacement("run_dir"),
    "logging_dir": Replacement("run_dir", "TensorBoard files are in run_dir/tensorboard"),
    "overwrite_output_dir": Replacement("lit-tune fit --overwrite"),
    "seed": Replacement("seed_everything"),
    "data_seed": Replacement("data.seed"),
    "num_train_epochs": Replacement("trainer.max_epochs"),
    "max_steps": Replacement("trainer.max_steps", "counts optimizer steps"),
    "per_device_train_batch_size": Replacement("data.train_batch_size"),
    "per_device_eval_batch_size": Replacement("data.eval_batch_size"),
    "auto_find_batch_size": Replacement("data.train_batch_size", "not searched for"),
    "gradient_accumulation_steps": Replacement(
        "trainer.accumulate_grad_batches", "loss and gradient do not depend on it"
    ),
    "gradient_checkpointing": Replacement("model.gradient_checkpointing"),
    "max_grad_norm": Replacement("trainer.gradient_clip_val"),
    "learning_rate": Replacement("optimizer.lr"),
    "weight_decay": Replacement("optimizer.weight_decay", "none on biases and norms, as there"),
    "optim": Replacement("optimizer.name", "adamw, adafactor, sgd, adamw_8bit"),
    "adam_beta1": Replacement("optimizer.betas: [0.9, 0.999]"),
    "adam_beta2": Replacement("optimizer.betas: [0.9, 0.999]"),
    "adam_epsilon": Replacement("optimizer.eps"),
    "lr_scheduler_type": Replacement("lr_schedule.name", "linear, cosine, constant, constant_with_warmup, ..."),
    "warmup_steps": Replacement("lr_schedule.warmup", "a number of at least 1 is steps"),
    "warmup_ratio": Replacement("lr_schedule.warmup", "a number below 1 is a fraction of all steps"),
    "eval_strategy": Replacement("eval_every_steps", "validation runs after each epoch, or every n optimizer steps"),
    "evaluation_strategy": Replacement(
        "eval_every_steps", "validation runs after each epoch, or every n optimizer steps"
    ),
    "eval_steps": Replacement("eval_every_steps", "counts optimizer steps"),
    "save_strategy": Replacement("checkpoint.every_n_steps", "without it a checkpoint is written after each epoch"),
    "save_steps": Replacement("checkpoint.every_n_steps"),
    "save_total_limit": Replacement("checkpoint.keep_best and checkpoint.keep_last"),
    "load_best_model_at_end": Replacement("checkpoint.monitor", "always so: the best weights are exported and tested"),
    "metric_for_best_model": Replacement("checkpoint.monitor", "with its stage, e.g. val/f1"),
    "greater_is_better": Replacement("checkpoint.monitor", "the direction of a metric is known"),
    "early_stopping_patience": Replacement("early_stopping.patience", "counts validations"),
    "early_stopping_threshold": Replacement("early_stopping.min_delta"),
    "logging_steps": Replacement("trainer.log_every_n_steps"),
    "logging_strategy": Replacement("trainer.log_every_n_steps"),
    "report_to": Replacement("logger", "tensorboard, csv, wandb, a list of them, or none"),
    "run_name": Replacement("wandb.name"),
    "project": Replacement("wandb.project"),
    "fp16": Replacement("trainer.precision: 16-mixed"),
    "bf16": Replacement("trainer.precision: bf16-mixed"),
    "fp16_opt_level": Replacement("trainer.precision: 16-mixed", "Apex is not used"),
    "use_cpu": Replacement("trainer.accelerator: cpu"),
    "no_cuda": Replacement("trainer.accelerator: cpu"),
    "dataloader_num_workers": Replacement("data.num_workers"),
    "dataloader_pin_memory": Replacement("data.pin_memory"),
    "dataloader_persistent_workers": Replacement("data.persistent_workers"),
    "ddp_backend": Replacement("trainer.strategy", "class_path: DDPStrategy, init_args: {process_group_backend: gloo}"),
    "ddp_find_unused_parameters": Replacement("trainer.strategy: ddp_find_unused_parameters_true"),
    "deepspeed": Replacement("trainer.strategy: ddp", "DeepSpeed is not supported yet"),
    "fsdp": Replacement("trainer.strategy: ddp", "FSDP is not supported yet"),
    "torch_compile": Replacement("model.compile: true"),
    "label_smoothing_factor": Replacement("task.init_args.label_smoothing"),
    "debug": Replacement("lit-tune fit --debug", "shows a traceback"),
    "resume_from_checkpoint": Replacement("resume", "by itself where a run stopped; or the path of a checkpoint"),
    "push_to_hub": Replacement("run_dir", "run_dir/best is a from_pretrained folder to upload"),
    "hub_model_id": Replacement("run_dir", "run_dir/best is a from_pretrained folder to upload"),
    "save_safetensors": Replacement("run_dir", "run_dir/best is always safetensors"),
    "group_by_length": Replacement("data.group_by_length", "on by default; evaluation is sorted by length, too"),
    "remove_unused_columns": Replacement("task.init_args.text_columns", "columns are named, the others are not read"),
}
"""TrainingArguments name (and EarlyStoppingCallback's two) -> what is written here."""

OTHER_NAMES: dict[str, Replacement] = {
    "batch_size": Replacement("data.train_batch_size"),
    "epochs": Replacement("trainer.max_epochs"),
    "num_epochs": Replacement("trainer.max_epochs"),
    "device": Replacement("trainer.accelerator"),
    "num_labels": Replacement("task.init_args.label_names", "the classes are read from the data"),
    "hidden_dropout_prob": Replacement("model.config_overrides.hidden_dropout_prob"),
    "attention_probs_dropout_prob": Replacement("model.config_overrides.attention_probs_dropout_prob"),
    "tokenizer_name": Replacement("data.tokenizer"),
    "text_column": Replacement("task.init_args.text_columns"),
    "train_file": Replacement("data.train"),
    "validation_file": Replacement("data.val"),
    "test_file": Replacement("data.test"),
    "dataset_name": Replacement("data.dataset"),
    "dataset_config_name": Replacement("data.name"),
    "max_seq_length": Replacement("data.max_length"),
    "trust_remote_code": Replacement(
        "model.model_name_or_path", "code from the Hub is not run; name a model of transformers"
    ),
}
"""Names of other scripts and of model configs that people bring along."""


def as_markdown() -> str:
    """The table of the README."""
    rows = [f"| `{name}` | `{new.fix}` | {new.note} |" for name, new in TRAINING_ARGUMENTS.items()]
    return "\n".join(["| TrainingArguments | lit-tune | |", "|---|---|---|", *rows])
