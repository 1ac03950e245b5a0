"""What is masked: shares, words, special tokens, and that it depends on seed, epoch and unit alone."""

from typing import Any

import numpy as np
import pytest
from toy import make_tiny_model
from transformers import AutoTokenizer

from lit_tune.data.collators import Padding
from lit_tune.data.loader import collate
from lit_tune.data.masking import MaskingCollator, choose, mask_tokens
from lit_tune.data.vocabulary import Vocabulary

MASK = 103


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory) -> Vocabulary:
    return Vocabulary(AutoTokenizer.from_pretrained(make_tiny_model(tmp_path_factory.mktemp("mask"), mask=True)))


def collator(vocabulary: Any, seed: int = 1, probability: float = 0.3, **padding: Any) -> MaskingCollator:
    return MaskingCollator(Padding(0, vocabulary=vocabulary, seed=seed, **padding), probability)


def test_so_many_are_chosen_and_of_these_so_many_are_hidden():
    generator = np.random.default_rng(0)
    ids = generator.integers(200, 10_000, size=200_000)
    may_be = np.arange(len(ids)) % 10 != 0
    chosen = choose(may_be, 0.15, generator)
    assert not chosen[~may_be].any()
    assert chosen[may_be].mean() == pytest.approx(0.15, abs=0.005)
    read, labels = mask_tokens(ids, chosen, MASK, 10_000, generator)
    assert (read[~chosen] == ids[~chosen]).all()
    assert (labels[~chosen] == -100).all()
    assert (labels[chosen] == ids[chosen]).all()
    assert (read[chosen] == MASK).mean() == pytest.approx(0.8, abs=0.01)
    assert (read[chosen] == ids[chosen]).mean() == pytest.approx(0.1, abs=0.01)


def test_whole_words_are_chosen_with_all_their_tokens():
    generator = np.random.default_rng(0)
    begins = generator.random(60_000) < 0.6
    may_be = generator.random(60_000) < 0.98
    chosen = choose(may_be, 0.15, generator, begins)
    words = np.cumsum(begins)
    for word in np.unique(words[may_be])[:5000]:
        assert len(set(chosen[(words == word) & may_be].tolist())) == 1
    assert chosen[may_be].mean() == pytest.approx(0.15, abs=0.01)


def test_a_row_has_at_least_one_hidden_token_if_it_has_any(vocabulary):
    made = collator(vocabulary, probability=1e-6)
    batch = collate([{"input_ids": [7, 8]}, {"input_ids": []}, {"input_ids": [3, 9]}], [0, 1, 2], made)
    assert (batch["labels"] != -100).sum(1).tolist() == [1, 0, 1]
    assert batch["labels"][2].tolist() == [-100, -100, 9, -100], "the separator is no text"
    empty = collate([{"input_ids": []}], [0], made)
    assert empty["aside"]["masked"].tolist() == []


def test_the_special_tokens_of_the_tokenizer_stand_around_a_row(vocabulary):
    tokenizer = vocabulary.tokenizer
    assert vocabulary.around == ([tokenizer.cls_token_id], [tokenizer.sep_token_id])
    assert vocabulary.separator == tokenizer.sep_token_id
    assert tokenizer.unk_token_id not in vocabulary.special
    batch = collate([{"input_ids": [7, 8, 9]}, {"input_ids": [7]}], [0, 1], collator(vocabulary, multiple_of=4))
    assert batch["attention_mask"].tolist() == [[1] * 5 + [0] * 3, [1] * 3 + [0] * 5]
    assert batch["input_ids"][1].tolist()[::2] == [tokenizer.cls_token_id, tokenizer.sep_token_id, 0, 0]


def test_masks_depend_on_seed_epoch_and_unit_and_on_nothing_else(vocabulary):
    rows = [{"input_ids": list(range(4, 24))} for _ in range(6)]

    def masks(seed: int, epoch: int | None, size: int, **padding: Any) -> list[list[tuple]]:
        made, found = collator(vocabulary, seed, **padding), []
        for start in range(0, 6, size):
            batch = collate(rows[start : start + size], list(range(start, start + size)), made, epoch)
            keep = batch["attention_mask"].bool()
            pairs = zip(batch["input_ids"], batch["labels"], keep, strict=True)
            found += [[*zip(i[k].tolist(), lab[k].tolist(), strict=True)] for i, lab, k in pairs]
        return found

    assert masks(1, 0, 6) == masks(1, 0, 1) == masks(1, 0, 3, multiple_of=16)
    different = [masks(1, 0, 6), masks(2, 0, 6), masks(1, 1, 6), masks(1, None, 6)]
    assert len({str(m) for m in different}) == 4
    assert len({str(m) for m in masks(1, 0, 6)}) == 6
    assert masks(1, None, 6) == masks(2, None, 2), "evaluation is the same whatever the seed"


def test_of_rows_to_fill_the_own_mask_tokens_are_found_and_those_cut_off_counted(vocabulary):
    mask = vocabulary.mask_id
    rows = [{"input_ids": [7, mask, 8, mask], "to_fill": True}, {"input_ids": [9], "to_fill": True}]
    batch = collate(rows, [0, 1], collator(vocabulary, max_length=5))
    assert "labels" not in batch
    assert batch["input_ids"].shape == (2, 5)
    assert batch["aside"]["mask_counts"] == [(1, 1), (0, 0)]
    assert batch["input_ids"].flatten()[batch["aside"]["masked"]].tolist() == [mask]


def test_special_tokens_are_found_wherever_a_tokenizer_puts_them():
    class OnlyBehind:
        sep_token_id, eos_token_id, mask_token_id, unk_token_id, all_special_ids = None, 1, 2, 3, [1, 2, 3]

        def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
            return {"input_ids": [5, 6, *([1] if add_special_tokens else [])]}

    found = Vocabulary(OnlyBehind())
    assert (found.around, found.separator, found.special.tolist()) == (([], [1]), 1, [1, 2])
