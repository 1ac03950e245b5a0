"""Where the rows of a run come from: files or a data set, split by split."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from lit_tune.data.nested_columns import with_fields
from lit_tune.data.sources import load_files, load_hub
from lit_tune.data.split import Split
from lit_tune.data.stream_faults import explain_stream_fault
from lit_tune.data.txt_files import TxtRows
from lit_tune.errors import ConfigError, DataError, LitTuneError


@dataclass(frozen=True)
class RawData:
    """The sources named in the ``data`` section.

    Args:
        files: Split -> path, glob or list of them.
        dataset: Hub id or folder written by ``datasets``.
        name: Configuration of the Hub data set.
        revision: Branch, tag or commit of the Hub data set.
        hub_splits: Split -> its name in the data set, where given.
        delimiter: Column separator of csv files.
        encoding: Text encoding.
        json_field: Key that holds the array of rows in a json file.
        text_columns: Columns of a csv that stay text even if every cell is a number; fields of columns as ``a.b``.
        txt_rows: What is a row of a txt file.
    """

    files: dict[str, str | list[str] | None]
    dataset: str | None = None
    name: str | None = None
    revision: str | None = None
    hub_splits: dict[str, str | None] = field(default_factory=dict)
    delimiter: str | None = None
    encoding: str = "utf-8"
    json_field: str | None = None
    text_columns: tuple[str, ...] = ()
    txt_rows: TxtRows = "line"

    def load(self, split: str, streaming: bool = False) -> Split | None:
        """The raw rows of ``train``, ``val``, ``test`` or ``predict``; None where there is no such split.

        Raises:
            DataError: It cannot be read, or the data set has no train split.
        """
        paths = self.files.get(split)
        if paths is not None:
            found = load_files(
                split,
                paths,
                delimiter=self.delimiter,
                encoding=self.encoding,
                field=self.json_field,
                streaming=streaming,
                text_columns=self.text_columns,
                txt_rows=self.txt_rows,
            )
            found = with_fields(found, self.text_columns)
            return replace(found, explain=self.explainer(found)) if streaming else found
        if self.dataset is None or split == "predict":
            return None
        in_hub = load_hub(
            split,
            self.dataset,
            name=self.name,
            revision=self.revision,
            split_name=self.hub_splits.get(split),
            streaming=streaming,
        )
        if in_hub is None and split == "train":
            raise DataError("has no train split", where=self.dataset, fix="data.train_split: the split to train on")
        return in_hub and with_fields(in_hub, self.text_columns)

    def load_train(self, streaming: bool = False) -> Split:
        """The train split.

        Raises:
            ConfigError: There is none.
        """
        train = self.load("train", streaming)
        if train is None:
            raise ConfigError(
                "there is no data to train on", where="data.train", fix="data.train: my.csv, or data.dataset: a Hub id"
            )
        return train

    def explainer(self, stream: Split) -> Callable[[Exception], LitTuneError]:
        """What names the place where a stream of files breaks off."""
        paths = [path for path, _ in stream.files]
        delimiter = self.delimiter or ("\t" if paths[0].lower().removesuffix(".gz").endswith(".tsv") else ",")
        return partial(explain_stream_fault, paths=paths, delimiter=delimiter, encoding=self.encoding)

    def has(self, split: str) -> bool:
        """Whether the split exists by itself."""
        return self.files.get(split) is not None or self.load(split) is not None
