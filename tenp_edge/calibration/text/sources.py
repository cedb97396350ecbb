"""Where text comes from: files, the hub, the text in the package, Python's standard library.

An argument of --data is FILE, NAME=FILE, hf:OWNER/DATASET[:SPLIT], ``builtin`` or ``stdlib``. The
last two are several domains each, or one domain of several kinds when they are given a name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from tenp_edge.calibration.text.builtin_text import DOMAINS, Split, bundled_chars, bundled_records
from tenp_edge.calibration.text.chat_format import ChatWriter
from tenp_edge.calibration.text.file_formats import MAX_TEXT_CHARS, Placed, read_records, suffix_of
from tenp_edge.calibration.text.hub_datasets import PREFIX, hub_records, parse_hub
from tenp_edge.calibration.text.standard_library import standard_library_texts
from tenp_edge.errors import UserError
from tenp_edge.progress import QUIET, Progress

BUILTIN, STDLIB = "builtin", "stdlib"
SETS = {BUILTIN: DOMAINS, STDLIB: ("code", "prose")}
DEFAULT = (BUILTIN,)
# What a network is asked for at most; a file on disk may be read further.
MAX_HUB_CHARS = 16 * 2**20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")

Kinds = Mapping[str, Sequence[str]]
"""Documents of a domain by kind; of text that is not sorted into kinds, the one kind ""."""


@dataclass(frozen=True)
class Source:
    """``place``: the path, the data set's name, or the set's; ``domain``: None for a whole set."""

    kind: Literal["file", "hub", "set"]
    place: str
    domain: str | None

    @property
    def domains(self) -> tuple[str, ...]:
        return SETS[self.place] if self.domain is None else (self.domain,)


def parse_data(arguments: Sequence[str]) -> list[Source]:
    """The sources of ``arguments``, the bundled text for none. Every file exists, no domain comes
    up twice."""
    sources = [_source(argument) for argument in arguments or DEFAULT]
    taken: dict[str, Source] = {}
    for source in sources:
        for domain in source.domains:
            if domain in taken:
                raise _named_twice(domain, taken[domain], source)
            taken[domain] = source
    return sources


def _source(argument: str) -> Source:
    name, separator, place = argument.partition("=")
    domain = name if separator else None
    place = place if separator else argument
    if domain is not None and not _NAME.fullmatch(domain):
        raise UserError(
            f"'{domain}' is not a domain name", "letters, digits, '_', '-': --data code=FILE"
        )
    if place in SETS:
        return Source("set", place, domain)
    if place.startswith(PREFIX):
        dataset = parse_hub(place).name.partition("/")[2]
        return Source("hub", place, domain or _domain_of(dataset))
    if not place:
        raise UserError(f"--data {argument} names no file", f"--data {argument}FILE")
    path = _expanded(place)
    _check_file(path)
    return Source("file", str(path), domain or _domain_of(path.name.lstrip(".").split(".")[0]))


def _expanded(place: str) -> Path:
    """The shell leaves a ``~`` after NAME= alone."""
    try:
        return Path(place).expanduser()
    except RuntimeError:  # no such user
        return Path(place)


def _check_file(path: Path) -> None:
    problem = _problem_of(path)
    if problem:
        raise UserError(f"data file {path} {problem}", "--data NAME=FILE, builtin or stdlib")
    suffix_of(path)


def _problem_of(path: Path) -> str | None:
    """Why ``path`` cannot be read as text; None where it can."""
    try:
        if path.is_file():
            return None
        if path.is_dir():
            return "is a directory"
        return "is a device or a pipe" if path.exists() else "does not exist"
    except (OSError, ValueError):  # a name that is too long, a null byte
        return "does not exist"


def _domain_of(name: str) -> str:
    """A name for a domain that was given none."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-._") or "data"


def _named_twice(domain: str, first: Source, second: Source) -> UserError:
    place = second.place
    if second.domain is None and first.domain is not None:  # a file has a name of a set's domain
        place = first.place
    name = place if place in SETS else f"{domain}2"
    return UserError(f"domain '{domain}' is named twice", f"--data {name}={place}")


def is_set(argument: str) -> bool:
    """Whether ``argument`` is text that ships, with a held-out part, under whatever name."""
    return argument.rpartition("=")[2] in SETS


def most_tokens_of(argument: str, split: Split, tokens: int) -> int:
    """The most that ``argument`` gives when ``tokens`` are wanted of every domain."""
    _, named, place = argument.rpartition("=")
    if place == STDLIB:
        return tokens if named else tokens * len(SETS[STDLIB])
    if place != BUILTIN:
        return tokens
    chars = [bundled_chars(split, domain) for domain in DOMAINS]
    return min(tokens, sum(chars)) if named else sum(min(tokens, available) for available in chars)


# -- texts -----------------------------------------------------------------------------------------


def texts_of(
    sources: Iterable[Source], split: Split, writer: ChatWriter, progress: Progress = QUIET
) -> dict[str, Kinds]:
    """Documents by domain and kind; ``split`` matters to the sets, a file is what it is."""
    by_domain: dict[str, Kinds] = {}
    for source in sources:
        if source.kind != "set":
            by_domain[source.domains[0]] = {"": load_texts(source, writer, progress)}
            continue
        texts = stdlib_texts(split) if source.place == STDLIB else bundled_texts(split, writer)
        if source.domain is None:
            by_domain |= texts
        else:
            by_domain[source.domain] = _as_one(texts)
    return by_domain


def _as_one(domains: Mapping[str, Kinds]) -> Kinds:
    return {
        f"{domain}/{kind}": documents
        for domain, kinds in domains.items()
        for kind, documents in kinds.items()
    }


@cache
def stdlib_texts(split: Split) -> Mapping[str, Kinds]:
    """Text that ships with every Python; read once, since parsing it takes seconds."""
    return {domain: {"": texts} for domain, texts in standard_library_texts(split).items()}


def bundled_texts(split: Split, writer: ChatWriter) -> dict[str, Kinds]:
    """The package's own text; what the model's template refuses of it is written plainly."""
    return {
        domain: {
            kind: [writer.text(*placed, lenient=True) for placed in documents]
            for kind, documents in kinds.items()
        }
        for domain, kinds in bundled_records(split).items()
    }


def load_texts(source: Source, writer: ChatWriter, progress: Progress = QUIET) -> list[str]:
    """The texts of one file or data set. Raises UserError naming it, and the line where there is
    one."""
    place = source.place
    texts, size = [], 0
    for where, record in _records(source, progress):
        texts.append(writer.text(where, record))
        size += len(texts[-1])
        if size >= MAX_TEXT_CHARS:
            progress.note(f"{place} is large: the first {size / 2**20:.0f} MiB are used")
            break
    if not any(text.strip() for text in texts):
        raise UserError(f"{place} holds no text", "a file with text in it")
    return texts


def _records(source: Source, progress: Progress) -> Iterable[Placed]:
    if source.kind == "file":
        return read_records(Path(source.place))
    progress.note(f"reading {source.place} from the hub: at most {MAX_HUB_CHARS >> 20} MiB of text")
    return hub_records(source.place, MAX_HUB_CHARS)
