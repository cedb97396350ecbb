"""The tensors that a model must have: names, shapes and roles, from its config.

`expected_tensors` is what the reader checks a checkpoint against, what `inspect` counts and what
exporters map to their own names.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from tenp_edge.models.layer_attention import LayerAttention
from tenp_edge.models.mixers import DeltaNet, Mamba2, Shape, ShortConvolution
from tenp_edge.models.model_config import ModelConfig

# "state layers": mixing blocks that carry a state.
Part = Literal[
    "routed experts",
    "shared experts",
    "dense mlp",
    "attention",
    "state layers",
    "router",
    "embeddings",
    "norms",
]


@dataclass(frozen=True)
class TensorSpec:
    """A tensor the model must have: its on-disk name, shape, role, and where it sits."""

    name: str
    shape: Shape
    role: str
    part: Part
    layer: int | None = None
    expert: int | None = None


def expected_tensors(
    config: ModelConfig, without_experts: Container[int] = ()
) -> Iterator[TensorSpec]:
    """Every tensor of the model in file order: embeddings, layer by layer, final norm, output.

    The routed experts of the layers ``without_experts`` are left out.
    """
    names = config.family.names
    for spec in _tensors(config, without_experts):
        own = names.get(spec.role) if spec.expert is None else None
        yield spec if own is None else replace(spec, name=_place(config, spec.layer) + own)


def _place(config: ModelConfig, layer: int | None) -> str:
    return "model." if layer is None else config.layer_prefix(layer)


def _tensors(config: ModelConfig, without_experts: Container[int]) -> Iterator[TensorSpec]:
    hidden = config.hidden_size
    yield TensorSpec(config.embedding_name, (config.vocab_size, hidden), "embed", "embeddings")
    for layer in range(config.num_hidden_layers):
        prefix = config.layer_prefix(layer)
        for suffix, shape, role, part in _layer_tensors(config, layer):
            yield TensorSpec(prefix + suffix, shape, role, part, layer)
        routed = layer in config.expert_widths
        if routed:
            yield from _moe_tensors(config, layer, experts=layer not in without_experts)
        if layer in config.mlp_layers:
            yield from _mlp_tensors(
                config, layer, f"{prefix}mlp.", config.intermediate_size, "mlp", "dense mlp"
            )
    yield TensorSpec(config.norm_name, (hidden,), "norm", "norms")
    if not config.tie_word_embeddings:
        yield TensorSpec("lm_head.weight", (config.vocab_size, hidden), "output", "embeddings")


_Row = tuple[str, Shape, str, Part]


def _layer_tensors(config: ModelConfig, layer: int) -> Iterator[_Row]:
    hidden, family, mixer = (config.hidden_size,), config.family, config.mixers[layer]
    if mixer is not None:
        yield "input_layernorm.weight", hidden, "input_norm", "norms"
        yield from _MIXERS[type(mixer)](config, mixer)
    if layer not in config.expert_widths and layer not in config.mlp_layers:
        return
    if not family.norms_after:
        yield "post_attention_layernorm.weight", hidden, "post_attention_norm", "norms"
    else:
        yield "post_attention_layernorm.weight", hidden, "attention_out_norm", "norms"
        yield "pre_feedforward_layernorm.weight", hidden, "post_attention_norm", "norms"
        yield "post_feedforward_layernorm.weight", hidden, "block_out_norm", "norms"
    if family.dense_beside:
        yield "post_feedforward_layernorm_1.weight", hidden, "mlp_out_norm", "norms"
        yield "pre_feedforward_layernorm_2.weight", hidden, "routed_norm", "norms"
        yield "post_feedforward_layernorm_2.weight", hidden, "routed_out_norm", "norms"
    if family.layer_scale:
        yield "layer_scalar", (1,), "layer_scale", "norms"


def _gqa_tensors(config: ModelConfig, own: LayerAttention) -> Iterator[_Row]:
    hidden, head = config.hidden_size, own.head_dim
    q_rows, kv_rows = own.heads * head, own.kv_heads * head
    gated_rows = 2 * q_rows if config.family.attention_gate else q_rows
    for name, rows in (("q", gated_rows), ("k", kv_rows), ("v", kv_rows if own.own_values else 0)):
        if rows:
            yield f"self_attn.{name}_proj.weight", (rows, hidden), name, "attention"
        if rows and config.qkv_bias:
            yield f"self_attn.{name}_proj.bias", (rows,), f"{name}_bias", "attention"
    yield "self_attn.o_proj.weight", (hidden, q_rows), "o", "attention"
    if config.o_bias:
        yield "self_attn.o_proj.bias", (hidden,), "o_bias", "attention"
    if config.family.sinks:
        yield "self_attn.sinks", (own.heads,), "sinks", "attention"
    if config.qk_norm != "none":
        whole = config.qk_norm == "projection"
        yield "self_attn.q_norm.weight", (q_rows if whole else head,), "q_norm", "attention"
        yield "self_attn.k_norm.weight", (kv_rows if whole else head,), "k_norm", "attention"


def _mla_tensors(config: ModelConfig, own: LayerAttention) -> Iterator[_Row]:
    mla = config.mla
    assert mla is not None
    hidden, heads = config.hidden_size, own.heads
    q_rows = heads * (mla.qk_nope_head_dim + mla.qk_rope_head_dim)
    kv_a_rows = mla.kv_lora_rank + mla.qk_rope_head_dim
    if mla.q_lora_rank is None:
        yield "self_attn.q_proj.weight", (q_rows, hidden), "q", "attention"
    else:
        rank = mla.q_lora_rank
        yield "self_attn.q_a_proj.weight", (rank, hidden), "q_a", "attention"
        if config.qkv_bias:
            yield "self_attn.q_a_proj.bias", (rank,), "q_a_bias", "attention"
        yield "self_attn.q_a_layernorm.weight", (rank,), "q_a_norm", "attention"
        yield "self_attn.q_b_proj.weight", (q_rows, rank), "q_b", "attention"
    yield "self_attn.kv_a_proj_with_mqa.weight", (kv_a_rows, hidden), "kv_a", "attention"
    if config.qkv_bias:
        yield "self_attn.kv_a_proj_with_mqa.bias", (kv_a_rows,), "kv_a_bias", "attention"
    yield "self_attn.kv_a_layernorm.weight", (mla.kv_lora_rank,), "kv_a_norm", "attention"
    kv_b_rows = heads * (mla.qk_nope_head_dim + mla.v_head_dim)
    yield "self_attn.kv_b_proj.weight", (kv_b_rows, mla.kv_lora_rank), "kv_b", "attention"
    yield "self_attn.o_proj.weight", (hidden, heads * mla.v_head_dim), "o", "attention"
    if config.o_bias:
        yield "self_attn.o_proj.bias", (hidden,), "o_bias", "attention"


def _attention_tensors(config: ModelConfig, own: LayerAttention) -> Iterator[_Row]:
    return (_gqa_tensors if config.mla is None else _mla_tensors)(config, own)


def _short_convolution_tensors(config: ModelConfig, own: ShortConvolution) -> Iterator[_Row]:
    hidden, channels = config.hidden_size, own.channels
    yield "conv.in_proj.weight", (3 * channels, hidden), "conv_in", "state layers"
    yield "conv.conv.weight", (channels, 1, own.taps), "conv", "state layers"
    yield "conv.out_proj.weight", (hidden, channels), "conv_out", "state layers"


def _mamba2_tensors(config: ModelConfig, own: Mamba2) -> Iterator[_Row]:
    hidden = config.hidden_size
    rows: tuple[tuple[str, Shape, str], ...] = (
        ("in_proj.weight", (own.inner + own.channels + own.heads, hidden), "ssm_in"),
        ("conv1d.weight", (own.channels, 1, own.taps), "ssm_conv"),
        ("conv1d.bias", (own.channels,), "ssm_conv_bias"),
        ("dt_bias", (own.heads,), "ssm_dt_bias"),
        ("A_log", (own.heads,), "ssm_a"),
        ("D", (own.heads,), "ssm_d"),
        ("norm.weight", (own.inner,), "ssm_norm"),
        ("out_proj.weight", (hidden, own.inner), "ssm_out"),
    )
    for name, shape, role in rows:
        yield f"mamba.{name}", shape, role, "state layers"


def _delta_net_tensors(config: ModelConfig, net: DeltaNet) -> Iterator[_Row]:
    hidden, block, heads = config.hidden_size, "linear_attn.", net.value_heads
    part: Part = "state layers"
    rows = {"qkv": net.channels, "z": net.value_size, "b": heads, "a": heads}
    if config.family.joined_projections:
        rows = {"qkvz": net.channels + net.value_size, "ba": 2 * heads}
    for name, count in rows.items():
        yield f"{block}in_proj_{name}.weight", (count, hidden), f"delta_{name}", part
    yield f"{block}conv1d.weight", (net.channels, 1, net.taps), "delta_conv", part
    yield f"{block}dt_bias", (heads,), "delta_dt_bias", part
    yield f"{block}A_log", (heads,), "delta_decay", part
    yield f"{block}norm.weight", (net.head_dim,), "delta_norm", "norms"
    yield f"{block}out_proj.weight", (hidden, net.value_size), "delta_out", part


# Of a layer's mixing block, by its kind.
_MIXERS: dict[type, Callable[[ModelConfig, Any], Iterator[_Row]]] = {
    LayerAttention: _attention_tensors,
    ShortConvolution: _short_convolution_tensors,
    Mamba2: _mamba2_tensors,
    DeltaNet: _delta_net_tensors,
}


def _moe_tensors(config: ModelConfig, layer: int, *, experts: bool) -> Iterator[TensorSpec]:
    family, hidden = config.family, config.hidden_size
    prefix = config.moe_prefix(layer)
    widths = config.expert_widths[layer]
    router = prefix + family.router
    yield TensorSpec(f"{router}.weight", (len(widths), hidden), "router", "router", layer)
    if family.router_linear_bias:
        yield TensorSpec(f"{router}.bias", (len(widths),), "router_linear_bias", "router", layer)
    if family.router_bias:
        shape = (1, len(widths)) if family.router_bias_row else (len(widths),)
        yield TensorSpec(prefix + family.router_bias, shape, "router_bias", "router", layer)
    if family.residual_router:
        scale = f"{prefix}router.scale"
        yield TensorSpec(scale, (hidden,), "router_scale", "norms", layer)
    if family.expert_scale:
        scale = f"{prefix}router.per_expert_scale"
        yield TensorSpec(scale, (len(widths),), "routed_scale", "router", layer)
    for expert, width in enumerate(widths if experts else ()):
        yield from _expert_tensors(config, layer, expert, width)
    if family.shared_block and config.shared_intermediate_size:
        block = f"{prefix}{family.shared_block}."
        width = config.shared_intermediate_size
        if family.shared_stacked:
            shape = (2 * width, hidden)
            name = f"{block}gate_up_proj.weight"
            yield TensorSpec(name, shape, "shared_gate_up", "shared experts", layer)
            name = f"{block}down_proj.weight"
            yield TensorSpec(name, (hidden, width), "shared_down", "shared experts", layer)
            return
        yield from _mlp_tensors(config, layer, block, width, "shared", "shared experts")
        if family.shared_gated:
            name = f"{prefix}shared_expert_gate.weight"
            yield TensorSpec(name, (1, hidden), "shared_router", "shared experts", layer)


def _expert_tensors(
    config: ModelConfig, layer: int, expert: int, width: int
) -> Iterator[TensorSpec]:
    hidden = config.hidden_size
    part: Part = "routed experts"
    for index, projection in enumerate(config.family.matrices):
        shape = (hidden, width) if projection == "down" else (width, hidden)
        name, role = config.expert_tensor(layer, expert, index), f"expert_{projection}"
        yield TensorSpec(name, shape, role, part, layer, expert)
        if f"{projection}_bias" in config.parts_of(layer, expert):
            name = config.expert_bias(layer, expert, index)
            yield TensorSpec(name, shape[:1], f"{role}_bias", part, layer, expert)


def _mlp_tensors(
    config: ModelConfig, layer: int, prefix: str, width: int, role: str, part: Part
) -> Iterator[TensorSpec]:
    hidden = config.hidden_size
    for projection in config.family.matrices:
        shape = (hidden, width) if projection == "down" else (width, hidden)
        name = f"{prefix}{projection}_proj.weight"
        yield TensorSpec(name, shape, f"{role}_{projection}", part, layer)
