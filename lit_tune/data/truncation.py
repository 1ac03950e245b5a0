"""How long the texts are, and what cutting them at ``max_length`` costs."""

from dataclasses import dataclass

import datasets
import numpy as np


@dataclass(frozen=True)
class TokenCounts:
    """Token statistics of a split.

    Args:
        num_rows: Rows.
        num_tokens: Tokens before cutting.
        longest: Tokens of the longest row.
        num_cut_rows: Rows that were too long.
        num_cut_tokens: Tokens that were cut off.
    """

    num_rows: int
    num_tokens: int
    longest: int
    num_cut_rows: int
    num_cut_tokens: int

    def line(self, max_length: int, how: str) -> str:
        """One line for the console.

        >>> TokenCounts(100, 2000, 40, 0, 0).line(512, "tokenized")
        '100 rows, 2,000 tokens (mean 20.0, longest 40), tokenized; none longer than 512'
        """
        mean = self.num_tokens / max(1, self.num_rows)
        text = (
            f"{self.num_rows:,} rows, {self.num_tokens:,} tokens (mean {mean:.1f}, longest {self.longest:,}), {how}; "
        )
        if not self.num_cut_rows:
            return text + f"none longer than {max_length}"
        share = self.num_cut_tokens / self.num_tokens
        return text + f"{self.num_cut_rows:,} cut at {max_length}, {share:.1%} of all tokens lost"


def token_counts(rows: datasets.Dataset, max_length: int) -> TokenCounts:
    """Statistics of the ``num_tokens`` column, read in pieces."""
    pieces = rows.select_columns("num_tokens").with_format("numpy").iter(batch_size=100_000)
    found = [counts_of(np.asarray(piece["num_tokens"], dtype=np.int64), max_length) for piece in pieces]
    return TokenCounts(
        num_rows=sum(c.num_rows for c in found),
        num_tokens=sum(c.num_tokens for c in found),
        longest=max((c.longest for c in found), default=0),
        num_cut_rows=sum(c.num_cut_rows for c in found),
        num_cut_tokens=sum(c.num_cut_tokens for c in found),
    )


def counts_of(lengths: np.ndarray, max_length: int) -> TokenCounts:
    """Statistics of some rows.

    Args:
        lengths: (N,) tokens of each row before cutting.
        max_length: Tokens at which a text is cut.

    >>> counts_of(np.array([3, 12, 10]), max_length=10)
    TokenCounts(num_rows=3, num_tokens=25, longest=12, num_cut_rows=1, num_cut_tokens=2)
    """
    over = np.maximum(lengths - max_length, 0)
    longest = int(lengths.max()) if len(lengths) else 0
    return TokenCounts(len(lengths), int(lengths.sum()), longest, int((over > 0).sum()), int(over.sum()))
