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
from dataclasses import dataclass
from pathlib import Path

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
    beside = parser.parse_args().beside
    print("| text | documents or excerpts | KB | gzip ratio | distinct 5-grams | in all |")
    print("|---|---|---|---|---|---|")
    everything: list[str] = []
    for domain in DOMAINS:
        whole: list[str] = []
        for kind in bundled_records("calibration")[domain]:
            texts = kind_texts(domain, kind)
            print(row(f"{domain}: {kind}", measure(texts)), flush=True)
            whole += texts
        print(row(f"**{domain}**", measure(whole)), flush=True)
        everything += whole
    print(row("**the bundled text**", measure(everything)), flush=True)
    for name, kinds in stdlib_texts("calibration").items():
        print(row(f"standard library: {name}", measure(sampled(kinds[""]))), flush=True)
    for name, texts in natural_texts(beside):
        print(row(f"natural: {name}", measure(texts)), flush=True)


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
    found, size = [], 0
    for number, at in starts:
        found.append(texts[number][at : at + EXCERPT_CHARS])
        size += len(found[-1])
        if size >= SAMPLE_BYTES:
            break
    return found


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


def row(name: str, found: Measured) -> str:
    return (
        f"| {name} | {found.documents} | {found.size / 1000:.0f} | {found.gzip_ratio:.2f} "
        f"| {found.distinct:.3f} | {found.distinct_in_all:.3f} |"
    )


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
    found = list(values)
    return sum(found) / len(found)


if __name__ == "__main__":
    main()
