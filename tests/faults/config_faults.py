"""Faults 45 to 50: keys, types, classes, contradictions."""

from faults.registry import Options, Scene, fault


def good(s: Scene, **more: object) -> Options:
    return {"data.train": s.good(), **more}


@fault(45, "an unknown key", 2, "did you mean optimizer.weight_decay?", place="optimizer.weight_deacy")
def unknown_key(s: Scene) -> Options:
    return good(s, **{"optimizer.weight_deacy": 0.1})


@fault(46, "a wrong type", 2, "fast", place="optimizer.lr")
def wrong_type(s: Scene) -> Options:
    return good(s, **{"optimizer.lr": "fast"})


@fault(47, "a class that does not exist", 2, "SequenceClassification", place="task.class_path")
def wrong_class(s: Scene) -> Options:
    return good(s, **{"task.class_path": "SequenceClasification"})


@fault(47, "a class that a config may not name", 2, "os.system", place="optimizer.name")
def forbidden_class(s: Scene) -> Options:
    return good(s, **{"optimizer.name": "os.system"})


@fault(48, "patience without validation", 2, "there is none", place="early_stopping.patience")
def patience(s: Scene) -> Options:
    return good(s, **{"data.val_fraction": 0, "early_stopping.patience": 3})


@fault(48, "validation that is limited to nothing", 2, "there is none", place="early_stopping.patience")
def limited_validation(s: Scene) -> Options:
    return good(s, **{"trainer.limit_val_batches": 0, "early_stopping.patience": 3})


@fault(48, "fp16 on the CPU", 2, "needs a GPU", place="trainer.precision")
def half_on_cpu(s: Scene) -> Options:
    return good(s, **{"trainer.precision": "16-mixed"})


@fault(48, "a learning rate of 0", 2, "above 0", place="optimizer.lr")
def no_learning(s: Scene) -> Options:
    return good(s, **{"optimizer.lr": 0.0})


@fault(48, "more warm-up than steps", 2, "500 warm-up steps are more than the 9 steps", place="lr_schedule.warmup")
def warmup(s: Scene) -> Options:
    return good(s, **{"lr_schedule.warmup": 500})


@fault(48, "more accumulation than batches", 2, "36 rows are 3 batches of 16", place="trainer.accumulate_grad_batches")
def accumulation(s: Scene) -> Options:
    return good(s, **{"trainer.accumulate_grad_batches": 50})


@fault(48, "validation every 500 of 9 steps", 0, "the run has 9 steps", place="eval_every_steps")
def rare_validation(s: Scene) -> Options:
    return good(s, **{"eval_every_steps": 500})


@fault(48, "contradictions and a missing column", 2, "data.name", "trainer.min_epochs", "'text'", verb="check")
def several(s: Scene) -> Options:
    return {
        "data.train": s.csv("train.csv", [{"txt": "a", "label": 1}]),
        "data.name": "mrpc",
        "trainer.min_epochs": 9,
        "logger": "[none, csv]",
        "model.from_scratch": "true",
        "model.new_head": "true",
        "checkpoint.keep_last": 0,
        "checkpoint.every_n_steps": 5,
    }


@fault(48, "a pattern that freezes nothing", 2, "'bakcbone' matches none", place="model.freeze")
def frozen_nothing(s: Scene) -> Options:
    return good(s, **{"model.freeze": "bakcbone"})


@fault(48, "a rate that forgets the model", 0, "0.01 is high for a pretrained model", place="optimizer.lr")
def high_rate(s: Scene) -> Options:
    return good(s, **{"optimizer.lr": 0.01})


@fault(49, "a metric that is never logged", 2, "'val/f1_macros' is never logged", place="checkpoint.monitor")
def monitor(s: Scene) -> Options:
    return good(s, **{"checkpoint.monitor": "val/f1_macros"})


@fault(49, "a schedule that watches a metric that is never logged", 2, "never logged", place="lr_schedule.monitor")
def schedule_monitor(s: Scene) -> Options:
    return good(s, **{"lr_schedule.name": "ReduceLROnPlateau", "lr_schedule.monitor": "val/acuracy"})


@fault(50, "min for a metric that should be high", 2, "no such key", place="checkpoint.mode")
def mode(s: Scene) -> Options:
    return good(s, **{"checkpoint.monitor": "val/accuracy", "checkpoint.mode": "min"})
