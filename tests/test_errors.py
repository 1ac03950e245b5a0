"""Errors keep place and remedy on their way out of worker processes."""

import pickle

import pytest

from lit_tune import errors
from lit_tune.data.loader import StreamBatches, StreamLoader
from lit_tune.errors import DataError, LitTuneError, ProblemList

CLASSES = [
    c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, LitTuneError) and c is not ProblemList
]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_an_error_survives_pickling_whole(cls):
    error = cls("is wrong", where="train.csv:3", fix="mend it")
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), copy.what, copy.where, copy.fix) == (cls, "is wrong", "train.csv:3", "mend it")
    assert str(copy) == str(error) == "train.csv:3: is wrong\nFix: mend it"
    assert copy.exit_code == cls.exit_code


def test_a_list_of_problems_survives_pickling_with_its_exit_code():
    both = ProblemList([DataError("a", where="x"), LitTuneError("b")])
    copy = pickle.loads(pickle.dumps(both))
    assert [str(p) for p in copy.problems] == ["x: a", "b"]
    assert copy.exit_code == 3
    assert str(copy) == str(both)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_error_of_a_stream_worker_keeps_place_and_remedy(num_workers):
    def encode(rows, positions):
        raise DataError("text is null", where=f"train.csv:{positions[0] + 1}", fix="fill it in")

    batches = StreamBatches(lambda: iter([{"text": "a"}]), encode, list, 1, 1, 1, 0, seed=0)
    with pytest.raises(DataError) as caught:
        list(StreamLoader(batches, num_workers))
    assert (caught.value.where, caught.value.fix) == ("train.csv:1", "fill it in")
