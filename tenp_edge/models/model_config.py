"""config.json, read once and normalised: the facts of one model, and the names of its experts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tenp_edge.models.family import Family, QkNorm
from tenp_edge.models.layer_attention import LayerAttention
from tenp_edge.models.mixers import Mixer
from tenp_edge.models.multipliers import UNSCALED, Multipliers


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
    and width, and the number of layers that take features of a picture (deepstack), None of a
    family that has none."""

    rope_sections: tuple[int, ...]
    deepstack_layers: int | None


# The part of an expert (`ModelConfig.parts_of`) that a constant is.
CONSTANT = "down_bias"


@dataclass(frozen=True)
class ModelConfig:
    """config.json, normalised. ``raw`` is the file as read, of a wrapped model the language model's
    part of it; ``expert_widths`` lists, for each MoE layer, the width of every routed expert (all
    equal in a model that was not pruned). ``mixers``: what each layer mixes tokens with, None where
    nothing; ``mlp_layers``: those with a dense MLP. A layer's feed forward is its experts, its MLP,
    both, or none. ``constants``: by layer, experts without neurons that give a constant, a bias of
    their down. ``stored_prefix``: how the files' names begin where the language model's, here
    and everywhere else, begin with "model."."""

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
    mixers: tuple[Mixer | None, ...] = field(repr=False)
    mlp_layers: frozenset[int] = field(repr=False)
    expert_widths: Mapping[int, tuple[int, ...]] = field(repr=False)
    layer_ropes: tuple[Rope, ...] = field(repr=False)
    logit_softcap: float | None = None
    multipliers: Multipliers = UNSCALED
    constants: Mapping[int, frozenset[int]] = field(default_factory=dict, repr=False)
    stored_prefix: str = "model."

    @property
    def expert_neurons(self) -> int:
        """Routed-expert neurons of the whole model at the widths it has."""
        return sum(sum(widths) for widths in self.expert_widths.values())

    @property
    def expert_weights(self) -> int:
        """Weights of all routed experts' matrices at the widths they have."""
        return len(self.family.matrices) * self.hidden_size * self.expert_neurons

    @property
    def is_uniform(self) -> bool:
        """True when every routed expert of every layer has the same width."""
        return len({w for widths in self.expert_widths.values() for w in widths}) == 1

    def rotary_size(self, layer: int) -> int:
        """Elements of a head that are rotated, the first ones; latent attention's rotary part."""
        if self.mla is not None:
            return self.mla.qk_rope_head_dim
        return int(self.layer_attention(layer).head_dim * self.layer_ropes[layer].part)

    @property
    def attention_by_layer(self) -> dict[int, LayerAttention]:
        """The layers that attend, in order."""
        mixers = enumerate(self.mixers)
        return {layer: own for layer, own in mixers if isinstance(own, LayerAttention)}

    @property
    def attention_layers(self) -> tuple[LayerAttention, ...]:
        """`attention_by_layer` without the layers' numbers."""
        return tuple(self.attention_by_layer.values())

    def layer_attention(self, layer: int) -> LayerAttention:
        """Heads, sizes and window of ``layer``: what its tensors and its cache follow from."""
        own = self.mixers[layer]
        assert isinstance(own, LayerAttention), f"layer {layer} does not attend"
        return own

    @property
    def embedding_name(self) -> str:
        """Of the embedding's tensor."""
        return f"model.{self.family.names.get('embed', 'embed_tokens.weight')}"

    @property
    def norm_name(self) -> str:
        """Of the last norm's tensor."""
        return f"model.{self.family.names.get('norm', 'norm.weight')}"

    def stored_name(self, name: str) -> str:
        """Tensor ``name`` as the files call it."""
        inside = name.startswith("model.")
        return self.stored_prefix + name.removeprefix("model.") if inside else name

    def text_name(self, name: str) -> str:
        """What the files call ``name``, as the language model alone calls it."""
        inside = name.startswith(self.stored_prefix)
        return "model." + name.removeprefix(self.stored_prefix) if inside else name

    def layer_prefix(self, layer: int) -> str:
        return f"model.layers.{layer}."

    def moe_prefix(self, layer: int) -> str:
        block = self.family.moe_block
        return self.layer_prefix(layer) + (f"{block}." if block else "")

    def expert_tensor(self, layer: int, expert: int, projection: int) -> str:
        """On-disk name of one expert matrix; ``projection`` indexes the family's."""
        return f"{self._projection(layer, expert, projection)}.weight"

    def expert_bias(self, layer: int, expert: int, projection: int) -> str:
        """On-disk name of the bias of one expert matrix, where the family has biases."""
        return f"{self._projection(layer, expert, projection)}.bias"

    @property
    def expert_parts(self) -> tuple[str, ...]:
        """What an expert is made of, as `ExpertWeights` names it: matrices, then biases if any."""
        matrices = self.family.matrices
        biases = tuple(f"{name}_bias" for name in matrices) if self.family.expert_bias else ()
        return matrices + biases

    def parts_of(self, layer: int, expert: int) -> tuple[str, ...]:
        """`expert_parts` of one expert: one that gives a constant has that, too."""
        parts = self.expert_parts
        own = expert in self.constants.get(layer, ()) and CONSTANT not in parts
        return (*parts, CONSTANT) if own else parts

    def expert_tensors(self, layer: int, expert: int) -> list[str]:
        """On-disk names of `parts_of`."""
        return [self._part_name(layer, expert, part) for part in self.parts_of(layer, expert)]

    def _part_name(self, layer: int, expert: int, part: str) -> str:
        projection, _, bias = part.partition("_")
        name_of = self.expert_bias if bias else self.expert_tensor
        return name_of(layer, expert, self.family.matrices.index(projection))

    def _projection(self, layer: int, expert: int, projection: int) -> str:
        name = self.family.projections[projection]
        return f"{self.moe_prefix(layer)}experts.{expert}.{name}"
