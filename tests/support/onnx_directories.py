"""ONNX directories of tiny models, and torch's own greedy tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from support.plans import ragged_plan

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.exporters.base import ExportOptions, exporter
from tenp_edge.forward.sweep import streaming_logits

PROMPT = (5, 17, 99, 300, 120, 44)
GENERATED = 32


def ragged_source(checkpoint: Path) -> ModelSource:
    """The model with experts of three widths."""
    opened = Checkpoint(checkpoint)
    return ModelSource(opened, ragged_plan(opened))


def export_onnx(
    source: ModelSource, target: Path, mode: str = "portable", quant: str = "none"
) -> Path:
    exporter("onnx").write(source, ExportOptions(quant, mode), target)
    return target


def torch_logits(source: ModelSource, tokens: Sequence[int]) -> torch.Tensor:
    """Float32 logits [tokens, vocab] of one sequence."""
    batch = torch.tensor([list(tokens)])
    cpu = torch.device("cpu")
    return next(iter(streaming_logits(source, batch, device=cpu, dtype=torch.float32)))


def greedy_in_torch(source: ModelSource, prompt: Sequence[int], found: Sequence[int]) -> list[int]:
    """Torch's best token after ``prompt`` and after each of ``found`` but the last.

    Equal to ``found`` if and only if torch's greedy continuation is ``found``, in one forward.
    """
    logits = torch_logits(source, [*prompt, *found[:-1]])
    best: list[int] = logits[len(prompt) - 1 :].argmax(-1).tolist()
    return best
