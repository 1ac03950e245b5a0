"""BLEU, chrF and ROUGE are those of sacrebleu and rouge_score, whatever the batches and ranks."""

import random

import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import corpus_bleu, corpus_chrf
from toy import WORDS

from lit_tune.errors import ConfigError
from lit_tune.metrics import generated_texts
from lit_tune.metrics.generated_texts import ROUGE, CorpusScore, RougeScores, require_packages


def texts(seed: int, similar: float = 0.6) -> tuple[list[str], list[list[str]]]:
    """31 texts with one to three references each; the sentences have points and case, one text is empty."""
    rng = random.Random(seed)
    written, references = [], []
    for i in range(31):
        right = [rng.choice(WORDS) for _ in range(rng.randint(1, 12))]
        others = [[w if rng.random() < similar else rng.choice(WORDS) for w in right] for _ in range(3)]
        first, *more = (f"The {' '.join(words)}, climbing 2.5 km." for words in others)
        written.append(first if i else "")
        references.append([f"The {' '.join(right)}, climbed 2.5 km.", *more][: rng.randint(1, 3)])
    return written, references


def fed(metric, written: list[str], references: list[list[str]], batch: int):
    """The metric after all batches."""
    for start in range(0, len(written), batch):
        metric.update(written[start : start + batch], references[start : start + batch])
    return metric


def streams(references: list[list[str]]) -> list[list[str | None]]:
    """As sacrebleu takes them: all first references, all second ones ..."""
    return [[some[i] if i < len(some) else None for some in references] for i in range(3)]


@pytest.mark.parametrize("similar", [0.9, 0.0])
def test_bleu_and_chrf_are_sacrebleus_in_any_batches(similar):
    written, references = texts(1, similar)
    bleu = corpus_bleu(written, streams(references)).score
    chrf = corpus_chrf(written, streams(references)).score
    assert 0 < bleu < chrf < 100
    for batch in (1, 7, 31):
        assert float(fed(CorpusScore("bleu"), written, references, batch).compute()["bleu"]) == bleu / 100
        assert float(fed(CorpusScore("chrf"), written, references, batch).compute()["chrf"]) == chrf / 100


def test_a_text_without_a_common_word_has_the_smoothed_bleu_of_sacrebleu():
    written, references = ["mud fog rain lake path"], [["sun rock view trail steep"]]
    for some in (references, [["mud rock view trail steep"]]):
        expected = corpus_bleu(written, [[right[0] for right in some]]).score / 100
        assert float(fed(CorpusScore("bleu"), written, some, 1).compute()["bleu"]) == expected


def test_chinese_is_cut_by_sacrebleus_own_tokenizer():
    written, references = ["今天天气很好。"], [["今天的天气很好。"]]
    expected = corpus_bleu(written, [[right[0] for right in references]], tokenize="zh").score / 100
    assert float(fed(CorpusScore("bleu", "zh"), written, references, 1).compute()["bleu"]) == expected > 0.2


def test_rouge_is_the_mean_of_googles_with_the_best_reference_for_each_score():
    written, references = texts(2)
    written[3] = "the mud\nand the fog"
    scorer = RougeScorer(list(ROUGE), use_stemmer=True)
    single = [[scorer.score(right, text) for right in some] for text, some in zip(written, references, strict=True)]
    metric = fed(RougeScores(), written, references, 7)
    for name in ROUGE:
        expected = sum(max(score[name].fmeasure for score in scores) for scores in single) / len(written)
        assert float(metric.compute()[name]) == pytest.approx(expected, abs=1e-12)
    climbs = RougeScores()
    climbs.update(["climbing"], [["climbed"]])
    assert float(climbs.compute()["rouge1"]) == 1.0, "words are stemmed, as run_summarization.py asks for"


def test_of_nothing_there_is_no_score_and_states_add_up():
    for make in (lambda: CorpusScore("bleu"), lambda: CorpusScore("chrf"), RougeScores):
        written, references = texts(3)
        assert all(torch.isnan(value) for value in make().compute().values())
        whole, parts = fed(make(), written, references, 31), [make(), make()]
        fed(parts[0], written[:9], references[:9], 4), fed(parts[1], written[9:], references[9:], 4)
        for state in whole._defaults:
            summed = sum(getattr(part, state) for part in parts)
            assert torch.allclose(summed, getattr(whole, state), rtol=1e-14), "what torchmetrics adds up over ranks"


def test_a_missing_package_is_told_with_the_extra_that_brings_it(monkeypatch):
    monkeypatch.setattr(generated_texts, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"rouge_score and sacrebleu are not installed") as raised:
        require_packages(["rouge", "bleu", "chrf"], "task.init_args.metrics")
    assert "lit-tune[text]" in str(raised.value)
    require_packages([], "task.init_args.metrics")
