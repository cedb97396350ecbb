"""Repair and healing of tiny models, and a way to kill it."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from support import plans, tiny

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.overlay import Mended
from tenp_edge.forward.text_batch import Domain
from tenp_edge.recovery.recover import MendRules, mend


def texts(count: int = 6, seq_len: int = 48) -> list[Domain]:
    """Two domains of random tokens; the last sequence of each is shorter."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for name in ("code", "prose"):
        tokens = torch.randint(0, tiny.VOCAB, (count, seq_len), generator=generator)
        lengths = torch.full((count,), seq_len)
        tokens[-1, 20:], lengths[-1] = 0, 20
        found.append(Domain(name, tokens, lengths))
    return found


def mend_in(directory: Path, path: Path, rules: MendRules, **options: Any) -> Mended:
    checkpoint = Checkpoint(path)
    plan = options.pop("plan", None) or plans.ragged_plan(checkpoint)
    return mend(checkpoint, plan, texts(), directory, rules, device="cpu", **options)


def tensors_of(found: Mended) -> dict[str, torch.Tensor]:
    return {name: found.read(name) for name in found._stored}


class Killer:
    """Progress that kills its own process (-9) at the n-th step."""

    def __init__(self, kill_at: int) -> None:
        self.left = kill_at

    def note(self, text: str) -> None:
        pass

    @contextmanager
    def task(self, title: str, total: float, unit: str) -> Any:
        yield self

    def advance(self, amount: float = 1) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
