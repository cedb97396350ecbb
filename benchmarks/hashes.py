"""SHA-256 hashes of what the tool writes, for `golden`: by other libraries, without the tool's own
modules, and without what is measured anew each time."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MEASURED = re.compile("seconds|rss|per_second|version|sha256")
VERSION = re.compile(rb"(tenp-edge\s+)\d+\.\d+\.\d+")
Hashes = Iterator[tuple[str, str]]


def digest(*parts: bytes | str) -> str:
    state = hashlib.sha256()
    for part in parts:
        state.update(part.encode() if isinstance(part, str) else part)
    return state.hexdigest()


def numbers(value: Any) -> str:
    """Of all numbers in a JSON value, in ascending order: keys may be renamed and moved."""

    def all_of(value: Any) -> Iterator[float]:
        if isinstance(value, dict):
            for key, entry in value.items():
                if not MEASURED.search(key):
                    yield from all_of(entry)
        elif isinstance(value, list):
            for entry in value:
                yield from all_of(entry)
        elif isinstance(value, int | float):
            yield float(value)

    return digest(json.dumps(sorted(all_of(value))))


def tensors(file: Path) -> dict[str, str]:
    """Name to hash (type, shape and bytes) of a safetensors file."""
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    entries, base = json.loads(data[8 : 8 + length]), 8 + length
    entries.pop("__metadata__", None)
    hashes = {}
    for name, entry in sorted(entries.items()):
        start, end = entry["data_offsets"]
        kind = f"{entry['dtype']} {entry['shape']} "
        hashes[name] = digest(kind, data[base + start : base + end])
    return hashes


def statistics(directory: Path) -> Hashes:
    """A hash per file and sum, over domains and layers; of JSON files, the numbers."""
    for file in sorted(directory.glob("*.safetensors")):
        sums: dict[str, list[str]] = {}
        for name, value in tensors(file).items():
            sums.setdefault(re.sub(r".*layers\.\d+\.", "", name), []).append(f"{name} {value}\n")
        for name, lines in sums.items():
            yield f"{file.name}/{name}", digest(*lines)
    for file in sorted(directory.glob("*.json")):
        yield file.name, numbers(json.loads(file.read_text()))


def plan(file: Path) -> Hashes:
    raw = json.loads(file.read_text())
    yield "widths", digest(json.dumps(raw["widths"], sort_keys=True))
    if file.with_suffix(".safetensors").is_file():
        yield "neurons", digest(json.dumps(tensors(file.with_suffix(".safetensors"))))
    yield "priced", numbers([raw["memory"], raw["files"]])
    yield "record", numbers(raw.get("record", raw.get("recipe")))


def gguf(file: Path) -> Hashes:
    from gguf import GGUFReader

    yield "file", digest(file.read_bytes())
    reader = GGUFReader(file)
    found = ((f"{t.name} {t.tensor_type} {t.shape} ", t.data.tobytes()) for t in reader.tensors)
    yield "tensors", digest(*(part for pair in found for part in pair))
    model, tokenizer = [], []
    for name, field in reader.fields.items():
        if not name.startswith(("tenp.", "GGUF.")):
            own = tokenizer if name.startswith("tokenizer.") else model
            own += [part.tobytes() for part in field.parts]
    yield "fields", digest(*model)
    yield "tokenizer", digest(*tokenizer)


def files(directory: Path) -> Hashes:
    """Every file below ``directory``, without the tool's version."""
    for file in sorted(path for path in directory.rglob("*") if path.is_file()):
        content = file.read_bytes()
        plain = file.suffix in (".json", ".md", ".txt")
        yield (
            str(file.relative_to(directory)),
            digest(VERSION.sub(rb"\1", content) if plain else content),
        )


def below(prefix: str, hashes: Hashes) -> Hashes:
    for name, value in hashes:
        yield f"{prefix}/{name}", value
