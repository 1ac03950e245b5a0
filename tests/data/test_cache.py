"""The cache of tokenized data: complete or not there, keyed by content."""

import importlib.util
import multiprocessing
import os
import sys
from pathlib import Path

import datasets
import pytest
from transformers import AutoTokenizer

from lit_tune.data import cache
from lit_tune.errors import StorageError
from lit_tune.tasks.sequence_classification import SequenceClassification


def rows(count: int = 5) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"input_ids": [[1, 2, i] for i in range(count)]})


def write(folder: Path, count: int = 5) -> None:
    with cache.draft(folder) as temporary:
        cache.save(folder, {"train": rows(count), "val": rows(2)}, {"spec": {"a": 1}}, temporary)


def test_what_was_saved_is_loaded_and_nothing_else_is_left(tmp_path):
    write(tmp_path / "cache" / "key")
    found = cache.load(tmp_path / "cache" / "key")
    assert found is not None
    splits, notes = found
    assert splits["train"].to_list() == rows().to_list()
    assert notes == {"spec": {"a": 1}, "splits": ["train", "val"]}
    assert os.listdir(tmp_path / "cache") == ["key"]
    assert cache.load(tmp_path / "cache" / "other") is None


def test_an_interrupted_write_leaves_nothing_that_is_believed(tmp_path):
    folder = tmp_path / "key"

    def interrupted():
        with cache.draft(folder) as temporary:
            rows().save_to_disk(str(temporary / "entry" / "train"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert os.listdir(tmp_path) == []
    (tmp_path / ".key.1.killed" / "entry").mkdir(parents=True)  # kill -9 runs no clean-up
    assert cache.load(folder) is None
    write(folder)
    assert cache.load(folder) is not None


DAMAGES = {
    "arrow file gone": lambda f: (f / "train" / "data-00000-of-00001.arrow").unlink(),
    "arrow file cut": lambda f: os.truncate(f / "train" / "data-00000-of-00001.arrow", 100),
    "arrow file empty": lambda f: os.truncate(f / "train" / "data-00000-of-00001.arrow", 0),
    "state broken": lambda f: (f / "val" / "state.json").write_text("{"),
    "split gone": lambda f: __import__("shutil").rmtree(f / "val"),
    "notes gone": lambda f: (f / "meta.json").unlink(),
    "notes broken": lambda f: (f / "meta.json").write_text('{"splits": ["tra'),
    "notes of another kind": lambda f: (f / "meta.json").write_text("[1]"),
    "notes without splits": lambda f: (f / "meta.json").write_text("{}"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_said_dropped_and_can_be_made_again(tmp_path, damage, caplog):
    folder = tmp_path / "key"
    write(folder)
    DAMAGES[damage](folder)
    assert cache.load(folder) is None
    assert "is damaged" in caplog.text
    write(folder, 7)
    found = cache.load(folder)
    assert found is not None
    assert len(found[0]["train"]) == 7


def test_of_two_writers_the_first_wins_and_the_others_copy_is_dropped(tmp_path):
    folder = tmp_path / "key"
    with cache.draft(folder) as slow:
        write(folder, 5)
        cache.save(folder, {"train": rows(9)}, {}, slow)
    found = cache.load(folder)
    assert found is not None
    assert len(found[0]["train"]) == 5
    assert os.listdir(tmp_path) == ["key"]


def test_processes_that_write_the_same_entry_at_once_leave_one_good_entry(tmp_path):
    start = multiprocessing.get_context("fork")
    barrier = start.Barrier(3)

    def run(path):
        barrier.wait()
        for _ in range(5):
            write(path)
            assert cache.load(path) is not None

    processes = [start.Process(target=run, args=(tmp_path / "key",)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [p.exitcode for p in processes] == [0, 0, 0]
    assert os.listdir(tmp_path) == ["key"]
    assert cache.load(tmp_path / "key") is not None


def test_a_cache_that_cannot_be_written_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot write the cache of tokenized data: Not a directory") as caught:
        write(tmp_path / "file" / "key")
    assert caught.value.exit_code == 7
    assert "data.cache_dir" in str(caught.value.fix)


def test_the_default_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("LIT_TUNE_CACHE", "/a")
    assert cache.default_cache_dir() == Path("/a")
    monkeypatch.delenv("LIT_TUNE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert cache.default_cache_dir() == Path("/b/lit_tune")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/c")
    assert cache.default_cache_dir() == Path("/c/.cache/lit_tune")


# --- fingerprints ----------------------------------------------------------------------------------------------------


def test_using_a_tokenizer_does_not_change_its_fingerprint_and_changing_it_does(tiny_model_dir):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    before = cache.tokenizer_fingerprint(tokenizer)
    tokenizer(["trail rock"] * 3, padding=True, truncation=True, max_length=3)
    assert cache.tokenizer_fingerprint(tokenizer) == before
    assert cache.tokenizer_fingerprint(AutoTokenizer.from_pretrained(tiny_model_dir)) == before
    tokenizer.truncation_side = "left"
    left = cache.tokenizer_fingerprint(tokenizer)
    tokenizer.add_tokens(["summit"])
    assert len({before, left, cache.tokenizer_fingerprint(tokenizer)}) == 3


SOURCE = """
from lit_tune.tasks.sequence_classification import SequenceClassification

def shout(text):
    return text.upper()

class Base(SequenceClassification):
    def encode(self, rows, *rest):
        return super().encode({**rows, "text": [shout(t) for t in rows["text"]]}, *rest)

class Own(Base):
    pass
"""


def own_task(path: Path, source: str) -> object:
    path.write_text(source)
    spec = importlib.util.spec_from_file_location("own_task", path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["own_task"] = module
    assert spec.loader is not None
    spec.loader.exec_module(module)
    __import__("linecache").checkcache()
    return module.Own()


def test_a_change_in_a_users_own_task_or_in_what_it_calls_changes_the_fingerprint(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "own_task", None)  # put back afterwards
    first = cache.code_fingerprint(own_task(tmp_path / "own_task.py", SOURCE))
    assert cache.code_fingerprint(own_task(tmp_path / "own_task.py", SOURCE)) == first
    changed = SOURCE.replace("text.upper()", "text.lower()")  # a function beside the class, of a base class
    assert cache.code_fingerprint(own_task(tmp_path / "own_task.py", changed)) != first
    assert cache.code_fingerprint(SequenceClassification()) not in (first, None)


def test_a_task_typed_at_a_prompt_is_told_apart_by_its_byte_code():
    def typed(suffix: str) -> object:
        names = {"SequenceClassification": SequenceClassification, "__name__": "prompt"}
        code = f"class Own(SequenceClassification):\n def texts(self, rows): return [t + '{suffix}' for t in rows]"
        exec(code, names)
        return names["Own"]()

    assert cache.code_fingerprint(typed("a")) == cache.code_fingerprint(typed("a"))
    assert cache.code_fingerprint(typed("a")) != cache.code_fingerprint(typed("b"))
