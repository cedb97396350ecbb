"""Calibration data: named domains of text, cut into sequences of tokens.

Files are UTF-8: .txt is one text, .jsonl (or .jsonl.gz) has one text per line, as ``text`` or as
``messages`` for the chat template. Sampling is seeded and counted per domain; only as much is
tokenised as the samples need.
"""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoTokenizer

from tenp_edge.checkpoint import (
    Shard,
    TensorEntry,
    dtype_name,
    read_header,
    read_range,
    write_shards,
)
from tenp_edge.errors import UserError
from tenp_edge.progress import QUIET, Progress
from tenp_edge.texts import standard_library_texts

SUFFIXES = (".txt", ".jsonl", ".jsonl.gz")
# Text read from one file at most: far above what any sample count needs, far below a crawl.
MAX_TEXT_CHARS = 256 * 2**20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
# A long text is cut into pieces of about this many sequences, so that samples come from all of it.
_PIECE_SEQUENCES = 2
_CHARS_PER_TOKEN = 4


@dataclass(frozen=True)
class Domain:
    """Sequences of one domain, padded on the right with 0.

    tokens: [n, seq_len] int64; lengths: [n] int64, real tokens of each sequence.
    """

    name: str
    tokens: torch.Tensor
    lengths: torch.Tensor


def parse_data(arguments: Sequence[str]) -> dict[str, Path]:
    """["code=a.jsonl", "b.txt"] -> {"code": a.jsonl, "b": b.txt}; every file must exist."""
    files: dict[str, Path] = {}
    for argument in arguments:
        name, separator, rest = argument.partition("=")
        path = Path(rest if separator else argument)
        name = name if separator else path.name.split(".")[0]
        if not _NAME.fullmatch(name):
            raise UserError(
                f"'{name}' is not a domain name", "letters, digits, '_', '-': --data code=FILE"
            )
        if name in files:
            raise UserError(f"domain '{name}' is named twice", f"--data {name}2={path}")
        if not path.is_file():
            raise UserError(f"data file {path} does not exist", "--data NAME=FILE")
        check_suffix(path)
        files[name] = path
    return files


def check_suffix(path: Path) -> None:
    if not path.name.endswith(SUFFIXES):
        raise UserError(f"{path} is not a kind of data file that is read", ", ".join(SUFFIXES))


def load_tokenizer(directory: Path) -> Any:
    """The checkpoint's own tokenizer; its kind comes from its files. Nothing is downloaded."""
    names = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
    if not any((directory / name).is_file() for name in names):
        raise UserError(f"{directory} has no tokenizer", "copy tokenizer.json there")
    try:
        # The length limit is the model's affair and checked there; here it only causes warnings.
        return AutoTokenizer.from_pretrained(
            directory, local_files_only=True, model_max_length=10**9
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"the tokenizer in {directory} cannot be read: {reason}",
            "download the model's tokenizer files again",
        ) from error


@cache
def default_texts(split: Literal["calibration", "heldout"]) -> Mapping[str, Sequence[str]]:
    """Text that ships with every Python, by domain; read once, since parsing it takes seconds."""
    return standard_library_texts(split)


# -- reading ---------------------------------------------------------------------------------------


def load_texts(path: Path, tokenizer: Any, progress: Progress = QUIET) -> list[str]:
    """The texts of one file. Raises UserError naming the file, and the line where there is one."""
    check_suffix(path)
    texts, size = [], 0
    try:
        for text in _read_text(path) if path.suffix == ".txt" else _read_lines(path, tokenizer):
            texts.append(text)
            size += len(text)
            if size >= MAX_TEXT_CHARS:
                progress.note(f"{path} is large: the first {size / 2**20:.0f} MiB are used")
                break
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text (byte 0x{error.object[error.start]:02x}: {error.reason})",
            "iconv -f latin1 -t utf-8 FILE > NEW",
        ) from None
    except (gzip.BadGzipFile, EOFError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not any(text.strip() for text in texts):
        raise UserError(f"{path} holds no text", "a file with text in it")
    return texts


def _read_text(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as stream:
        yield stream.read(MAX_TEXT_CHARS)


def _read_lines(path: Path, tokenizer: Any) -> Iterator[str]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                yield _line_text(f"{path}, line {number}", line, tokenizer)


def _line_text(where: str, line: str, tokenizer: Any) -> str:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where} is not JSON: {error}") from None
    if isinstance(record, dict) and isinstance(record.get("text"), str):
        return str(record["text"])
    if isinstance(record, dict) and isinstance(record.get("messages"), list):
        return _chat_text(where, record["messages"], tokenizer)
    raise UserError(f"{where} has neither text nor messages", '{"text": "..."}')


def _chat_text(where: str, messages: list[Any], tokenizer: Any) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            f"{where} has messages, but the model's tokenizer has no chat template",
            '{"text": "..."}',
        )
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False))
    except Exception as error:  # a template is a program of the model's; it may raise anything
        raise UserError(f"{where}: the chat template refuses it: {error}") from error


# -- sampling --------------------------------------------------------------------------------------


def make_domains(
    texts: Mapping[str, Sequence[str]],
    tokenizer: Any,
    samples: int,
    seq_len: int,
    seed: int,
    progress: Progress = QUIET,
    spare: int = 0,
) -> list[Domain]:
    """``samples`` sequences of ``seq_len`` tokens from each domain; fewer where text runs out.

    Up to ``spare`` more follow them where there is text; the first ``samples`` are the same.
    """
    if samples < 1:
        raise UserError(f"--samples {samples}: every domain needs a sample", "--samples 128")
    if seq_len < 8:
        raise UserError(f"--seq-len {seq_len} is too short to calibrate on", "--seq-len 512")
    domains = []
    for name, documents in texts.items():
        rows = _sample(documents, tokenizer, samples + spare, seq_len, f"{seed}/{name}")
        if not rows:
            raise UserError(f"domain '{name}' holds no text", f"--data {name}=FILE with text")
        if len(rows) < samples or len(rows[:samples][-1]) < seq_len:
            progress.note(
                f"domain '{name}' has text for {sum(map(len, rows))} tokens: {len(rows)} "
                f"sequences instead of {samples} x {seq_len} tokens"
            )
        domains.append(_pack(name, rows, seq_len))
    return domains


def split_at(domain: Domain, count: int) -> tuple[Domain, Domain]:
    """The first ``count`` sequences of ``domain`` and the others."""
    parts = (slice(0, count), slice(count, None))
    first, rest = (Domain(domain.name, domain.tokens[p], domain.lengths[p]) for p in parts)
    return first, rest


def save_domains(file: Path, domains: Sequence[Domain]) -> None:
    """Write tokens to ``file`` (safetensors), atomically."""
    named = {f"{domain.name}/tokens": domain.tokens for domain in domains}
    named |= {f"{domain.name}/lengths": domain.lengths for domain in domains}
    entries = tuple(TensorEntry(k, dtype_name(v.dtype), tuple(v.shape)) for k, v in named.items())
    file.unlink(missing_ok=True)
    for _ in write_shards(file.parent, [Shard(file.name, entries)], lambda name: named[name]):
        pass


def load_domains(file: Path) -> list[Domain]:
    """What `save_domains` wrote."""
    stored = read_header(file)

    def read(name: str) -> torch.Tensor:
        entry = stored[name]
        data = read_range(entry.file, entry.offset, entry.nbytes)
        return torch.frombuffer(data, dtype=torch.int64).reshape(entry.shape)

    names = [name.removesuffix("/tokens") for name in stored if name.endswith("/tokens")]
    return [Domain(name, read(f"{name}/tokens"), read(f"{name}/lengths")) for name in names]


def _sample(
    documents: Sequence[str], tokenizer: Any, samples: int, seq_len: int, seed: str
) -> list[list[int]]:
    """Pieces in seeded order, tokenised until there are enough, cut into sequences."""
    pieces = list(_pieces(documents, _PIECE_SEQUENCES * _CHARS_PER_TOKEN * seq_len))
    random.Random(seed).shuffle(pieces)
    prefix = _prefix(tokenizer)
    body = seq_len - len(prefix)
    end = tokenizer.eos_token_id
    stream: list[int] = []
    for document, start, stop in pieces:
        ids = tokenizer(documents[document][start:stop], add_special_tokens=False)["input_ids"]
        stream.extend(ids if end is None else [*ids, end])
        if len(stream) >= samples * body:
            break
    rows = [stream[at : at + body] for at in range(0, len(stream), body)][:samples]
    # A remnant of a few tokens after full sequences is dropped, not padded.
    if len(rows) > 1 and len(rows[-1]) < body // 4:
        rows.pop()
    return [prefix + row for row in rows]


def _pieces(documents: Sequence[str], size: int) -> Iterator[tuple[int, int, int]]:
    """(document, start, stop): runs of about ``size`` characters that end at a line where they can.

    Positions, not copies: the order is shuffled before any text is cut.
    """
    for number, text in enumerate(documents):
        start = 0
        while start < len(text):
            stop = min(start + size, len(text))
            newline = text.rfind("\n", start + size // 2, stop) if stop < len(text) else -1
            stop = newline + 1 if newline >= 0 else stop
            if text[start:stop].strip():
                yield number, start, stop
            start = stop


def _prefix(tokenizer: Any) -> list[int]:
    """[bos] where the tokenizer begins a text with it: such models lean on it at position 0."""
    begin = tokenizer.bos_token_id
    ids = tokenizer("a")["input_ids"]
    return [begin] if begin is not None and ids[:1] == [begin] else []


def _pack(name: str, rows: Sequence[Sequence[int]], seq_len: int) -> Domain:
    tokens = torch.zeros(len(rows), seq_len, dtype=torch.int64)
    for number, row in enumerate(rows):
        tokens[number, : len(row)] = torch.tensor(row)
    return Domain(name, tokens, torch.tensor([len(row) for row in rows]))
