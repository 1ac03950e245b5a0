"""Which loggers a run has, and that they know its config."""

import pytest
import yaml
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from tiny_runs import built, fit
from toy import toy_rows, write_csv

from lit_tune.callbacks.jsonl_metrics import JsonlLogger
from lit_tune.callbacks.loggers import CsvLog, build_loggers
from lit_tune.errors import ConfigError


@pytest.mark.parametrize(
    ("names", "kinds"),
    [
        (["tensorboard"], [TensorBoardLogger]),
        (["csv"], [CsvLog]),
        (["none"], []),
        (["tensorboard", "csv"], [TensorBoardLogger, CsvLog]),
    ],
)
def test_metrics_jsonl_is_always_one_of_them(tmp_path, names, kinds):
    loggers = build_loggers(tmp_path / "run", names)
    assert [type(x) for x in loggers] == [JsonlLogger, *kinds]
    assert not (tmp_path / "run").exists()  # nothing is written before the run begins


def test_none_stands_alone(tmp_path):
    with pytest.raises(ConfigError, match="'none' stands alone"):
        build_loggers(tmp_path, ["none", "csv"])


def test_every_logger_gets_the_resolved_config(tiny_model_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    train = write_csv(tmp_path / "train.csv", toy_rows(20))
    run = tmp_path / "run"
    more = {"wandb__project": "p", "wandb__tags": ["a", "b"], "wandb__notes": "n", "overfit__probe_size": 0}
    made = fit(built(tiny_model_dir, train, run, logger=["tensorboard", "csv", "wandb"], **more))
    expected = {
        "optimizer.lr": 0.01,
        "optimizer.weight_decay": 0.01,  # a default: resolved, not only what was given
        "data.train": str(train),
        "task.class_path": "SequenceClassification",
        "wandb.tags": ["a", "b"],
        "trainer.max_epochs": 1,
    }
    (wandb_logger,) = [x for x in made.trainer.loggers if isinstance(x, WandbLogger)]
    given = dict(wandb_logger.experiment.config)
    wandb_logger.experiment.finish()
    files = [yaml.safe_load((run / name / "hparams.yaml").read_text()) for name in ("tensorboard", "csv")]
    for config in (given, *files):
        assert {key: config[key] for key in expected} == expected
    assert list((run / "wandb").glob("offline-run-*"))

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert "val/loss" in events.Tags()["scalars"]
    assert "hp_metric" not in events.Tags()["scalars"]  # Lightning's default writes a curve of -1
