"""The table of docs/results.md: how varied the bundled text is, beside natural text.

    python benchmarks/measure_text.py [--beside DIR]

Size, gzip ratio and share of distinct 5-grams of words, by kind; then the same of Python's standard
library and of the .jsonl and .jsonl.gz files in DIR. Both depend on how much text they are taken
of: gzip's is the mean over windows of one size, 5-grams are counted in windows and in all that the
row names (of large bodies in as much as the bundled text has). Text stamped from templates has a
high gzip ratio and a low share of distinct 5-grams.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from records import Table, add_record_flag, write_record

from tenp_edge.calibration.text.builtin_text import DOMAINS, Split, bundled_records
from tenp_edge.calibration.text.file_formats import Placed
from tenp_edge.calibration.text.sources import stdlib_texts

WINDOW_BYTES = 8 * 2**10
GRAM_WORDS = 5
# Of a large body of text, this much is measured, in excerpts.
EXCERPT_CHARS = 1700
SAMPLE_BYTES = 512 * 2**10
# A word, or one sign of a script that puts no spaces between words.
_WORD = re.compile(r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]|[^\W\u0e00-\u0eff\u3040-\u9fff]+")


@dataclass(frozen=True)
class Measured:
    """``gzip_ratio``: bytes over compressed bytes; ``distinct``: share of 5-grams that differ in a
    window, and ``distinct_in_all``."""

    documents: int
    size: int
    gzip_ratio: float
    distinct: float
    distinct_in_all: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--beside", type=Path, help="a directory of natural text to compare with")
    add_record_flag(parser)
    arguments = parser.parse_args()
    table = Table(COLUMNS)
    print(table.head)
    everything: list[str] = []
    for domain in DOMAINS:
        whole: list[str] = []
        for kind in bundled_records("calibration")[domain]:
            texts = kind_texts(domain, kind)
            print(table.add(row(f"{domain}: {kind}", texts)), flush=True)
            whole += texts
        print(table.add(row(domain, whole, bold=True)), flush=True)
        everything += whole
    print(table.add(row("the bundled text", everything, bold=True)), flush=True)
    for name, kinds in stdlib_texts("calibration").items():
        print(table.add(row(f"standard library: {name}", sampled(kinds[""]))), flush=True)
    for name, texts in natural_texts(arguments.beside):
        print(table.add(row(f"natural: {name}", texts)), flush=True)
    write_record(arguments.record, texts=table)


def kind_texts(
    domain: str, kind: str, splits: Sequence[Split] = ("calibration", "heldout")
) -> list[str]:
    """The documents of a kind as plain text, conversations turn by turn."""
    placed = [one for split in splits for one in bundled_records(split)[domain].get(kind, ())]
    return [_plain(one) for one in placed]


def natural_texts(directory: Path | None) -> Iterator[tuple[str, list[str]]]:
    """Name and texts of the .jsonl files in ``directory``."""
    for file in sorted(directory.iterdir()) if directory else ():
        if file.name.endswith((".jsonl", ".jsonl.gz")):
            opener = gzip.open if file.suffix == ".gz" else open
            with opener(file, "rt", encoding="utf-8") as stream:
                texts = [json.loads(line)["text"] for line in stream]
            yield file.name.split(".")[0], sampled(texts)


def sampled(texts: Sequence[str]) -> list[str]:
    """Excerpts as long as documents of the bundled text, in seeded order, until there is enough to
    measure: a window in one long document repeats its names."""
    starts = [(n, at) for n, text in enumerate(texts) for at in range(0, len(text), EXCERPT_CHARS)]
    random.Random(0).shuffle(starts)
    excerpts, size = [], 0
    for number, at in starts:
        excerpts.append(texts[number][at : at + EXCERPT_CHARS])
        size += len(excerpts[-1])
        if size >= SAMPLE_BYTES:
            break
    return excerpts


def measure(texts: Sequence[str]) -> Measured:
    """Of ``texts`` in seeded order, joined."""
    order = list(texts)
    random.Random(0).shuffle(order)
    joined = "\n".join(order)
    windows = list(_windows(joined))
    return Measured(
        documents=len(texts),
        size=sum(len(text.encode()) for text in texts),
        gzip_ratio=_mean(map(gzip_ratio, windows)),
        distinct=_mean(map(distinct_grams, windows)),
        distinct_in_all=distinct_grams(joined),
    )


def gzip_ratio(text: str) -> float:
    raw = text.encode()
    return len(raw) / len(gzip.compress(raw, 9))


def distinct_grams(text: str) -> float:
    """The share of 5-grams of words that differ from those before them."""
    words = _WORD.findall(text)
    grams = [tuple(words[at : at + GRAM_WORDS]) for at in range(len(words) - GRAM_WORDS + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0


COLUMNS = (
    ("text", "{text}"),
    ("documents or excerpts", "{documents}"),
    ("KB", "{kb:.0f}"),
    ("gzip ratio", "{gzip_ratio:.2f}"),
    ("distinct 5-grams", "{distinct:.3f}"),
    ("in all", "{distinct_in_all:.3f}"),
)


def row(name: str, texts: Sequence[str], bold: bool = False) -> dict[str, Any]:
    measured = measure(texts)
    marks = {"bold": ["text"]} if bold else {}
    return {"text": name, "kb": measured.size / 1000, **asdict(measured), **marks}


def _plain(placed: Placed) -> str:
    if isinstance(placed.record, str):
        return placed.record
    return "\n".join(message["content"] or "" for message in placed.record.messages)


def _windows(text: str) -> Iterator[str]:
    """Runs of WINDOW_BYTES, the last one only where it is the only one."""
    raw = text.encode()
    for start in range(0, max(1, len(raw) - WINDOW_BYTES + 1), WINDOW_BYTES):
        yield raw[start : start + WINDOW_BYTES].decode(errors="ignore")


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)


if __name__ == "__main__":
    main()
