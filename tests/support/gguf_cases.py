"""Plans, references and exports that the GGUF tests share."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from support import tiny
from support.neuron_maths import mask_cut_neurons
from support.references import reference_model
from transformers.activations import GELUTanh

from tenp_edge.checkpoint.compression_plan import CompressionPlan, Widths
from tenp_edge.checkpoint.files import (
    Checkpoint,
    TensorEntry,
    dtype_name,
    plan_shards,
    write_shards,
)
from tenp_edge.checkpoint.plan_record import PlanRecord
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.exporters.base import ExportOptions, Manifest
from tenp_edge.exporters.gguf import EXPORTER
from tenp_edge.runtime.llamacpp.model import LlamaCppModel

Logits = npt.NDArray[np.float32]
TOKENS = torch.randint(1, 370, (96,), generator=torch.Generator().manual_seed(7)).tolist()


def random_plan(checkpoint: Checkpoint, kind: str) -> CompressionPlan:
    """Random neurons; ``kind``: whole, uniform (one width), ragged, or drop (an expert less)."""
    config, generator = checkpoint.config, torch.Generator().manual_seed(11)
    full = config.moe_intermediate_size

    def width(expert: int) -> int:
        if kind == "drop":
            return 0 if expert == 1 else full
        choices = {"whole": (full,), "uniform": (full // 2,), "ragged": (32, 40, full)}[kind]
        return choices[int(torch.randint(len(choices), (1,), generator=generator))]

    widths: Widths = {
        layer: tuple(width(expert) for expert in range(len(row)))
        for layer, row in config.expert_widths.items()
    }
    retained = {
        (layer, expert): torch.randperm(full, generator=generator)[:kept].sort().values.int()
        for layer, row in widths.items()
        for expert, kept in enumerate(row)
    }
    return CompressionPlan(
        model_type=config.family.model_type,
        fingerprint=checkpoint.fingerprint,
        full_width=full,
        widths=widths,
        retained=retained,
        record=PlanRecord(method=kind),
    )


def export(
    source: ModelSource, file: Path, quant: str = "F32", layout: str | None = None
) -> Manifest:
    return EXPORTER.write(source, ExportOptions(quant, layout), file)


def llama_logits(file: Path) -> Logits:
    """Of TOKENS in unmodified llama.cpp, with F32 KV and without flash attention."""
    with LlamaCppModel(file, context=128, threads=1, kv_type="F32") as model:
        return model.logits(TOKENS)


def torch_logits(path: Path, plan: CompressionPlan | None = None, *, table: bool = True) -> Logits:
    """Of TOKENS in transformers at float32, with the plan's cut neurons zeroed at full width, and
    with ``table`` GELU as ggml has it on a CPU."""
    model = reference_model(
        path, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    )
    for module in model.modules():
        if table and isinstance(getattr(module, "act_fn", None), GELUTanh):
            module.act_fn = _TableGelu()
    with torch.no_grad(), _one_thread():
        if plan is not None:
            mask_cut_neurons(model, plan)
        logits: torch.Tensor = model(torch.tensor([TOKENS])).logits[0]
    return logits.numpy()


class _TableGelu(torch.nn.Module):
    """ggml's: a table over all float16 numbers, between -10 and 10 (ggml/src/ggml-cpu/vec.h)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rounded = torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().float()
        return torch.where(x.abs() < 10, rounded, x.clamp_min(0))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Matrices this small only lose time to a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def write_dropped(source: ModelSource, directory: Path) -> Path:
    """``source`` as a checkpoint of its own with fewer experts, for transformers to load."""
    names = source.tensors
    stored = source.checkpoint.tensors
    entries = [
        TensorEntry(name, stored[name].dtype if name in stored else "F32", spec.shape)
        for name, spec in names.items()
    ]
    directory.mkdir()
    for entry in write_shards(directory, plan_shards(entries), source.read):
        assert entry.dtype == dtype_name(source.read(entry.name).dtype)
    raw = dict(source.config.raw) | {source.config.family.experts_key: source.config.num_experts}
    (directory / "config.json").write_text(json.dumps(raw))
    return directory


def assert_close(found: Logits, wanted: Logits, family: str = "") -> float:
    """The project's bar for F32: 1e-4 of the larger of 1 and the logits' spread.

    Where ggml looks its activation up for a float16, a rounding of the last bit before it may move
    a neuron by 5e-4: torch in float32 is up to 6e-4 from torch in float64 with that same table. The
    bar is then one of the root mean square, and ten times as much for the worst. Without the table
    it holds as it is (tests/runtime/ggml/test_gelu.py).
    """
    scale, wrong = max(1.0, float(wanted.std())), np.abs(found - wanted)
    worst, looked_up = float(wrong.max()), family and tiny.is_looked_up(family)
    assert worst < (1e-3 if looked_up else 1e-4) * scale, worst
    assert float(np.sqrt(np.square(wrong).mean())) < 1e-4 * scale
    return worst
