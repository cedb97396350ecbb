"""Finds every weight that config.json implies among the tensors of the files. No torch in here.

Routed experts are stored one by one, or stacked in two tensors a layer, gate_up_proj and down_proj:
as transformers 5 writes them (experts, rows, columns) or transposed, as Qwen3-VL and gpt-oss are
published. Which of the two it is, the shapes of both tensors say together: gate_up_proj alone could
be either where twice the width is the hidden size, down_proj alone where the width is; never both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from tenp_edge.disk import read_range
from tenp_edge.models.layouts import PLAIN, Layout, StoredWeight
from tenp_edge.models.mixers import Shape
from tenp_edge.models.model_config import ModelConfig
from tenp_edge.models.quantization import is_of_activations
from tenp_edge.models.safetensors_header import StoredTensor
from tenp_edge.models.tensors import Part, expected_tensors


@dataclass(frozen=True)
class StackedExperts:
    """A layer's experts in stacked tensors. ``gate_up``: (experts, 2 width, hidden), gate's rows
    first, or the even ones where ``interleaved``; (experts, width, hidden), up's alone, where they
    are not ``gated``. ``down``: (experts, hidden, width). ``biases``: (experts, 2 width) and
    (experts, hidden), or none."""

    gate_up: StoredWeight
    down: StoredWeight
    gated: bool
    interleaved: bool
    biases: tuple[StoredWeight, ...]

    @property
    def weights(self) -> tuple[StoredWeight, ...]:
        return (self.gate_up, self.down, *self.biases)


class WeightIndex:
    """``weights``: every weight in file order, stacked experts under their stacked names."""

    def __init__(
        self, config: ModelConfig, tensors: Mapping[str, StoredTensor], layouts: Sequence[Layout]
    ) -> None:
        self._config, self._tensors, self._layouts = config, tensors, layouts
        self.stacked = dict(self._stacked_layers())

    @cached_property
    def weights(self) -> dict[str, StoredWeight]:
        weights = {}
        for spec in expected_tensors(self._config, without_experts=self.stacked):
            weights[spec.name] = self._find(spec.name, spec.shape, spec.part)
        for layer in sorted(self.stacked):
            weights |= {weight.name: weight for weight in self.stacked[layer].weights}
        return weights

    @cached_property
    def unclaimed(self) -> frozenset[str]:
        """Tensors that are a part of no weight."""
        claimed = {t for weight in self.weights.values() for t in weight.tensors.values()}
        return frozenset(name for name in self._tensors if name not in claimed)

    @cached_property
    def needless(self) -> frozenset[str]:
        """Of them, those beside quantised weights that change nothing in them: scales of
        activations, and GPTQ's biases of zeros for layers that have none."""
        if not self._layouts:
            return frozenset()
        return frozenset(n for n in self.unclaimed if is_of_activations(n) or self._is_no_bias(n))

    @cached_property
    def not_understood(self) -> frozenset[str]:
        """Of them, those beside quantised weights that may change them."""
        modules = {
            name.removesuffix(".weight")
            for name, weight in self.weights.items()
            if not weight.is_plain
        }
        return frozenset(
            name
            for name in self.unclaimed - self.needless
            if name.rpartition(".")[0] in modules or _of_stacked(name) in modules
        )

    def _is_no_bias(self, name: str) -> bool:
        stored = self._tensors[name]
        return name.endswith(".bias") and not any(
            read_range(stored.file, stored.offset, stored.nbytes)
        )

    def _find(
        self, name: str, shape: Shape, part: Part, *, transposed: bool = False
    ) -> StoredWeight:
        """Weight ``name``; as a plain one, which may be missing, where no layout is there.

        Of several layouts, the one whose shapes fit, and of those the one with the most tensors:
        one without zero points would read a weight that has some as well, and wrongly.
        """
        module, quantised = name.removesuffix(".weight"), []
        for layout in self._layouts if len(shape) > 1 else ():
            matrix = shape[-1:-3:-1] if transposed else shape[-2:]
            tensors = layout.find(module, matrix, self._tensors)
            if tensors is not None and self._has_codes(layout, tensors):
                quantised.append(StoredWeight(name, shape, part, layout, tensors, transposed))
        if quantised:
            return max(quantised, key=lambda one: (self._fits(one), len(one.tensors)))
        stored = next((n for n in (name, f"{module}.weight") if n in self._tensors), name)
        return StoredWeight(name, shape, part, PLAIN, {"weight": stored}, transposed)

    def _has_codes(self, layout: Layout, found: Mapping[str, str]) -> bool:
        """Whether the tensor of the codes holds such: another layout may use the same names."""
        part, rule = layout.first
        return self._tensors[found[part]].dtype in rule.dtypes

    # -- stacked experts -----------------------------------------------------------------------

    def _stacked_layers(self) -> Iterator[tuple[int, StackedExperts]]:
        for layer in self._config.expert_widths:
            prefix = self._stacked_prefix(layer)
            if prefix is not None:
                yield layer, self._stacked(layer, prefix)

    def _stacked_prefix(self, layer: int) -> str | None:
        """Of the layer's MoE block, by the family's own name for it or by transformers'."""
        config = self._config
        in_memory = config.family.experts_in_memory.removesuffix("experts")
        for block in (config.moe_prefix(layer), config.layer_prefix(layer) + in_memory):
            module = block + config.family.stacked_names[0].removesuffix(".weight")
            rules = [layout.first[1] for layout in (PLAIN, *self._layouts)]
            if any(module + s in self._tensors for rule in rules for s in rule.suffixes):
                return block
        return None

    def _stacked(self, layer: int, prefix: str) -> StackedExperts:
        """As the shapes say; as transformers 5 writes them where neither orientation fits."""
        config, family = self._config, self._config.family
        widths, hidden = config.expert_widths[layer], config.hidden_size
        first, second = family.stacked_names
        count, rows = len(widths), (len(family.matrices) - 1) * widths[0]
        shapes = {first: (count, rows, hidden), second: (count, hidden, widths[0])}
        gate_up, down = self._oriented(prefix, shapes)
        biases = {f"{first}_bias": (count, rows), f"{second}_bias": (count, hidden)}
        return StackedExperts(
            gate_up,
            down,
            "gate" in family.matrices,
            family.gate_up_interleaved,
            tuple(
                StoredWeight(f"{prefix}{n}", shape, "routed experts", PLAIN, {"weight": prefix + n})
                for n, shape in (biases if family.expert_bias else {}).items()
            ),
        )

    def _oriented(self, prefix: str, shapes: Mapping[str, Shape]) -> list[StoredWeight]:
        candidates = [
            [
                self._find(prefix + name, shape, "routed experts", transposed=transposed)
                for name, shape in shapes.items()
            ]
            for transposed in (False, True)
        ]
        fitting = (pair for pair in candidates if all(map(self._fits, pair)))
        return next(fitting, candidates[0])

    def _fits(self, weight: StoredWeight) -> bool:
        return all(
            name in self._tensors and self._tensors[name].shape in rule.shapes
            for name, rule in weight.parts()
        )


def _of_stacked(name: str) -> str:
    """The stacked weight whose parameter ``name`` would be."""
    return re.sub(r"(up_proj|down_proj)\w*$", r"\1", name)
