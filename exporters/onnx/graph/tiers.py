"""Experts of one width as one node of com.microsoft, which stacks their matrices.

    x (tokens, hidden), shares (tokens, experts of the tier) ── QMoE | MoE ── (tokens, hidden)
                                                                 │
          gate and up (experts, 2 width, hidden), rows taken in turns; down (experts, hidden, width)
          (their biases)

The kernels choose the k largest shares and skip those that are zero, so a tier that no token chose
costs next to nothing. k is the router's, or all experts of a smaller tier.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.checkpoint.tensor_types import TensorTypes
from tenp_edge.exporters.onnx.files.stored import Fill, Sink, Stored, as_array
from tenp_edge.exporters.onnx.graph.builder import FLOAT
from tenp_edge.exporters.onnx.graph.context import Context
from tenp_edge.exporters.onnx.linear.blocks import ACCURACY_LEVEL, CONTRIB, UINT8
from tenp_edge.exporters.onnx.linear.quantise import BLOCK, Bytes, Floats, quantise_blocks
from tenp_edge.models.family import Activation

_PART = "routed experts"
Pair = tuple[Floats, Floats]  # gate and up with their rows in turns, and down
Blocks = tuple[Bytes, Floats]  # codes and scales
# gate x sigmoid(alpha gate) x (up + beta), gate and up interleaved, and how far they may go.
_ACTIVATIONS: dict[Activation, dict[str, Any]] = {
    "silu": {"activation_alpha": 1.0, "activation_beta": 0.0},
    "swiglu_oai": {"activation_alpha": 1.702, "activation_beta": 1.0, "swiglu_limit": 7.0},
}


@dataclass(frozen=True)
class Tier:
    """The experts of one width in one layer; of one ``type``, where a plan says their types."""

    layer: int
    width: int
    experts: tuple[int, ...]
    type: str | None = None

    @property
    def name(self) -> str:
        return f"width_{self.width}" + ("" if self.type is None else f"_{self.type}")

    def stored_name(self, c: Context, what: str) -> str:
        return f"{c.config.moe_prefix(self.layer)}experts.{self.name}.{what}"

    def attributes(self, c: Context) -> dict[str, Any]:
        return {
            "k": min(c.config.num_experts_per_tok, len(self.experts)),
            "activation_type": "swiglu",
            "swiglu_fusion": 1,
            **_ACTIVATIONS[c.config.family.activation],
        }

    def biases(self, c: Context) -> tuple[ir.Value | None, ir.Value | None]:
        """Of gate and up in turns, (experts, 2 width), and of down, (experts, hidden)."""
        if not c.config.family.expert_bias:
            return None, None
        names = [self.stored_name(c, f"{matrix}.bias") for matrix in ("gate_up", "down")]
        c.g.fill(Fill(tuple(names), partial(_fill_biases, c, self, names)))
        lengths = (2 * self.width, c.config.hidden_size)
        biases = [
            c.g.weight(Stored(name, FLOAT, (len(self.experts), length), _PART))
            for name, length in zip(names, lengths, strict=True)
        ]
        return biases[0], biases[1]


def _plain(c: Context, tier: Tier, expert: int, pair: Pair, bits: int) -> list[Blocks]:
    return [quantise_blocks(matrix, bits) for matrix in pair]


class TierMaker(Protocol):
    def __call__(
        self, c: Context, path: str, x: ir.Value, shares: ir.Value, tier: Tier
    ) -> ir.Value:
        """The sum of the tier's experts, weighed by ``shares`` (tokens, experts of the tier)."""
        ...


# The codes of an expert's matrices, of so many bits.
EncodePair = Callable[[Context, Tier, int, Pair, int], Sequence[Blocks]]


@dataclass(frozen=True)
class QuantisedTier:
    """QMoE with weights of ``bits`` bits, whose codes ``encode`` chooses. Its shares both choose
    the experts and weigh them."""

    bits: int
    encode: EncodePair = _plain

    def __call__(
        self, c: Context, path: str, x: ir.Value, shares: ir.Value, tier: Tier
    ) -> ir.Value:
        names = [
            tier.stored_name(c, f"{matrix}.{kind}")
            for matrix in ("gate_up", "down")
            for kind in (f"Q{self.bits}", "scales")
        ]
        c.g.fill(Fill(tuple(names), partial(_fill_codes, c, tier, names, self)))
        stored = [c.g.weight(tensor) for tensor in self._tensors(c, tier, names)]
        inner, outer = tier.biases(c)
        return c.g.op(
            path,
            "QMoE",
            [x, shares, *stored[:2], inner, *stored[2:], outer, *[None] * 6, shares],
            CONTRIB,
            expert_weight_bits=self.bits,
            block_size=BLOCK,
            accuracy_level=ACCURACY_LEVEL,
            normalize_routing_weights=0,
            **tier.attributes(c),
        )

    def _tensors(self, c: Context, tier: Tier, names: Sequence[str]) -> list[Stored]:
        count, hidden, width = len(tier.experts), c.config.hidden_size, tier.width
        tensors = []
        for number, (rows, columns) in enumerate(((2 * width, hidden), (hidden, width))):
            codes, scales = names[2 * number : 2 * number + 2]
            shape = (count, rows, columns * self.bits // 8)
            tensors.append(Stored(codes, UINT8, shape, _PART))
            tensors.append(Stored(scales, FLOAT, (count, rows, columns // BLOCK), _PART))
        return tensors


@dataclass(frozen=True)
class FloatTier:
    """MoE in float32. It takes logits and makes them sum to 1, which the sum of the shares undoes:

    shares ──┬── Log ── MoE(x) ── Mul ──
             └── ReduceSum ────────┘

    The logarithm of a share of zero is -inf, and its expert is skipped.
    """

    def __call__(
        self, c: Context, path: str, x: ir.Value, shares: ir.Value, tier: Tier
    ) -> ir.Value:
        names = [tier.stored_name(c, matrix) for matrix in ("gate_up", "down")]
        count, hidden, width = len(tier.experts), c.config.hidden_size, tier.width
        c.g.fill(Fill(tuple(names), partial(_fill_floats, c, tier, names)))
        gate_up = c.g.weight(Stored(names[0], FLOAT, (count, 2 * width, hidden), _PART))
        down = c.g.weight(Stored(names[1], FLOAT, (count, hidden, width), _PART))
        # Of a tier that a token did not choose all are -inf and their softmax is NaN, which is not
        # above zero either: the kernel skips its experts. Any finite logit would compute k of them.
        logits = c.g.op(f"{path}/logits", "Log", [shares])
        inner, outer = tier.biases(c)
        inputs = [x, logits, gate_up, inner, down, *([] if outer is None else [outer])]
        out = c.g.op(path, "MoE", inputs, CONTRIB, **tier.attributes(c))
        total = c.g.op(f"{path}/total", "ReduceSum", [shares, [1]], keepdims=1)
        return c.g.op(path, "Mul", [out, total])


def dispatch_tiers(
    maker: TierMaker,
    c: Context,
    path: str,
    x: ir.Value,
    ids: ir.Value,
    weights: ir.Value,
    layer: int,
    types: TensorTypes | None = None,
) -> ir.Value:
    """The weighted sum of each token's experts, tier by tier.

    ids ── Gather place ──┬── ScatterElements ── shares (tokens, experts) ── Split ── tier ── Sum ──
    weights ──────────────┘

    ``place`` numbers the experts tier by tier, so that one Split serves all: at one token a node
    costs as much as a tenth of an expert.
    """
    g, tiers = c.g, tiers_of(c.config.expert_widths[layer], layer, types)
    shares = _shares(c, f"{path}/scatter", ids, weights, tiers)
    sizes = [len(tier.experts) for tier in tiers]
    parts: Sequence[ir.Value] = [shares]
    if len(tiers) > 1:
        parts = g.ops(f"{path}/tiers", "Split", [shares, sizes], len(tiers), axis=1)
    outs = [
        maker(c, f"{path}/{tier.name}", x, mine, tier)
        for tier, mine in zip(tiers, parts, strict=True)
    ]
    return outs[0] if len(outs) == 1 else g.op(f"{path}/tiers", "Sum", outs)


def _shares(
    c: Context, path: str, ids: ir.Value, weights: ir.Value, tiers: Sequence[Tier]
) -> ir.Value:
    """What each expert counts for each token, (tokens, experts in the order of the tiers)."""
    g, experts = c.g, c.config.num_experts
    order = [expert for tier in tiers for expert in tier.experts]
    if order != sorted(order):
        place = g.constant(np.argsort(order), f"{path}/place")
        ids = g.op(f"{path}/place", "Gather", [place, ids], axis=0)
    tokens = g.op(f"{path}/tokens", "Shape", [ids], start=0, end=1)
    shape = g.op(f"{path}/shape", "Concat", [tokens, [experts]], axis=0)
    none = g.op(path, "Expand", [np.asarray(0, np.float32), shape])
    return g.op(path, "ScatterElements", [none, ids, weights], axis=1)


def tiers_of(widths: Sequence[int], layer: int, types: TensorTypes | None = None) -> list[Tier]:
    """The widths of one layer, widest first, each with its experts; with ``types`` the experts of
    each type apart."""
    names = [None] * len(widths) if types is None else types.row(layer, "gate")
    found: dict[tuple[int, str | None], list[int]] = {}
    for expert, kind in enumerate(zip(widths, names, strict=True)):
        found.setdefault(kind, []).append(expert)
    order = sorted(found, key=lambda kind: (-kind[0], kind[1] or ""))
    return [Tier(layer, kind[0], tuple(found[kind]), kind[1]) for kind in order]


def _matrices(c: Context, tier: Tier, expert: int, source: ModelSource) -> Pair:
    """Gate and up with their rows in turns, (2 width, hidden), and down, (hidden, width)."""
    gate, up, down = (
        as_array(source.read(c.spec(f"expert_{name}", tier.layer, expert).name))
        for name in ("gate", "up", "down")
    )
    both = np.empty((2 * tier.width, gate.shape[1]), np.float32)
    both[0::2], both[1::2] = gate, up
    return both, down


def _fill_biases(
    c: Context, tier: Tier, names: Sequence[str], source: ModelSource, sink: Sink
) -> None:
    for place, expert in enumerate(tier.experts):
        gate, up, down = (
            as_array(source.read(c.spec(f"expert_{name}_bias", tier.layer, expert).name))
            for name in ("gate", "up", "down")
        )
        both = np.stack([gate, up], axis=1).reshape(1, -1)
        sink.put(names[0], both, place)
        sink.put(names[1], down[None], place)


def _fill_codes(
    c: Context,
    tier: Tier,
    names: Sequence[str],
    maker: QuantisedTier,
    source: ModelSource,
    sink: Sink,
) -> None:
    for place, expert in enumerate(tier.experts):
        pair = _matrices(c, tier, expert, source)
        for number, (codes, scales) in enumerate(maker.encode(c, tier, expert, pair, maker.bits)):
            row = place * len(codes)
            sink.put(names[2 * number], codes.reshape(len(codes), -1), row)
            sink.put(names[2 * number + 1], scales, row)


def _fill_floats(
    c: Context, tier: Tier, names: Sequence[str], source: ModelSource, sink: Sink
) -> None:
    for place, expert in enumerate(tier.experts):
        for name, matrix in zip(names, _matrices(c, tier, expert, source), strict=True):
            sink.put(name, matrix, place * len(matrix))
