"""Sequence to sequence, piece by piece: targets, languages, what a decoder reads, rows that cannot be used."""

import datasets
import pytest
import torch
from torch.nn import functional as F
from toy import make_tiny_writer, toy_descriptions, write_csv, write_jsonl
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BartConfig,
    M2M100Config,
    MBart50Tokenizer,
    MBartConfig,
    MBartTokenizer,
    NllbTokenizer,
    T5Config,
)
from transformers.modeling_outputs import Seq2SeqLMOutput
from transformers.trainer_pt_utils import LabelSmoother

from lit_tune.data.collators import Padding
from lit_tune.data.raw_data import RawData
from lit_tune.data.units import Merged, Windows
from lit_tune.errors import ConfigError, DataError, ModelError, ProblemList
from lit_tune.models.encoder_decoder import decoder_inputs, require_decoder, require_start
from lit_tune.tasks.base import Spec
from lit_tune.tasks.examination import examine
from lit_tune.tasks.seq2seq import PROBLEM, Seq2Seq, Written
from lit_tune.tasks.token_scores import TokenScores

SPEC = Spec(PROBLEM)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny_writer(tmp_path_factory.mktemp("writer"))


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


def split_of(tmp_path, rows, task=None, streaming=False):
    columns = (task or Seq2Seq()).verbatim_columns()
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    found = RawData({"train": path}, text_columns=columns).load("train", streaming)
    assert found is not None
    return found


# --- tokens ----------------------------------------------------------------------------------------------------------


def test_sources_have_their_prefix_and_both_sides_are_cut_before_their_end(tokenizer):
    task = Seq2Seq(prefix="view: ", max_target_length=4)
    rows = {"source": ["mud fog", "mud " * 9], "target": ["rain", ["sun lake path rock trail", "fog"]]}
    found = task.encode(rows, tokenizer, SPEC, 6)
    assert [tokenizer.decode(ids) for ids in found["input_ids"]] == [
        "view <unk> mud fog </s>",
        "view <unk> mud mud mud </s>",
    ]
    assert found["num_tokens"] == [5, 12]
    assert [[tokenizer.decode(ids) for ids in some] for some in found["labels"]] == [
        ["rain </s>"],
        ["sun lake path </s>", "fog </s>"],
    ]
    assert (found["num_target_tokens"], found["num_cut_targets"]) == ([2, 8], [0, 1])
    assert found["references"] == [["rain"], ["sun lake path rock trail", "fog"]]
    unlabelled = task.encode({"source": ["mud"]}, tokenizer, SPEC, 6)
    assert unlabelled.keys() == {"input_ids", "num_tokens"}


def test_a_tokenizer_that_ends_no_text_gets_its_end_token(tokenizer, folder):
    plain = AutoTokenizer.from_pretrained(folder)
    plain.backend_tokenizer.post_processor = None
    assert plain("mud")["input_ids"] == [plain.convert_tokens_to_ids("mud")]
    task, rows = Seq2Seq(max_target_length=3), {"source": ["a"] * 2, "target": ["mud fog", "mud fog sun rain"]}
    ours, usual = (task.encode(rows, t, SPEC, 9)["labels"] for t in (plain, tokenizer))
    assert ours == usual
    assert all(ids[-1] == tokenizer.eos_token_id for ((ids),) in ours)


def test_languages_are_set_and_begin_the_texts_that_are_written(tmp_path):
    words = ["▁mud", "▁fog", "mud", "fog"]
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((w, -1.0) for w in words)]
    bpe = {token: i for i, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "▁", *"mudfog"])}
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
    sizes |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    cases = [
        (MBart50Tokenizer(vocab=pieces), MBartConfig, 2, ("en_XX", "de_DE"), ("forced_bos_token_id", 0)),
        (MBartTokenizer(vocab=pieces), MBartConfig, None, ("en_XX", "de_DE"), ("decoder_start_token_id", -1)),
        (NllbTokenizer(vocab=bpe, merges=[]), M2M100Config, 2, ("eng_Latn", "deu_Latn"), ("forced_bos_token_id", 0)),
    ]
    for tokenizer, config_class, start, (source, target), (setting, place) in cases:
        task = Seq2Seq(src_lang=source, tgt_lang=target)
        task.prepare_tokenizer(tokenizer)
        found = task.encode({"source": ["mud"], "target": ["fog"]}, tokenizer, SPEC, 9)
        ids = {code: tokenizer.convert_tokens_to_ids(code) for code in (source, target)}
        ((labels,),) = found["labels"]
        assert ids[source] in found["input_ids"][0]
        assert (labels[place], labels[place - 1]) == (ids[target], tokenizer.eos_token_id)
        config = config_class(vocab_size=len(tokenizer), decoder_start_token_id=start, **sizes)
        model = AutoModelForSeq2SeqLM.from_config(config)
        task.prepare_model(model, tokenizer)
        assert getattr(model.generation_config, setting) == ids[target]
        source_ids = torch.tensor(found["input_ids"])
        written = model.generate(input_ids=source_ids, attention_mask=torch.ones_like(source_ids), max_new_tokens=3)
        assert ids[target] in written[0, :2].tolist()
        tokenizer.save_pretrained(tmp_path)
        assert AutoTokenizer.from_pretrained(tmp_path).tgt_lang == target
    with pytest.raises(ConfigError, match="no language 'xx_XX'"):
        Seq2Seq(src_lang="en_XX", tgt_lang="xx_XX").prepare_tokenizer(cases[0][0])
    with pytest.raises(ConfigError, match=r"tgt_lang: is missing"):
        Seq2Seq(src_lang="en_XX").prepare_tokenizer(cases[0][0])


def test_languages_of_a_tokenizer_without_any_are_refused(tokenizer):
    with pytest.raises(ModelError, match="has no languages"):
        Seq2Seq(src_lang="en_XX", tgt_lang="de_DE").prepare_tokenizer(tokenizer)


# --- what the decoder reads ------------------------------------------------------------------------------------------


SIDES = {f"{side}_{name}": 2 for side in ("encoder", "decoder") for name in ("layers", "attention_heads", "ffn_dim")}
CONFIGS = [
    T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0),
    BartConfig(vocab_size=20, d_model=8, pad_token_id=0, decoder_start_token_id=1, **SIDES),
    MBartConfig(vocab_size=20, d_model=8, pad_token_id=0, **SIDES),
    M2M100Config(
        vocab_size=20, d_model=8, pad_token_id=0, decoder_start_token_id=1, **SIDES
    ),  # has no method of its own
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.model_type)
def test_the_loss_is_the_one_that_the_model_computes_from_labels(config):
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(config).eval()
    ids, labels = torch.randint(3, 20, (3, 7)), torch.randint(3, 20, (3, 5))
    mask = torch.ones_like(ids)
    ids[1, 4:], mask[1, 4:], labels[1, 3:] = 0, 0, -100
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels, "example_ids": [0, 1, 2], "is_filler": False}
    loss_sum, count = Seq2Seq().loss(Seq2Seq().forward(model, batch), batch, SPEC)
    expected: Seq2SeqLMOutput = model(input_ids=ids, attention_mask=mask, labels=labels)
    assert count == 13
    assert float(loss_sum.detach() / count) == pytest.approx(float(expected.loss.detach()), rel=1e-6)
    alone = {**batch, "input_ids": ids[1:2, :4], "attention_mask": mask[1:2, :4], "labels": labels[1:2, :3]}
    scores = [Seq2Seq().forward(model, b).scores for b in (batch, {**alone, "example_ids": [1]})]
    assert torch.allclose(scores[0].logits[1, :3], scores[1].logits[0], atol=1e-5), "padding changes nothing"


def test_without_a_token_to_begin_with_a_model_is_refused():
    model = AutoModelForSeq2SeqLM.from_config(MBartConfig(vocab_size=20, d_model=8, **SIDES))
    with pytest.raises(ModelError, match="no decoder_start_token_id"):
        require_start(model)
    assert decoder_inputs(model, torch.tensor([[5, 2, 9]])).tolist() == [[9, 5, 2]], "its language, to train with"


def test_label_smoothing_is_that_of_torch_and_of_hugging_face():
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 5, 11), torch.randint(0, 11, (3, 5))
    labels[2, 2:] = -100
    scores = TokenScores(labels, logits, 0.1)
    loss_sum, count = Seq2Seq(label_smoothing=0.1).loss(Written(scores), {}, SPEC)
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=0.1)
    assert float(loss_sum / count) == pytest.approx(float(expected), rel=1e-6)
    theirs = LabelSmoother(0.1)(Seq2SeqLMOutput(logits=logits), labels.clone())
    assert float(loss_sum / count) == pytest.approx(float(theirs), rel=1e-6)
    plain = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    assert float(scores.losses.sum()) == pytest.approx(float(plain), rel=1e-6), "perplexity is without it"
    slim = scores.slim()
    assert float(slim.parts[0]) == float(loss_sum)


def test_models_of_one_side_are_refused_with_a_task_that_fits(folder):
    from transformers import BertConfig, GPT2Config

    with pytest.raises(ModelError, match="encoder alone"):
        require_decoder(BertConfig())
    with pytest.raises(ModelError, match=r"(?s)decoder alone.*InstructionTuning or CausalLM"):
        require_decoder(GPT2Config())
    with pytest.raises(ModelError, match=r"max_target_length: 2000 is more than the 1024 tokens"):
        Seq2Seq(max_target_length=2000).configure(BartConfig(), SPEC)


# --- generation ------------------------------------------------------------------------------------------------------


def test_settings_are_checked_and_saved_with_the_model(folder, tokenizer, tmp_path):
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    model.generation_config.update(num_beams=4, early_stopping=True, length_penalty=2.0, max_length=9, do_sample=True)
    Seq2Seq(generation={"num_beams": 1}, max_target_length=20).prepare_model(model, tokenizer)
    model.save_pretrained(tmp_path)
    found = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).generation_config
    assert (found.num_beams, found.max_new_tokens, found.eos_token_id) == (1, 20, 1)
    assert not found.do_sample
    for wrong in ({"do_sample": True}, {"num_beams": "4"}, {"beams": 4}):
        with pytest.raises(ConfigError, match="generation"):
            Seq2Seq(generation=wrong)


@pytest.mark.parametrize(
    ("limit", "stage", "count"),
    [
        (None, "val", 4),
        (3, "val", 1),
        (3, "test", 4),
        (0, "test", 0),
        (0, "val", 0),
        (None, "probe", 2),
        (3, "probe", 1),
    ],
)
def test_texts_are_written_for_as_many_rows_as_are_wanted(limit, stage, count):
    batch = {"labels": None, "stage": stage, "example_ids": [2, 3, 98, 99] if stage != "probe" else [2, 99, 100]}
    assert Seq2Seq(generate_rows=limit).num_written(batch) == count
    assert Seq2Seq(generate_rows=limit).num_written({"example_ids": [2, 3]}) == 2, "predict writes them all"
    few = {"labels": None, "stage": stage, "example_ids": [1, 2, 3]}
    assert Seq2Seq(metrics=[]).num_written(few) == 2, "to be read, where nothing is scored"


def test_without_texts_there_are_no_scores_of_texts():
    names = Seq2Seq(generate_rows=0).metric_names(SPEC)
    assert names == Seq2Seq(metrics=[]).metric_names(SPEC) == {"loss": False, "perplexity": False, "accuracy": True}
    assert set(Seq2Seq(metrics=["bleu"]).metric_names(SPEC)) == {*names, "bleu"}


@pytest.mark.parametrize(
    "wrong", [{"max_target_length": 1}, {"generate_rows": -1}, {"label_smoothing": 1.0}, {"metrics": ["meteor"]}]
)
def test_settings_that_cannot_be_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Seq2Seq(**wrong)


# --- rows ------------------------------------------------------------------------------------------------------------


def test_rows_that_cannot_be_used_are_named(tmp_path):
    rows = toy_descriptions(6)
    rows[1]["source"], rows[4]["target"] = None, None
    with pytest.raises(ProblemList) as raised:
        Seq2Seq().check(split_of(tmp_path, rows), SPEC)
    assert "rows.jsonl:2" in str(raised.value)
    assert "rows.jsonl:5" in str(raised.value)
    for cell in ([], [None, "a"], {"a": "b"}, 3):
        bad = [{"source": "mud", "target": cell}, {"source": "fog", "target": type(cell)()}]
        with pytest.raises(DataError, match="target"):
            Seq2Seq().check(split_of(tmp_path, bad), SPEC)
    with pytest.raises(DataError, match="no column 'target'"):
        Seq2Seq().inspect(split_of(tmp_path, [{"source": "a", "Target": "b"}]), None, True)


def test_rows_with_an_empty_target_are_left_out_and_said(tmp_path, caplog):
    rows = toy_descriptions(4)
    rows[2]["target"] = "  "
    task, split = Seq2Seq(), split_of(tmp_path, rows)
    task.check(split, SPEC)
    with caplog.at_level("WARNING", "lit_tune"):
        assert task.usable(split, SPEC).column("source") == [rows[i]["source"] for i in (0, 1, 3)]
    assert "1 row(s) with an empty target are left out" in caplog.text
    assert "rows.jsonl:3" in caplog.text


def test_a_field_of_a_column_is_a_column(tmp_path):
    task = Seq2Seq("translation.en", "translation.de")
    rows = [{"translation": {"en": "mud", "de": "Schlamm"}}, {"translation": {"en": "fog", "de": "Nebel"}}]
    split = split_of(tmp_path, rows, task)
    task.check(split, SPEC)
    assert (split.column("translation.en"), split.column("translation.de")) == (["mud", "fog"], ["Schlamm", "Nebel"])
    stream = split_of(tmp_path, rows, task, streaming=True)
    assert [row["translation.de"] for row in stream.read()] == ["Schlamm", "Nebel"]
    saved = datasets.Dataset.from_list(
        rows, features=datasets.Features({"translation": datasets.Translation(["en", "de"])})
    )
    datasets.DatasetDict({"train": saved}).save_to_disk(tmp_path / "saved")
    found = RawData({}, dataset=str(tmp_path / "saved"), text_columns=task.verbatim_columns()).load_train()
    assert found.column("translation.de") == ["Schlamm", "Nebel"]


def test_targets_that_are_numbers_in_a_csv_stay_text(tmp_path):
    path = write_csv(tmp_path / "rows.csv", [{"source": "three", "target": "007"}, {"source": "two", "target": "02"}])
    split = RawData({"train": str(path)}, text_columns=Seq2Seq().verbatim_columns()).load_train()
    Seq2Seq().check(split, SPEC)
    assert split.column("target") == ["007", "02"]


def test_the_same_source_with_another_target_is_no_repetition_and_stays_on_one_side(tmp_path):
    rows = [{"source": f"mud {i // 3}", "target": f"{i}"} for i in range(30)]
    rows.append(dict(rows[-1]))
    task, split = Seq2Seq(), split_of(tmp_path, rows)
    found = examine(task, SPEC, {"train": split})
    assert found.texts["train"].num_duplicates == 1
    kept, held = task.hold_out(split, 0.2, 1, SPEC)
    assert not set(kept.column("source")) & set(held.column("source"))
    assert len(kept) + len(held) == 31
    assert len(held) >= 6


def test_units_are_targets_in_training_and_sources_in_evaluation(tokenizer):
    rows = {"source": ["mud", "fog", "Mud", "mud"], "target": ["a sun", ["b", "rain"], "c", "d view"]}
    for task, sizes in ((Seq2Seq(group_sources=True), [2, 2, 1]), (Seq2Seq(), [1, 2, 1, 1])):
        encoded = datasets.Dataset.from_dict(task.encode(rows, tokenizer, SPEC, 9))
        training, evaluated = (task.units(encoded, is_training, None) for is_training in (True, False))
        assert isinstance(training, Windows)
        assert isinstance(evaluated.units, Merged) == task.group_sources
        assert len(training) == 5
        assert [len(f["labels"]) for f in training.read(range(5))] == [1] * 5
        units = evaluated.read(range(len(evaluated)))
        assert [len(f["references"]) for f in units] == sizes
        batch = task.collator(Padding(0), SPEC)(units)
        assert batch["input_ids"].shape[0] == batch["labels"].shape[0] == 5
        assert batch["aside"]["first_rows"].tolist() == [0, *torch.tensor(sizes).cumsum(0)[:-1].tolist()]
    assert task.measure(encoded, SPEC).num_units == 12


def test_a_test_split_without_targets_is_unlabelled(tmp_path):
    task = Seq2Seq()
    assert task.is_unlabelled(split_of(tmp_path, [{"source": "mud"}]), SPEC)
    empty = split_of(tmp_path, [{"source": "mud", "target": ""}])
    assert task.is_unlabelled(empty, SPEC)
    assert task.without_labels(empty).column_names == ["source"]
    assert not task.is_unlabelled(split_of(tmp_path, toy_descriptions(2)), SPEC)
