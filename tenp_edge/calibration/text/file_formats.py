"""Data files, record by record: plain text, Markdown, JSON, JSON lines, Parquet.

Text is UTF-8, with or without a byte order mark, and may be gzipped. What is read is bounded: a
line, a JSON file and a whole file each have a largest size.
"""

from __future__ import annotations

import codecs
import gzip
import importlib
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from tenp_edge.calibration.text.records import EXAMPLE, Record, parse_json, parse_record
from tenp_edge.errors import UserError

TEXT_SUFFIXES = (".txt", ".md")
SUFFIXES = (*TEXT_SUFFIXES, ".json", ".jsonl", ".parquet")
ACCEPTED = "a file that ends in .txt, .md, .json, .jsonl (each also with .gz) or .parquet"
INSTEAD = "another copy of the file, whole, that you may read"
# Text read from one file at most: far above what any sample count needs, far below a crawl.
MAX_TEXT_CHARS = 256 * 2**20
MAX_LINE_CHARS = 64 * 2**20
MAX_JSON_CHARS = 256 * 2**20
# Of what is read for it: records may hold much beside their text, a gzip file endless blanks.
MAX_READ_CHARS = 4 * MAX_TEXT_CHARS
_ROWS = 256
_COLUMNS = frozenset(
    "text messages conversations prompt completion instruction input output system tools".split()
)


class Placed(NamedTuple):
    """A record and where it was found."""

    where: str
    record: Record


def suffix_of(path: Path) -> str:
    """The ending that says how ``path`` is read. Raises UserError for one that nothing reads."""
    name = path.name.lower().removesuffix(".gz")
    gzipped = path.suffix.lower() == ".gz"
    for suffix in SUFFIXES:
        if name.endswith(suffix) and not (gzipped and suffix == ".parquet"):
            return suffix
    raise UserError(f"{path} is not a kind of data file that is read", ACCEPTED)


def read_records(path: Path) -> Iterator[Placed]:
    """The records of ``path`` in order. Raises UserError naming the file, and the line or record
    where there is one."""
    suffix = suffix_of(path)
    if suffix == ".parquet":
        return _parquet_records(path)
    return _guarded(path, _text_records(path, suffix))


def _text_records(path: Path, suffix: str) -> Iterator[Placed]:
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    with opener(path, "rb") as raw, io.TextIOWrapper(raw, encoding="utf-8-sig") as stream:
        if suffix in TEXT_SUFFIXES:
            yield Placed(str(path), stream.read(MAX_TEXT_CHARS))
        elif suffix == ".json":
            yield from _json_records(path, stream)
        else:
            yield from _line_records(path, stream)


def _guarded(path: Path, records: Iterator[Placed]) -> Iterator[Placed]:
    """Errors of the file system and of the encoding, in one sentence."""
    try:
        yield from records
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text (byte 0x{error.object[error.start]:02x}: {error.reason})",
            f"iconv -f {_encoding_of(error)} -t utf-8 FILE > NEW",
        ) from None
    except (EOFError, OSError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}", INSTEAD) from None


def _encoding_of(error: UnicodeDecodeError) -> str:
    """What the bytes may be: UTF-16 begins with one of two marks, which no other text has."""
    marked = error.start == 0 and error.object[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    return "utf-16" if marked else "latin1"


# -- JSON ------------------------------------------------------------------------------------------


def _line_records(path: Path, stream: TextIO) -> Iterator[Placed]:
    number = read = 0
    while read < MAX_READ_CHARS and (line := stream.readline(MAX_LINE_CHARS + 1)):
        number, read = number + 1, read + len(line)
        where = f"{path}, line {number}"
        if len(line) > MAX_LINE_CHARS:
            raise UserError(
                f"{where} is longer than {MAX_LINE_CHARS / 2**20:.0f} MiB", "one record a line"
            )
        if line.strip():
            yield Placed(where, parse_record(where, _parsed(where, line)))


def _json_records(path: Path, stream: TextIO) -> Iterator[Placed]:
    """A list of records or one; files of JSON lines are often called .json too."""
    text = stream.read(MAX_JSON_CHARS + 1)
    if len(text) > MAX_JSON_CHARS:
        raise UserError(
            f"{path} is JSON of more than {MAX_JSON_CHARS / 2**20:.0f} MiB in one piece",
            "a .jsonl file: one record a line",
        )
    if not text.strip():
        return
    if _is_lines(text):
        yield from _line_records(path, io.StringIO(text))
        return
    value = _parsed(str(path), text)
    if not isinstance(value, list):
        yield Placed(str(path), parse_record(str(path), value))
        return
    for number, record in enumerate(value, 1):
        where = f"{path}, record {number}"
        yield Placed(where, parse_record(where, record))


def _is_lines(text: str) -> bool:
    """Whether the first line is a whole object and something follows it."""
    first, _, rest = text.lstrip().partition("\n")
    if not (first.startswith("{") and rest.strip()):
        return False
    try:
        parse_json(first)
    except ValueError:
        return False
    return True


def _parsed(where: str, text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        raise UserError(f"{where} is not JSON: {error}", EXAMPLE) from None


# -- Parquet ---------------------------------------------------------------------------------------


def _parquet_records(path: Path) -> Iterator[Placed]:
    """Row groups are read one after another, and of their columns those that hold text."""
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise UserError(
            f"{path} is a Parquet file, and pyarrow is not installed", "pip install pyarrow"
        ) from None
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            columns = [name for name in names if name in _COLUMNS] or names
            for batch in file.iter_batches(batch_size=_ROWS, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    where = f"{path}, row {number}"
                    yield Placed(where, parse_record(where, row))
    except UserError:
        raise
    except Exception as error:  # pyarrow's errors share no base class, and damage raises any
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} cannot be read: {reason}", INSTEAD) from None
