"""How llama.cpp computes the architectures that we run: rows of a table."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # To run a file takes no family.
    from tenp_edge.models.family import Activation

_PAIRWISE, _NEOX = 0, 2
# Blocks that carry a state (`mixer_facts`).
StateKind = Literal["short convolution", "mamba2", "gated delta net"]


@dataclass(frozen=True)
class Architecture:
    """How llama.cpp computes an architecture.

    ``rope``: pairs (0) or halves (2) are rotated, None: nothing is. ``qk_norm``: RMSNorm of each
    head of q and k, or of the whole row. ``norm_topk``: top-k weights are renormalised; None where
    a key says so.
    ``attention_bias``: q, k and v may have biases. ``shared_gate``: the shared expert is gated.
    ``selection_bias``: softmax scores may have a bias that selects, as sigmoid ones always may.
    ``qk_norm_optional``: a model may have no such norm. ``partial_rotary``: a part of a head may
    be all that is rotated. ``sections``: the file divides frequencies among time, height, width.
    ``window_period``: every so many layers one looks at the whole context, the others at a window.
    ``activation``: what is made of gate and up; ``gated``: false where it is made of up alone, and
    no MLP or expert has a gate. ``sinks``: each head has a logit that looks at
    nothing. ``expert_bias``, ``router_linear_bias``, ``output_bias``: of the routed experts, the
    router's logits, the attention's output. ``chosen_softmax``: weights are the softmax of the
    chosen logits. ``ffn_norm``: the name of the norm after the attention.
    ``by_layer``: keys say which layers see a window, and heads and rotation of both kinds; a layer
    without attn_v takes its keys' matrix for values. ``value_norm``: values are divided by their
    root mean square. ``attention_scale``: of scores, None 1 / sqrt(head size).
    ``norms_after``: attention and feed forward are normalised before they are added.
    ``dense_beside``: a dense MLP runs beside the experts, each with norms of its own.
    ``residual_router``: the router reads the residual stream, divided by its root mean square and
    sqrt(hidden), times a vector. ``embedding_scale``: embeddings are multiplied by sqrt(hidden).
    ``scales``: experts' weights and layers' outputs are multiplied by numbers of their own.
    ``state``: the block of layers that carry one. ``recurrent_layers``: a list says which do, else
    those that have no KV heads. ``output_norm``: the last norm's name.
    ``attention_gate``: a head's output is multiplied by the sigmoid of a gate, which the queries'
    matrix gives behind the head. ``value_heads_by_turns``: of a delta net, one of each key head by
    turns, not grouped. ``gate_is_sigmoid``: the shared expert's; else silu(g) / g.
    ``state_expands``: its heads' values are so many times the hidden size.
    ``experts_alone``: layers of experts alone stand among those of a mixing block, and no layer has
    both. ``multipliers``: embeddings, scores, what blocks add and logits are scaled by numbers.
    """

    rope: int | None = _NEOX
    qk_norm: Literal["none", "head", "row"] = "none"
    norm_topk: bool | None = False
    attention_bias: bool = False
    shared_gate: bool = False
    mla: bool = False
    selection_bias: bool = False
    qk_norm_optional: bool = False
    partial_rotary: bool = False
    sections: bool = False
    ffn_norm: str = "ffn_norm"
    window_period: int = 0
    activation: Activation = "silu"
    gated: bool = True
    sinks: bool = False
    expert_bias: bool = False
    router_linear_bias: bool = False
    output_bias: bool = False
    chosen_softmax: bool = False
    by_layer: bool = False
    value_norm: bool = False
    attention_scale: float | None = None
    norms_after: bool = False
    dense_beside: bool = False
    residual_router: bool = False
    embedding_scale: bool = False
    scales: bool = False
    state: StateKind | None = None
    state_expands: int | None = None
    experts_alone: bool = False
    multipliers: bool = False
    recurrent_layers: bool = False
    output_norm: str = "output_norm"
    attention_gate: bool = False
    value_heads_by_turns: bool = False
    gate_is_sigmoid: bool = False


_QWEN3_NEXT = Architecture(
    qk_norm="head",
    norm_topk=True,
    shared_gate=True,
    gate_is_sigmoid=True,
    partial_rotary=True,
    ffn_norm="post_attention_norm",
    attention_gate=True,
    state="gated delta net",
    recurrent_layers=True,
)

ARCHITECTURES = {
    "qwen2moe": Architecture(attention_bias=True, shared_gate=True),
    "qwen3moe": Architecture(qk_norm="head", norm_topk=True),
    "qwen3vlmoe": Architecture(qk_norm="head", norm_topk=True, sections=True),
    "olmoe": Architecture(qk_norm="row"),
    "llama": Architecture(rope=_PAIRWISE, norm_topk=True),
    "deepseek2": Architecture(rope=_PAIRWISE, norm_topk=None, mla=True),
    "gpt-oss": Architecture(
        attention_bias=True,
        window_period=2,
        activation="swiglu_oai",
        sinks=True,
        expert_bias=True,
        router_linear_bias=True,
        output_bias=True,
        chosen_softmax=True,
        ffn_norm="post_attention_norm",
    ),
    "ernie4_5-moe": Architecture(rope=_PAIRWISE, norm_topk=True, selection_bias=True),
    "glm4moe": Architecture(
        qk_norm="head",
        qk_norm_optional=True,
        norm_topk=None,
        attention_bias=True,
        partial_rotary=True,
        ffn_norm="post_attention_norm",
    ),
    "gemma4": Architecture(
        qk_norm="head",
        norm_topk=True,
        by_layer=True,
        activation="gelu_tanh",
        value_norm=True,
        attention_scale=1.0,
        norms_after=True,
        dense_beside=True,
        residual_router=True,
        embedding_scale=True,
        scales=True,
    ),
    "lfm2moe": Architecture(
        qk_norm="head",
        norm_topk=True,
        state="short convolution",
        output_norm="token_embd_norm",
    ),
    "nemotron_h_moe": Architecture(
        rope=None,
        norm_topk=None,
        ffn_norm="attn_norm",
        activation="relu2",
        gated=False,
        state="mamba2",
        experts_alone=True,
    ),
    "granitehybrid": Architecture(
        rope=None, norm_topk=True, state="mamba2", state_expands=2, multipliers=True
    ),
    "qwen3next": _QWEN3_NEXT,
    "qwen35moe": replace(_QWEN3_NEXT, sections=True, value_heads_by_turns=True),
}
