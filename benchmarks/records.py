"""Records: the run of a benchmark as JSON, and its tables in markdown.

    python benchmarks/bench_plan.py --record docs/results/planning.json
    python docs/make_results.py      # docs/results.md from its template and all records

A record says what was run, when and on what class of machine, and holds the rows as numbers. It
never names a path or a host.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import string
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tenp_edge.units import format_size, nats
from tenp_edge.version import __version__

Row = Mapping[str, Any]
PACKAGES = ("torch", "transformers", "llama-cpp-python", "onnxruntime")
_SETS = {"AVX2": "avx2", "AVX-512": "avx512f", "AMX": "amx_tile"}
_DIGITS = 8  # significant ones, of a stored number


@dataclass
class Table:
    """``columns``: heading and cell. A cell is text in which ``{key}`` or ``{key:format}`` stands
    for a value of the row; it is empty where the row lacks one. Beside Python's formats there are
    ``nats`` (a number, or [mean, half the range]), ``size`` (bytes) and ``keep`` (a share). A
    row's ``bold`` lists keys."""

    columns: Sequence[tuple[str, str]]
    rows: list[Row] = field(default_factory=list)

    @property
    def head(self) -> str:
        headings = " | ".join(heading for heading, _ in self.columns)
        return f"| {headings} |\n|{'---|' * len(self.columns)}"

    def add(self, row: Row) -> str:
        """Take ``row`` in; its line of markdown, to print."""
        self.rows.append(row)
        return self.line(row)

    def line(self, row: Row) -> str:
        return f"| {' | '.join(_Cell(row).text(cell) for _, cell in self.columns)} |"

    def __str__(self) -> str:
        return "\n".join([self.head, *map(self.line, self.rows)])


class _Cell(string.Formatter):
    def __init__(self, row: Row) -> None:
        self.row = row

    def text(self, cell: str) -> str:
        keys = [key for _, key, _, _ in self.parse(cell) if key]
        known = all(self.row.get(key) is not None for key in keys)
        return self.format(cell) if known else ""

    def get_field(self, field_name: str, args: Any, kwargs: Any) -> Any:
        return (field_name, self.row[field_name]), field_name

    def format_field(self, value: Any, format_spec: str) -> str:
        key, stored = value
        text = _formatted(stored, format_spec)
        return f"**{text}**" if key in self.row.get("bold", ()) else text


def _formatted(value: Any, spec: str) -> str:
    if spec == "nats":
        mean, *half = value if isinstance(value, Sequence) else [value]
        return " ±".join(nats(number) for number in (mean, *half))
    if spec == "size":
        return format_size(value)
    if spec == "keep":
        return "whole" if value == 1 else f"{100 * value:.0f} %"
    text = format(value, spec)
    return text.replace("%", " %") if spec.endswith("%") else text


@dataclass(frozen=True)
class Record:
    """One run. ``note``: what a reader must know, as that the record was made from an older run,
    whose ``date``, ``machine`` and ``versions`` are not known."""

    command: str
    tables: Mapping[str, Table]
    note: str = ""
    date: str = ""
    machine: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)


def add_record_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--record", type=Path, metavar="FILE", help="write the run as JSON here")


def write_record(file: Path | None, command: str | None = None, **tables: Table) -> None:
    """Record the run in ``file``, unless that is None, without the ``tables`` of no rows.
    ``command``: None for this process's own."""
    if file is not None:
        tables = {name: table for name, table in tables.items() if table.rows}
        today = datetime.now(UTC).date().isoformat()
        typed = typed_command(command.split() if command else sys.argv)
        store(Record(typed, tables, "", today, machine_class(), versions()), file)


def typed_command(words: Sequence[str]) -> str:
    """The command of ``words`` without `--record`, with FILE or DIR for every path."""
    typed, rest = [], iter(words)
    for word in rest:
        if word == "--record":
            next(rest)
        elif word.endswith(".py"):
            typed += ["python", f"benchmarks/{Path(word).name}"]
        elif not word.startswith("--record="):
            typed.append(_without_path(word))
    return " ".join(typed)


def _without_path(word: str) -> str:
    name, equals, value = word.rpartition("=")
    if os.sep not in value and not Path(value).exists():
        return word
    return name + equals + ("DIR" if Path(value).is_dir() or not Path(value).suffix else "FILE")


def machine_class() -> str:
    """The machine in words: "2 cores, AVX-512, no AMX"."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parts = [f"{cores} core{'s' if cores != 1 else ''}", *_instruction_sets()]
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return ", ".join(parts)


def _instruction_sets(cpuinfo: Path = Path("/proc/cpuinfo")) -> list[str]:
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    flags = next((line.split() for line in lines if line.startswith("flags")), None)
    if flags is None:
        return [platform.machine()]
    return [name if flag in flags else f"no {name}" for name, flag in _SETS.items()]


def versions() -> dict[str, str]:
    """Of this project, Python and the packages that compute."""
    known = {"tenp-edge": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            known[package] = version(package)
        except PackageNotFoundError:
            continue
    return known


# -- files -----------------------------------------------------------------------------------------


def store(record: Record, file: Path) -> None:
    """``record`` as JSON, a line a row."""
    about = {
        key: value
        for key in ("command", "date", "machine", "versions", "note")
        if (value := getattr(record, key))
    }
    lines = [
        f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)},"
        for key, value in about.items()
    ]
    tables = ",\n".join(_stored(name, table) for name, table in record.tables.items())
    text = "\n".join(["{", *lines, ' "tables": {', tables, " }", "}"])
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text + "\n", encoding="utf-8")


def _stored(name: str, table: Table) -> str:
    parts = {"columns": table.columns, "rows": table.rows}
    inside = ",\n".join(f'   "{part}": [\n{_listed(values)}]' for part, values in parts.items())
    return f"  {json.dumps(name)}: {{\n{inside}}}"


def _listed(values: Sequence[Any]) -> str:
    return ",\n".join(f"    {json.dumps(_short(one), ensure_ascii=False)}" for one in values)


def _short(value: Any) -> Any:
    """``value`` with every float rounded."""
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, Mapping):
        return {key: _short(inner) for key, inner in value.items()}
    return [_short(inner) for inner in value] if isinstance(value, list | tuple) else value


def load(file: Path) -> Record:
    """The record in ``file``."""
    stored = json.loads(file.read_text(encoding="utf-8"))
    tables = {
        name: Table([(heading, cell) for heading, cell in table["columns"]], table["rows"])
        for name, table in stored.pop("tables").items()
    }
    return Record(tables=tables, **stored)
