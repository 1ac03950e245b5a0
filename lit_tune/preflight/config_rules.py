"""Settings that are right one by one and wrong together, found before any data or model is touched.

Each rule looks at one subject and gives the problems it finds; all are reported at once.
"""

import re
from collections.abc import Iterator
from typing import Any

from lit_tune.errors import ConfigError, HardwareError, LitTuneError
from lit_tune.models import text_cnn
from lit_tune.preflight.confinement import hub_code, output_paths
from lit_tune.preflight.situation import Rule, Situation
from lit_tune.preflight.trainer_rules import (
    checkpoint_writers,
    hardware,
    precision,
    refused_trainer_options,
    trainer_names,
)

CNN_TASK = "SequenceClassification"
LABEL_FIELDS = ("num_labels", "id2label", "label2id", "problem_type")


def contradictions(situation: Situation) -> list[LitTuneError]:
    """Everything that cannot work, in the order of the rules."""
    return [problem for rule in RULES for problem in rule(situation)]


def data_given(s: Situation) -> Iterator[LitTuneError]:
    """Some data, and from one place."""
    dataset, train = s["data.dataset"], s["data.train"]
    if s.trains and dataset is None and train is None:
        yield ConfigError(
            "there is no data to train on", where="data.train", fix="data.train: my.csv, or data.dataset: a Hub id"
        )
    if dataset is not None and train is not None:
        yield ConfigError(
            f"train data is given twice: data.dataset: {dataset} and data.train: {_brief(train)}",
            where="data.train",
            fix="keep one of them",
        )
    for verb, key in (("validate", "data.val"), ("test", "data.test"), ("predict", "data.predict")):
        has_hub_split = dataset is not None and verb != "predict"
        has_train = verb == "validate" and train is not None and s["data.val_fraction"]
        if s.verb == verb and s[key] is None and not has_hub_split and not has_train:
            yield ConfigError(
                f"there are no rows for lit-tune {verb}", where=key, fix=f"{key}: a file (csv, jsonl, parquet ...)"
            )
    if dataset is None:
        for name in ("name", "revision", "train_split", "val_split", "test_split"):
            if s[f"data.{name}"] is not None:
                yield ConfigError(
                    f"{s[f'data.{name}']!r} has no effect: it belongs to data.dataset, which is not given",
                    where=f"data.{name}",
                    fix=f"remove data.{name}, or set data.dataset",
                )


def validation_needed(s: Situation) -> Iterator[LitTuneError]:
    """Settings that wait for a validation that never comes."""
    why = s.why_without_val
    if why is None or s.verb != "fit":
        return
    fix = "leave it out" if "limit" in why else "data.val: a file, or data.val_fraction: 0.1"
    for key in ("early_stopping.patience", "checkpoint.monitor", "eval_every_steps"):
        if s[key] is not None:
            yield ConfigError(f"{s[key]} needs validation, and there is none: {why}", where=key, fix=fix)
    if s["overfit.action"] == "stop" and s["overfit.enabled"] is not False:
        yield ConfigError(f"stop needs validation, and there is none: {why}", where="overfit.action", fix=fix)


def streaming(s: Situation) -> Iterator[LitTuneError]:
    """A stream has no length and cannot be split."""
    if not (s["data.streaming"] and s.trains):
        return
    if s["trainer.max_steps"] in (None, -1):
        yield ConfigError(
            "a stream has no length, so the steps must be given",
            where="trainer.max_steps",
            fix="trainer.max_steps: 10000",
        )
    if s["data.train"] is not None and s["data.val"] is None and s["data.val_fraction"]:
        yield ConfigError(
            "a share of a stream cannot be held out",
            where="data.val_fraction",
            fix="data.val: a file, or data.val_fraction: 0",
        )
    if s["data.limit_train"] is not None:
        yield ConfigError(
            "a subset cannot be drawn from a stream",
            where="data.limit_train",
            fix="remove it; trainer.max_steps bounds the run",
        )


def lengths(s: Situation) -> Iterator[LitTuneError]:
    """Steps, epochs and tokens that exclude each other."""
    max_steps, warmup = s["trainer.max_steps"] or -1, s["lr_schedule.warmup"]
    if max_steps > 0 and warmup is not None and warmup >= 1 and warmup >= max_steps:
        yield ConfigError(
            f"{warmup:g} warm-up steps leave nothing of trainer.max_steps: {max_steps}",
            where="lr_schedule.warmup",
            fix="lr_schedule.warmup: 0.1 is a tenth of all steps",
        )
    for unit in ("epochs", "steps"):
        low, high = s[f"trainer.min_{unit}"], s[f"trainer.max_{unit}"]
        if low and high and 0 < high < low:
            yield ConfigError(
                f"{low} is more than trainer.max_{unit}: {high}",
                where=f"trainer.min_{unit}",
                fix=f"at most {high}, or leave it out",
            )
    if s["trainer.max_epochs"] == -1 and max_steps == -1 and s["trainer.max_time"] is None and s.verb == "fit":
        yield ConfigError(
            "the run would never end", where="trainer.max_epochs", fix="trainer.max_epochs: 3, or trainer.max_steps"
        )
    multiple, length = s["data.pad_to_multiple_of"], s["data.max_length"]
    if s["data.padding"] == "max_length" and multiple and length and length % multiple:
        rounded = -(-length // multiple) * multiple
        yield ConfigError(
            f"{length} is not a multiple of data.pad_to_multiple_of: {multiple}",
            where="data.max_length",
            fix=f"data.max_length: {rounded}",
        )


def monitors(s: Situation) -> Iterator[LitTuneError]:
    """Only validation metrics are measured in eval mode, on rows that are not trained on."""
    for key in ("checkpoint.monitor", "early_stopping.monitor"):
        name = s[key]
        if name is not None and not name.startswith("val/"):
            metric = re.sub(r"^(train|test|eval|val)[/_]", "", name)
            yield ConfigError(f"{name!r} is not a validation metric", where=key, fix=f"{key}: val/{metric}")


def without_effect(s: Situation) -> Iterator[LitTuneError]:
    """Settings that nothing would read: never ignored silently."""
    if s["early_stopping.patience"] is None:
        for name, default in (("monitor", None), ("min_delta", 0)):
            if s[f"early_stopping.{name}"] != default:
                yield ConfigError(
                    "has no effect: early stopping is off without patience",
                    where=f"early_stopping.{name}",
                    fix="early_stopping.patience: 3",
                )
    if s["checkpoint.keep_best"] == 0 and s["checkpoint.monitor"] is not None and s["early_stopping.patience"] is None:
        yield ConfigError(
            "has no effect: no best checkpoint is kept", where="checkpoint.monitor", fix="checkpoint.keep_best: 1"
        )
    if s["checkpoint.keep_last"] == 0 and s["checkpoint.every_n_steps"] is not None:
        yield ConfigError(
            "has no effect: no last checkpoint is kept", where="checkpoint.every_n_steps", fix="checkpoint.keep_last: 1"
        )
    loggers = _as_list(s["logger"])
    if "none" in loggers and len(loggers) > 1:
        yield ConfigError(
            f"none contradicts {', '.join(n for n in loggers if n != 'none')}", where="logger", fix="remove none"
        )
    if len(set(loggers)) < len(loggers):
        yield ConfigError(
            "the same logger is given twice", where="logger", fix=f"[{', '.join(dict.fromkeys(loggers))}]"
        )
    for name, value in (s["wandb"] or {}).items():
        if "wandb" not in loggers and value is not None:
            yield ConfigError(
                f"has no effect: logger is {', '.join(loggers)}",
                where=f"wandb.{name}",
                fix="logger: wandb, or [tensorboard, wandb]",
            )


def losses(s: Situation) -> Iterator[LitTuneError]:
    """Loss options of sequence classification that exclude each other."""
    given = {n: s[f"task.init_args.{n}"] for n in ("class_weights", "pos_weight", "focal_gamma", "loss")}
    given["label_smoothing"] = s["task.init_args.label_smoothing"] or None
    given = {name: value for name, value in given.items() if value is not None}
    problem = s["task.init_args.problem_type"]
    if "loss" in given:
        for name in given.keys() - {"loss"}:
            yield _loss_conflict(
                name, "has no effect: task.init_args.loss replaces the built-in loss", "remove one of them"
            )
        return
    fits_only = {"class_weights": "single_label_classification", "pos_weight": "multi_label_classification"}
    for name, kind in fits_only.items():
        if name in given and problem not in (None, "auto", kind):
            other = "pos_weight" if name == "class_weights" else "class_weights"
            instead = f"remove it; {other} is its counterpart" if problem in fits_only.values() else "remove it"
            yield _loss_conflict(name, f"is for {kind}, the problem is {problem}", instead)
    if "class_weights" in given and "pos_weight" in given:
        yield _loss_conflict(
            "pos_weight", "is for several labels per text, class_weights for one", "remove one of them"
        )
    if problem == "regression":
        for name in given.keys() & {"label_smoothing", "focal_gamma"}:
            yield _loss_conflict(name, "is for classes, the problem is regression", "remove it")
    names = s["task.init_args.label_names"]
    if isinstance(names, list):
        repeated = sorted({n for n in names if names.count(n) > 1})
        if repeated:
            yield _loss_conflict("label_names", f"{', '.join(repeated)} stands there twice", "name each class once")
        if isinstance(given.get("class_weights"), list) and len(given["class_weights"]) != len(names):
            yield _loss_conflict(
                "class_weights",
                f"has {len(given['class_weights'])} numbers for {len(names)} label_names",
                "one number per class, or balanced",
            )


def quantization(s: Situation) -> Iterator[LitTuneError]:
    """What does not go together with weights in 4 bits."""
    if s["model.quantization"] is None:
        return
    refused = [
        ("model.from_scratch", s["model.from_scratch"], "random weights would be quantized and never trained"),
        ("model.freeze", s["model.freeze"], "has no effect: quantized weights are frozen"),
        ("model.compile", s["model.compile"], "quantized layers are not compiled"),
    ]
    for where, applies, why in refused:
        if applies:
            yield ConfigError(f"{why}", where=where, fix=f"remove {where} or model.quantization")
    if str(s["trainer.precision"]) in ("64", "64-true"):
        yield ConfigError(
            "quantized layers do not compute in float64", where="trainer.precision", fix="trainer.precision: 32-true"
        )
    if s.device == "mps":
        yield HardwareError(
            "quantized weights need an NVIDIA GPU, or the CPU", where="model.quantization", fix="remove it"
        )


def model(s: Situation) -> Iterator[LitTuneError]:
    """Model settings that exclude each other."""
    if s["model.from_scratch"] and s["model.new_head"]:
        yield ConfigError(
            "has no effect: from_scratch makes every weight new", where="model.new_head", fix="remove one of them"
        )
    package, _, task = s["task.class_path"].rpartition(".")
    if text_cnn.is_new(s["model.model_name_or_path"]) and package.startswith("lit_tune.tasks") and task != CNN_TASK:
        yield ConfigError(
            f"{text_cnn.NAME} classifies texts, which {task} does not",
            where="model.model_name_or_path",
            fix=f"task: {CNN_TASK}, or another model",
        )
    if text_cnn.is_new(s["model.model_name_or_path"]) and not s["model.from_scratch"]:
        yield ConfigError(
            f"there are no weights of {text_cnn.NAME} to start from",
            where="model.from_scratch",
            fix="leave it out, or name the folder of one that was trained",
        )
    if text_cnn.is_new(s["model.model_name_or_path"]) and (s["model.add_tokens"] or s["model.add_special_tokens"]):
        yield ConfigError(
            f"a new {text_cnn.NAME} takes its words from the rows it is trained on",
            where="model.add_tokens" if s["model.add_tokens"] else "model.add_special_tokens",
            fix="leave it out; model.config_overrides.vocab_size says how many",
        )
    if text_cnn.is_new(s["model.model_name_or_path"]) and s["model.model_class"]:
        yield ConfigError(
            f"has no effect: {text_cnn.NAME} is a class of its own", where="model.model_class", fix="remove one of them"
        )
    frozen = _as_list(s["model.freeze"])
    if s["model.from_scratch"] and "backbone" in frozen and not s["model.unfreeze"]:
        yield ConfigError(
            "a backbone of random weights would never be trained",
            where="model.freeze",
            fix="remove model.freeze or from_scratch",
        )
    if s["model.unfreeze"] and not frozen:
        yield ConfigError(
            "has no effect: nothing is frozen", where="model.unfreeze", fix="model.freeze: backbone, or remove it"
        )
    adapter = s["model.adapter"]
    if adapter is not None and s["model.from_scratch"]:
        yield ConfigError(
            "an adapter on random weights: the base model would never be trained",
            where="model.adapter",
            fix="remove model.adapter or from_scratch",
        )
    if adapter is not None and frozen:
        yield ConfigError(
            "has no effect: with an adapter the base model is frozen, and the head is trained",
            where="model.freeze",
            fix="remove model.freeze or model.adapter",
        )
    yield from quantization(s)
    for name in (s["model.config_overrides"] or {}).keys() & set(LABEL_FIELDS):
        yield ConfigError(
            f"{name} is read from the data",
            where=f"model.config_overrides.{name}",
            fix="task.init_args.label_names names the classes",
        )


RULES: tuple[Rule, ...] = (
    refused_trainer_options,
    checkpoint_writers,
    trainer_names,
    hardware,
    precision,
    data_given,
    validation_needed,
    streaming,
    lengths,
    monitors,
    without_effect,
    losses,
    model,
    output_paths,
    hub_code,
)


def _loss_conflict(name: str, what: str, fix: str) -> ConfigError:
    return ConfigError(what, where=f"task.init_args.{name}", fix=fix)


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


def _brief(value: Any) -> str:
    files = _as_list(value)
    return str(files[0]) + (f" and {len(files) - 1} more" if len(files) > 1 else "")
