"""What a checkpoint holds, from config.json and safetensors headers alone. No torch in here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any, get_args

from tenp_edge.models import ModelConfig, Part
from tenp_edge.models.headers import ModelFiles

PARTS: tuple[Part, ...] = get_args(Part)


@dataclass(frozen=True)
class PartSize:
    """Parameters and stored bytes of one part of the model."""

    parameters: int
    bytes: int


@dataclass(frozen=True)
class ModelSummary:
    """A checkpoint in numbers. ``keep_ratio`` is 1 for a model that was not pruned.

    ``active_parameters``: read for one token, at the mean width of the routed experts, the
    embedding counted as the one row it needs. ``left_out``: stored tensors that are no part of the
    language model (vision, audio, multi-token prediction); their bytes: ``left_out_bytes`` only.
    ``quantised``: stored bytes of the quantised weights by layout. ``needless``: how many tensors
    beside them are for activations only.
    """

    path: str
    family: str
    layers: int
    moe_layers: int
    experts: int
    experts_per_token: int
    hidden_size: int
    vocab_size: int
    context: int
    width: int
    width_min: int
    width_max: int
    shared_width: int
    dtypes: Mapping[str, int]
    files: int
    fused_experts: bool
    parts: Mapping[str, PartSize]
    active_parameters: int
    left_out: tuple[str, ...]
    left_out_bytes: int
    quantised: Mapping[str, int]
    needless: int
    pruned: bool
    keep_ratio: float
    method: str | None

    @property
    def parameters(self) -> int:
        return sum(part.parameters for part in self.parts.values())

    @property
    def bytes(self) -> int:
        return sum(part.bytes for part in self.parts.values())

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"parameters": self.parameters, "bytes": self.bytes}


def inspect_model(path: str | Path) -> ModelSummary:
    """The summary of the model directory ``path``. Raises UserError when it cannot be used."""
    files = ModelFiles(path)
    config, tensors = files.config, files.tensors
    parts = _parts(files)
    widths = [width for row in config.expert_widths.values() for width in row]
    section = config.raw.get("tenp") or {}
    left_out = files.left_out
    return ModelSummary(
        path=str(files.path),
        family=config.family.model_type,
        layers=config.num_hidden_layers,
        moe_layers=len(config.moe_layers),
        experts=config.num_experts,
        experts_per_token=config.num_experts_per_tok,
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        context=config.max_position_embeddings,
        width=config.moe_intermediate_size,
        width_min=min(widths),
        width_max=max(widths),
        shared_width=config.shared_intermediate_size,
        dtypes=dict(Counter(tensor.dtype for tensor in tensors.values()).most_common()),
        files=len({tensor.file for tensor in tensors.values()}),
        fused_experts=files.is_fused(config.moe_layers[0]),
        parts=parts,
        active_parameters=_active(config, parts),
        left_out=left_out,
        left_out_bytes=sum(tensors[name].nbytes for name in left_out),
        quantised=_quantised(files),
        needless=len(files.needless),
        pruned=bool(section),
        keep_ratio=float(section.get("keep_ratio", 1.0)),
        method=section.get("method"),
    )


def _parts(files: ModelFiles) -> dict[str, PartSize]:
    parameters, stored = Counter[str](), Counter[str]()
    for weight in files.weights.values():
        parameters[weight.part] += prod(weight.shape)
        stored[weight.part] += files.stored_bytes(weight)
    return {part: PartSize(parameters[part], stored[part]) for part in PARTS if stored[part]}


def _quantised(files: ModelFiles) -> dict[str, int]:
    stored = Counter[str]()
    for weight in files.weights.values():
        if not weight.is_plain:
            stored[weight.layout.title] += files.stored_bytes(weight)
    return dict(stored.most_common())


def _active(config: ModelConfig, parts: Mapping[str, PartSize]) -> int:
    """Parameters that one token's forward reads."""
    routed = parts["routed experts"].parameters
    idle = routed - routed * config.num_experts_per_tok // config.num_experts
    if not config.tie_word_embeddings:  # a tied table is read whole, as the output projection
        idle += (config.vocab_size - 1) * config.hidden_size
    return sum(part.parameters for part in parts.values()) - idle
