"""A record holds numbers and no path, and its tables read as the benchmark printed them."""

from __future__ import annotations

from pathlib import Path

import pytest
import records
from records import Record, Row, Table


@pytest.mark.parametrize(
    ("cell", "row", "text"),
    [
        ("{kl:nats}", {"kl": [0.0965, 0.000359]}, "0.0965 ±0.000359"),
        ("{kl:nats}", {"kl": 0.00487}, "0.00487"),
        ("{a b:.1f} / {c.d:.2g}", {"a b": 1.25, "c.d": 0.031}, "1.2 / 0.031"),
        ("{file:size}", {"file": 3 * 2**30}, "3.00 GiB"),
        ("{share:.0%} ({kept:keep})", {"share": 0.35, "kept": 1.0}, "35 % (whole)"),
        ("{a} {b}", {"a": "only", "b": None}, ""),
        ("{a:.1f}*", {"a": 2, "bold": ["a"]}, "**2.0***"),
    ],
)
def test_a_cell_is_its_text_with_the_values_of_the_row(cell: str, row: Row, text: str) -> None:
    assert Table([("heading", cell)]).line(row) == f"| {text} |"


def test_a_table_is_printed_as_it_grows() -> None:
    table = Table([("method", "{name}"), ("KL", "{kl:.1f}")])
    lines = [table.head, table.add({"name": "tenp", "kl": 0.25}), table.add({"name": "enp"})]
    assert str(table) == "\n".join(lines)
    assert str(table) == "| method | KL |\n|---|---|\n| tenp | 0.2 |\n| enp |  |"


def test_a_record_comes_back_from_its_file(tmp_path: Path) -> None:
    table = Table([("KL", "{kl:.3g}")], [{"kl": 1 / 3, "of": [1.0, "±"]}])
    record = Record("python benchmarks/x.py", {"kl": table}, machine="1 core")
    records.store(record, tmp_path / "new" / "x.json")
    again = records.load(tmp_path / "new" / "x.json")
    assert (again.command, again.machine, again.note) == (record.command, "1 core", "")
    assert str(again.tables["kl"]) == str(table)
    assert again.tables["kl"].rows == [{"kl": 0.33333333, "of": [1.0, "±"]}]


def test_the_command_names_no_path(tmp_path: Path) -> None:
    file = tmp_path / "text.jsonl"
    file.touch()
    words = [f"{tmp_path}/bench_text.py", str(tmp_path), "--eval-data", f"prose={file}"]
    words += ["--keep", "0.6", "--record", str(tmp_path / "record.json")]
    typed = records.typed_command(words)
    assert typed == "python benchmarks/bench_text.py DIR --eval-data prose=FILE --keep 0.6"


def test_a_run_is_recorded_with_its_day_and_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["bench_plan.py", "--ram", "8GiB"])
    records.write_record(None, budgets=Table([]))
    records.write_record(tmp_path / "x.json", budgets=Table([("a", "{a}")], [{"a": 1}]))
    record = records.load(tmp_path / "x.json")
    assert record.command == "python benchmarks/bench_plan.py --ram 8GiB"
    assert len(record.date) == len("2026-11-27")
    assert "core" in record.machine and {"tenp-edge", "python", "torch"} <= record.versions.keys()
