"""Types of every tensor, made by hand, and a model whose rows fit every type."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from support import tiny

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.tensor_types import TensorTypes
from tenp_edge.exporters.base import ExportOptions
from tenp_edge.exporters.gguf import EXPORTER
from tenp_edge.exporters.gguf.exporter import GgufExporter
from tenp_edge.models import ModelConfig

assert isinstance(EXPORTER, GgufExporter)
GGUF: GgufExporter = EXPORTER
WIDE: dict[str, Any] = {
    "hidden_size": 256,
    "num_attention_heads": 4,
    "head_dim": 64,
    "moe_intermediate_size": 512,
    "num_experts": 4,
    "num_hidden_layers": 2,
}


def wide_model(directory: Path, family: str = "qwen3_moe", **changes: Any) -> Checkpoint:
    return Checkpoint(tiny.make(directory / "model", family, **WIDE | changes))


def mix(
    config: ModelConfig, gate_up: Sequence[str], down: Sequence[str], quant: str = "Q8_0"
) -> TensorTypes:
    """The mix ``quant``, but experts take the next of ``gate_up`` and of ``down``, running on from
    layer to layer."""
    types = GGUF.types_of(config, ExportOptions(quant, "per-expert"))
    rows: list[dict[int, tuple[str, ...]]] = []
    for names in (gate_up, down):
        number, found = 0, {}
        for layer, widths in config.expert_widths.items():
            found[layer] = tuple(names[(number + e) % len(names)] for e in range(len(widths)))
            number += len(widths) + 1
        rows.append(found)
    return replace(types, gate_up=rows[0], down=rows[1])
