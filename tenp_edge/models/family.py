"""What is known of a family: a table (`Family`), not code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tenp_edge.models.wrapper import Wrapper

# An expert's matrices. Where it has no gate, up and down are all.
PROJECTIONS = ("gate", "up", "down")
QkNorm = Literal["none", "head", "projection"]
# What is made of gate and up: silu(gate) up, gelu(gate) up, or gpt-oss' clamped form
# (`forward.experts`); of up alone where there is no gate: relu(up)^2.
Activation = Literal["silu", "gelu_tanh", "swiglu_oai", "relu2"]

# A delta net's own norm is an ordinary one.
_ZERO_CENTRED = frozenset({"input_norm", "post_attention_norm", "q_norm", "k_norm", "norm"})


@dataclass(frozen=True)
class LayerKeys:
    """Keys of config.json for the layers that see everything, where they have another geometry.

    ``head_dim``, ``kv_heads``: theirs, with what transformers assumes; ``shared_values``: whether
    their values are what the keys' matrix gives (the key of ``kv_heads`` counts only then).
    ``overrides``: where transformers writes the same by layer.
    """

    head_dim: tuple[str, int]
    kv_heads: str
    shared_values: str
    overrides: str


@dataclass(frozen=True)
class Family:
    """One Hugging Face model_type: names and facts, nothing that runs.

    ``projections``: on-disk names of an expert's gate, up and down matrices; of up and down where
    it has no gate.
    ``defaults``: what transformers assumes for keys that a config.json may leave out.
    ``allowed``: keys whose value changes the arithmetic, with the values that are understood.
    ``moe_block``: where router and experts lie in a layer; empty where they are the layer's own.
    ``stacked``: transformers reads the experts of a layer as two stacked tensors only;
    ``stacked_names``: where their gate and up, and their down, lie in the MoE block;
    ``stacked_transposed``: their matrices as (columns, rows).
    ``qk_norm_key``: whether there is such a norm, where config.json says so.
    ``rotary_part``: share of a head that is rotated, if config.json does not say.
    ``rope_sections``: config.json divides a head's frequencies among time, height and width, which
    are the same number for a text's tokens.
    ``rope_pairs``: neighbours of a head are rotated together, not halves.
    ``router_bias``: the bias that only selects experts, by its name in the MoE block;
    ``router_bias_row``: stored as [1, experts]. ``in_memory``: (module of the MoE block, the module
    that has it in transformers' memory).
    ``expert_bias``: gate, up and down of the routed experts have biases.
    ``gate_up_interleaved``: in stacked experts, gate's rows are the even ones, up's the odd ones.
    ``wrapper``: where the language model is a part of a model whose type is ``model_type``.
    ``full_attention_every``: where config.json has no ``layer_types``, every so many layers one
    looks at the whole context and the others at the last ``sliding_window`` tokens; 0: all at all.
    ``activation``: what is made of gate and up. ``router``: the router's module in the MoE block.
    ``router_linear_bias``: its logits have a bias. ``router_score``: what the weights are made of;
    softmax of the chosen counts their logits alone.
    ``sinks``: each head may look at nothing, to the share of a logit of its own.
    ``layer_keys``: how layers that see everything differ from those of a window.
    ``norms_after``: what attention and the feed forward put out is normalised before it is added.
    ``dense_beside``: a dense MLP runs beside the experts, each with norms of its own.
    ``residual_router``: the router reads the residual stream, divided by its root mean square and
    by sqrt(hidden), times a scale of its own.
    ``expert_scale``: a chosen expert's weight is multiplied by a number of the expert's.
    ``layer_scale``: a layer's output is multiplied by a number of the layer's.
    ``embedding_scale``: embeddings are multiplied by sqrt(hidden).
    ``value_norm``: values are divided by their root mean square.
    ``attention_scale``: what scores are multiplied by; None is 1 / sqrt(head size).
    ``layer_kinds``: what config.json's ``layer_types`` call each kind of mixing block (a key of
    ``config.mixer_config``), or a layer of experts alone; empty where all layers attend.
    ``layer_letters``: of them in a string, for ``hybrid_override_pattern``.
    ``names``: of roles (``TensorSpec.role``) that are called otherwise than in the other families,
    within their layer or after "model.".
    ``renamed_keys``: keys of config.json -> what the other families call them.
    ``block_in_memory``: the MoE block's module in transformers' memory; ``router_in_memory``: the
    router's in it, if it has another name. ``rotary_module``: the model's module of rotations, None
    where nothing is rotated.
    ``shared_width_key``: of config.json, where the shared expert's width has one.
    ``shared_stacked``: its gate and up are one matrix, gate's rows first.
    ``multipliers``: embeddings, attention scores, what blocks add and logits are scaled by numbers
    of config.json (`Multipliers`).
    ``stored_prefixes``: what the names in the files begin with, where not with "model." alone; the
    published one first.
    ``router_sum_offset``: what a sigmoid router adds to the sum that its weights are divided by.
    ``zero_centred_norms``: norms multiply by 1 + weight, but for a delta net's own.
    ``attention_gate``: each head's output is multiplied by the sigmoid of a gate, whose rows lie
    behind the head's in the queries' matrix.
    ``joined_projections``: a gated delta net's matrices lie together by key head (q, k, v, z and
    beta, alpha), not apart.
    """

    model_type: str
    architecture: str
    moe_block: str
    projections: tuple[str, ...]
    width_key: str
    experts_key: str
    attention: Literal["gqa", "mla"]
    defaults: Mapping[str, Any]
    allowed: Mapping[str, tuple[Any, ...]]
    qk_norm: QkNorm = "none"
    qk_norm_key: str | None = None
    qkv_bias_key: str | None = None
    o_bias_key: str | None = None
    shared_block: str | None = None
    shared_gated: bool = False
    router_score: Literal["softmax", "sigmoid", "softmax of the chosen"] = "softmax"
    router_bias: str | None = None
    router_bias_row: bool = False
    in_memory: tuple[tuple[str, str], ...] = ()
    rope_pairs: bool = False
    rotary_part: float = 1.0
    rope_sections: bool = False
    always_norm_topk: bool = False
    expert_bias: bool = False
    gate_up_interleaved: bool = False
    full_attention_every: int = 0
    extra_keys: tuple[str, ...] = ()
    layer_keys: LayerKeys | None = None
    activation: Activation = "silu"
    activation_key: str = "hidden_act"
    router: str = "gate"
    stacked: bool = False
    stacked_names: tuple[str, str] = ("experts.gate_up_proj", "experts.down_proj")
    stacked_transposed: bool = False
    norms_after: bool = False
    dense_beside: bool = False
    residual_router: bool = False
    expert_scale: bool = False
    layer_scale: bool = False
    embedding_scale: bool = False
    value_norm: bool = False
    attention_scale: float | None = None
    softcap_key: str | None = None
    wrapper: Wrapper | None = None
    router_linear_bias: bool = False
    sinks: bool = False
    layer_kinds: Mapping[str, str] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    renamed_keys: Mapping[str, str] = field(default_factory=dict)
    block_in_memory: str = "mlp"
    rotary_module: str | None = "rotary_emb"
    router_sum_offset: float = 1e-20
    layer_letters: Mapping[str, str] = field(default_factory=dict)
    router_in_memory: str | None = None
    shared_width_key: str | None = None
    shared_stacked: bool = False
    multipliers: bool = False
    stored_prefixes: tuple[str, ...] = ("model.",)
    zero_centred_norms: bool = False
    attention_gate: bool = False
    joined_projections: bool = False

    @property
    def matrices(self) -> tuple[str, ...]:
        """What the matrices of `projections` are: PROJECTIONS, or those without the gate."""
        return PROJECTIONS[-len(self.projections) :]

    @property
    def zero_centred_roles(self) -> frozenset[str]:
        """Roles of the norms that multiply by 1 + weight."""
        return _ZERO_CENTRED if self.zero_centred_norms else frozenset()

    @property
    def experts_in_memory(self) -> str:
        """Where transformers keeps a layer's experts: most families' MoE block is ``mlp`` there."""
        return f"{self.block_in_memory}.experts" if self.moe_block else "experts"
