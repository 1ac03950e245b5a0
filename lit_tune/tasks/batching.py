"""How the rows of a task become batches for a model."""

from typing import Literal

from lit_tune.data.collators import Padding
from lit_tune.data.orders import Lengths
from lit_tune.data.units import Units
from lit_tune.data.vocabulary import Vocabulary
from lit_tune.models.text_reader import TextReader
from lit_tune.tasks.base import Task

PaddingMode = Literal["longest", "max_length"]


def lengths_of(units: Units, mode: PaddingMode, together: int) -> Lengths | None:
    """How long units are, where those of like length make up a batch.

    Args:
        units: What batches are drawn from.
        mode: What is padded to the same length in any case needs no order.
        together: Rows that are scored together, if more than one, are any rows: alike ones are harder to tell apart.
    """
    return units.lengths if mode == "longest" and together == 1 else None


def padding_of(
    task: Task, reader: TextReader, mode: PaddingMode, multiple_of: int | None, seed: int, together: int
) -> Padding:
    """What a collator is given.

    Args:
        task: Says on which side.
        reader: Tokenizer, config and length of the model.
        mode: To the longest row, or always to the model's length.
        multiple_of: Round the length up to a multiple.
        seed: Of the order of training.
        together: Rows that are scored together.
    """
    return Padding(
        pad_token_id=reader.tokenizer.pad_token_id,
        side=task.padding_side(reader.tokenizer, reader.config),
        length=reader.max_length if mode == "max_length" else None,
        max_length=reader.max_length,
        multiple_of=multiple_of,
        pad_token_type_id=reader.tokenizer.pad_token_type_id,
        vocabulary=Vocabulary(reader.tokenizer),
        seed=seed,
        together=together,
    )
