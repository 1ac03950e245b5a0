"""The task by itself: windows cut, answers placed, outputs turned into losses and answers."""

import pickle
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from tokenizers import ByteLevelBPETokenizer, processors
from toy import toy_questions
from transformers import AutoModelForQuestionAnswering, AutoTokenizer, BertConfig, PreTrainedTokenizerFast

from lit_tune.data.collators import Padding
from lit_tune.data.split import Split
from lit_tune.errors import ConfigError, DataError, NumericsError
from lit_tune.metrics import scalars
from lit_tune.models.text_reader import TextReader
from lit_tune.tasks.answer_spans import SpanLogits, best_spans
from lit_tune.tasks.answer_windows import stride_of, tokenize_windows
from lit_tune.tasks.base import Spec
from lit_tune.tasks.question_answering import ALWAYS, CONFIG_FLAG, SOMETIMES, QuestionAnswering

EVERY, SOME = Spec(ALWAYS), Spec(SOMETIMES)
BASE = BertConfig()


def split(rows: list[dict], name: str = "train") -> Split:
    table = datasets.Dataset.from_list(rows, on_mixed_types="use_json")
    return Split(table, name, [(f"{name}.jsonl", len(rows))], "f")


def asked(context: str = "a lake", *answers: tuple[str, int], question: str = "where") -> dict:
    given = {"text": [a for a, _ in answers], "answer_start": [s for _, s in answers]}
    return {"question": question, "context": context, "answers": given}


LAKE = asked("a lake", ("lake", 2))


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir):
    return AutoTokenizer.from_pretrained(tiny_model_dir)


# --- reading ---------------------------------------------------------------------------------------------------------


def test_whether_questions_may_have_no_answer_is_read_off_train():
    task = QuestionAnswering()
    assert task.inspect(split([LAKE]), BASE, False) == EVERY
    assert task.inspect(split([LAKE, asked()]), BASE, False) == SOME
    assert QuestionAnswering(allow_no_answer=True).inspect(split([LAKE]), BASE, False) == SOME
    refuses = QuestionAnswering(allow_no_answer=False)
    rows = split([LAKE, asked()])
    assert refuses.inspect(rows, BASE, False) == EVERY
    with pytest.raises(DataError, match=r"1 of 2 questions have no answer \(train.jsonl:2\)"):
        refuses.check(rows, EVERY)
    with pytest.raises(ConfigError, match="no effect where every question has an answer"):
        QuestionAnswering(null_score_threshold=1.0).inspect(split([LAKE]), BASE, False)


def test_a_model_keeps_whether_it_knows_no_answer():
    task, config = QuestionAnswering(), BertConfig(num_labels=5)
    for spec in (EVERY, SOME):
        task.configure(config, spec)
        assert config.num_labels == 2
        assert getattr(config, CONFIG_FLAG) == (spec == SOME)
        assert task.spec_of_model(config) == spec
    assert QuestionAnswering(allow_no_answer=True).spec_of_model(BASE) == SOME
    assert task.spec_of_model(BertConfig()) == EVERY


def test_a_stream_needs_what_cannot_be_read_off_it():
    stream = split([LAKE])
    stream = Split(stream.rows.to_iterable_dataset(), "train", stream.files, "f")
    for settings, message in (({}, "a stream cannot be read"), ({"on_misaligned": "drop"}, "cannot be dropped")):
        with pytest.raises(ConfigError, match=message):
            QuestionAnswering(**{"allow_no_answer": False, **settings} if settings else {}).inspect(stream, BASE, False)


def test_all_problems_of_a_split_are_told_together():
    rows = [asked("a lake", ("lake", 1)), asked(), asked("a fog", ("fog", 2)) | {"question": None}]
    with pytest.raises(DataError.__base__) as caught:
        QuestionAnswering().check(split(rows, "val"), EVERY)
    said = [str(p) for p in caught.value.problems]
    assert len(said) == 3
    assert "'question' is null in 1 row(s) (val.jsonl:3)" in said[0]
    assert "1 of 3 questions have no answer (val.jsonl:2)" in said[1]
    assert "val.jsonl:1: 'lake' at 1 stands at 2" in said[2]
    with pytest.raises(DataError, match="there is no column 'answers'"):
        QuestionAnswering().check(split([{"question": "a", "context": "b"}]), EVERY)


def test_misaligned_answers_are_moved_or_their_rows_dropped():
    rows = split([LAKE, asked("a lake", ("lake", 3)), asked("a lake", ("fog", 0)), asked("a lake")])
    assert len(QuestionAnswering().usable(rows, SOME)) == 4
    fixed = QuestionAnswering(on_misaligned="fix").usable(rows, SOME)
    assert [fixed.locate(i) for i in range(len(fixed))] == [f"train.jsonl:{n}" for n in (1, 2, 4)]
    dropped = QuestionAnswering(on_misaligned="drop").usable(rows, SOME)
    assert [dropped.locate(i) for i in range(len(dropped))] == ["train.jsonl:1", "train.jsonl:4"]
    with pytest.raises(DataError, match="no row is left"):
        QuestionAnswering(on_misaligned="drop").usable(split([asked("a lake", ("fog", 0))]), EVERY)


def test_splits_without_answers_are_known():
    task = QuestionAnswering()
    plain = [{"question": "a", "context": "b"}]
    assert task.is_unlabelled(split(plain), SOME)
    assert task.is_unlabelled(split([asked()]), SOME)
    assert not task.is_unlabelled(split([asked(), LAKE]), SOME)
    assert task.without_labels(split([LAKE])).column_names == ["question", "context"]
    assert task.without_labels(split(plain)).column_names == ["question", "context"]
    task.check(split(plain), EVERY, labelled=False)


def test_flat_columns_are_read_as_one_answer(tokenizer):
    flat = [{"question": "q", "context": "a lake", "text": "lake", "answer_start": 2}]
    flat += [{"question": "q", "context": "a lake", "text": "", "answer_start": 0}]
    task = QuestionAnswering(answer_text_column="text")
    rows = split(flat)
    spec = task.inspect(rows, BASE, False)
    assert spec == SOME
    task.check(rows, spec)
    nested = QuestionAnswering().encode(split([LAKE, asked()]).rows[:], tokenizer, spec, 20)
    found = task.encode(rows.rows[:], tokenizer, spec, 20)
    assert [found[n] for n in ("start_positions", "answer")] == [nested[n] for n in ("start_positions", "answer")]
    assert task.without_labels(rows).column_names == ["question", "context"]
    with pytest.raises(DataError, match="there is no column 'begin'"):
        QuestionAnswering(answer_text_column="text", answer_start_column="begin").check(rows, spec)


def test_questions_about_one_context_are_held_out_together():
    groups = QuestionAnswering().groups(split([LAKE, asked("a fog", ("fog", 2)), LAKE | {"question": "what"}]))
    assert groups[0] == groups[2] != groups[1]


def test_the_baseline_is_to_never_answer():
    task = QuestionAnswering()
    rows = split([LAKE, LAKE, LAKE, asked()])
    assert task.summarize(rows, SOME).baseline["f1"] == 0.25
    assert task.strata(rows, SOME).tolist() == [1, 1, 1, 0]
    kept = rows.select(np.array([0, 3]))
    assert task.summarize(kept, SOME).baseline["exact_match"] == 0.5
    assert task.summarize(split([LAKE]), EVERY).baseline == {"exact_match": 0.0, "f1": 0.0}
    with pytest.raises(DataError, match="no question of train has an answer"):
        task.summarize(split([asked()]), SOME)


def test_settings_and_pickling():
    for settings in ({"n_best": 0}, {"max_answer_length": 0}):
        with pytest.raises(ConfigError, match="less than 1"):
            QuestionAnswering(**settings)
    task = QuestionAnswering(stride=3, on_misaligned="fix")
    assert pickle.loads(pickle.dumps(task)).settings() == task.settings()
    for stride in (-1, 200):
        with pytest.raises(ConfigError, match="windows of 384 tokens can share") as caught:
            stride_of(stride, 384, 3)
        assert "task.init_args.stride: 128" in caught.value.fix


# --- windows ---------------------------------------------------------------------------------------------------------


def test_windows_and_labels_are_those_of_transformers_example(tokenizer):
    """The loops of run_qa.py (prepare_train_features), written down once more."""
    rows = toy_questions(60, seed=1, num_words=60, with_none=True)
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    found = QuestionAnswering(stride=6).encode(columns, tokenizer, SOME, 24)
    theirs = tokenizer(
        columns["question"],
        columns["context"],
        truncation="only_second",
        max_length=24,
        stride=6,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    starts, ends = [], []
    for i, offsets in enumerate(theirs["offset_mapping"]):
        answers = rows[theirs["overflow_to_sample_mapping"][i]]["answers"]
        if not answers["text"]:
            starts.append(0)
            ends.append(0)
            continue
        begin, end = answers["answer_start"][0], answers["answer_start"][0] + len(answers["text"][0])
        of_context = [p for p, s in enumerate(theirs.sequence_ids(i)) if s == 1]
        first, last = of_context[0], of_context[-1]
        if not (offsets[first][0] <= begin and offsets[last][1] >= end):
            starts.append(0)
            ends.append(0)
            continue
        while first <= last and offsets[first][0] <= begin:
            first += 1
        while offsets[last][1] >= end:
            last -= 1
        starts.append(first - 1)
        ends.append(last + 1)
    flat = {name: [w for row in found[name] for w in row] for name in ("input_ids", "start_positions", "end_positions")}
    assert [ids.tolist() for ids in flat["input_ids"]] == theirs["input_ids"]
    assert (flat["start_positions"], flat["end_positions"]) == (starts, ends)
    assert 0 < starts.count(0) < len(starts)
    assert found["num_windows"] == [len(row) for row in found["input_ids"]]
    assert max(found["num_windows"]) > 3
    whole = tokenizer(columns["question"], columns["context"])["input_ids"]
    assert found["num_tokens"] == [len(ids) for ids in whole]


def test_a_long_question_is_cut_and_an_empty_context_is_one_window(tokenizer):
    found = tokenize_windows(["mud " * 50, "  lake"], ["rain " * 30, ""], tokenizer, 24, None)
    assert found["num_cut_questions"] == [1, 0]
    long, empty = found["input_ids"]
    assert all((w[:12] == long[0][:12]).all() for w in long), "ten tokens of the question stay, in each window"
    assert [len(w) for w in long[:-1]] == [24] * (len(long) - 1)
    assert [w.tolist() for w in empty] == [tokenizer.convert_tokens_to_ids(["[CLS]", "lake", "[SEP]", "[SEP]"])]
    assert found["char_starts"][1][0].tolist() == []


def test_an_answer_that_no_window_or_span_can_hold_is_counted(tokenizer):
    context = " ".join(["mud"] * 40)
    rows = [asked(context, ("mud " * 30, 0)), asked(context, ("mud mud mud", 0)), asked(context, ("mud", 0))]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    task = QuestionAnswering(max_answer_length=2)
    assert task.encode(columns, tokenizer, EVERY, 24)["num_unreachable_answers"] == [1, 1, 0]


def test_white_space_around_an_answer_is_not_trained_on(tokenizer):
    tight, loose = (
        QuestionAnswering().encode(split([asked("a lake rain", given)]).rows[:], tokenizer, EVERY, 20)
        for given in (("lake", 2), (" lake ", 1))
    )
    assert [tight[n] for n in ("start_positions", "end_positions")] == [
        loose[n] for n in ("start_positions", "end_positions")
    ]


def test_training_draws_windows_and_evaluation_rows(tiny_model_dir, tokenizer):
    rows = toy_questions(9, seed=1, num_words=60)
    task = QuestionAnswering()
    found = task.encode({name: [row[name] for row in rows] for name in rows[0]}, tokenizer, EVERY, 24)
    table = datasets.Dataset.from_dict({n: v for n, v in found.items() if not n.startswith("num_")})
    reader = TextReader(str(tiny_model_dir))
    windows, whole = (task.units(table, training, reader) for training in (True, False))
    assert (len(windows), len(whole)) == (sum(found["num_windows"]), 9)
    one = windows.read([len(windows) - 1])[0]
    assert set(one) == {"input_ids", "token_type_ids", "start_positions", "end_positions"}
    assert one["input_ids"] == [found["input_ids"][8][-1].tolist()]
    batch = task.collator(Padding(0), EVERY)(whole.read([0, 1]))
    assert batch["aside"]["window_counts"] == found["num_windows"][:2]
    assert len(batch["input_ids"]) == sum(found["num_windows"][:2]) == len(batch["labels"])


# --- outputs ---------------------------------------------------------------------------------------------------------


def batch_of(task: QuestionAnswering, tokenizer, rows: list[dict], spec: Spec = EVERY, max_length: int = 24) -> dict:
    features = task.encode({name: [row[name] for row in rows] for name in rows[0]}, tokenizer, spec, max_length)
    singles = [dict(zip(features, values, strict=True)) for values in zip(*features.values(), strict=True)]
    return {**task.collator(Padding(tokenizer.pad_token_id), spec)(singles), "example_ids": list(range(len(rows)))}


def test_the_loss_of_a_window_is_that_of_transformers(tiny_model_dir, tokenizer):
    model = AutoModelForQuestionAnswering.from_pretrained(tiny_model_dir).eval()
    task = QuestionAnswering()
    rows = toy_questions(12, seed=3, num_words=30)
    batch = batch_of(task, tokenizer, rows)
    total, count = task.loss(task.forward(model, batch), batch, EVERY)
    theirs = []
    for ids, types, mask, (first, last) in zip(
        batch["input_ids"], batch["token_type_ids"], batch["attention_mask"], batch["labels"], strict=True
    ):
        n = int(mask.sum())  # alone, without padding
        labels = {"start_positions": first[None], "end_positions": last[None]}
        theirs.append(model(input_ids=ids[None, :n], token_type_ids=types[None, :n], **labels).loss.item())
    assert count.item() == len(theirs) > 12
    assert (total / count).item() == pytest.approx(np.mean(theirs), rel=1e-6)


def test_no_more_windows_than_rows_go_through_the_model_at_once(tokenizer):
    seen = []

    def model(**inputs):
        seen.append(len(inputs["input_ids"]))
        logits = inputs["input_ids"].float()
        return SimpleNamespace(start_logits=logits, end_logits=logits)

    task = QuestionAnswering()
    batch = batch_of(task, tokenizer, toy_questions(3, seed=1, num_words=200))
    found = task.forward(model, batch)
    assert sum(seen) == len(batch["input_ids"]) > 9
    assert max(seen) == 3
    assert torch.equal(found.start, batch["input_ids"].float())


def test_the_best_spans_are_those_of_an_exhaustive_search():
    generator = torch.Generator().manual_seed(0)
    logits = SpanLogits(*(torch.randn(70, 11, generator=generator, dtype=torch.float64) for _ in range(2)))
    begins, ends = torch.tensor([3, 5, 10, 0, 4] * 14), torch.tensor([11, 9, 11, 11, 4] * 14)
    scores, first, last = best_spans(logits, begins, ends, n_best=6, max_tokens=4)
    for w in range(70):
        spans = [
            (float(logits.start[w, i] + logits.end[w, j]), i, j)
            for i in range(int(begins[w]), int(ends[w]))
            for j in range(i, min(i + 4, int(ends[w])))
        ]
        expected = sorted(spans, reverse=True)[:6]
        found = [
            (s, i, j)
            for s, i, j in zip(scores[w].tolist(), first[w].tolist(), last[w].tolist(), strict=True)
            if s > -torch.inf
        ]
        assert found == expected


def predicted(task: QuestionAnswering, spec: Spec, sure: dict[str, float], null: float, rows=None, tokenizer=None):
    """Records where the logit of each word is given, that of all others -9, and that of no answer ``null``."""
    batch = batch_of(task, tokenizer, rows or [asked("mud lake fog", ("lake", 4))], spec)
    logits = torch.full(batch["input_ids"].shape, -9.0)
    for word, value in sure.items():
        logits[batch["input_ids"] == tokenizer.convert_tokens_to_ids(word)] = value
    logits[:, 0] = null
    return task.decode(SpanLogits(logits, logits), batch, spec), batch, SpanLogits(logits, logits)


def test_predictions_are_exact_pieces_of_the_context(tokenizer):
    (record,), *_ = predicted(QuestionAnswering(), EVERY, {"lake": 2.0, "fog": 1.0}, 9.0, tokenizer=tokenizer)
    assert {k: record[k] for k in ("answer", "start", "end")} == {"answer": "lake", "start": 4, "end": 8}
    # lake; lake fog, fog (of its two tokens one is sure); mud lake; mud lake fog; mud
    shares = torch.tensor([4.0, 3.0, 2.0, -7.0, -8.0, -18.0], dtype=torch.float64).softmax(0)
    assert [a["score"] for a in record["alternatives"]] == pytest.approx(shares[:5].tolist(), rel=1e-6)
    assert record["score"] == record["alternatives"][0]["score"]
    assert [a["answer"] for a in record["alternatives"]] == ["lake", "lake fog", "fog", "mud lake", "mud lake fog"]
    assert "no_answer_score" not in record


def test_no_answer_is_predicted_beyond_the_threshold(tokenizer):
    for threshold, null, answer in ((0.0, 2.1, ""), (0.0, 1.9, "lake"), (0.5, 2.1, "lake"), (-0.5, 1.9, "")):
        task = QuestionAnswering(null_score_threshold=threshold)
        (record,), *_ = predicted(task, SOME, {"lake": 2.0}, null, tokenizer=tokenizer)
        assert record["answer"] == answer, (threshold, null)
        assert (record["start"], record["end"]) == ((-1, -1) if not answer else (4, 8))
        assert record["alternatives"][0]["answer"] == "lake"
        # none; lake; lake with a neighbour; spans without it
        scores = torch.tensor([2 * null, 4.0, -7.0, -7.0, -18.0, -18.0, -18.0], dtype=torch.float64)
        assert record["no_answer_score"] == pytest.approx(float(scores.softmax(0)[0]), rel=1e-6)


def test_the_best_answer_of_all_windows_wins_and_a_span_of_two_windows_is_one(tokenizer):
    context = " ".join(["mud"] * 14 + ["lake"] + ["mud"] * 20 + ["fog"] + ["mud"] * 9)
    rows = [asked(context, ("fog", context.index("fog"))), asked("rain lake", ("lake", 5))]
    task = QuestionAnswering(stride=8)
    (first, second), batch, outputs = predicted(
        task, EVERY, {"lake": 3.0, "fog": 4.0}, 0.0, rows=rows, tokenizer=tokenizer
    )
    assert batch["aside"]["window_counts"][0] > 2
    assert (first["answer"], first["start"]) == ("fog", context.index("fog"))
    assert (second["answer"], second["start"]) == ("lake", 5)
    places = [(a["start"], a["end"]) for a in first["alternatives"]]
    assert len(places) == len(set(places))
    metrics = task.build_metrics(EVERY)
    task.update_metrics(metrics, outputs, batch)
    assert metrics.compute()["exact_match"] == 1.0


def test_where_there_is_no_context_there_is_no_answer(tokenizer):
    rows = [{"question": "lake", "context": ""}, {"question": "lake", "context": " "}]
    for spec in (EVERY, SOME):
        records, *_ = predicted(QuestionAnswering(), spec, {}, 0.0, rows=rows, tokenizer=tokenizer)
        assert [r["answer"] for r in records] == ["", ""]
        assert {len(r) for r in records} == {5 if spec == EVERY else 6}


def test_a_broken_model_is_told_by_a_score_that_is_no_number(tokenizer):
    task = QuestionAnswering()
    for spec in (EVERY, SOME):
        batch = batch_of(task, tokenizer, [asked("mud lake fog", ("lake", 4))] * 2, spec)
        broken = torch.full(batch["input_ids"].shape, torch.nan)
        records = task.decode(SpanLogits(broken, broken), batch, spec)
        assert all(np.isnan(r["score"]) for r in records)
    assert NumericsError.exit_code == 6  # what the writer of predictions makes of it


@pytest.mark.parametrize("spec", [EVERY, SOME], ids=["always", "sometimes"])
def test_every_metric_that_is_named_is_computed_and_the_primary_one_is_among_them(spec, tokenizer):
    task = QuestionAnswering()
    rows = [asked("mud lake fog", ("lake", 4))] + ([asked("mud")] if spec == SOME else [])
    _, batch, outputs = predicted(task, spec, {"lake": 2.0}, 0.0, rows=rows, tokenizer=tokenizer)
    metrics = task.build_metrics(spec)
    task.update_metrics(metrics, outputs, batch)
    computed = {"loss": torch.tensor(1.0), **metrics.compute()}
    assert set(task.metric_names(spec)) == set(scalars(computed))
    assert task.primary_metric(spec) in task.metric_names(spec)
    report = task.report(computed, spec)
    assert "exact_match" in report
    assert ("with an answer" in report) == (spec == SOME)


def test_tokenizers_that_count_a_space_to_the_next_token_give_exact_pieces():
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(["the mud and the lake näive"] * 50, vocab_size=300, special_tokens=["<s>", "<pad>"])
    trained.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 0)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, bos_token="<s>", pad_token="<pad>")
    context = "the mud and the näive lake" + " and the mud" * 8
    rows = [asked(context, ("näive lake", 16), question="the lake")]
    task = QuestionAnswering()
    features = task.encode({name: [row[name] for row in rows] for name in rows[0]}, tokenizer, EVERY, 24)
    first = features["char_starts"][0][0]
    assert context[first[1]] == " ", "the offsets do hold the space"
    batch = batch_of(task, tokenizer, rows)
    logits = torch.zeros(2, *batch["input_ids"].shape)
    for side in (0, 1):
        logits[side, 0, batch["labels"][0, side]] = 9.0
    assert batch["labels"][0, 0] != batch["labels"][0, 1], (
        "the answer stands in the first window, as two tokens or more"
    )
    (record,) = task.decode(SpanLogits(*logits), batch, EVERY)
    assert (record["answer"], record["start"]) == ("näive lake", 16)
