"""What only a GPU can show: precisions, the fp16 scaler, fused AdamW, compile, exactness in float32."""

import json
import math

import pytest
import torch
from parity.runs import NO_DROPOUT, build, relative
from toy import make_tiny_model, toy_rows, write_csv
from transformers.utils import is_bitsandbytes_available

from lit_tune.__main__ import main

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; there is none"),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu")
    make_tiny_model(folder / "tiny", hidden=32)
    write_csv(folder / "train.csv", toy_rows(300, seed=1))
    return folder


def fit(files, run, *more: str) -> dict:
    base = ["--data.train", str(files / "train.csv"), "--model.model_name_or_path", str(files / "tiny")]
    common = [
        "--run_dir",
        str(run),
        "--optimizer.lr",
        "0.003",
        "--trainer.accelerator",
        "gpu",
        "--trainer.devices",
        "1",
    ]
    assert main(["fit", *base, *common, *more]) == 0
    logged = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    return {"logged": logged, "manifest": json.loads((run / "manifest.json").read_text())}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_each_precision_trains_with_clipping_and_sane_norms(precision, files, tmp_path):
    result = fit(files, tmp_path / "run", "--trainer.precision", precision, "--trainer.gradient_clip_val", "1.0")
    norms = [x["optim/grad_norm"] for x in result["logged"] if "optim/grad_norm" in x]
    finite = [n for n in norms if n is not None]
    assert finite
    assert max(finite) < 100, "a norm in the thousands is one that was not unscaled"
    losses = [x["val/loss"] for x in result["logged"] if "val/loss" in x]
    assert math.isfinite(losses[-1])
    assert all("perf/peak_memory_gb" in x for x in result["logged"] if "train/loss" in x)


def test_skipped_fp16_steps_are_counted_and_hold_the_schedule(files, tmp_path):
    import lightning as L

    module, datamodule = build(files / "tiny", {"train": str(files / "train.csv"), "val_fraction": 0})
    trainer = L.Trainer(
        accelerator="gpu",
        devices=1,
        precision="16-mixed",
        max_steps=5,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.precision_plugin.scaler._init_scale = 2.0**40  # the first steps overflow and are skipped
    trainer.fit(module, datamodule=datamodule)
    assert module.num_skipped_steps > 0
    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == 5 - module.num_skipped_steps


def test_float32_exactness_holds_on_the_gpu(files):
    import lightning as L
    from parity.runs import Recorder

    torch.backends.cuda.matmul.allow_tf32 = False
    gradients = []
    for batch, accumulate in ((16, 1), (4, 4), (1, 16)):
        recorder = Recorder()
        settings = {"config_overrides": NO_DROPOUT, "optimizer": {"lr": 1e-4}}
        data = {"train": str(files / "train.csv"), "val_fraction": 0, "train_batch_size": batch}
        module, datamodule = build(files / "tiny", data, None, settings)
        trainer = L.Trainer(
            accelerator="gpu",
            devices=1,
            max_steps=5,
            accumulate_grad_batches=accumulate,
            gradient_clip_val=1.0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            callbacks=[recorder],
        )
        trainer.fit(module, datamodule=datamodule)
        gradients.append(recorder.gradients)
    for other in gradients[1:]:
        assert max(relative(b, a) for a, b in zip(gradients[0], other, strict=True)) < 1e-5


def test_compile_trains(files, tmp_path):
    result = fit(files, tmp_path / "run", "--model.compile", "true", "--trainer.max_epochs", "1")
    assert result["manifest"]["status"] == "complete"


def test_a_real_out_of_memory_halves_the_micro_batch_and_goes_on(tmp_path):
    """The limit is what 64 rows need and half as much again, so that 256 do not fit."""
    make_tiny_model(tmp_path / "model", hidden=1024)
    write_csv(tmp_path / "train.csv", toy_rows(1024, seed=1))
    keys = ["--data.train", str(tmp_path / "train.csv"), "--model.model_name_or_path", str(tmp_path / "model")]
    keys += ["--data.val_fraction", "0", "--trainer.accelerator", "gpu", "--trainer.devices", "1", "--logger", "none"]
    keys += ["--trainer.max_steps", "4", "--data.padding", "max_length", "--data.max_length", "64"]
    torch.cuda.reset_peak_memory_stats()
    small = ["--data.train_batch_size", "64", "--trainer.accumulate_grad_batches", "4"]
    assert main(["fit", *keys, *small, "--run_dir", str(tmp_path / "small")]) == 0
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(1.5 * torch.cuda.max_memory_allocated() / total)
    try:
        large = ["--data.train_batch_size", "256", "--run_dir", str(tmp_path / "large")]
        assert main(["fit", *keys, *large]) == 8
        assert main(["fit", *keys, *large, "--data.auto_batch", "true", "--overwrite"]) == 0
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    manifest = json.loads((tmp_path / "large" / "manifest.json").read_text())
    found = manifest["decisions"]
    assert found["train_batch_size"] < 256
    assert found["train_batch_size"] * found["accumulate_grad_batches"] == 256
    assert manifest["steps"] == 4


@pytest.mark.skipif(not is_bitsandbytes_available(), reason="bitsandbytes is not installed (lit-tune[8bit])")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_an_adapter_on_packed_weights_trains_and_best_is_verified_on_them(precision, files, tmp_path):
    packed = ["--model.adapter", "lora", "--model.quantization", "nf4_double", "--trainer.precision", precision]
    result = fit(files, tmp_path / "run", *packed)
    losses = [x["val/loss"] for x in result["logged"] if "val/loss" in x]
    assert math.isfinite(losses[-1])
    assert result["manifest"]["status"] == "complete"
    assert main(["validate", "--config", str(tmp_path / "run" / "config.yaml")]) == 0
