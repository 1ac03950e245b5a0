"""How long the texts are, and what cutting them at ``max_length`` costs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import datasets
import numpy as np

COUNT = "num_"
"""Beginning of the names of features that count something in a row: they are summed for reports and not stored."""
WINDOWS = "num_windows"
"""The one of rows that are read in several windows: of those nothing is cut off."""


@dataclass(frozen=True)
class TokenCounts:
    """Token statistics of a split.

    Args:
        num_rows: Rows.
        num_tokens: Tokens before cutting.
        longest: Tokens of the longest row.
        num_cut_rows: Rows that were too long.
        num_cut_tokens: Tokens that were cut off.
        others: What else the task has counted: name of the feature -> sum.
    """

    num_rows: int
    num_tokens: int
    longest: int
    num_cut_rows: int
    num_cut_tokens: int
    others: dict[str, int] = field(default_factory=dict)

    def line(self, max_length: int | None, how: str) -> str:
        """One line for the console.

        >>> TokenCounts(100, 2000, 40, 0, 0).line(512, "tokenized")
        '100 rows, 2,000 tokens (mean 20.0, longest 40), tokenized; none longer than 512'
        """
        mean = self.num_tokens / max(1, self.num_rows)
        text = f"{self.num_rows:,} rows, {self.num_tokens:,} tokens (mean {mean:.1f}, longest {self.longest:,}), {how}"
        if max_length is None:
            return text
        if windows := self.others.get(WINDOWS):
            return f"{text}; read in {windows:,} windows of at most {max_length}"
        if not self.num_cut_rows:
            return f"{text}; none longer than {max_length}"
        share = self.num_cut_tokens / self.num_tokens
        return f"{text}; {self.num_cut_rows:,} cut at {max_length}, {share:.1%} of all tokens lost"

    def others_line(self) -> str:
        """``, 12 cut words`` for each that occurs; the windows stand in ``line``.

        >>> TokenCounts(1, 9, 9, 0, 0, {"num_cut_words": 12, "num_cut_questions": 0, "num_windows": 2}).others_line()
        ', 12 cut words'
        """
        shown = {name: count for name, count in self.others.items() if count and name != WINDOWS}
        return "".join(f", {count:,} {name.removeprefix(COUNT).replace('_', ' ')}" for name, count in shown.items())


def count_columns(names: Sequence[str]) -> list[str]:
    """The features that count: see :data:`COUNT`."""
    return [name for name in names if name.startswith(COUNT)]


def token_counts(rows: datasets.Dataset, max_length: int | None) -> TokenCounts:
    """Statistics of the features that count, read in pieces."""
    names = count_columns(rows.column_names)
    pieces = rows.select_columns(names).with_format("numpy").iter(batch_size=100_000)
    found = [counts_of({name: np.asarray(piece[name]) for name in names}, max_length) for piece in pieces]
    return TokenCounts(
        num_rows=sum(c.num_rows for c in found),
        num_tokens=sum(c.num_tokens for c in found),
        longest=max((c.longest for c in found), default=0),
        num_cut_rows=sum(c.num_cut_rows for c in found),
        num_cut_tokens=sum(c.num_cut_tokens for c in found),
        others={name: sum(c.others[name] for c in found) for name in names if name != "num_tokens"},
    )


def counts_of(counts: Mapping[str, np.ndarray], max_length: int | None) -> TokenCounts:
    """Statistics of some rows.

    Args:
        counts: Feature -> (N,) what it counts in each row; ``num_tokens`` are the tokens before cutting.
        max_length: Tokens at which a text is cut; None where none is.

    >>> counts_of({"num_tokens": np.array([3, 12, 10])}, max_length=10)
    TokenCounts(num_rows=3, num_tokens=25, longest=12, num_cut_rows=1, num_cut_tokens=2, others={})
    """
    lengths = counts["num_tokens"].astype(np.int64)
    is_cut = max_length is not None and WINDOWS not in counts
    over = np.maximum(lengths - (max_length or 0), 0) if is_cut else np.zeros_like(lengths)
    longest = int(lengths.max()) if len(lengths) else 0
    others = {name: int(values.sum()) for name, values in counts.items() if name != "num_tokens"}
    return TokenCounts(len(lengths), int(lengths.sum()), longest, int((over > 0).sum()), int(over.sum()), others)
