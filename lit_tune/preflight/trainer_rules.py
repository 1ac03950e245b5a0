"""Rules on the ``trainer`` section: options that break a guarantee, devices that are not here, number formats."""

import re
from collections.abc import Callable, Collection, Iterator
from typing import Any

from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.pytorch.strategies import StrategyRegistry

from lit_tune.errors import ConfigError, HardwareError, LitTuneError, nearest
from lit_tune.imports import import_class
from lit_tune.preflight.situation import Situation

ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps", "tpu")
STRATEGIES = ("auto", "ddp", "ddp_spawn", "ddp_fork", "ddp_notebook", "ddp_find_unused_parameters_true")
UNSUPPORTED_STRATEGIES = ("fsdp", "deepspeed", "xla", "tp", "model_parallel", "hpu", "horovod", "bagua", "colossalai")


MAX_DEVICES = 1024
DEVICES = re.compile(r"None|auto|-1|[0-9]{1,4}(\s*,\s*[0-9]{1,4})*,?|\[[0-9, ]*\]")
"""How ``trainer.devices`` may be written, as text."""


def refused_trainer_options(s: Situation) -> Iterator[LitTuneError]:
    """Options of Lightning's Trainer that break a guarantee of lit-tune."""
    for key, (refused, why, fix) in REFUSED.items():
        value = s[key]
        if refused(value):
            shown = str(value).lower() if isinstance(value, bool) else value
            yield ConfigError(f"{'null' if shown is None else shown} is refused: {why}", where=key, fix=fix)


REFUSED: dict[str, tuple[Callable[[Any], bool], str, str]] = {
    "trainer.use_distributed_sampler": (
        lambda v: v is True,
        "lit-tune cuts each global batch over the ranks itself",
        "leave it out",
    ),
    "trainer.overfit_batches": (
        lambda v: bool(v),
        "it validates on train batches, so that every number after it is wrong",
        "data.limit_train: 64 for a small run",
    ),
    "trainer.barebones": (lambda v: v is True, "it switches checkpoints and logging off", "leave it out"),
    "trainer.val_check_interval": (
        lambda v: v is not None,
        "it counts micro-batches and lands inside accumulation windows",
        "eval_every_steps: 500 counts optimizer steps",
    ),
    "trainer.check_val_every_n_epoch": (
        lambda v: v is None,
        "it only makes sense with val_check_interval",
        "eval_every_steps: 500 counts optimizer steps",
    ),
    "trainer.enable_checkpointing": (
        lambda v: v is False,
        "the best weights would be lost",
        "checkpoint.keep_best: 0 and checkpoint.keep_last: 0 keep none",
    ),
    "trainer.reload_dataloaders_every_n_epochs": (
        lambda v: bool(v),
        "the order of each epoch is fixed by the seed",
        "leave it out; rows are reshuffled in every epoch",
    ),
    "trainer.logger": (
        lambda v: isinstance(v, bool),
        "loggers have a key of their own",
        "logger: none, or tensorboard, csv, wandb",
    ),
    "trainer.num_nodes": (
        lambda v: (v or 1) > 1,
        "several machines are not supported yet",
        "trainer.devices on one machine",
    ),
    "trainer.strategy": (
        lambda v: _strategy_name(v).startswith(UNSUPPORTED_STRATEGIES),
        "not supported yet",
        "trainer.strategy: ddp",
    ),
}
"""Key -> (is this value refused, why, what to do instead)."""

NOT_OFFERED = frozenset(REFUSED) - {"trainer.check_val_every_n_epoch", "trainer.logger", "trainer.strategy"}
"""Refused whatever the value, but for the default; not worth a line of help."""


def trainer_names(s: Situation) -> Iterator[LitTuneError]:
    """Names that Lightning would refuse late and with a wall of text."""
    accelerator, strategy = s["trainer.accelerator"], s["trainer.strategy"]
    if isinstance(accelerator, str) and accelerator not in ACCELERATORS:
        guess = nearest(accelerator, ACCELERATORS) or "auto"
        yield _unknown_name("trainer.accelerator", accelerator, ACCELERATORS, guess)
    known = ("auto", *StrategyRegistry.available_strategies(), *UNSUPPORTED_STRATEGIES)  # these last have a reason
    if isinstance(strategy, str) and not strategy.startswith(known):
        yield _unknown_name("trainer.strategy", strategy, STRATEGIES, nearest(strategy, STRATEGIES) or "auto")
    devices = s["trainer.devices"]
    one = devices if isinstance(devices, int) else 1
    if isinstance(devices, bool) or not (-1 <= one <= MAX_DEVICES and one) or not DEVICES.fullmatch(str(devices)):
        yield ConfigError(
            f"{str(devices)[:60]!r} is no number of devices",
            where="trainer.devices",
            fix="trainer.devices: 1, a list of their numbers, -1 for all of them, or auto",
        )
    algorithm = s["trainer.gradient_clip_algorithm"]
    if algorithm not in (None, "norm", "value"):
        yield _unknown_name("trainer.gradient_clip_algorithm", algorithm, ("norm", "value"), "norm")


def checkpoint_writers(s: Situation) -> Iterator[LitTuneError]:
    """Another way to write checkpoints: nobody could tell then which of them are whole."""
    plugins = s["trainer.plugins"]
    given = [("trainer.plugins", p) for p in (plugins if isinstance(plugins, list) else [plugins])]
    key = "trainer.strategy.init_args.checkpoint_io"
    for where, plugin in [*given, (key, s[key])]:
        path = plugin.get("class_path") if isinstance(plugin, dict) else None
        if path and issubclass(import_class(path, where=where), CheckpointIO):
            yield ConfigError(
                f"{path} is refused: checkpoints are written durably, with hashes in manifest.json, or not resumed",
                where=where,
                fix="leave it out",
            )


def hardware(s: Situation) -> Iterator[LitTuneError]:
    """Devices that are not here."""
    accelerator, devices = s["trainer.accelerator"], s["trainer.devices"]
    wanted = {"gpu": ("cuda", "mps"), "cuda": ("cuda",), "mps": ("mps",)}.get(str(accelerator))
    if wanted and not any(a in s.accelerators for a in wanted):
        yield HardwareError(
            f"{accelerator} was asked for, and torch finds none on this machine",
            where="trainer.accelerator",
            fix="trainer.accelerator: auto, or install a torch build for this device",
        )
        return
    count = (
        int(devices) if re.fullmatch("[0-9]{1,6}", str(devices)) else len(devices) if isinstance(devices, list) else 1
    )
    if s.device in ("cuda", "mps") and count > max(1, s.num_devices):
        yield HardwareError(
            f"{count} devices were asked for, this machine has {s.num_devices}",
            where="trainer.devices",
            fix=f"trainer.devices: {s.num_devices}",
        )


def precision(s: Situation) -> Iterator[LitTuneError]:
    """Number formats that the device or the kept weights contradict."""
    value, dtype = str(s["trainer.precision"] or "32-true"), s["model.dtype"]
    half = value in ("16", "16-mixed", "16-true")
    if half and s.device == "cpu":
        yield ConfigError(
            f"{value} needs a GPU, and this run is on the CPU",
            where="trainer.precision",
            fix="trainer.precision: bf16-mixed",
        )
    if half and s.device == "mps":
        yield ConfigError(
            f"{value} is not supported on mps: its gradients overflow unscaled",
            where="trainer.precision",
            fix="trainer.precision: bf16-mixed",
        )
    if value in ("64", "64-true") and s.device == "mps":
        yield ConfigError("mps has no float64", where="trainer.precision", fix="trainer.precision: 32-true")
    if value in ("16", "16-mixed") and dtype in ("float16", "bfloat16"):
        yield ConfigError(
            f"16-mixed keeps its weights in float32, got {dtype}: gradients in {dtype} cannot be unscaled",
            where="model.dtype",
            fix="model.dtype: float32",
        )
    kept = {"16-true": "float16", "bf16-true": "bfloat16", "32-true": "float32", "32": "float32"}.get(value)
    if s["trainer.precision"] and kept and dtype not in (kept, "float32", "auto"):
        yield ConfigError(
            f"{dtype} contradicts trainer.precision: {value}", where="model.dtype", fix=f"model.dtype: {kept}"
        )
    attention = s["model.attn_implementation"] or ""
    if "flash_attention" in attention and s.device != "cuda":
        yield HardwareError(
            f"{attention} needs an NVIDIA GPU", where="model.attn_implementation", fix="model.attn_implementation: sdpa"
        )
    elif (
        "flash_attention" in attention
        and value in ("32", "32-true", "64", "64-true")
        and dtype not in ("float16", "bfloat16")
    ):
        yield ConfigError(
            f"{attention} computes in 16 bits only",
            where="model.attn_implementation",
            fix="trainer.precision: bf16-mixed",
        )
    if s["optimizer.name"] == "adamw_8bit" and s.device != "cuda":
        yield HardwareError("adamw_8bit needs an NVIDIA GPU", where="optimizer.name", fix="optimizer.name: adamw")


def _unknown_name(key: str, name: str, known: Collection[str], guess: str) -> ConfigError:
    return ConfigError(f"there is no {name!r}; there are: {', '.join(known)}", where=key, fix=f"{key}: {guess}")


def _strategy_name(value: Any) -> str:
    if isinstance(value, dict):
        value = str(value.get("class_path", "")).rsplit(".", 1)[-1].lower().removesuffix("strategy")
    return str(value or "")
