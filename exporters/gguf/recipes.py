"""Which type each tensor takes: llama.cpp's recipes, and the user's own rules before them.

A file type such as Q4_K_M is a mix: more bits where an error costs more. The rules here are those
of llama-quant.cpp (llama_tensor_get_type_impl), for the architectures that we write; a test asks
llama.cpp itself. They look at a tensor's role, its layer and the row length alone, so an expert's
own tensor takes what its layer's merged tensor would.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from tenp_edge.checkpoint.tensor_types import TensorTypes, other_key
from tenp_edge.errors import UserError
from tenp_edge.exporters.gguf.architectures import EXPERT_NAME, MERGED_NAME, architecture
from tenp_edge.exporters.gguf.source.kept_bytes import SourceTypes
from tenp_edge.exporters.gguf.types import FILE_TYPES, TYPES, legal_type
from tenp_edge.models import DeltaNet, LayerAttention, ModelConfig, expected_tensors

# llama.cpp keeps these in float32 in every file type.
_FLOAT_ROLES = frozenset(
    "router shared_router conv delta_conv ssm_conv ssm_a ssm_d ssm_norm".split()
)
_EXPERT_ROLES = frozenset({"expert_gate", "expert_up", "expert_down"})
_DOWN_ROLES = ("mlp_down", "expert_down", "shared_down")  # in the order of their names
_VALUE_ROLES = ("v", "delta_qkv")
# attn_output of an ordinary model, and of one with exactly eight experts (Mixtral).
_ATTENTION_OUTPUT = {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "IQ3_XXS": "IQ3_S", "IQ3_M": "Q4_K"}
_EIGHT_OUTPUT = frozenset(
    {"Q2_K", "Q3_K_M", "Q4_K_S", "Q4_K_M", "IQ4_NL", "IQ4_XS", "IQ3_M", "IQ3_S", "IQ3_XXS"}
)
# Mixes of about two bits and less have rules of their own.
_LOW = frozenset({"IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S"})
_LOW_OUTPUT = {"IQ2_M": "IQ3_S", "IQ2_S": "IQ3_S", "IQ1_M": "IQ2_XXS", "IQ1_S": "IQ2_XXS"}
_EMBEDDINGS = dict.fromkeys(_LOW, "Q2_K") | dict.fromkeys(("IQ2_M", "IQ2_S", "IQ3_XXS"), "IQ3_S")
_EMBEDDINGS |= dict.fromkeys(("TQ1_0", "TQ2_0"), "Q4_K")
_QUERIES = {"IQ3_XXS": "IQ2_S"}
# Three-dimensional in the merged file: what MXFP4 is for.
_STACKED_ROLES = _EXPERT_ROLES | {"k_b", "v_b"}
_EXPERT = re.compile(
    re.escape(EXPERT_NAME)
    .replace(r"\{layer\}", r"(?P<layer>\d+)")
    .replace(r"\{projection\}", r"(?P<projection>\w+)")
    .replace(r"\{expert\}", r"\d+")
    .replace(r"\{kind\}", r"(?P<kind>\w+)")
)


@dataclass(frozen=True)
class Rule:
    """``--tensor-type 'regex=TYPE'``: tensors whose name the regex is found in take the type."""

    text: str
    pattern: re.Pattern[str]
    type: str


def parse_rules(texts: tuple[str, ...]) -> tuple[Rule, ...]:
    """Raises UserError for what is not REGEX=TYPE."""
    rules = []
    for text in texts:
        pattern, equals, name = text.rpartition("=")
        if not equals or not pattern:
            raise UserError(
                f"--tensor-type '{text}' is not REGEX=TYPE", "--tensor-type 'attn_v=Q8_0'"
            )
        if name.upper() not in TYPES:
            raise UserError(
                f"--tensor-type '{text}': '{name}' is not a tensor type", ", ".join(TYPES)
            )
        try:
            rules.append(Rule(text, re.compile(pattern), name.upper()))
        except re.error as error:
            raise UserError(
                f"--tensor-type '{text}': {error}", "a regular expression, as in 'attn_v=Q8_0'"
            ) from None
    return tuple(rules)


def is_quantised(role: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor may have another type than F32."""
    return len(shape) > 1 and role not in _FLOAT_ROLES and not role.endswith("_bias")


def _told(types: TensorTypes, role: str, layer: int | None, expert: int) -> str:
    if role in _EXPERT_ROLES and layer is not None:
        return types.expert(layer, expert, role.removeprefix("expert_"))
    key = other_key(layer, role)
    if key not in types.others:
        raise UserError(f"the plan's types do not name '{key}'", "plan again")
    return types.others[key]


@dataclass(frozen=True)
class TypeRecipe:
    """The types of one file: what ``quant`` means for ``config``, with the user's ``rules``.

    ``imatrix``: whether the file is quantised with an importance matrix, which spares some tensors
    their extra bits. ``types``: the types themselves, instead of a mix of llama.cpp's; experts of
    the model that is written. ``source``: types that are kept.
    """

    config: ModelConfig
    quant: str
    imatrix: bool = False
    rules: tuple[Rule, ...] = ()
    types: TensorTypes | None = None
    source: SourceTypes | None = None

    def wanted(
        self,
        name: str,
        role: str,
        layer: int | None,
        shape: tuple[int, ...],
        expert: int | None = None,
    ) -> str:
        """The type of tensor ``name`` before its row length has a say; ``expert``: of one expert's
        own, None for a tensor that stacks them all."""
        if not is_quantised(role, shape):
            return "F32"
        rule = self.rule(name)
        if rule is not None:
            return rule.type
        if self.types is not None:
            return _told(self.types, role, layer, expert or 0)
        kept = None if self.source is None else self.source.of(name, role, layer)
        if kept is not None:
            return kept
        if FILE_TYPES[self.quant].is_float:
            return self.quant
        return self._mixed(role, layer or 0, shape[-1])

    def choose(
        self,
        name: str,
        role: str,
        layer: int | None,
        shape: tuple[int, ...],
        expert: int | None = None,
    ) -> tuple[str, str]:
        """The type that tensor ``name`` should have, and the one that its row length allows."""
        recipe_type = self.wanted(name, role, layer, shape, expert)
        return recipe_type, legal_type(recipe_type, shape[-1])

    def rule(self, name: str) -> Rule | None:
        """The first of the user's rules for ``name``, or for the merged tensor it is part of."""
        names = (name, *_merged_names(name)) if self.rules else ()
        return next((r for r in self.rules if any(map(r.pattern.search, names))), None)

    def _mixed(self, role: str, layer: int, row_length: int) -> str:
        default = FILE_TYPES[self.quant].default
        if role == "output" or (role == "embed" and self._tied):
            return self._output(row_length, default)
        if self.quant == "MXFP4":
            return default if role in _STACKED_ROLES else "Q8_0"
        if role == "embed":
            return _EMBEDDINGS.get(self.quant, default)
        if self.quant in _LOW:
            return self._low(role, layer) or default
        if role in _VALUE_ROLES:
            return self._attention_v(layer) or default
        if role == "k" and self._eight:
            return "Q8_0"
        if role in ("q", "k"):
            return _QUERIES.get(self.quant, default)
        if role == "o":
            eight = "Q5_K" if self.quant in _EIGHT_OUTPUT else default
            return eight if self._eight else _ATTENTION_OUTPUT.get(self.quant, default)
        if role in _DOWN_ROLES:
            return self._down(layer) or default
        return default

    def _output(self, row_length: int, default: str) -> str:
        if default in ("Q8_0", "MXFP4") or row_length % TYPES[default].block:
            return "Q8_0"
        return "Q5_K" if self.quant in _LOW or self.quant == "IQ3_XXS" else "Q6_K"

    def _low(self, role: str, layer: int) -> str | None:
        """In the mixes of two bits and less."""
        more = "IQ3_S" if self.quant in ("IQ2_M", "IQ2_S") else "Q2_K"
        if role in _VALUE_ROLES:
            return "Q4_K" if self._grouped or self.config.num_experts >= 4 else more
        if role == "k" and self._eight:
            return "Q4_K"
        if role == "o":
            return "Q5_K" if self._eight else _LOW_OUTPUT.get(self.quant)
        if role in _DOWN_ROLES and self._downs[layer, role] < self._eighth:
            return more
        return None

    @cached_property
    def _downs(self) -> dict[tuple[int | None, str], int]:
        """(layer, role) -> how many such matrices lie before it in the file: here llama.cpp counts
        matrices, not layers."""
        config = self.config
        others = expected_tensors(config, without_experts=config.moe_layers)
        matrices = {(spec.layer, spec.role) for spec in others if spec.role in _DOWN_ROLES}
        matrices |= {(layer, "expert_down") for layer in config.moe_layers}
        order = sorted(matrices, key=lambda key: (key[0] or 0, _DOWN_ROLES.index(key[1])))
        return {key: place for place, key in enumerate(order)}

    def _attention_v(self, layer: int) -> str | None:
        if self._eight:
            return "Q8_0"
        layers = self._with_values
        place, grouped = layers.index(layer), self._grouped
        more = _more_bits(place, len(layers))
        return {
            "Q2_K": "Q4_K" if grouped else "Q3_K",
            "Q3_K_M": "Q5_K" if place < 2 else "Q4_K",
            "IQ3_M": "Q4_K",
            "IQ3_S": "Q4_K" if grouped else None,
            "IQ3_XXS": "Q4_K" if grouped else None if self.imatrix else "IQ3_S",
            "IQ4_NL": "Q5_K" if grouped else None,
            "IQ4_XS": "Q5_K" if grouped else None,
            "Q4_K_S": "Q5_K" if place < 4 else None,
            "Q4_K_M": "Q6_K" if more else None,
            "Q5_K_M": "Q6_K" if more else None,
        }.get(self.quant)

    def _down(self, layer: int) -> str | None:
        """ffn_down: a routed expert's, a shared expert's or a dense layer's."""
        layers = self.config.num_hidden_layers
        first, more = layer < self._eighth, _more_bits(layer, layers)
        return {
            "Q2_K": "Q3_K",
            "Q3_K_M": "Q5_K" if layer < layers // 16 else "Q4_K",
            "IQ3_M": "Q4_K" if first or (self._eight and more) else None,
            "IQ3_XXS": None if self.imatrix else "Q4_K" if first else "Q3_K",
            "IQ4_NL": "Q5_K" if first and not self.imatrix else None,
            "IQ4_XS": "Q5_K" if first and not self.imatrix else None,
            "Q4_K_S": "Q5_K" if first else None,
            "Q4_K_M": "Q6_K" if more else None,
            "Q5_K_M": "Q6_K" if more else None,
            "Q4_0": "Q4_1" if first and self.imatrix else None,
        }.get(self.quant)

    @cached_property
    def _with_values(self) -> tuple[int, ...]:
        """Layers that have a matrix for values, alone or with queries and keys: llama.cpp counts
        those matrices, not layers."""
        return tuple(
            layer
            for layer, own in enumerate(self.config.mixers)
            if isinstance(own, DeltaNet) or (isinstance(own, LayerAttention) and own.own_values)
        )

    @property
    def _eighth(self) -> int:
        return self.config.num_hidden_layers // 8

    @property
    def _grouped(self) -> bool:
        if not self._states_have_heads and not isinstance(self.config.mixers[0], LayerAttention):
            return False
        first = self.config.attention_layers[0]
        return first.heads // first.kv_heads >= 4

    @property
    def _states_have_heads(self) -> bool:
        """Whether llama.cpp knows KV heads of layers that do not attend."""
        return architecture(self.config).graph.recurrent_layers

    @cached_property
    def _eight(self) -> bool:
        return self.config.num_experts == 8

    @cached_property
    def _tied(self) -> bool:
        return self.config.tie_word_embeddings and not architecture(self.config).output_needed


def _more_bits(place: int, count: int) -> bool:
    """The first and last eighth of ``count`` layers, and every third between."""
    eighth = count // 8
    return place < eighth or place >= 7 * count // 8 or (place - eighth) % 3 == 2


def _merged_names(name: str) -> tuple[str, ...]:
    match = _EXPERT.fullmatch(name)
    return () if match is None else (MERGED_NAME.format(**match.groupdict()),)
