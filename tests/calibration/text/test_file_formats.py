"""Data files of every kind: what is read of them, and hostile ones end in one line."""

from __future__ import annotations

import gzip
import json
import random
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet
from support.data_cases import refusal, written

from tenp_edge.calibration.text import file_formats
from tenp_edge.calibration.text.file_formats import ACCEPTED, INSTEAD, read_records
from tenp_edge.calibration.text.records import EXAMPLE, Chat, parse_record
from tenp_edge.errors import UserError

ROWS: list[dict[str, Any]] = [
    {"text": "one"},
    {"messages": [{"role": "user", "content": "two\nlines — déjà"}]},
]
EXPECTED = ["one", Chat(({"role": "user", "content": "two\nlines — déjà"},))]
JSONL = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\n"


def records(file: Path) -> list[object]:
    return [record for _, record in read_records(file)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", JSONL),
        ("a.jsonl.gz", gzip.compress(JSONL.encode(), mtime=0)),
        ("windows.JSONL", JSONL.replace("\n", "\r\n").encode("utf-8-sig")),
        ("list.json", json.dumps(ROWS, indent=1)),
        ("lines.json", JSONL),
        ("list.json.gz", gzip.compress(json.dumps(ROWS).encode(), mtime=0)),
    ],
)
def test_records_of_every_kind_of_json(tmp_path: Path, name: str, content: str | bytes) -> None:
    assert records(written(tmp_path / name, content)) == EXPECTED


def test_one_record_and_plain_text(tmp_path: Path) -> None:
    assert records(written(tmp_path / "one.json", json.dumps(ROWS[1], indent=2))) == EXPECTED[1:]
    for name in ("a.txt", "a.md"):
        assert records(written(tmp_path / name, "# naïve\n\ntext")) == ["# naïve\n\ntext"]
    packed = written(tmp_path / "a.txt.gz", gzip.compress(b"text"))
    assert records(packed) == ["text"]


def test_parquet_by_rows(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    rows = [{"messages": [{"role": "user", "content": f"n{n}"}], "image": b"x"} for n in range(300)]
    parquet.write_table(pa.Table.from_pylist(rows), file, row_group_size=100)
    found = list(read_records(file))
    assert len(found) == 300
    assert found[299] == (f"{file}, row 300", Chat(({"role": "user", "content": "n299"},)))


def test_parquet_with_structures_and_nulls(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    row = {
        "text": None,
        "messages": [
            {"role": "user", "content": "q", "tool_calls": None},
            {"role": "assistant", "content": None, "tool_calls": [call]},
        ],
    }
    file = tmp_path / "a.parquet"
    parquet.write_table(pa.Table.from_pylist([row]), file)
    (chat,) = records(file)
    assert isinstance(chat, Chat)
    assert chat.messages[0] == {"role": "user", "content": "q"}
    assert chat.messages[1]["tool_calls"][0]["function"] == {"name": "f", "arguments": {"a": 1}}


def test_refused_files(tmp_path: Path) -> None:
    latin = written(tmp_path / "latin.txt", "caf\xe9 au lait".encode("latin-1"))
    assert refusal(lambda: records(latin)) == (
        f"{latin} is not UTF-8 text (byte 0xe9: invalid continuation byte)\n"
        "try: iconv -f latin1 -t utf-8 FILE > NEW"
    )
    wide = written(tmp_path / "wide.txt", "caf\xe9".encode("utf-16"))
    assert refusal(lambda: records(wide)).endswith("try: iconv -f utf-16 -t utf-8 FILE > NEW")
    table = written(tmp_path / "table.csv", "a,b")
    assert refusal(lambda: records(table)) == (
        f"{table} is not a kind of data file that is read\ntry: {ACCEPTED}"
    )
    plain = written(tmp_path / "plain.jsonl.gz", "not gzip")
    assert refusal(lambda: records(plain)) == (
        f"{plain} cannot be read: Not a gzipped file (b'no')\ntry: {INSTEAD}"
    )
    cut = written(tmp_path / "cut.jsonl.gz", gzip.compress(JSONL.encode())[:-9])
    assert refusal(lambda: records(cut)).startswith(f"{cut} cannot be read: Compressed file ended")
    damaged = bytearray(gzip.compress(JSONL.encode()))
    damaged[10] = 255
    broken = written(tmp_path / "damaged.jsonl.gz", bytes(damaged))
    assert refusal(lambda: records(broken)).startswith(f"{broken} cannot be read: Error -3 while")
    fake = written(tmp_path / "fake.parquet", "PAR1 but no more")
    assert refusal(lambda: records(fake)).startswith(f"{fake} cannot be read: ")
    absent = tmp_path / "absent.txt"
    assert refusal(lambda: records(absent)).startswith(f"{absent} cannot be read: [Errno 2]")


def test_refused_lines_and_records(tmp_path: Path) -> None:
    broken = written(tmp_path / "b.jsonl", '{"text": "fine"}\n{"text": \n')
    assert refusal(lambda: records(broken)).startswith(
        f"{broken}, line 2 is not JSON: Expecting value"
    )
    number = written(tmp_path / "n.jsonl", '{"text": "fine"}\n\n7\n')
    assert refusal(lambda: records(number)) == (
        f"{number}, line 3 is a number, not a record\ntry: {EXAMPLE}"
    )
    second = written(tmp_path / "n.json", '[{"text": "fine"}, "x"]')
    assert refusal(lambda: records(second)) == (
        f"{second}, record 2 is a string, not a record\ntry: {EXAMPLE}"
    )
    row = tmp_path / "n.parquet"
    parquet.write_table(pa.table({"text": ["fine", None]}), row)
    assert refusal(lambda: records(row)).startswith(f"{row}, row 2 has no messages or ")


def test_hostile_files_end_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = written(tmp_path / "deep.jsonl", '{"text": ' + "[" * 200_000 + "\n")
    assert refusal(lambda: records(deep)) == (
        f"{deep}, line 1 is not JSON: it nests too deeply\ntry: {EXAMPLE}"
    )
    deep = written(tmp_path / "deep.json", "[" * 200_000)
    assert refusal(lambda: records(deep)) == (
        f"{deep} is not JSON: it nests too deeply\ntry: {EXAMPLE}"
    )
    digits = written(tmp_path / "digits.jsonl", '{"text": ' + "9" * 10_000 + "}")
    assert refusal(lambda: records(digits)).startswith(f"{digits}, line 1 is not JSON: Exceeds")
    monkeypatch.setattr(file_formats, "MAX_LINE_CHARS", 2**20)
    monkeypatch.setattr(file_formats, "MAX_JSON_CHARS", 2**20)
    long = written(tmp_path / "long.jsonl", '{"text": "' + "a" * 2**21 + '"}')
    assert refusal(lambda: records(long)) == (
        f"{long}, line 1 is longer than 1 MiB\ntry: one record a line"
    )
    large = written(tmp_path / "large.json", '[{"text": "' + "a" * 2**21 + '"}]')
    assert refusal(lambda: records(large)) == (
        f"{large} is JSON of more than 1 MiB in one piece\ntry: a .jsonl file: one record a line"
    )


def test_endless_blanks_are_not_read_to_their_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_formats, "MAX_READ_CHARS", 2**16)
    blanks = gzip.compress(b" \n" * 2**20 + b"not JSON")
    assert records(written(tmp_path / "blanks.jsonl.gz", blanks)) == []


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path / "a.parquet", "")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert refusal(lambda: records(file)) == (
        f"{file} is a Parquet file, and pyarrow is not installed\ntry: pip install pyarrow"
    )


def test_the_records_of_the_documentation_are_read() -> None:
    page = (Path(__file__).parents[3] / "docs" / "calibration.md").read_text(encoding="utf-8")
    blocks = page.split("```json\n")[1:]
    lines = [line for block in blocks for line in block.split("```")[0].strip().split("\n")]
    found = [parse_record("here", json.loads(line)) for line in lines]
    assert len(found) == 8 and sum(isinstance(record, Chat) for record in found) == 7


def test_whatever_records_hold_ends_in_one_line(tmp_path: Path) -> None:
    """Values of other kinds in every place of good records."""
    rng, refused, values = random.Random(0), 0, [None, 5, "x", [], {}, [None], {"role": 1}, True]
    call = {"function": {"name": "f", "arguments": '{"a": 1}'}}
    turns = [{"role": "user", "content": [{"type": "text", "text": "x"}]}]
    good = {"messages": [*turns, {"role": "assistant", "tool_calls": [call]}], "tools": [call]}

    def changed(value: Any) -> Any:
        if rng.random() < 0.05:
            return rng.choice(values)
        if isinstance(value, dict):
            return {key: changed(one) for key, one in value.items()}
        return [changed(one) for one in value] if isinstance(value, list) else value

    for _ in range(500):
        try:
            parse_record("here", changed(good))
        except UserError as error:
            refused += 1
            assert error.message.startswith("here") and "\n" not in error.message
    assert refused > 100
