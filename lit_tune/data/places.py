"""Where rows stand, in few words."""

from collections.abc import Callable, Sequence

import numpy as np

Locate = Callable[[int], str]
"""Row number -> ``file:row``."""

NUM_PLACES = 5
"""Rows a message names; it states the count of all of them."""


def places(rows: Sequence[int] | np.ndarray, locate: Locate, count: int = NUM_PLACES) -> str:
    """The first of some rows; a file is named once.

    >>> places([0, 2], lambda i: f"a.csv:{i + 1}"), places([0, 2], ["a.csv:1", "", "b.csv:1"].__getitem__)
    ('a.csv:1, 3', 'a.csv:1, b.csv:1')
    >>> places(range(9), lambda i: f"train row {i + 1}", count=2)
    'train row 1, train row 2, ...'
    """
    shown: list[str] = []
    last = ""
    for row in rows[:count]:
        place = locate(int(row))
        file, colon, number = place.rpartition(":")
        shown.append(number if colon and file == last else place)
        last = file
    return ", ".join(shown) + (", ..." if len(rows) > count else "")
