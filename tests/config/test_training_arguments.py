"""The table of names: complete for what the documents we replace use, and true on our side."""

import dataclasses

from transformers import TrainingArguments

from lit_tune.config.sections import all_keys, section_names, tasks
from lit_tune.config.training_arguments import OTHER_NAMES, TRAINING_ARGUMENTS, as_markdown

# every TrainingArguments name in the five documents that describe the training system lit-tune replaces
IN_THE_DOCUMENTS = [
    "output_dir",
    "num_train_epochs",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "eval_strategy",
    "evaluation_strategy",
    "save_strategy",
    "learning_rate",
    "weight_decay",
    "logging_dir",
    "logging_steps",
    "load_best_model_at_end",
    "metric_for_best_model",
    "greater_is_better",
    "eval_steps",
    "save_steps",
    "save_total_limit",
    "gradient_accumulation_steps",
    "gradient_checkpointing",
    "fp16",
    "bf16",
    "fp16_opt_level",
    "optim",
    "lr_scheduler_type",
    "warmup_steps",
    "warmup_ratio",
    "report_to",
    "ddp_backend",
    "ddp_find_unused_parameters",
    "deepspeed",
    "seed",
    "data_seed",
    "dataloader_num_workers",
    "dataloader_pin_memory",
    "max_grad_norm",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "push_to_hub",
    "hub_model_id",
    "resume_from_checkpoint",
    "use_cpu",
    "debug",
    "project",
    "early_stopping_patience",
    "early_stopping_threshold",
]


def test_every_name_of_the_documents_is_in_the_table():
    assert set(IN_THE_DOCUMENTS) <= TRAINING_ARGUMENTS.keys()


def test_the_names_are_those_of_transformers():
    renamed_or_removed = {
        "logging_dir", "overwrite_output_dir", "evaluation_strategy", "warmup_ratio", "no_cuda", "fp16_opt_level",
        "save_safetensors", "group_by_length",
    }  # fmt: skip
    of_early_stopping_callback = {"early_stopping_patience", "early_stopping_threshold"}
    real = {f.name for f in dataclasses.fields(TrainingArguments)}
    assert TRAINING_ARGUMENTS.keys() - real <= renamed_or_removed | of_early_stopping_callback


def test_every_replacement_begins_with_a_key_or_a_command():
    keys = all_keys(tasks()["SequenceClassification"])
    for name, new in {**TRAINING_ARGUMENTS, **OTHER_NAMES}.items():
        for part in new.fix.split(" and "):
            key = part.split(":")[0]
            known = key in keys or key.startswith("model.config_overrides.") or part.startswith("lit-tune fit --")
            assert known, f"{name} -> {new.fix}"


def test_no_name_is_a_key_of_ours_at_the_top():
    top = {k for k in all_keys() if "." not in k} | set(section_names())
    assert not (TRAINING_ARGUMENTS.keys() | OTHER_NAMES.keys()) & top


def test_the_markdown_has_a_row_per_name():
    assert len(as_markdown().splitlines()) == len(TRAINING_ARGUMENTS) + 2
