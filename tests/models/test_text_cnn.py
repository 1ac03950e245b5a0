"""``text_cnn``: the network against plain loops, its words, and a person's way with it through the command line."""

import csv
import json
from pathlib import Path

import pytest
import torch
from checkpointing.resume_matrix import check, fit
from toy import make_tiny_model, toy_rows, write_csv, write_jsonl
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from lit_tune import build
from lit_tune.__main__ import main
from lit_tune.callbacks.model_card import usage
from lit_tune.models.text_cnn import TextCnnConfig, TextCnnForSequenceClassification, TextCnnModel, is_new
from lit_tune.models.word_tokenizer import learn_words, of_words
from lit_tune.tasks.sequence_classification import SequenceClassification

SIZES = {"vocab_size": 20, "embedding_size": 6, "num_filters": 5, "filter_sizes": [1, 2, 4]}


def network() -> TextCnnForSequenceClassification:
    torch.manual_seed(3)
    return TextCnnForSequenceClassification(TextCnnConfig(**SIZES, num_labels=3)).double().eval()


def by_hand(model: TextCnnForSequenceClassification, ids: list[int]) -> torch.Tensor:
    """Logits of one text: every filter slides over it, from its last word on the text's first to its first on the
    last."""
    words = [model.text_cnn.embeddings.weight[i] for i in ids]
    answers = []
    for layer in model.text_cnn.filters:
        size = layer.kernel_size[0]
        for number in range(layer.out_channels):
            best = torch.zeros((), dtype=torch.float64)
            for start in range(1 - size, len(words)) if words else []:
                total = layer.bias[number]
                for k in range(size):
                    if 0 <= start + k < len(words):
                        total = total + layer.weight[number, :, k] @ words[start + k]
                best = torch.maximum(best, total)
            answers.append(best)
    return model.classifier(torch.stack(answers))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("width", [7, 12])
def test_logits_are_those_of_a_plain_loop_however_a_batch_is_padded(side, width):
    model, texts = network(), [[3, 4, 5, 6, 7, 8, 9], [11], [2, 2], []]
    ids = torch.zeros(len(texts), width, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, text in enumerate(texts):
        place = slice(width - len(text), None) if side == "left" else slice(0, len(text))
        ids[row, place], mask[row, place] = torch.tensor(text, dtype=torch.int64), 1
    with torch.inference_mode():
        logits = model(ids, mask).logits
        expected = torch.stack([by_hand(model, text) for text in texts])
    torch.testing.assert_close(logits, expected, rtol=1e-12, atol=1e-12)


def test_with_labels_it_gives_transformers_loss():
    model, ids = network(), torch.tensor([[3, 4, 5], [6, 7, 8]])
    labels = torch.tensor([2, 0])
    model.config.problem_type = "single_label_classification"
    out = model(ids, labels=labels)
    torch.testing.assert_close(out.loss, torch.nn.functional.cross_entropy(out.logits, labels))


def test_the_auto_classes_save_and_load_it(tmp_path):
    model = network().float()
    model.save_pretrained(tmp_path)
    ids = torch.tensor([[3, 4, 5]])
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(ids).logits, model(ids).logits, rtol=0, atol=0)
    base = AutoModel.from_pretrained(tmp_path).eval()
    assert isinstance(base, TextCnnModel)
    torch.testing.assert_close(base(ids).pooler_output, model.text_cnn(ids).pooler_output, rtol=0, atol=0)


def test_words_are_those_that_occur_twice_the_most_frequent_first():
    texts = ["The CAT, the cat!", "a café and a cafe", "dog dog dog 你好", "好 once"]
    tokenizer = learn_words(texts, 100)
    words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    assert words == ["[PAD]", "[UNK]", "[SEP]", "dog", "a", "cafe", "cat", "the", "好"]
    assert [w for w in words if w in learn_words(texts, 5).get_vocab()] == ["[PAD]", "[UNK]", "[SEP]", "dog", "a"]
    assert tokenizer("Dog once")["input_ids"] == [3, 1]
    assert tokenizer("dog", "cat")["input_ids"] == [3, 2, 6]
    assert of_words(tokenizer.backend_tokenizer.to_str())("Dog, cat")["input_ids"] == tokenizer("Dog, cat")["input_ids"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cnn")
    told = [{**row, "label": "good" if "fog" in row["text"] else "bad"} for row in toy_rows(240, seed=1)]
    write_csv(folder / "train.csv", [{"text": "zebra zebra zebra", "label": "good", "score": 0}, *told])
    other = [{**row, "label": "good" if "fog" in row["text"] else "bad"} for row in toy_rows(30, seed=2)]
    write_csv(folder / "test.csv", [*other, {"text": "gnu gnu gnu", "label": "bad", "score": 0}])
    return folder


def options(folder: Path, run: Path, *more: str) -> list[str]:
    files = ["--data.train", str(folder / "train.csv"), "--data.test", str(folder / "test.csv")]
    return [
        *files,
        "--model.model_name_or_path",
        "text_cnn",
        "--run_dir",
        str(run),
        "--trainer.accelerator",
        "cpu",
        *more,
    ]


@pytest.fixture(scope="module")
def finished(folder) -> Path:
    run = folder / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIT_TUNE_CACHE", str(folder / "cache"))
        assert main(["fit", *options(folder, run, "--trainer.max_epochs", "5")]) == 0
    return run


def test_one_line_of_config_gives_a_model_that_has_learned(finished):
    manifest = json.loads((finished / "manifest.json").read_text())
    assert manifest["best_metrics"]["val/accuracy"] > manifest["spec"]["baseline"]["accuracy"]
    assert "lr 0.001," in (finished / "run.log").read_text()
    assert "no words" not in (finished / "run.log").read_text()


def test_words_are_those_of_the_rows_that_are_trained_on(finished, folder):
    tokenizer = AutoTokenizer.from_pretrained(finished / "best")
    made = build(finished / "config.yaml")
    made.datamodule.prepare("fit")
    assert tokenizer.get_vocab() == made.datamodule.tokenizer.get_vocab()
    assert "gnu" not in tokenizer.get_vocab()
    used = made.datamodule.preparation.read(("train", "val"))
    held_out = {word for text in used["val"].rows["text"] for word in text.split()}
    trained = " ".join(used["train"].rows["text"])
    counted = {word for word in trained.split() if trained.split().count(word) > 1}
    assert set(tokenizer.get_vocab()) - {"[PAD]", "[UNK]", "[SEP]"} <= {word.strip(".,!?") for word in counted} | set(
        ".,!?"
    )
    assert held_out  # the rows that were cut from train


def test_best_gives_the_numbers_of_test_and_predict(finished, folder, capsys):
    assert main(["test", "--config", str(finished / "config.yaml")]) == 0
    measured = json.loads((finished / "test_metrics.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(finished / "best")
    model = AutoModelForSequenceClassification.from_pretrained(finished / "best").eval()
    assert model.config.vocab_size == len(tokenizer)
    rows = list(csv.DictReader((folder / "test.csv").read_text().splitlines()))
    answers = [model(**tokenizer(row["text"], return_tensors="pt")).logits.argmax() for row in rows]
    right = sum(model.config.id2label[int(a)] == row["label"] for a, row in zip(answers, rows, strict=True))
    assert measured["metrics"]["accuracy"] == pytest.approx(right / len(rows))


@pytest.mark.slow
def test_the_same_words_come_from_the_cache_and_from_a_resume(folder, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("LIT_TUNE_CACHE", str(tmp_path / "cache"))
    steps = ["--trainer.max_steps", "8", "--checkpoint.every_n_steps", "2", "--eval_every_steps", "4"]
    given = ["--config", str(tmp_path / "c.yaml")]
    config = {"data": {"train": str(folder / "train.csv")}, "model": {"model_name_or_path": "text_cnn"}}
    (tmp_path / "c.yaml").write_text(json.dumps(config))
    full = fit([*given, *steps, "--run_dir", str(tmp_path / "full")])
    assert check(full, 4, tmp_path / "again", [*given, *steps]) == []
    monkeypatch.setenv("LIT_TUNE_CACHE", str(tmp_path / "empty"))
    assert check(full, 4, tmp_path / "learned_again", [*given, *steps]) == []


def test_a_stream_learns_the_words_of_its_first_rows(folder, tmp_path):
    more = ["--data.streaming", "true", "--data.val_fraction", "0", "--trainer.max_steps", "3"]
    more += ["--task.init_args.label_names", "[bad, good]"]
    rows = list(csv.DictReader((folder / "train.csv").read_text().splitlines()))
    more += ["--data.train", write_jsonl(tmp_path / "train.jsonl", rows)]
    assert main(["fit", *options(folder, tmp_path / "run", *more)]) == 0
    assert "zebra" in AutoTokenizer.from_pretrained(tmp_path / "run" / "best").get_vocab()


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (["--model.from_scratch", "false"], 2, "there are no weights of text_cnn"),
        (["--task", "TokenClassification"], 2, "text_cnn classifies texts"),
        (["--model.config_overrides", "{num_filter: 3}"], 2, "model.config_overrides.num_filters"),
        (["--model.freeze", "backbone"], 2, "random weights would never be trained"),
    ],
)
def test_what_it_cannot_do_is_told(more, code, said, folder, tmp_path, capsys):
    assert main(["fit", *options(folder, tmp_path / "run", *more)]) == code
    err = capsys.readouterr().err
    assert said in err
    assert "Fix: " in err


def test_it_cannot_be_measured_before_it_was_trained(folder, tmp_path, capsys):
    assert main(["test", *options(folder, tmp_path / "run")]) == 4
    assert "knows no words" in capsys.readouterr().err


def test_a_rate_and_sizes_of_ones_own_win(folder, tmp_path):
    more = ["--optimizer.lr", "0.0005", "--model.config_overrides", "{vocab_size: 9, filter_sizes: [2]}"]
    made = build([], options(folder, tmp_path / "run", *more))
    made.datamodule.prepare("fit")
    assert made.module.optimizer_settings.lr == 0.0005
    assert len(made.datamodule.tokenizer) == 9
    assert made.module.build_config(made.datamodule.spec).filter_sizes == [2]


def test_a_folder_of_that_name_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_new("text_cnn")
    make_tiny_model(tmp_path / "text_cnn")
    assert not is_new("text_cnn")


def test_the_card_says_how_transformers_learns_of_it(finished):
    text = (finished / "best" / "README.md").read_text()
    assert "base_model" not in text
    assert "import lit_tune.models.text_cnn\n" in text
    assert "lit_tune" not in usage(SequenceClassification(), adapted=False)
