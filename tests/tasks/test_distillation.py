"""Learning from a teacher: the loss by its formula, exact over any cut, and what a teacher must know."""

import json

import numpy as np
import pytest
import torch
from parity.runs import NO_DROPOUT, Recorder, fit, relative
from scipy.stats import entropy
from tiny_runs import flags
from toy import (
    CLASSES,
    make_tiny_decoder,
    make_tiny_model,
    model_with_head,
    toy_documents,
    toy_rows,
    toy_sentences,
    write_csv,
    write_jsonl,
)
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertForTokenClassification

from lit_tune import losses
from lit_tune.__main__ import main
from lit_tune.errors import ConfigError, ModelError
from lit_tune.tasks.causal_lm import CausalLM
from lit_tune.tasks.masked_lm import MaskedLM
from lit_tune.tasks.multiple_choice import MultipleChoice
from lit_tune.tasks.token_classification import TokenClassification


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A student, teachers, and rows of all tests here."""
    folder = tmp_path_factory.mktemp("distillation")
    student = make_tiny_model(folder / "student", dropout=0.0)
    larger = make_tiny_model(folder / "larger", dropout=0.0, hidden=32)
    model_with_head(larger, folder / "teacher", sorted(CLASSES))
    write_csv(folder / "train.csv", toy_rows(40, seed=4))
    write_csv(folder / "val.csv", toy_rows(9, seed=5))
    assert student.is_dir()
    return folder


def run(files, batch: int = 16, accumulate: int = 1, ranks: int = 1, teacher: str = "teacher", **more) -> Recorder:
    settings = {"teacher": str(files / teacher), **more.pop("distillation", {})}
    data = {"train": str(files / "train.csv"), "val": str(files / "val.csv"), "cache_dir": str(files / "cache")}
    options = {"precision": "64-true", "max_epochs": 1, **more}
    data |= options.pop("data", {})
    module = {"distillation": settings, "config_overrides": NO_DROPOUT, **options.pop("module", {})}
    return fit(files / "student", data, batch=batch, accumulate=accumulate, ranks=ranks, module=module, **options)


def same(reference: Recorder, other: Recorder, tolerance: float = 1e-6) -> None:
    assert len(reference.losses) == len(other.losses) >= 2
    for a, b in zip(reference.gradients, other.gradients, strict=True):
        assert relative(b, a) < tolerance
    assert other.losses == pytest.approx(reference.losses, rel=tolerance)


# --- the loss --------------------------------------------------------------------------------------------------------


def test_the_loss_is_the_divergence_of_softened_distributions():
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (torch.randn(7, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    loss_sum, count = losses.imitation(ours, theirs, temperature=3.0)
    expected = [entropy((t / 3).softmax(0), (o / 3).softmax(0)) * 9 for o, t in zip(ours, theirs, strict=True)]
    assert float(loss_sum) == pytest.approx(sum(expected), rel=1e-12)
    assert int(count) == 7
    loss_sum, count = losses.binary_imitation(ours, theirs, temperature=3.0)
    pairs = zip((ours / 3).sigmoid().flatten(), (theirs / 3).sigmoid().flatten(), strict=True)
    assert float(loss_sum) == pytest.approx(sum(entropy([t, 1 - t], [o, 1 - o]) * 9 for o, t in pairs), rel=1e-12)
    assert int(count) == 35


def test_a_step_has_the_gradient_of_the_formula(files):
    """Computed by transformers and torch alone, for all rows in one step that changes nothing."""
    still = {"optimizer": {"lr": 1e-30, "weight_decay": 0.0}}
    options = {"distillation": {"temperature": 2.0, "alpha": 0.3}, "module": still, "gradient_clip_val": None}
    found = run(files, 40, max_epochs=2, **options)
    teacher = AutoModelForSequenceClassification.from_pretrained(files / "teacher", dtype=torch.float64).eval()
    student = AutoModelForSequenceClassification.from_pretrained(
        files / "student", num_labels=3, dtype=torch.float64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    student.load_state_dict(found.weights)
    rows, tokenizer = toy_rows(40, seed=4), AutoTokenizer.from_pretrained(files / "student")
    batch = tokenizer([r["text"] for r in rows], padding=True, return_tensors="pt")
    labels = torch.tensor([sorted(CLASSES).index(r["label"]) for r in rows])
    with torch.no_grad():
        wanted = (teacher(**batch).logits / 2).softmax(-1)
    logits = student(**batch).logits
    soft = torch.nn.functional.kl_div((logits / 2).log_softmax(-1), wanted, reduction="batchmean")
    loss = 0.7 * torch.nn.functional.cross_entropy(logits, labels) + 0.3 * 2**2 * soft
    loss.backward()
    assert found.losses[0] == pytest.approx(loss.item(), rel=1e-9)
    norm = torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None]).norm()
    assert found.norms[0] == pytest.approx(norm.item(), rel=1e-9)


def test_without_weight_the_teacher_changes_nothing(files):
    plain = fit(
        files / "student",
        {"train": str(files / "train.csv"), "val": str(files / "val.csv")},
        precision="64-true",
        max_epochs=1,
        module={"config_overrides": NO_DROPOUT},
    )
    same(plain, run(files, distillation={"alpha": 0.0}), 1e-12)


@pytest.mark.parametrize(
    "task", [{}, pytest.param({"class_weights": "balanced"}, marks=pytest.mark.slow)], ids=["plain", "weighted"]
)
def test_any_cut_gives_the_same_gradient(task, files):
    reference = run(files, task=task)
    for batch, accumulate in [(4, 4), (1, 16)]:
        same(reference, run(files, batch, accumulate, task=task), 1e-12)


@pytest.mark.slow
@pytest.mark.ddp
def test_two_ranks_give_the_same_gradient(files, tmp_path):
    for settings in ({}, {"cache": True}):
        same(run(files), run(files, 2, 4, ranks=2, scratch=tmp_path, distillation=settings))


# --- teachers --------------------------------------------------------------------------------------------------------


def test_labels_in_another_order_are_put_in_order(files):
    names = [*sorted(CLASSES)[1:], sorted(CLASSES)[0]]
    model_with_head(files / "larger", files / "turned", names)
    model = AutoModelForSequenceClassification.from_pretrained(files / "teacher")
    turned = AutoModelForSequenceClassification.from_pretrained(files / "turned")
    places = [sorted(CLASSES).index(name) for name in names]
    with torch.no_grad():
        turned.classifier.weight.copy_(model.classifier.weight[places])
        turned.classifier.bias.copy_(model.classifier.bias[places])
    turned.save_pretrained(files / "turned")
    same(run(files), run(files, teacher="turned"))


def test_answers_that_are_kept_are_the_same(files):
    reference = run(files, max_epochs=2)
    for _ in range(2):  # asked, and read again
        same(reference, run(files, max_epochs=2, distillation={"cache": True}))
    (kept,) = (files / "cache").glob("teacher-*.npy")
    assert np.load(kept).shape == (40, 3)


def test_a_teacher_with_another_tokenizer_reads_whole_texts_by_itself(files):
    """The same weights behind a tokenizer that counts its words in another order: the same answers."""
    other = make_tiny_model(files / "other", dropout=0.0, hidden=32, mask=True)
    model_with_head(other, files / "other_teacher", sorted(CLASSES))
    theirs, model = (
        AutoModelForSequenceClassification.from_pretrained(files / n) for n in ("other_teacher", "teacher")
    )
    state = model.state_dict()
    table = state["bert.embeddings.word_embeddings.weight"]
    state["bert.embeddings.word_embeddings.weight"] = torch.cat([table, table[:1]])
    theirs.load_state_dict(state)
    theirs.save_pretrained(files / "other_teacher")
    same(run(files, max_epochs=2), run(files, max_epochs=2, teacher="other_teacher"))


def test_a_teacher_of_other_labels_is_refused(files):
    model_with_head(files / "larger", files / "stranger", ["a", "b", "c"])
    with pytest.raises(ModelError, match="knows a, b, c, the data has bad, fine, good"):
        run(files, teacher="stranger")
    with pytest.raises(ModelError, match="no trained head"):
        run(files, teacher="larger")


def test_tasks_on_tokens_have_a_teacher_for_each_token(files, tmp_path):
    names = ["B-place", "B-sky", "I-place", "I-sky", "O"]
    rows = toy_sentences(30, seed=1)
    found = sorted({tag for row in rows for tag in row["ner_tags"]})
    assert set(found) <= set(names) | set(found)
    labels = {"id2label": dict(enumerate(found)), "label2id": {n: i for i, n in enumerate(found)}}
    BertForTokenClassification.from_pretrained(files / "larger", **labels).save_pretrained(tmp_path / "tagger")
    AutoTokenizer.from_pretrained(files / "larger").save_pretrained(tmp_path / "tagger")
    data = {"train": write_jsonl(tmp_path / "train.jsonl", rows), "val": write_jsonl(tmp_path / "val.jsonl", rows[:5])}
    options = {"teacher": str(tmp_path / "tagger"), "task": TokenClassification(), "data": data}
    same(run(files, **options), run(files, 4, 4, **options), 1e-12)
    with pytest.raises(ConfigError, match="are tokens, not rows"):
        run(files, **options, distillation={"cache": True})


@pytest.mark.parametrize("kind", ["masked", pytest.param("causal", marks=pytest.mark.slow)])
def test_language_models_have_a_teacher(kind, files, tmp_path):
    if kind == "causal":
        student, teacher = (
            make_tiny_decoder(tmp_path / "s", kind="gpt2"),
            make_tiny_decoder(tmp_path / "t", kind="llama"),
        )
        task = CausalLM()
    else:
        student, teacher = (make_tiny_model(tmp_path / n, 0.0, size, mask=True) for n, size in (("s", 16), ("t", 32)))
        task = MaskedLM()
    data = {
        name: write_jsonl(tmp_path / f"{name}.jsonl", toy_documents(90, seed=i))
        for i, name in enumerate(("train", "val"))
    }

    def losses_of(batch: int, accumulate: int) -> Recorder:
        module = {"distillation": {"teacher": str(teacher)}, "config_overrides": {} if kind == "causal" else NO_DROPOUT}
        cut = {"batch": batch, "accumulate": accumulate, "precision": "64-true", "max_epochs": 1}
        return fit(student, {**data, "max_length": 16, "probe_size": 0}, task=task, module=module, **cut)

    same(losses_of(16, 1), losses_of(4, 4), 1e-12)


def test_what_cannot_be_imitated_is_refused(files, tmp_path):
    rows = [{"question": "mud", "choices": ["rain", "sun"], "label": 0}] * 8
    data = {name: write_jsonl(tmp_path / f"{name}.jsonl", rows) for name in ("train", "val")}
    with pytest.raises(ConfigError, match="MultipleChoice has no logits"):
        run(files, task=MultipleChoice(), data={**data, "accept": ["single_class", "leakage"]})


def test_a_persons_run_learns_from_the_teacher_and_keeps_none_of_it(files, tmp_path, capsys):
    options = {
        "model.model_name_or_path": files / "student",
        "data.train": files / "train.csv",
        "data.val": files / "val.csv",
        "distillation.teacher": files / "teacher",
        "run_dir": tmp_path / "run",
        "trainer.accelerator": "cpu",
        "trainer.max_epochs": 1,
        "logger": "none",
    }
    assert main(["fit", *flags(options)]) == 0
    assert "teacher  BertForSequenceClassification" in capsys.readouterr().err
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("last*.ckpt")
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    student = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "best")
    assert {name.removeprefix("model.") for name in state if name.startswith("model.")} == set(student.state_dict())
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["status"] == "complete"
