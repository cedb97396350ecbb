"""What a per-expert file says about its model: checked metadata, and every tensor it must hold.

`read_facts` turns a header into `Facts` or refuses it; after that the graph can be built without
another question. Architectures are rows of a table. Keys and names are llama.cpp's, the ``tenp.*``
keys those of docs/gguf-per-expert.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tenp_edge.errors import UserError
from tenp_edge.runtime.gguf_file import Header, TensorInfo

LAYOUT = "per-expert"
_VERSION = 1
_PAIRWISE, _NEOX = 0, 2
_SOFTMAX, _SIGMOID = 1, 2
_LARGEST = 2**24  # No size of a model is larger; keeps products small.
_FREQUENCY_SCALED = ("linear", "yarn")
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Architecture:
    """How llama.cpp computes an architecture.

    ``rope``: pairs (0) or halves (2) are rotated. ``qk_norm``: RMSNorm of each head of q and k, or
    of the whole row. ``norm_topk``: top-k weights are renormalised; None where a key says so.
    ``attention_bias``: q, k and v may have biases. ``shared_gate``: the shared expert is gated.
    """

    rope: int = _NEOX
    qk_norm: Literal["none", "head", "row"] = "none"
    norm_topk: bool | None = False
    attention_bias: bool = False
    shared_gate: bool = False
    mla: bool = False


ARCHITECTURES = {
    "qwen2moe": Architecture(attention_bias=True, shared_gate=True),
    "qwen3moe": Architecture(qk_norm="head", norm_topk=True),
    "olmoe": Architecture(qk_norm="row"),
    "llama": Architecture(rope=_PAIRWISE, norm_topk=True),
    "deepseek2": Architecture(rope=_PAIRWISE, norm_topk=None, mla=True),
}


@dataclass(frozen=True)
class Rope:
    """Arguments of ggml_rope_ext, as llama.cpp derives them."""

    dimensions: int
    base: float
    scale: float = 1.0
    original_context: int = 0
    ext_factor: float = 0.0
    attention_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0


@dataclass(frozen=True)
class Mla:
    """Multi-head latent attention: the cache holds ``kv_rank`` + rope values per token."""

    q_rank: int
    kv_rank: int
    nope: int
    value: int


@dataclass(frozen=True)
class Facts:
    """The model of a per-expert file. ``widths``: routed layer -> width of each expert."""

    name: str
    architecture: Architecture
    layers: int
    hidden: int
    vocab: int
    heads: int
    kv_heads: int
    head_dim: int
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
    trained_context: int

    @property
    def cache_rows(self) -> tuple[int, ...]:
        """Values per token of each cache tensor of a layer: K and V, or the one latent row."""
        if self.mla is not None:
            return (self.mla.kv_rank + self.rope.dimensions,)
        return (self.kv_heads * self.head_dim,) * 2


def is_per_expert(header: Header) -> bool:
    """Whether this file is for our runtime; others are llama.cpp's."""
    return header.fields.get("tenp.layout") == LAYOUT


def read_facts(header: Header) -> Facts:
    """The model of ``header``. Raises UserError when it is not one that we can run."""
    fields = _Fields(header)
    version = fields.integer("tenp.version")
    if version != _VERSION:
        raise fields.error(f"tenp.version is {version}; this release reads {_VERSION}")
    layout = fields.text("tenp.layout")
    if layout != LAYOUT:
        raise UserError(f"{header.file} has the layout '{layout}'", "run it with llama.cpp")
    name = fields.text("general.architecture")
    if name not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise UserError(f"{header.file}: architecture '{name}' is not known", f"known: {known}")
    fields.prefix = name
    facts = _facts(fields, ARCHITECTURES[name])
    _check_tensors(header, facts)
    return facts


def _facts(fields: _Fields, row: Architecture) -> Facts:
    mla = _mla(fields) if row.mla else None
    rope = _rope(fields)
    heads = fields.integer("attention.head_count")
    kv_heads = fields.integer("attention.head_count_kv", heads)
    head_dim = fields.integer("attention.key_length")
    query_dim = head_dim if mla is None else mla.nope + rope.dimensions
    if heads % kv_heads or (mla is None and fields.integer("attention.value_length") != head_dim):
        raise fields.error("its attention heads contradict each other")
    if rope.dimensions > query_dim or rope.dimensions % 2:
        raise fields.error(f"rope.dimension_count is {rope.dimensions}, a head has {query_dim}")
    layers, experts = fields.integer("block_count"), fields.integer("expert_count")
    top_k, groups = fields.integer("expert_used_count"), fields.integer("expert_group_count", 1)
    groups_used = fields.integer("expert_group_used_count", groups)
    # A group is scored by its best two experts.
    divided = groups == 1 or (experts % groups == 0 and experts // groups >= 2)
    reachable = experts // groups * groups_used
    if not divided or groups_used > groups or top_k > reachable:
        raise fields.error(f"{top_k} of {experts} experts in {groups_used} of {groups} groups")
    norm = bool(fields.flag("expert_weights_norm")) if row.norm_topk is None else row.norm_topk
    return Facts(
        name=fields.prefix,
        architecture=row,
        layers=layers,
        hidden=fields.integer("embedding_length"),
        vocab=_vocab(fields),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        eps=fields.real("attention.layer_norm_rms_epsilon"),
        rope=rope,
        attention_scale=_attention_scale(fields, rope, query_dim),
        mla=mla,
        experts=experts,
        top_k=top_k,
        norm_topk=norm,
        weights_scale=fields.real("expert_weights_scale", 1.0),
        sigmoid=_sigmoid(fields),
        groups=groups,
        groups_used=groups_used,
        widths=_widths(fields, layers, experts),
        trained_context=fields.integer("context_length"),
    )


def _vocab(fields: _Fields) -> int:
    """Rows of the embedding: the tensor says it in every architecture."""
    embedding = fields.header.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2 or embedding.shape[1] > _LARGEST:
        raise fields.error("it has no token_embd.weight of two dimensions")
    return embedding.shape[1]


def _mla(fields: _Fields) -> Mla:
    rope = fields.integer("rope.dimension_count")
    key, rank = fields.integer("attention.key_length_mla"), fields.integer("attention.kv_lora_rank")
    if key <= rope or fields.integer("attention.key_length") != rank + rope:
        raise fields.error("its latent attention sizes contradict each other")
    return Mla(
        q_rank=fields.integer("attention.q_lora_rank", 0),
        kv_rank=rank,
        nope=key - rope,
        value=fields.integer("attention.value_length_mla"),
    )


def _sigmoid(fields: _Fields) -> bool:
    kind = fields.integer("expert_gating_func", _SOFTMAX)
    if kind not in (_SOFTMAX, _SIGMOID):
        raise fields.error(f"expert_gating_func is {kind}; 1 (softmax) and 2 (sigmoid) are known")
    return kind == _SIGMOID


def _rope(fields: _Fields) -> Rope:
    """YaRN as llama.cpp does it: ggml scales the rotation by 1 + 0.1 ln(factor) on its own, so the
    attention factor cancels that where latent attention scales the scores instead."""
    dimensions = fields.integer("rope.dimension_count")
    base = fields.real("rope.freq_base")
    kind = fields.text("rope.scaling.type", "none")
    if kind == "none":
        return Rope(dimensions, base)
    factor = fields.real("rope.scaling.factor")
    if kind not in _FREQUENCY_SCALED or not factor >= 1.0:
        raise fields.error(f"rope scaling '{kind}' by {factor:g} is not known")
    if kind == "linear":
        return Rope(dimensions, base, scale=1.0 / factor)
    magnitude = 1.0 + 0.1 * math.log(factor)
    cancelled = fields.real("rope.scaling.yarn_log_multiplier", 0.0) != 0.0
    return Rope(
        dimensions,
        base,
        scale=1.0 / factor,
        original_context=fields.integer("rope.scaling.original_context_length"),
        ext_factor=1.0,
        attention_factor=1.0 / magnitude if cancelled else 1.0,
        beta_fast=fields.real("rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=fields.real("rope.scaling.yarn_beta_slow", 1.0),
    )


def _attention_scale(fields: _Fields, rope: Rope, query_dim: int) -> float:
    """1 / sqrt(head size), times (0.1 mscale_all_dim ln(factor) + 1)^2 in deepseek2."""
    scale = 1.0 / math.sqrt(query_dim)
    if not ARCHITECTURES[fields.prefix].mla:
        return scale
    spread = math.log(1.0 / rope.scale)
    original = rope.attention_factor * (1.0 + 0.1 * spread)
    # The file holds 0.1 mscale_all_dim.
    multiplier = fields.real("rope.scaling.yarn_log_multiplier", 0.0)
    magnitude = original * (1.0 + multiplier * spread)
    return scale * magnitude * magnitude


def _widths(fields: _Fields, layers: int, experts: int) -> dict[int, tuple[int, ...]]:
    routed = fields.integers("tenp.moe_layers")
    widths = fields.integers("tenp.expert_widths")
    full = fields.integer("tenp.full_width")
    dense = fields.integer("leading_dense_block_count", 0)
    if len(routed) != layers - dense or routed != list(range(dense, layers)):
        raise fields.error(f"its routed layers are not {dense}..{layers - 1}")
    if len(widths) != len(routed) * experts:
        raise fields.error(
            f"{len(widths)} expert widths for {len(routed)} layers of {experts} experts"
        )
    if min(widths, default=0) < 1 or max(widths, default=0) > full:
        raise fields.error(f"an expert width is not in 1..{full}")
    return {
        layer: tuple(widths[index * experts : (index + 1) * experts])
        for index, layer in enumerate(routed)
    }


# -- tensors ---------------------------------------------------------------------------------------


def _check_tensors(header: Header, facts: Facts) -> None:
    """Every tensor is there with the shape that the metadata gives it, and no other."""
    known = set()
    for name, shape, optional in expected_tensors(facts, header):
        known.add(name)
        info = header.tensors.get(name)
        if info is None:
            if optional:
                continue
            raise _contradiction(header, f"{name} is missing")
        if info.shape != shape:
            raise _contradiction(
                header, f"{name} is {_times(info.shape)}, the metadata says {_times(shape)}"
            )
        if len(shape) == 1 and info.type_name != "F32":
            raise _contradiction(header, f"{name} is {info.type_name}, not F32")
    unknown = [name for name in header.tensors if name not in known]
    if unknown:
        raise _contradiction(header, f"{unknown[0]} belongs to no layer")


def expected_tensors(facts: Facts, header: Header) -> Iterator[tuple[str, Shape, bool]]:
    """(name, shape as ggml counts, whether it may be missing) of every tensor."""
    hidden = facts.hidden
    yield "token_embd.weight", (hidden, facts.vocab), False
    yield "output_norm.weight", (hidden,), False
    yield "output.weight", (hidden, facts.vocab), True
    for layer in range(facts.layers):
        attention = _mla_tensors(facts) if facts.mla else _gqa_tensors(facts)
        feed_forward = (
            _routed_tensors(facts, layer, header)
            if layer in facts.widths
            else _dense_tensors(facts, header, layer)
        )
        for name, shape, optional in (
            ("attn_norm.weight", (hidden,), False),
            ("ffn_norm.weight", (hidden,), False),
            *attention,
            *feed_forward,
        ):
            yield f"blk.{layer}.{name}", shape, optional


def _gqa_tensors(facts: Facts) -> Iterator[tuple[str, Shape, bool]]:
    hidden, row = facts.hidden, facts.architecture
    queries, keys = facts.heads * facts.head_dim, facts.kv_heads * facts.head_dim
    for name, size in (("q", queries), ("k", keys), ("v", keys)):
        yield f"attn_{name}.weight", (hidden, size), False
        if row.attention_bias:
            yield f"attn_{name}.bias", (size,), True
    if row.qk_norm != "none":
        by_head = row.qk_norm == "head"
        yield "attn_q_norm.weight", (facts.head_dim if by_head else queries,), False
        yield "attn_k_norm.weight", (facts.head_dim if by_head else keys,), False
    yield "attn_output.weight", (queries, hidden), False


def _mla_tensors(facts: Facts) -> Iterator[tuple[str, Shape, bool]]:
    mla, hidden, rope = facts.mla, facts.hidden, facts.rope.dimensions
    assert mla is not None
    queries = facts.heads * (mla.nope + rope)
    if mla.q_rank:
        yield "attn_q_a.weight", (hidden, mla.q_rank), False
        yield "attn_q_a_norm.weight", (mla.q_rank,), False
        yield "attn_q_b.weight", (mla.q_rank, queries), False
    else:
        yield "attn_q.weight", (hidden, queries), False
    yield "attn_kv_a_mqa.weight", (hidden, mla.kv_rank + rope), False
    yield "attn_kv_a_norm.weight", (mla.kv_rank,), False
    yield "attn_k_b.weight", (mla.nope, mla.kv_rank, facts.heads), False
    yield "attn_v_b.weight", (mla.kv_rank, mla.value, facts.heads), False
    yield "attn_output.weight", (facts.heads * mla.value, hidden), False


def _dense_tensors(
    facts: Facts, header: Header, layer: int
) -> Iterator[tuple[str, Shape, bool]]:
    key = f"{facts.name}.feed_forward_length"
    return _mlp_tensors(facts, _Fields(header).integer(key), "")


def _mlp_tensors(facts: Facts, width: int, suffix: str) -> Iterator[tuple[str, Shape, bool]]:
    for name in ("gate", "up"):
        yield f"ffn_{name}{suffix}.weight", (facts.hidden, width), False
    yield f"ffn_down{suffix}.weight", (width, facts.hidden), False


def _routed_tensors(
    facts: Facts, layer: int, header: Header
) -> Iterator[tuple[str, Shape, bool]]:
    hidden = facts.hidden
    yield "ffn_gate_inp.weight", (hidden, facts.experts), False
    if facts.sigmoid:
        yield "exp_probs_b.bias", (facts.experts,), True
    for expert, width in enumerate(facts.widths[layer]):
        yield from _mlp_tensors(facts, width, f".{expert}")
    shared = _shared_width(header.tensors.get(f"blk.{layer}.ffn_gate_shexp.weight"))
    if shared:
        yield from _mlp_tensors(facts, shared, "_shexp")
        if facts.architecture.shared_gate:
            yield "ffn_gate_inp_shexp.weight", (hidden, 1), False


def _shared_width(gate: TensorInfo | None) -> int:
    """Width of the shared expert: its own matrix says it, and the other two must agree."""
    return gate.shape[1] if gate is not None and len(gate.shape) == 2 else 0


def _contradiction(header: Header, why: str) -> UserError:
    return UserError(f"{header.file} contradicts itself: {why}", "export it again")


def _times(shape: Shape) -> str:
    return " x ".join(map(str, shape))


class _Fields:
    """Metadata by key, each with its type and range checked."""

    def __init__(self, header: Header) -> None:
        self.header, self.prefix = header, ""

    def error(self, why: str) -> UserError:
        return UserError(f"{self.header.file} cannot be run: {why}", "export it again")

    def _value(self, key: str) -> object:
        fields = self.header.fields
        return fields.get(f"{self.prefix}.{key}", fields.get(key))

    def integer(self, key: str, default: int | None = None) -> int:
        """A size: 1 or more, or 0 where that is the default."""
        value = self._value(key)
        value = default if value is None else value
        least = 0 if default == 0 else 1
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _LARGEST:
            raise self.error(f"{key} is {value!r}, not a size")
        return value

    def integers(self, key: str) -> list[int]:
        value = self._value(key)
        if not isinstance(value, np.ndarray) or not np.issubdtype(value.dtype, np.integer):
            raise self.error(f"{key} is not a list of numbers")
        return [int(item) for item in value.tolist()]

    def real(self, key: str, default: float | None = None) -> float:
        value = self._value(key)
        value = default if value is None else value
        if not isinstance(value, float) or not math.isfinite(value) or value < 0.0:
            raise self.error(f"{key} is {value!r}, not a number")
        return value

    def flag(self, key: str) -> bool:
        value = self._value(key)
        if value is not None and not isinstance(value, bool):
            raise self.error(f"{key} is {value!r}, not true or false")
        return bool(value)

    def text(self, key: str, default: str | None = None) -> str:
        value = self._value(key)
        value = default if value is None else value
        if not isinstance(value, str):
            raise self.error(f"{key} is not a text")
        return value
