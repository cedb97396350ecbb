"""What a file of ours says about its model: metadata, checked.

`read_facts` turns a header into `Facts` or refuses it; `tensor_checks.check_tensors` then compares
the tensors with them, and the graph can be built without another question: by us for the per-expert
layout, by llama.cpp for the stacked ones, which ends the process where we refuse. Architectures are
rows of a table. Keys and names are llama.cpp's, the ``tenp.*`` keys those of
docs/formats/gguf-per-expert.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from tenp_edge.errors import UserError, shown
from tenp_edge.models.layer_attention import LayerAttention
from tenp_edge.models.mixers import Mixer
from tenp_edge.models.multipliers import UNSCALED, Multipliers
from tenp_edge.runtime.gguf.attention_facts import (
    Mla,
    attention_by_layer,
    attention_scale,
    layer_windows,
    read_mla,
)
from tenp_edge.runtime.gguf.file_origin import LAYOUT, OWN, STACKED
from tenp_edge.runtime.gguf.header import Header
from tenp_edge.runtime.gguf.metadata_reader import LARGEST, Fields
from tenp_edge.runtime.gguf.mixer_facts import kv_heads_of, read_mixers
from tenp_edge.runtime.gguf.rope_facts import Rope, check_sections, read_rope
from tenp_edge.runtime.gguf.runnable_architectures import ARCHITECTURES, Architecture

# 2: some expert has no neurons.
_VERSIONS = (1, 2)
_SOFTMAX, _SIGMOID = 1, 2
# What llama.cpp has room for.
_LLAMA_LAYERS = _LLAMA_EXPERTS = 512


@dataclass(frozen=True)
class Facts:
    """The model of a file of ours. ``mixers``: what each layer mixes tokens with, None where
    nothing. ``widths``: routed layer -> width of each expert; ``mlp_layers``: those with a dense
    MLP; ``feed_forward``: its width, 0 where there are none; ``stacked``: the one width of experts
    that lie in one tensor, 0 where each has its own; ``softcap``: the bound of logits, 0 for
    none."""

    name: str
    architecture: Architecture
    layers: int
    hidden: int
    vocab: int
    mixers: tuple[Mixer | None, ...]
    eps: float
    rope: Rope
    attention_scale: float
    mla: Mla | None
    experts: int
    top_k: int
    norm_topk: bool
    weights_scale: float
    sigmoid: bool
    groups: int
    groups_used: int
    widths: dict[int, tuple[int, ...]]
    mlp_layers: frozenset[int]
    feed_forward: int
    trained_context: int
    layer_ropes: tuple[Rope, ...]
    softcap: float = 0.0
    stacked: int = 0
    multipliers: Multipliers = UNSCALED

    @property
    def attention(self) -> dict[int, LayerAttention]:
        """The layers that attend, in order."""
        mixers = enumerate(self.mixers)
        return {layer: own for layer, own in mixers if isinstance(own, LayerAttention)}


def read_facts(header: Header) -> Facts:
    """The model of ``header``. Raises UserError when it is not one that we can run."""
    return _read(header, (LAYOUT,))[0]


def read_stacked(header: Header) -> Facts:
    """The model of a merged or padded file. Raises UserError where llama.cpp would end the process,
    and for whatever an exporter of ours does not write."""
    facts, fields = _read(header, STACKED)
    for broken, why in _llama_limits(facts):
        if broken:
            raise fields.error(why)
    unknown = fields.unread()
    if unknown:
        raise fields.error(f"{unknown[0]} is no key of ours")
    widths = {width for row in facts.widths.values() for width in row}
    full = fields.integer("tenp.full_width")
    if fields.text("tenp.layout") == "padded":
        return replace(facts, stacked=full)
    if len(widths) != 1:
        raise fields.error("its merged experts have different widths")
    return replace(facts, stacked=widths.pop())


def _llama_limits(facts: Facts) -> tuple[tuple[bool, str], ...]:
    """(whether llama.cpp ends the process, why)."""
    sizes = [
        (attention.head_dim, facts.layer_ropes[layer])
        for layer, attention in facts.attention.items()
    ]
    kv_heads = {attention.kv_heads for attention in facts.attention.values()}
    return (
        (
            facts.layers > _LLAMA_LAYERS or facts.experts > _LLAMA_EXPERTS,
            f"{facts.layers} layers of {facts.experts} experts; llama.cpp takes "
            f"{_LLAMA_LAYERS} of {_LLAMA_EXPERTS}",
        ),
        (
            facts.mla is None
            and not facts.architecture.partial_rotary
            and any(rope.dimensions != size for size, rope in sizes),
            f"rope.dimension_count is {facts.rope.dimensions}, a head has {max(sizes)[0]}",
        ),
        (
            facts.mla is not None and kv_heads != {1},
            f"latent attention has one KV head, not {max(kv_heads)}",
        ),
        (
            1 < facts.groups <= facts.groups_used,
            f"{facts.groups_used} of {facts.groups} groups of experts are used",
        ),
    )


def _read(header: Header, layouts: tuple[str, ...]) -> tuple[Facts, Fields]:
    fields = Fields(header)
    version = fields.integer("tenp.version")
    if version not in _VERSIONS:
        raise fields.error(f"tenp.version is {version}; this release reads {_VERSIONS[-1]}")
    layout = fields.text("tenp.layout")
    if layout not in layouts:
        raise UserError(f"{header.file} has the layout '{shown(layout)}'", "run it with llama.cpp")
    fields.prefix = fields.text("general.architecture")
    name = fields.prefix.removeprefix(OWN)  # Older files and those for llama.cpp have the bare one.
    if name not in ARCHITECTURES:
        known = ", ".join(OWN + known for known in sorted(ARCHITECTURES))
        raise UserError(
            f"{header.file}: architecture '{shown(fields.prefix)}' is not known", f"known: {known}"
        )
    return _facts(fields, name), fields


def _facts(fields: Fields, name: str) -> Facts:
    row = ARCHITECTURES[name]
    mla = read_mla(fields) if row.mla else None
    rope = read_rope(fields)
    if row.rope is None and fields.flag("rope.scaling.finetuned"):
        raise fields.error("its attention rotates, which is not known of this architecture")
    heads = fields.integer("attention.head_count")
    kv_heads = 1 if row.by_layer else kv_heads_of(fields, row, heads)
    head_dim = fields.integer("attention.key_length")
    query_dim = head_dim if mla is None else mla.nope + rope.dimensions
    if heads % kv_heads or (mla is None and fields.integer("attention.value_length") != head_dim):
        raise fields.error("its attention heads contradict each other")
    if rope.dimensions > query_dim or rope.dimensions % 2:
        raise fields.error(f"rope.dimension_count is {rope.dimensions}, a head has {query_dim}")
    layers, experts = fields.integer("block_count"), fields.integer("expert_count")
    if row.sections:
        check_sections(fields, rope, layers)
    latent = 0 if mla is None else mla.kv_rank + rope.dimensions
    top_k, groups = fields.integer("expert_used_count"), fields.integer("expert_group_count", 1)
    groups_used = fields.integer("expert_group_used_count", groups)
    # A group is scored by its best two experts.
    divided = groups == 1 or (experts % groups == 0 and experts // groups >= 2)
    reachable = experts // groups * groups_used
    if not divided or groups_used > groups or top_k > reachable:
        raise fields.error(f"{top_k} of {experts} experts in {groups_used} of {groups} groups")
    norm = bool(fields.flag("expert_weights_norm")) if row.norm_topk is None else row.norm_topk
    # First: lists of any length are compared with it.
    widths = _widths(fields, row, layers, experts)
    plain = LayerAttention(heads, kv_heads, head_dim, latent=latent)
    attention = tuple(
        replace(plain, window=window) for window in layer_windows(fields, row, layers)
    )
    ropes = (rope,) * layers
    if row.by_layer:
        attention, ropes = attention_by_layer(fields, plain, rope, layers)
    return Facts(
        name=name,
        architecture=row,
        layers=layers,
        hidden=fields.integer("embedding_length"),
        vocab=_vocab(fields),
        mixers=read_mixers(fields, row, attention, widths),
        eps=fields.real("attention.layer_norm_rms_epsilon"),
        rope=rope,
        attention_scale=attention_scale(fields, row, rope, query_dim),
        mla=mla,
        experts=experts,
        top_k=top_k,
        norm_topk=norm,
        weights_scale=fields.real("expert_weights_scale", 1.0),
        sigmoid=_sigmoid(fields),
        groups=groups,
        groups_used=groups_used,
        widths=widths,
        mlp_layers=_mlp_layers(row, widths, layers),
        feed_forward=_feed_forward(fields, row),
        trained_context=fields.integer("context_length"),
        layer_ropes=ropes,
        softcap=fields.real("final_logit_softcapping", 0.0),
        multipliers=_multipliers(fields) if row.multipliers else UNSCALED,
    )


def _vocab(fields: Fields) -> int:
    """Rows of the embedding: the tensor says it in every architecture."""
    embedding = fields.header.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2 or embedding.shape[1] > LARGEST:
        raise fields.error("it has no token_embd.weight of two dimensions")
    return embedding.shape[1]


def _sigmoid(fields: Fields) -> bool:
    kind = fields.integer("expert_gating_func", _SOFTMAX)
    if kind not in (_SOFTMAX, _SIGMOID):
        raise fields.error(f"expert_gating_func is {kind}; 1 (softmax) and 2 (sigmoid) are known")
    return kind == _SIGMOID


def _feed_forward(fields: Fields, row: Architecture) -> int:
    dense = row.dense_beside or fields.integer("leading_dense_block_count", 0)
    return fields.integer("feed_forward_length") if dense else 0


def _mlp_layers(row: Architecture, routed: Iterable[int], layers: int) -> frozenset[int]:
    """Those that do not route, or all where an MLP runs beside the experts; none where the others
    are mixing blocks."""
    own = () if row.experts_alone else range(layers)
    return frozenset(own).difference(() if row.dense_beside else routed)


def _multipliers(fields: Fields) -> Multipliers:
    return Multipliers(
        embedding=fields.real("embedding_scale", 1.0) or 1.0,
        attention=fields.real("attention.scale", 0.0) or None,
        residual=fields.real("residual_scale", 1.0) or 1.0,
        logits=1.0 / (fields.real("logit_scale", 1.0) or 1.0),
    )


def _routed(fields: Fields, row: Architecture, layers: int) -> Sequence[int]:
    """The layers that route, as llama.cpp knows them."""
    if row.experts_alone:
        widths = fields.integers("feed_forward_length")
        if len(widths) != layers:
            raise fields.error(f"feed_forward_length has {len(widths)} layers of {layers}")
        return [layer for layer, width in enumerate(widths) if width]
    return range(fields.integer("leading_dense_block_count", 0), layers)


def _widths(
    fields: Fields, row: Architecture, layers: int, experts: int
) -> dict[int, tuple[int, ...]]:
    routed = fields.integers("tenp.moe_layers")
    widths = fields.integers("tenp.expert_widths")
    full = fields.integer("tenp.full_width")
    expected = _routed(fields, row, layers)
    if fields.integer("nextn_predict_layers", 0):
        raise fields.error("it has layers that predict further tokens")
    step = fields.integer("interleave_moe_layer_step", 1)
    if step != 1 or len(routed) != len(expected) or routed != list(expected):
        first = expected[0] if expected else layers
        raise fields.error(f"its routed layers are not {first}..{layers - 1}")
    if len(widths) != len(routed) * experts:
        raise fields.error(
            f"{len(widths)} expert widths for {len(routed)} layers of {experts} experts"
        )
    least = 2 - fields.integer("tenp.version")
    if min(widths, default=-1) < least or max(widths, default=0) > full:
        raise fields.error(f"an expert width is not in {least}..{full}")
    rows = {
        layer: tuple(widths[index * experts : (index + 1) * experts])
        for index, layer in enumerate(routed)
    }
    for layer, kept in rows.items():
        if not any(kept):
            raise fields.error(f"no expert of layer {layer} has neurons")
    return rows
