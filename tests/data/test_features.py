"""Numbers of rows in a file: written in any order, read as they were, for rows, tokens and choices."""

import os

import datasets
import pytest
import torch

from lit_tune.data.features import FeatureFile, Layout, entry_counts, from_entries, layout_of, to_entries

IDS = [[1, 2, 3], [4], [5, 6], [7, 8, 9, 10]]


@pytest.fixture
def rows():
    return datasets.Dataset.from_dict({"input_ids": IDS})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("side", ["right", "left"])
def test_tokens_come_back_without_their_padding(tmp_path, rows, dtype, side):
    mask = torch.tensor([[1] * len(ids) + [0] * (4 - len(ids)) for ids in IDS])
    mask = mask.flip(1) if side == "left" else mask
    batch = {"attention_mask": mask, "example_ids": [0, 1, 2, 3]}
    values = torch.randn(4, 4, 5, generator=torch.Generator().manual_seed(1)).to(dtype)
    assert layout_of(values, batch) == Layout.TOKEN
    file = FeatureFile(tmp_path / "f.bin", Layout.TOKEN, entry_counts(rows, Layout.TOKEN), (5,), dtype)
    file.reserve(file.path)
    assert file.is_whole()
    assert file.path.stat().st_size == 10 * 5 * dtype.itemsize
    descriptor = os.open(file.path, os.O_WRONLY)
    for ids in ([3, 1], [0, 2]):
        part = {"attention_mask": mask[ids], "example_ids": ids}
        file.write(descriptor, ids, to_entries(values[ids], part, Layout.TOKEN))
    os.close(descriptor)
    for ids in ([0, 1, 2, 3], [2, 2, 3], [1]):
        part = {"attention_mask": mask[ids], "example_ids": ids}
        expected = torch.where(mask[ids].bool()[..., None], values[ids], 0)
        assert torch.equal(from_entries(file.read(ids), part, Layout.TOKEN), expected)


def test_a_row_has_one_entry_and_a_question_one_for_each_choice():
    mask = torch.ones(5, 3)
    batch = {"attention_mask": mask, "example_ids": [0, 1]}
    assert layout_of(torch.ones(2, 7), batch) == Layout.ROW
    assert layout_of(torch.ones(5, 7), batch) == Layout.CHOICE
    assert layout_of(torch.ones(4, 7), batch) is None
    nested = datasets.Dataset.from_dict({"input_ids": [[[1], [2, 3]], [[1], [2], [3]]]})
    assert entry_counts(nested, Layout.CHOICE).tolist() == [2, 3]


def test_what_does_not_fit_its_rows_is_not_written(tmp_path, rows):
    file = FeatureFile(tmp_path / "f.bin", Layout.TOKEN, entry_counts(rows, Layout.TOKEN), (5,), torch.float32)
    file.reserve(file.path)
    descriptor = os.open(file.path, os.O_WRONLY)
    for wrong in (torch.ones(3, 5), torch.ones(4, 6), torch.ones(4, 5).double()):
        with pytest.raises(ValueError, match="entries"):
            file.write(descriptor, [0, 1], wrong)
    os.close(descriptor)
