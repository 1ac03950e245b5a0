"""A run of any task that goes on equals one that was never interrupted, bit by bit."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from checkpointing.resume_matrix import EVERY_STEP, check, fit
from tiny_runs import flags
from toy import (
    make_tiny_decoder,
    make_tiny_model,
    make_tiny_writer,
    toy_chats,
    toy_choices,
    toy_descriptions,
    toy_documents,
    toy_lines,
    toy_pairs,
    toy_questions,
    toy_sentences,
    write_jsonl,
)

from lit_tune.config.sections import tasks


@dataclass(frozen=True)
class Case:
    """A run with dropout in the model, which is taken up after one of its steps.

    Args:
        step: The step; not the last one.
        rows: A count and a seed -> so many rows, or lines of a text.
        num_train: Rows to train on.
        num_val: Rows to validate on.
        make_model: Saves the model into a folder.
        options: What else the command line says.
    """

    step: int
    rows: Callable[..., list]
    num_train: int
    num_val: int
    make_model: Callable[..., Path] = make_tiny_model
    options: dict[str, Any] = field(default_factory=dict)


def chapters(count: int, seed: int) -> list[str]:
    return ["mud", *toy_lines(count, seed)]


make_gpt2 = partial(make_tiny_decoder, kind="gpt2")
WINDOWS = {"data.max_length": 24, "task.init_args.stride": 6}
MASKED = {"data.max_length": 16, "trainer.max_epochs": 2}
CASES = {
    "TokenClassification": Case(3, toy_sentences, 33, 37),
    "QuestionAnswering": Case(3, partial(toy_questions, with_none=True), 17, 37, options=WINDOWS),
    "MultipleChoice": Case(3, toy_choices, 33, 37),
    "MaskedLM": Case(5, chapters, 60, 150, partial(make_tiny_model, mask=True), MASKED),
    "CausalLM": Case(2, toy_documents, 90, 37, make_gpt2, {"data.max_length": 16}),
    "InstructionTuning": Case(2, toy_chats, 120, 23, make_gpt2, {"task.init_args.chat_template": "plain"}),
    "Seq2Seq": Case(2, toy_descriptions, 21, 9, make_tiny_writer, {"task.init_args.generate_rows": 3}),
    "SentenceEmbedding": Case(
        2, toy_pairs, 37, 41, options={"task.init_args.texts_at_once": 3, "data.train_batch_size": 8}
    ),
}


def test_every_task_has_a_case():
    others = {"SequenceClassification"}  # tests/checkpointing is about its runs
    assert CASES.keys() | others == tasks().keys()


def write(path: Path, rows: list) -> Path:
    """Texts as the lines of a txt file, other rows as json lines."""
    if isinstance(rows[0], dict):
        write_jsonl(path.with_suffix(".jsonl"), rows)
        return path.with_suffix(".jsonl")
    path.with_suffix(".txt").write_text("\n".join(rows) + "\n")
    return path.with_suffix(".txt")


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_run_that_goes_on_equals_one_that_was_never_interrupted(name, tmp_path):
    case = CASES[name]
    options = flags(
        {
            **EVERY_STEP,
            "task.class_path": name,
            "model.model_name_or_path": case.make_model(tmp_path / "model", dropout=0.3),
            "data.train": write(tmp_path / "train", case.rows(case.num_train, seed=case.num_train)),
            "data.val": write(tmp_path / "val", case.rows(case.num_val, seed=case.num_val)),
            "trainer.accumulate_grad_batches": 2,
            "trainer.max_epochs": 1,
            **case.options,
        }
    )
    full = fit([*options, "--run_dir", str(tmp_path / "full")])
    assert case.step < full.read()["steps"], "a step is left to go on with"
    assert check(full, case.step, tmp_path / "again", options) == []
