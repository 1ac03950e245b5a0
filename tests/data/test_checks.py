import pytest

from lit_tune.data.checks import require_columns
from lit_tune.errors import DataError, ProblemList

KEYS = {"text": "task.text_columns", "label": "task.label_column"}


def test_a_missing_column_names_the_columns_there_are_and_the_key():
    require_columns(["label", "text"], ["text", "label"], "a.csv", KEYS)
    with pytest.raises(DataError) as caught:
        require_columns(["txt", "label"], ["text", "label"], "a.csv", KEYS)
    message = str(caught.value)
    assert "a.csv: there is no column 'text'; there are 'txt', 'label'" in message
    assert "Fix: set task.text_columns to 'txt'" in message


def test_several_missing_columns_are_reported_together():
    with pytest.raises(ProblemList) as caught:
        require_columns(["a"], ["text", "label"], "a.csv", KEYS)
    assert caught.value.exit_code == 3
    assert "task.text_columns" in str(caught.value)
    assert "task.label_column" in str(caught.value)
