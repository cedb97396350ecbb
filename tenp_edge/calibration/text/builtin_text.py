"""The calibration text in the package: ours, written for this purpose, CC0.

calibration_text/SPLIT/DOMAIN/KIND/FILE: four domains of several kinds each. A document is a file,
or a line of a file of conversations. `heldout` has no document of `calibration`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Literal

from tenp_edge.calibration.text.file_formats import Placed
from tenp_edge.calibration.text.records import parse_json, parse_record

Split = Literal["calibration", "heldout"]
DIRECTORY = "calibration_text"
_CONVERSATION = '{"messages":'
DOMAINS = ("chat", "knowledge", "code", "languages")


@cache
def bundled_records(split: Split) -> Mapping[str, Mapping[str, tuple[Placed, ...]]]:
    """Documents by domain and kind, in the order of their names; read once."""
    root = files("tenp_edge") / DIRECTORY / split
    return {domain: dict(_kinds(root / domain)) for domain in DOMAINS}


@cache
def bundled_chars(split: Split, domain: str) -> int:
    """Characters of a domain, which are more than its tokens."""
    placed = [one for kind in bundled_records(split)[domain].values() for one in kind]
    return sum(len(str(one.record)) for one in placed)


def _kinds(domain: Traversable) -> Iterator[tuple[str, tuple[Placed, ...]]]:
    for kind in _sorted(domain):
        documents = tuple(document for file in _sorted(kind) for document in _documents(kind, file))
        if documents:
            yield kind.name, documents


def _documents(kind: Traversable, file: Traversable) -> Iterator[Placed]:
    where, text = f"{kind.name}/{file.name}", file.read_text(encoding="utf-8")
    if not text.startswith(_CONVERSATION):  # a log of JSON lines is text as it stands
        yield Placed(where, text)
        return
    for number, line in enumerate(text.rstrip().split("\n"), 1):
        place = f"{where}, line {number}"
        yield Placed(place, parse_record(place, parse_json(line)))


def _sorted(directory: Traversable) -> list[Traversable]:
    """Without what an installer leaves beside programs: __pycache__ and hidden files."""
    entries = [entry for entry in directory.iterdir() if not entry.name.startswith(("_", "."))]
    return sorted(entries, key=lambda entry: entry.name)
