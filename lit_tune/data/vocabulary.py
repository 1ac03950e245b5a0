"""What a collator must know of a tokenizer to put tokens into a row."""

from functools import cached_property
from typing import Any

import numpy as np


class Vocabulary:
    """Ids of special tokens, read off a tokenizer when they are asked for.

    No dataclass and no sequence: it may stand in a batch and is then moved to no device.

    Args:
        tokenizer: Any.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    @cached_property
    def size(self) -> int:
        """Tokens in all."""
        return len(self.tokenizer)

    @property
    def mask_id(self) -> int | None:
        """The mask token; None where there is none."""
        return self.tokenizer.mask_token_id

    @cached_property
    def around(self) -> tuple[list[int], list[int]]:
        """The special tokens that stand before a text and those that stand behind it: of BERT [CLS] and [SEP]."""
        inner = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        whole = self.tokenizer("a")["input_ids"]
        start = next(i for i in range(len(whole)) if whole[i : i + len(inner)] == inner)
        return whole[:start], whole[start + len(inner) :]

    @property
    def separator(self) -> int | None:
        """What stands between two texts that are read as one."""
        given = self.tokenizer.sep_token_id
        return given if given is not None else self.tokenizer.eos_token_id

    @cached_property
    def special(self) -> np.ndarray:
        """Ids that are no text; the unknown token stands for some text, though nobody knows which."""
        return np.array(sorted({*self.tokenizer.all_special_ids} - {self.tokenizer.unk_token_id}), dtype=np.int64)

    def text(self, token: int) -> str:
        """One token as text."""
        return str(self.tokenizer.decode([token]))
