"""What every family shares: the facts of a family, a config read once, the tensors it implies.

A family is a table (`Family`), not code. `ModelConfig` is config.json read in either spelling;
`expected_tensors` lists every tensor the model has, by role, which is what the reader checks a
checkpoint against, what `inspect` counts and what exporters map to their own names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tenp_edge.errors import UserError
from tenp_edge.models.layer_attention import LayerAttention
from tenp_edge.models.wrapper import Wrapper

Part = Literal[
    "routed experts", "shared experts", "dense mlp", "attention", "router", "embeddings", "norms"
]
QkNorm = Literal["none", "head", "projection"]
Shape = tuple[int, ...]
# What is made of gate and up: silu(gate) up, gelu(gate) up, or gpt-oss' clamped form
# (`forward.experts`).
Activation = Literal["silu", "gelu_tanh", "swiglu_oai"]
PROJECTIONS = ("gate", "up", "down")
EXPERT_BIASES = ("gate_bias", "up_bias", "down_bias")


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

    ``projections``: on-disk names of an expert's gate, up and down matrices.
    ``defaults``: what transformers assumes for keys that a config.json may leave out.
    ``allowed``: keys whose value changes the arithmetic, with the values that are understood.
    ``moe_block``: where router and experts lie in a layer; empty where they are the layer's own.
    ``stacked``: transformers reads the experts of a layer as two stacked tensors only.
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
    """

    model_type: str
    architecture: str
    moe_block: str
    projections: tuple[str, str, str]
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

    @property
    def experts_in_memory(self) -> str:
        """Where transformers keeps a layer's experts: it calls every family's MoE block ``mlp``."""
        return "mlp.experts" if self.moe_block else "experts"


@dataclass(frozen=True)
class MLA:
    """DeepSeek's multi-head latent attention, in elements."""

    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int


@dataclass(frozen=True)
class Rope:
    """Rotary embedding of the first ``part`` of a head; ``scaling`` keeps the remaining keys of
    linear or YaRN scaling."""

    theta: float
    kind: str
    scaling: Mapping[str, Any]
    part: float = 1.0


@dataclass(frozen=True)
class VisionFacts:
    """What a language model's file must say for pictures: frequencies of a head for time, height
    and width, and the number of layers that take features of a picture (deepstack)."""

    rope_sections: tuple[int, ...]
    deepstack_layers: int


@dataclass(frozen=True)
class TensorSpec:
    """A tensor the model must have: its on-disk name, shape, role, and where it sits."""

    name: str
    shape: Shape
    role: str
    part: Part
    layer: int | None = None
    expert: int | None = None


@dataclass(frozen=True)
class ModelConfig:
    """config.json, normalised. ``raw`` is the file as read, of a wrapped model the language model's
    part of it; ``expert_widths`` lists, for each MoE layer, the width of every routed expert (all
    equal in a model that was not pruned). ``stored_prefix``: how the files' names begin where the
    language model's, here and everywhere else, begin with "model."."""

    family: Family
    raw: Mapping[str, Any]
    hidden_size: int
    num_hidden_layers: int
    vocab_size: int
    num_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    intermediate_size: int
    shared_intermediate_size: int
    moe_layers: tuple[int, ...]
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    tie_word_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    norm_topk_prob: bool
    routed_scaling_factor: float
    n_group: int
    topk_group: int
    rope: Rope
    mla: MLA | None
    dtype: str
    qk_norm: QkNorm
    vision: VisionFacts | None
    attention_layers: tuple[LayerAttention, ...] = field(repr=False)
    expert_widths: Mapping[int, tuple[int, ...]] = field(repr=False)
    layer_ropes: tuple[Rope, ...] = field(repr=False)
    logit_softcap: float | None = None
    stored_prefix: str = "model."

    @property
    def expert_neurons(self) -> int:
        """Routed-expert neurons of the whole model at the widths it has."""
        return sum(sum(widths) for widths in self.expert_widths.values())

    @property
    def is_uniform(self) -> bool:
        """True when every routed expert of every layer has the same width."""
        return len({w for widths in self.expert_widths.values() for w in widths}) == 1

    def rotary_size(self, layer: int) -> int:
        """Elements of a head that are rotated, the first ones; latent attention's rotary part."""
        if self.mla is not None:
            return self.mla.qk_rope_head_dim
        return int(self.layer_attention(layer).head_dim * self.layer_ropes[layer].part)

    def layer_attention(self, layer: int) -> LayerAttention:
        """Heads, sizes and window of ``layer``: what its tensors and its cache follow from."""
        return self.attention_layers[layer]

    def stored_name(self, name: str) -> str:
        """Tensor ``name`` as the files call it."""
        inside = name.startswith("model.")
        return self.stored_prefix + name.removeprefix("model.") if inside else name

    def layer_prefix(self, layer: int) -> str:
        return f"model.layers.{layer}."

    def moe_prefix(self, layer: int) -> str:
        block = self.family.moe_block
        return self.layer_prefix(layer) + (f"{block}." if block else "")

    def expert_tensor(self, layer: int, expert: int, projection: int) -> str:
        """On-disk name of one expert matrix; ``projection`` indexes gate, up, down."""
        return f"{self._projection(layer, expert, projection)}.weight"

    def expert_bias(self, layer: int, expert: int, projection: int) -> str:
        """On-disk name of the bias of one expert matrix, where the family has biases."""
        return f"{self._projection(layer, expert, projection)}.bias"

    @property
    def expert_parts(self) -> tuple[str, ...]:
        """What an expert is made of, as `ExpertWeights` names it: matrices, then biases if any."""
        return PROJECTIONS + (EXPERT_BIASES if self.family.expert_bias else ())

    def expert_tensors(self, layer: int, expert: int) -> list[str]:
        """On-disk names of `expert_parts`."""
        names = [self.expert_tensor(layer, expert, index) for index in range(3)]
        biased = range(3) if self.family.expert_bias else ()
        return names + [self.expert_bias(layer, expert, index) for index in biased]

    def _projection(self, layer: int, expert: int, projection: int) -> str:
        name = self.family.projections[projection]
        return f"{self.moe_prefix(layer)}experts.{expert}.{name}"


def refuse(what: str, supported: object) -> UserError:
    """The error for a config value that is not understood."""
    return UserError(f"config.json: {what} is not supported", f"supported: {supported}")
