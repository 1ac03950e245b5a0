"""What a data file holds, whatever its name says: compressed or not, its encoding, and whether it is data at all."""

import codecs
import errno
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

try:
    from charset_normalizer import from_bytes
except ImportError:  # comes with requests, which datasets needs today
    from_bytes = None  # type: ignore[assignment]

from lit_tune.errors import ConfigError, DataError, LitTuneError, StorageError, nearest

SAMPLE_BYTES = 1 << 20

_GZIP_MAGIC = b"\x1f\x8b"
_COMMON_ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "cp1252", "latin-1", "gb18030", "shift_jis", "koi8-r", "cp1251"]


def open_bytes(path: str) -> IO[bytes]:
    """Open for reading; gzip is recognised by its first bytes, whatever the file is called."""
    with open(path, "rb") as file:
        is_gzip = file.read(2) == _GZIP_MAGIC
    return gzip.open(path, "rb") if is_gzip else open(path, "rb")  # type: ignore[return-value]


@contextmanager
def opened_text(path: str, encoding: str) -> Iterator[IO[str]]:
    """Open text, line ends untouched, BOM skipped; undecodable bytes and broken gzip become a DataError."""
    try:
        with open_bytes(path) as file, io.TextIOWrapper(file, encoding=reader_encoding(encoding), newline="") as text:
            yield text
    except UnicodeError:
        raise _wrong_encoding(path, encoding) from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _broken_gzip(path, error) from None


def reader_encoding(encoding: str) -> str:
    """The codec to read with: utf-8 also skips a byte order mark, which else would sit in the first column's name.

    Raises:
        ConfigError: Python knows no such encoding.
    """
    try:
        name = codecs.lookup(encoding).name
    except LookupError:
        similar = nearest(encoding, _COMMON_ENCODINGS)
        fix = f"data.encoding: {similar}" if similar else f"one of {', '.join(_COMMON_ENCODINGS)}, or any Python codec"
        raise ConfigError(f"unknown encoding {encoding!r}", where="data.encoding", fix=fix) from None
    return "utf-8-sig" if name == "utf-8" else name


def check_content(path: str, kind: str, encoding: str) -> None:
    """Look at the first megabyte: is the file what its name says?

    Args:
        path: The file.
        kind: ``csv``, ``tsv``, ``json``, ``jsonl``, ``parquet``, ``arrow`` or ``text``.
        encoding: ``data.encoding``; not used for parquet and arrow.

    Raises:
        DataError: Empty, not readable, HTML, a Git LFS pointer, cut off, or text in another encoding.
    """
    try:
        with open_bytes(path) as file:
            head = file.read(SAMPLE_BYTES)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _broken_gzip(path, error) from None
    except OSError as error:
        raise DataError(f"cannot be opened: {error.strerror}", where=path, fix="check the file's permissions") from None
    if not head.strip():
        raise DataError("file is empty", where=path, fix="download or export it again")
    start = head[:200].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html")):
        raise DataError(
            "file is HTML (download failed?)",
            where=path,
            fix="open it in a browser to see what went wrong, then get it again",
        )
    if start.startswith(b"version https://git-lfs.github.com/spec"):
        raise DataError("file is a Git LFS pointer, not the data", where=path, fix="run `git lfs pull`")
    if kind == "parquet":
        _check_parquet(path, head)
    elif kind != "arrow":
        _check_not_misread(path, head, encoding)


def explain_read_error(error: BaseException, path: str, kind: str, encoding: str = "utf-8") -> LitTuneError:
    """Turn an exception of datasets, pandas or pyarrow into an error for the person.

    Args:
        error: What was raised while the file was read, at the start or in the middle of a stream.
        path: The file (or data set) it was raised for.
        kind: Its format.
        encoding: What it was read with.
    """
    root = error
    while (deeper := root.__cause__ or (None if root.__suppress_context__ else root.__context__)) is not None:
        root = deeper
    if isinstance(root, LitTuneError):
        return root
    if isinstance(root, OSError) and root.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return StorageError(
            f"no room for the cache of {path}: {root.strerror}", fix="free space, or set HF_HOME to another disk"
        )
    if isinstance(root, UnicodeError):
        return _wrong_encoding(path, encoding)
    message = str(root).strip().splitlines()
    said = (message[0] if message else type(root).__name__)[:200]
    if kind in ("parquet", "arrow"):
        return DataError(f"file is damaged or cut off ({said})", where=path, fix="download or export it again")
    return DataError(f"cannot be read as {kind} ({said})", where=path, fix="correct the file, or save it as jsonl")


def _check_parquet(path: str, head: bytes) -> None:
    fix = "download or export it again"
    if not head.startswith(b"PAR1"):
        raise DataError(f"file is not parquet: it begins with {head[:16]!r}", where=path, fix=fix)
    with open(path, "rb") as file:
        if file.read(4) == b"PAR1" and file.seek(-4, io.SEEK_END) and file.read(4) != b"PAR1":
            raise DataError("parquet file is cut off: its end is missing", where=path, fix=fix)


def _broken_gzip(path: str, error: BaseException) -> DataError:
    return DataError(f"gzip is damaged or cut off ({error})", where=path, fix="download it again; check with `gzip -t`")


def _check_not_misread(path: str, head: bytes, encoding: str) -> None:
    """Text that decodes without an error, but surely to the wrong characters."""
    codec = reader_encoding(encoding)
    guess = suggest_encoding(head)
    if guess.startswith("utf-16") and not codec.startswith("utf-16"):
        raise DataError(f"file is not {encoding} but {guess}", where=path, fix=f"data.encoding: {guess}")
    # text with accents is not valid utf-8 by accident; read as latin-1 it gives "Ã¼" for "ü" and no error
    if guess.startswith("utf-8") and not head.isascii() and codec.startswith(("iso8859", "cp125")):
        raise DataError(f"file is utf-8; {encoding} would misread it", where=path, fix=f"data.encoding: {guess}")


def _wrong_encoding(path: str, encoding: str) -> DataError:
    """Find line and byte of what ``encoding`` cannot read."""
    decoder = codecs.getincrementaldecoder(reader_encoding(encoding))()
    with open_bytes(path) as file:
        guess = suggest_encoding(file.read(SAMPLE_BYTES))
        file.seek(0)
        for number, line in enumerate(file, 1):
            try:
                decoder.decode(line)
            except UnicodeDecodeError as error:
                byte = f"byte 0x{error.object[error.start]:02x} ({error.start + 1} of the line)"
                fix = f"data.encoding: {guess}, or convert the file with iconv"
                return DataError(f"{byte} is not {encoding}", where=f"{path}:{number}", fix=fix)
            except UnicodeError:  # utf-16 without its byte order mark
                break
    return DataError(f"file is not {encoding}", where=path, fix=f"data.encoding: {guess}")


def suggest_encoding(sample: bytes) -> str:
    """The encoding a sample of a text file most probably has.

    >>> [suggest_encoding("né".encode(name)) for name in ("utf-8", "latin-1", "utf-16")]
    ['utf-8', 'cp1252', 'utf-16']
    """
    if sample.startswith(codecs.BOM_UTF8):
        return "utf-8-sig"
    if sample.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    head = sample[:4096]
    even, odd = head[::2].count(0), head[1::2].count(0)
    if max(even, odd) > len(head) // 4:  # nearly every second byte of utf-16 text in Latin script is 0
        return "utf-16-le" if odd > even else "utf-16-be"
    if _decodes(sample, "utf-8"):
        return "utf-8"
    # accents are a few percent of a Western European text; where every third byte is not ASCII it is another script
    if from_bytes is not None and sum(byte > 127 for byte in head) > max(32, len(head) // 3):
        best = from_bytes(head).best()
        return best.encoding if best else "latin-1"
    return "cp1252" if _decodes(sample, "cp1252") else "latin-1"


def _decodes(sample: bytes, encoding: str) -> bool:
    try:
        # a full sample may end within a character
        codecs.getincrementaldecoder(encoding)().decode(sample, final=len(sample) < SAMPLE_BYTES)
    except UnicodeDecodeError:
        return False
    return True
