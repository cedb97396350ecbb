"""Which tensors a file holds, in order, with type and bytes: from the config alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from tenp_edge.exporters.gguf.architectures import (
    EXPERT_NAME,
    MERGED_NAME,
    NAMES,
    architecture,
)
from tenp_edge.exporters.gguf.metadata import expert_width, shared_count
from tenp_edge.exporters.gguf.types import TYPES, legal_type
from tenp_edge.models import PROJECTIONS, ModelConfig, Shape, TensorSpec, expected_tensors
from tenp_edge.registry import ManifestTensor

LAYOUTS: tuple[str, ...] = ("per-expert", "merged", "padded")
# llama.cpp keeps these in float32 in every file type.
_FLOAT_ROLES = frozenset({"router", "shared_router"})


@dataclass(frozen=True)
class Entry:
    """One tensor of the file and where it comes from.

    ``role`` says what is done to the source tensor ``name``; experts are named by layer (and
    ``expert`` in the per-expert layout, None when the tensor stacks them all).
    """

    tensor: ManifestTensor
    role: str
    name: str | None = None
    layer: int | None = None
    expert: int | None = None


def entries(config: ModelConfig, layout: str, quant: str) -> list[Entry]:
    """Every tensor of the file, in file order: the order of the source model's tensors."""
    found: list[Entry] = []
    seen: set[int] = set()
    for spec in expected_tensors(config):
        if spec.expert is None:
            found += _plain(config, layout, quant, spec)
        elif spec.layer is not None and spec.layer not in seen:
            seen.add(spec.layer)
            expand = _per_expert if layout == "per-expert" else _stacked
            found += expand(config, layout, quant, spec.layer)
    if config.tie_word_embeddings and architecture(config).output_needed:
        tied = (config.vocab_size, config.hidden_size)
        spec = TensorSpec("model.embed_tokens.weight", tied, "output", "embeddings")
        found += _plain(config, layout, quant, spec)
    return found


def type_notes(found: list[Entry], quant: str) -> tuple[str, ...]:
    """Which tensors take another type than asked for because of their row length."""
    counts: Counter[tuple[str, str, int]] = Counter()
    for entry in found:
        tensor = entry.tensor
        if tensor.type not in (quant, "F32"):
            counts[entry.role, tensor.type, tensor.shape[-1]] += 1
    return tuple(
        f"{count} tensor{'s' if count > 1 else ''} ({role}, rows of {length}) take {kind}: "
        f"{quant} needs a multiple of {TYPES[quant].block}"
        for (role, kind, length), count in sorted(counts.items())
    )


def _plain(config: ModelConfig, layout: str, quant: str, spec: TensorSpec) -> Iterator[Entry]:
    for role, shape in _targets(config, layout, spec):
        float_only = len(shape) == 1 or role in _FLOAT_ROLES
        kind = "F32" if float_only else legal_type(quant, shape[-1])
        name = NAMES[role].format(layer=spec.layer)
        tensor = ManifestTensor(name, shape, kind, TYPES[kind].nbytes(shape), "other")
        yield Entry(tensor, role, spec.name, spec.layer)


def _targets(config: ModelConfig, layout: str, spec: TensorSpec) -> list[tuple[str, Shape]]:
    """Roles and shapes in the file of one source tensor: itself, but for two of deepseek2's."""
    mla = config.mla
    if spec.role == "kv_b" and mla is not None:
        heads, rank = config.num_attention_heads, mla.kv_lora_rank
        return [
            ("k_b", (heads, rank, mla.qk_nope_head_dim)),
            ("v_b", (heads, mla.v_head_dim, rank)),
        ]
    if spec.part == "shared experts" and architecture(config).leading_dense:
        width = shared_count(config, layout) * expert_width(config, layout)
        shape = (
            (config.hidden_size, width) if spec.role == "shared_down" else (width, spec.shape[1])
        )
        return [(spec.role, shape)]
    return [(spec.role, spec.shape)]


def _stacked(config: ModelConfig, layout: str, quant: str, layer: int) -> Iterator[Entry]:
    experts, width = len(config.expert_widths[layer]), expert_width(config, layout)
    for projection in PROJECTIONS:
        shape = (experts, *_matrix(config, projection, width))
        kind = legal_type(quant, shape[-1])
        name = MERGED_NAME.format(layer=layer, projection=projection)
        tensor = ManifestTensor(name, shape, kind, TYPES[kind].nbytes(shape), "routed experts")
        yield Entry(tensor, f"expert_{projection}", layer=layer)


def _per_expert(config: ModelConfig, layout: str, quant: str, layer: int) -> Iterator[Entry]:
    sizes: dict[tuple[str, int], tuple[Shape, str, int]] = {}
    for expert, width in enumerate(config.expert_widths[layer]):
        for projection in PROJECTIONS:
            if (projection, width) not in sizes:
                shape = _matrix(config, projection, width)
                kind = legal_type(quant, shape[-1])
                sizes[projection, width] = shape, kind, TYPES[kind].nbytes(shape)
            name = EXPERT_NAME.format(layer=layer, projection=projection, expert=expert)
            tensor = ManifestTensor(name, *sizes[projection, width], "routed experts")
            yield Entry(tensor, f"expert_{projection}", layer=layer, expert=expert)


def _matrix(config: ModelConfig, projection: str, width: int) -> Shape:
    hidden = config.hidden_size
    return (hidden, width) if projection == "down" else (width, hidden)
