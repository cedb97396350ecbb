"""Calibrations of tiny models, and a way to stop them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from support import tiny

from tenp_edge.calibration.collect import calibrate
from tenp_edge.calibration.storage import Statistics
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.forward.text_batch import Domain


def domain(name: str, count: int, seq_len: int = 48, seed: int = 0) -> Domain:
    """Random tokens; the last sequence is shorter by a third."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, tiny.VOCAB, (count, seq_len), generator=generator)
    lengths = torch.full((count,), seq_len)
    lengths[-1] = 2 * seq_len // 3
    tokens[-1, lengths[-1] :] = 0
    return Domain(name, tokens, lengths)


def two_domains() -> list[Domain]:
    return [domain("code", 4), domain("prose", 3, seed=1)]


def run(path: Path, directory: Path, domains: list[Domain], **options: Any) -> Statistics:
    options = {"dtype": "float32", "batch_tokens": 100} | options
    return calibrate(Checkpoint(path), domains, directory, device="cpu", **options)


def files_of(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


class StoppedError(Exception):
    pass


class StopAfter:
    """A progress that raises when ``count`` steps have been reported."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.notes: list[str] = []

    @contextmanager
    def task(self, title: str, total: float, unit: str) -> Iterator[StopAfter]:
        yield self

    def advance(self, amount: float = 1) -> None:
        self.count -= 1
        if self.count < 0:
            raise StoppedError

    def note(self, text: str) -> None:
        self.notes.append(text)
