"""How the rows of a task become batches for a model."""

from lit_tune.data.collators import Padding
from lit_tune.data.vocabulary import Vocabulary
from lit_tune.models.text_reader import TextReader
from lit_tune.tasks.base import Task


def padding_of(
    task: Task, reader: TextReader, to_max_length: bool, multiple_of: int | None, seed: int, together: int
) -> Padding:
    """What a collator is given.

    Args:
        task: Says on which side.
        reader: Tokenizer, config and length of the model.
        to_max_length: Always pad to the model's length.
        multiple_of: Round the length up to a multiple.
        seed: Of the order of training.
        together: Rows that are scored together.
    """
    return Padding(
        pad_token_id=reader.tokenizer.pad_token_id,
        side=task.padding_side(reader.tokenizer, reader.config),
        length=reader.max_length if to_max_length else None,
        max_length=reader.max_length,
        multiple_of=multiple_of,
        pad_token_type_id=reader.tokenizer.pad_token_type_id,
        vocabulary=Vocabulary(reader.tokenizer),
        seed=seed,
        together=together,
    )
