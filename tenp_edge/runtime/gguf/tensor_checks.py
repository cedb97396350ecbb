"""Which tensors a file of ours must hold, and with what shapes: the metadata's word against
the tensor table's, before any weight is touched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from tenp_edge.errors import UserError, shown
from tenp_edge.models.layer_attention import LayerAttention
from tenp_edge.models.mixers import DeltaNet, Mamba2, Shape, ShortConvolution
from tenp_edge.runtime.gguf.header import Header, TensorInfo
from tenp_edge.runtime.gguf.model_metadata import Facts

_SHOWN = 240
# In float32, whatever their shape: biases, and convolutions, of which ggml takes no other.
_FLOAT_NAMES = (
    ".bias",
    ".shortconv.conv.weight",
    ".ssm_conv1d.weight",
    ".ssm_a",
    ".ssm_d",
    ".ssm_norm.weight",
)


def check_tensors(header: Header, facts: Facts) -> None:
    """Raise UserError unless every tensor is there with the shape that the metadata gives it, and
    no other."""
    known = set()
    for name, shape, optional in _expected(facts, header):
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
        if (len(shape) == 1 or name.endswith(_FLOAT_NAMES)) and info.type_name != "F32":
            raise _contradiction(header, f"{name} is {info.type_name}, not F32")
    unknown = [name for name in header.tensors if name not in known]
    if unknown:
        raise _contradiction(header, f"{unknown[0]} belongs to no layer")


def _expected(facts: Facts, header: Header) -> Iterator[tuple[str, Shape, bool]]:
    """(name, shape as ggml counts, whether it may be missing) of every tensor."""
    hidden = facts.hidden
    yield "token_embd.weight", (hidden, facts.vocab), False
    yield f"{facts.architecture.output_norm}.weight", (hidden,), False
    yield "output.weight", (hidden, facts.vocab), True
    full = [own.head_dim for own in facts.attention.values() if own.window is None]
    if facts.architecture.by_layer and full:
        yield "rope_freqs.weight", (full[0] // 2,), True
    for layer in range(facts.layers):
        for name, shape, optional in (
            *_mixer_tensors(facts, layer),
            *_more_norms(facts),
            *_feed_forward_tensors(facts, layer, header),
        ):
            yield f"blk.{layer}.{name}", shape, optional


def _mixer_tensors(facts: Facts, layer: int) -> Iterator[tuple[str, Shape, bool]]:
    mixer = facts.mixers[layer]
    if mixer is not None:
        yield "attn_norm.weight", (facts.hidden,), False
        yield from _MIXERS[type(mixer)](facts, mixer)


def _feed_forward_tensors(
    facts: Facts, layer: int, header: Header
) -> Iterator[tuple[str, Shape, bool]]:
    routed, dense = layer in facts.widths, layer in facts.mlp_layers
    if routed or dense:
        yield f"{facts.architecture.ffn_norm}.weight", (facts.hidden,), False
    if routed:
        yield from _routed_tensors(facts, layer, header)
    if dense:
        yield from _mlp_tensors(facts, facts.feed_forward, "")


def _more_norms(facts: Facts) -> Iterator[tuple[str, Shape, bool]]:
    row = facts.architecture
    names = ["post_attention_norm", "post_ffw_norm"] if row.norms_after else []
    if row.dense_beside:
        names += ["post_ffw_norm_1", "pre_ffw_norm_2", "post_ffw_norm_2"]
    for name in names:
        yield f"{name}.weight", (facts.hidden,), False
    if row.scales:
        yield "layer_output_scale.weight", (1,), False


def _attention_tensors(facts: Facts, own: LayerAttention) -> Iterator[tuple[str, Shape, bool]]:
    return (_mla_tensors if facts.mla else _gqa_tensors)(facts, own)


def _short_convolution_tensors(
    facts: Facts, own: ShortConvolution
) -> Iterator[tuple[str, Shape, bool]]:
    yield "shortconv.in_proj.weight", (facts.hidden, 3 * own.channels), False
    yield "shortconv.conv.weight", (own.taps, own.channels), False
    yield "shortconv.out_proj.weight", (own.channels, facts.hidden), False


def _mamba2_tensors(facts: Facts, own: Mamba2) -> Iterator[tuple[str, Shape, bool]]:
    yield "ssm_in.weight", (facts.hidden, own.inner + own.channels + own.heads), False
    yield "ssm_conv1d.weight", (own.taps, own.channels), False
    yield "ssm_conv1d.bias", (own.channels,), False
    yield "ssm_dt.bias", (own.heads,), False
    yield "ssm_a", (1, own.heads), False
    yield "ssm_d", (1, own.heads), False
    yield "ssm_norm.weight", (own.inner // own.groups, own.groups), False
    yield "ssm_out.weight", (own.inner, facts.hidden), False


def _delta_net_tensors(facts: Facts, own: DeltaNet) -> Iterator[tuple[str, Shape, bool]]:
    hidden, heads = facts.hidden, own.value_heads
    yield "attn_qkv.weight", (hidden, own.channels), False
    yield "attn_gate.weight", (hidden, own.value_size), False
    if facts.architecture.value_heads_by_turns:
        yield "ssm_beta.weight", (hidden, heads), False
        yield "ssm_alpha.weight", (hidden, heads), False
    else:
        yield "ssm_ba.weight", (hidden, 2 * heads), False
    yield "ssm_conv1d.weight", (own.taps, own.channels), False
    yield "ssm_dt.bias", (heads,), False
    yield "ssm_a", (heads,), False
    yield "ssm_norm.weight", (own.head_dim,), False
    yield "ssm_out.weight", (own.value_size, hidden), False


def _gqa_tensors(facts: Facts, own: LayerAttention) -> Iterator[tuple[str, Shape, bool]]:
    hidden, row = facts.hidden, facts.architecture
    queries, keys = own.heads * own.head_dim, own.kv_heads * own.head_dim
    gated = 2 * queries if row.attention_gate else queries
    for name, size in (("q", gated), ("k", keys), ("v", keys if own.own_values else 0)):
        if size:
            yield f"attn_{name}.weight", (hidden, size), False
        if size and row.attention_bias:
            yield f"attn_{name}.bias", (size,), True
    if row.qk_norm != "none":
        by_head = row.qk_norm == "head"
        for name, size in (("q", queries), ("k", keys)):
            shape = (own.head_dim if by_head else size,)
            yield f"attn_{name}_norm.weight", shape, row.qk_norm_optional
    yield "attn_output.weight", (queries, hidden), False
    if row.output_bias:
        yield "attn_output.bias", (hidden,), True
    if row.sinks:
        yield "attn_sinks.weight", (own.heads,), False


def _mla_tensors(facts: Facts, own: LayerAttention) -> Iterator[tuple[str, Shape, bool]]:
    mla, hidden, rope = facts.mla, facts.hidden, facts.rope.dimensions
    assert mla is not None
    queries = own.heads * (mla.nope + rope)
    if mla.q_rank:
        yield "attn_q_a.weight", (hidden, mla.q_rank), False
        yield "attn_q_a_norm.weight", (mla.q_rank,), False
        yield "attn_q_b.weight", (mla.q_rank, queries), False
    else:
        yield "attn_q.weight", (hidden, queries), False
    yield "attn_kv_a_mqa.weight", (hidden, mla.kv_rank + rope), False
    yield "attn_kv_a_norm.weight", (mla.kv_rank,), False
    yield "attn_k_b.weight", (mla.nope, mla.kv_rank, own.heads), False
    yield "attn_v_b.weight", (mla.kv_rank, mla.value, own.heads), False
    yield "attn_output.weight", (own.heads * mla.value, hidden), False


# Of a layer's mixing block, by its kind.
_MIXERS: dict[type, Callable[[Facts, Any], Iterator[tuple[str, Shape, bool]]]] = {
    LayerAttention: _attention_tensors,
    ShortConvolution: _short_convolution_tensors,
    Mamba2: _mamba2_tensors,
    DeltaNet: _delta_net_tensors,
}


def _mlp_tensors(facts: Facts, width: int, suffix: str) -> Iterator[tuple[str, Shape, bool]]:
    for name in ("gate", "up") if facts.architecture.gated else ("up",):
        yield f"ffn_{name}{suffix}.weight", (facts.hidden, width), False
    yield f"ffn_down{suffix}.weight", (width, facts.hidden), False


def _routed_tensors(facts: Facts, layer: int, header: Header) -> Iterator[tuple[str, Shape, bool]]:
    hidden = facts.hidden
    yield "ffn_gate_inp.weight", (hidden, facts.experts), False
    if facts.architecture.router_linear_bias:
        yield "ffn_gate_inp.bias", (facts.experts,), False
    if facts.sigmoid or facts.architecture.selection_bias:
        yield "exp_probs_b.bias", (facts.experts,), True
    if facts.architecture.residual_router:
        yield "ffn_gate_inp.scale", (hidden,), False
    if facts.architecture.scales:
        yield "ffn_down_exps.scale", (facts.experts,), False
    if facts.stacked:
        for name, shape, optional in _expert_tensors(facts, facts.stacked, "_exps"):
            yield name, (*shape, facts.experts), optional
    for expert, width in enumerate(() if facts.stacked else facts.widths[layer]):
        yield from _expert_tensors(facts, width, f".{expert}")
    shared = _shared_width(header.tensors.get(f"blk.{layer}.ffn_up_shexp.weight"))
    if shared:
        yield from _mlp_tensors(facts, shared, "_shexp")
        if facts.architecture.shared_gate:
            yield "ffn_gate_inp_shexp.weight", (hidden, 1), False


def _expert_tensors(facts: Facts, width: int, suffix: str) -> Iterator[tuple[str, Shape, bool]]:
    biased = facts.architecture.expert_bias
    if not width:
        yield f"ffn_down{suffix}.bias", (facts.hidden,), not biased
        return
    for name, shape, optional in _mlp_tensors(facts, width, suffix):
        yield name, shape, optional
        if biased:
            yield name.replace(".weight", ".bias"), shape[1:], optional


def _shared_width(up: TensorInfo | None) -> int:
    """Width of the shared expert: its own matrix says it, and the others must agree."""
    return up.shape[1] if up is not None and len(up.shape) == 2 else 0


def _contradiction(header: Header, why: str) -> UserError:
    return UserError(f"{header.file} contradicts itself: {shown(why, _SHOWN)}", "export it again")


def _times(shape: Shape) -> str:
    return " x ".join(map(str, shape))
