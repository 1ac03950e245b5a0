"""Predictions: the same content in every format, in input order, nothing left behind, memory flat."""

import csv
import json
import tracemalloc

import lightning as L
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_runs import QUIET, Batches, lines
from toy import toy_rows, write_csv

from lit_tune.__main__ import main
from lit_tune.callbacks import prediction_writer
from lit_tune.callbacks.prediction_writer import Part, PredictionWriter, check_output, merge, write_records
from lit_tune.errors import ConfigError, NumericsError, StorageError

RECORDS = [
    {"row": 0, "labels": [], "probabilities": {"a": 0.25, 'b "quoted", with comma': 0.125}},
    {"row": 1, "labels": ["a", 'b "quoted", with comma'], "probabilities": {"a": 0.75, 'b "quoted", with comma': 1.0}},
    {"row": 2, "labels": ["a"], "probabilities": {"a": 1e-30, 'b "quoted", with comma': 0.1}},
]


def flat(record):
    probabilities = {f"probability/{k}": v for k, v in record["probabilities"].items()}
    return {"row": record["row"], "labels": record["labels"], **probabilities}


def test_the_three_formats_hold_the_same(tmp_path):
    paths = [tmp_path / f"p{suffix}" for suffix in prediction_writer.FORMATS]
    for path in paths:
        assert write_records(iter(RECORDS), path, path.suffix) == 3
    assert lines(paths[0]) == RECORDS
    with paths[1].open(newline="", encoding="utf-8") as file:
        rows = [
            {k: v.split("|") if k == "labels" and v else [] if k == "labels" else json.loads(v) for k, v in row.items()}
            for row in csv.DictReader(file)
        ]
    assert rows == [flat(r) for r in RECORDS]
    assert pq.read_table(paths[2]).to_pylist() == [flat(r) for r in RECORDS]


@pytest.mark.parametrize(
    "record",
    [
        {"row": 0, "label": "überfit", "probabilities": {"überfit": 1.0}},
        {"row": 0, "prediction": -0.5},
    ],
)
@pytest.mark.parametrize("suffix", prediction_writer.FORMATS)
def test_single_labels_and_numbers(tmp_path, record, suffix):
    path = tmp_path / f"p{suffix}"
    write_records(iter([record]), path, suffix)
    if suffix == ".jsonl":
        assert lines(path) == [record]
    elif suffix == ".parquet":
        assert pq.read_table(path).to_pylist() == [prediction_writer.flat(record)]
    else:
        expected = {k: str(v) for k, v in prediction_writer.flat(record).items()}
        assert list(csv.DictReader(path.read_text(encoding="utf-8").splitlines())) == [expected]


def test_a_first_row_group_without_any_label_does_not_decide_the_type(tmp_path, monkeypatch):
    monkeypatch.setattr(prediction_writer, "PARQUET_ROWS", 2)
    records = [{"row": i, "labels": ["a"] if i == 4 else []} for i in range(5)]
    write_records(iter(records), tmp_path / "p.parquet", ".parquet")
    assert pq.read_table(tmp_path / "p.parquet").to_pylist() == records
    assert pq.read_schema(tmp_path / "p.parquet").field("labels").type == pa.list_(pa.string())
    assert pq.ParquetFile(tmp_path / "p.parquet").num_row_groups == 3


@pytest.mark.parametrize("suffix", prediction_writer.FORMATS)
def test_memory_does_not_grow_with_the_rows(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(prediction_writer, "PARQUET_ROWS", 500)

    def peak(count):
        records = ({"row": i, "label": "a", "probabilities": {"a": i / count, "b": 0.5}} for i in range(count))
        tracemalloc.start()
        write_records(records, tmp_path / f"p{suffix}", suffix)
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return highest

    peak(1000)  # what is imported and cached on the way
    assert peak(20_000) < 1.3 * peak(2_000) + 50_000


def test_parts_of_ranks_merge_by_row(tmp_path):
    for rank, rows in enumerate([(0, 1, 4, 5), (2, 3), ()]):
        (tmp_path / f"{rank}").write_text("".join(json.dumps({"row": r}) + "\n" for r in rows))
    assert [r["row"] for r in merge([tmp_path / str(i) for i in range(3)])] == [0, 1, 2, 3, 4, 5]


def test_a_part_is_in_the_order_of_rows_and_keeps_one_stretch_in_memory(tmp_path):
    rows = np.random.default_rng(0).permuted(np.arange(1000).reshape(10, 100), axis=1).ravel().tolist()
    part = Part(tmp_path / "part", stretch=100)
    for row in rows:
        part.add(row, f"{row}\n")
        assert len(part._lines) <= 100
    part.flush()
    part.close()
    assert (tmp_path / "part").read_text() == "".join(f"{row}\n" for row in range(1000))


class Predicts(L.LightningModule):
    """Two records a batch; the third batch may be a bad one."""

    def __init__(self, third=None):
        super().__init__()
        self.third = third

    def predict_step(self, batch, batch_idx):
        if batch_idx == 2 and isinstance(self.third, BaseException):
            raise self.third
        value = self.third if batch_idx == 2 and self.third is not None else 0.5
        return [{"row": 2 * batch_idx + i, "prediction": value} for i in range(2)]


def predict(path, third=None):
    writer = PredictionWriter(path)
    trainer = L.Trainer(**QUIET, callbacks=[writer])
    trainer.predict(Predicts(third), dataloaders=Batches(4), return_predictions=False)
    return writer


def test_only_the_predictions_are_left_in_the_folder(tmp_path):
    writer = predict(tmp_path / "new" / "p.jsonl")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["p.jsonl"]
    assert [r["row"] for r in lines(tmp_path / "new" / "p.jsonl")] == list(range(8))
    assert writer.num_rows == 8


def test_a_run_that_fails_leaves_no_parts_and_keeps_the_old_file(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text("old\n")
    with pytest.raises(RuntimeError, match="boom"):
        predict(path, RuntimeError("boom"))
    assert [p.name for p in tmp_path.iterdir()] == ["p.jsonl"]
    assert path.read_text() == "old\n"


def test_a_model_that_gives_nan_is_an_error_with_the_row(tmp_path):
    with pytest.raises(NumericsError, match="row 4"):
        predict(tmp_path / "p.jsonl", float("nan"))
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_refuses_is_told_without_a_traceback(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        predict(tmp_path / "file" / "p.jsonl")


def test_check_output(tmp_path):
    check_output(tmp_path / "new" / "p.csv")
    assert [p.name for p in (tmp_path / "new").iterdir()] == []
    with pytest.raises(ConfigError, match=r"ends in \.jsonl, \.csv, \.parquet"):
        check_output(tmp_path / "p.xlsx")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(StorageError, match="is a folder"):
        check_output(tmp_path / "folder.csv")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        check_output(tmp_path / "file" / "p.csv")


def test_exit_codes_come_before_any_weight_is_loaded(tmp_path, capsys):
    new = write_csv(tmp_path / "new.csv", toy_rows(3))
    options = ["--data.predict", str(new), "--model.model_name_or_path", "no-such-model"]
    assert main(["predict", *options, "--output", str(tmp_path / "p.xlsx")]) == 2
    assert main(["predict", *options, "--output", str(new / "p.csv")]) == 7
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert said.count("Fix:") == 2
    assert "no-such-model" not in said
