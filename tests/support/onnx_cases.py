"""Plans, references and sessions that the ONNX tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from support.neuron_maths import mask_cut_neurons
from support.plans import plan_for
from support.references import reference_model

from tenp_edge.checkpoint.compression_plan import CompressionPlan
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.exporters.base import ExportOptions, Manifest
from tenp_edge.exporters.onnx import EXPORTER

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

LENGTHS = (24, 17, 9, 3)
# Four prompts of different lengths, padded on the left.
MASK: Ints = np.stack([np.arange(24) >= 24 - length for length in LENGTHS]).astype(np.int64)
IDS: Ints = np.random.default_rng(7).integers(1, 370, MASK.shape) * MASK
POSITIONS: Ints = np.maximum(MASK.cumsum(1) - 1, 0)


def different_widths(checkpoint: Checkpoint) -> CompressionPlan:
    """Every expert of a layer has another width; hardly one is a multiple of anything."""
    config = checkpoint.config
    full, count = config.moe_intermediate_size, config.num_experts
    return plan_for(
        checkpoint,
        {
            layer: tuple(full if e == layer % count else 5 + 9 * e + layer for e in range(count))
            for layer in config.moe_layers
        },
    )


def export(source: ModelSource, directory: Path, **options: Any) -> Manifest:
    chosen = ExportOptions(options.pop("quant", "none"), options.pop("mode", None), **options)
    return EXPORTER.write(source, chosen, directory)


def torch_logits(path: Path, plan: CompressionPlan | None = None) -> Floats:
    """Of IDS in transformers at float32, the plan's cut neurons zeroed: (4, 24, vocabulary)."""
    model = reference_model(
        path, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    )
    with torch.no_grad():
        if plan is not None:
            mask_cut_neurons(model, plan)
        given = {"attention_mask": MASK, "position_ids": POSITIONS}
        tensors = {name: torch.from_numpy(value) for name, value in given.items()}
        logits: torch.Tensor = model(torch.from_numpy(IDS), **tensors).logits
    return logits.numpy()


def written(directory: Path) -> dict[str, int]:
    files = (file for file in directory.rglob("*") if file.is_file())
    return {str(file.relative_to(directory)): file.stat().st_size for file in files}


class Running:
    """An exported graph in plain onnxruntime, its cache kept from step to step."""

    def __init__(self, directory: Path, rows: slice | list[int]) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            str(directory / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        self.ids, self.mask, self.positions = IDS[rows], MASK[rows], POSITIONS[rows]
        self.done = 0
        self.cache = {
            given.name: np.zeros([len(self.ids), *_empty(given)], np.float32)
            for given in self.session.get_inputs()
            if given.name.startswith("past_")
        }

    def step(self, tokens: int) -> Floats:
        """Logits of the next ``tokens`` of every row."""
        end = self.done + tokens
        feed = {
            "input_ids": self.ids[:, self.done : end],
            "attention_mask": self.mask[:, :end],
            "position_ids": self.positions[:, self.done : end],
        }
        names = [output.name for output in self.session.get_outputs()]
        found = dict(zip(names, self.session.run(None, feed | self.cache), strict=True))
        logits: Floats = found.pop("logits")
        self.cache = {
            name.replace("present.", "past_key_values.").replace("present_", "past_"): value
            for name, value in found.items()
        }
        self.done = end
        return logits

    def steps(self, *tokens: int) -> Floats:
        return np.concatenate([self.step(count) for count in tokens], axis=1)


def _empty(given: Any) -> list[int]:
    """Sizes of one sequence's part before the first token: a cache has none, a state its own."""
    return [size if isinstance(size, int) else 0 for size in given.shape[1:]]


def relative_rms(found: Floats, wanted: Floats) -> float:
    return float(np.sqrt(np.square(found - wanted).mean() / np.square(wanted).mean()))


def assert_equal_runs(directory: Path, wanted: Floats) -> None:
    """Prefill, cached decode, chunked prefill and left padding: the project's bar for F32."""
    bar, first = 1e-5, wanted[:1]
    assert relative_rms(Running(directory, [0]).steps(24), first) < bar
    assert relative_rms(Running(directory, [0]).steps(20, 1, 1, 1, 1), first) < bar
    assert relative_rms(Running(directory, [0]).steps(7, 5, 12), first) < bar
    real = MASK.astype(bool)
    for tokens in ((24,), (21, 1, 1, 1)):
        batch = Running(directory, slice(None)).steps(*tokens)
        assert np.isfinite(batch).all()
        assert relative_rms(batch[real], wanted[real]) < bar
