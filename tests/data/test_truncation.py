"""Token statistics, against plain Python."""

import random

import datasets
import pytest

from lit_tune.data.truncation import TokenCounts, token_counts


@pytest.mark.parametrize("max_length", [1, 7, 20, 100])
def test_counts_equal_a_plain_recount(max_length):
    rng = random.Random(max_length)
    lengths = [rng.randint(0, 40) for _ in range(500)]
    found = token_counts(datasets.Dataset.from_dict({"num_tokens": lengths, "other": lengths}), max_length)
    over = [n - max_length for n in lengths if n > max_length]
    assert found == TokenCounts(500, sum(lengths), max(lengths), len(over), sum(over))


def test_the_line_names_the_share_of_all_tokens_that_is_lost():
    text = TokenCounts(1000, 20_000, 90, 25, 500).line(64, "tokenized")
    assert text == (
        "1,000 rows, 20,000 tokens (mean 20.0, longest 90), tokenized; 25 cut at 64, 2.5% of all tokens lost"
    )
