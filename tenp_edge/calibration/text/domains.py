"""Calibration data: named domains of text, cut into sequences of tokens.

Sampling is seeded and counted per domain, even over the kinds of text in it; only as much is
tokenised as the samples need. What text there is: `sources`.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tenp_edge.calibration.text.gguf_tokenizer import GgufTokenizer
from tenp_edge.checkpoint.files import Shard, TensorEntry, dtype_name, read_stored, write_shards
from tenp_edge.errors import UserError
from tenp_edge.forward.text_batch import Domain
from tenp_edge.models.headers import read_header
from tenp_edge.progress import QUIET, Progress
from tenp_edge.runtime.directory_vocabulary import is_gemma, read_settings
from tenp_edge.runtime.tiktoken import RANKS_NAME, is_tiktoken, tokenizer_json
from tenp_edge.units import counted

# A long text is cut into pieces of about this many sequences, so that samples come from all of it.
_PIECE_SEQUENCES = 2
_CHARS_PER_TOKEN = 4
# The length limit is the model's affair and checked there; here it only causes warnings.
_LOADING: dict[str, Any] = {"local_files_only": True, "model_max_length": 10**9}

LEAST_TOKENS = 8  # of a sequence

Texts = Sequence[str] | Mapping[str, Sequence[str]]
"""Documents of a domain, or documents by kind."""


def load_tokenizer(directory: Path) -> Any:
    """The checkpoint's own tokenizer; its kind comes from its files. Nothing is downloaded.

    ``directory``: of the checkpoint, or the GGUF file that takes its place.
    """
    if directory.is_file():
        return GgufTokenizer(directory)
    names = ("tokenizer.json", "tokenizer.model", RANKS_NAME, "vocab.json", "tokenizer_config.json")
    if not any((directory / name).is_file() for name in names):
        raise UserError(f"{directory} has no tokenizer", "copy tokenizer.json there")
    try:
        if is_tiktoken(directory):
            return _converted(directory)
        begins = (
            {"add_bos_token": True}
            if is_gemma(read_settings(directory / "tokenizer_config.json"))
            else {}
        )
        return AutoTokenizer.from_pretrained(
            directory, trust_remote_code=False, **begins, **_LOADING
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"the tokenizer in {directory} cannot be read: {reason}",
            "download the model's tokenizer files again",
        ) from error


def _converted(directory: Path) -> Any:
    """A tiktoken vocabulary as transformers' tokenizer, without running the checkpoint's code."""
    with TemporaryDirectory() as made:
        for name in ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
            if (directory / name).is_file():
                shutil.copy(directory / name, made)
        text = json.dumps(tokenizer_json(directory))
        (Path(made) / "tokenizer.json").write_text(text, encoding="utf-8")
        return PreTrainedTokenizerFast.from_pretrained(made, **_LOADING)


# -- sampling --------------------------------------------------------------------------------------


def make_domains(
    texts: Mapping[str, Texts],
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
    if seq_len < LEAST_TOKENS:
        raise UserError(f"--seq-len {seq_len} is too short to calibrate on", "--seq-len 512")
    domains = []
    for name, documents in texts.items():
        rows = _sample(documents, tokenizer, samples + spare, seq_len, f"{seed}/{name}")
        if not rows:
            raise UserError(f"domain '{name}' holds no text", f"--data {name}=FILE with text")
        if len(rows) < samples or len(rows[:samples][-1]) < seq_len:
            progress.note(
                f"domain '{name}' has text for {sum(map(len, rows))} tokens: "
                f"{counted(len(rows), 'sequences')} instead of {samples} x {seq_len} tokens"
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
    """What `save_domains` wrote; a domain may have no sequence."""
    stored = read_header(file)
    names = [name.removesuffix("/tokens") for name in stored if name.endswith("/tokens")]
    return [
        Domain(name, *(read_stored(stored[f"{name}/{part}"]) for part in ("tokens", "lengths")))
        for name in names
    ]


class _Piece(NamedTuple):
    """A run of a document. Positions, not a copy: the order is shuffled before text is cut."""

    document: str
    start: int
    stop: int


def _sample(texts: Texts, tokenizer: Any, samples: int, seq_len: int, seed: str) -> list[list[int]]:
    """Pieces in seeded order, tokenised until there are enough, cut into sequences."""
    prefix = _prefix(tokenizer)
    body = seq_len - len(prefix)
    end = tokenizer.eos_token_id

    def encoded(piece: _Piece) -> list[int]:
        text = piece.document[piece.start : piece.stop]
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return list(ids) if end is None else [*ids, end]

    size = _PIECE_SEQUENCES * _CHARS_PER_TOKEN * seq_len
    stream: list[int] = []
    for ids in _evenly(_shuffled(texts, size, seed), encoded):
        stream.extend(ids)
        if len(stream) >= samples * body:
            break
    rows = [stream[at : at + body] for at in range(0, len(stream), body)][:samples]
    # A remnant of a few tokens after full sequences is dropped, not padded.
    if len(rows) > 1 and len(rows[-1]) < body // 4:
        rows.pop()
    return [prefix + row for row in rows]


def _shuffled(texts: Texts, size: int, seed: str) -> list[list[_Piece]]:
    """The pieces of each kind in seeded order, the kinds in seeded order too."""
    if not isinstance(texts, Mapping):
        texts = {"": texts}
    queues = []
    for kind, documents in texts.items():
        pieces = list(_pieces(documents, size))
        random.Random(f"{seed}/{kind}" if kind else seed).shuffle(pieces)
        queues.append(pieces)
    random.Random(seed).shuffle(queues)
    return queues


def _evenly(
    queues: Sequence[list[_Piece]], encoded: Callable[[_Piece], list[int]]
) -> Iterator[list[int]]:
    """Tokens of one piece after another, always of the kind that has given the fewest so far."""
    waiting = {number: iter(queue) for number, queue in enumerate(queues)}
    token_counts = dict.fromkeys(waiting, 0)
    while waiting:
        kind = min(waiting, key=token_counts.__getitem__)
        piece = next(waiting[kind], None)
        if piece is None:
            del waiting[kind]
            continue
        ids = encoded(piece)
        token_counts[kind] += len(ids)
        yield ids


def _pieces(documents: Sequence[str], size: int) -> Iterator[_Piece]:
    """Runs of about ``size`` characters that end at a line where they can."""
    for text in documents:
        start = 0
        while start < len(text):
            stop = min(start + size, len(text))
            newline = text.rfind("\n", start + size // 2, stop) if stop < len(text) else -1
            stop = newline + 1 if newline >= 0 else stop
            if text[start:stop].strip():
                yield _Piece(text, start, stop)
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
