"""Experts of one width and one type as one node of com.microsoft, as a plan has their types."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from tenp_edge.checkpoint.tensor_types import TensorTypes
from tenp_edge.exporters.onnx.graph.context import Context
from tenp_edge.exporters.onnx.graph.tiers import (
    Blocks,
    FloatTier,
    Pair,
    QuantisedTier,
    Tier,
    TierMaker,
    dispatch_tiers,
)
from tenp_edge.exporters.onnx.linear.mixed import ALIKE, BITS, FLOATS, Columns
from tenp_edge.exporters.onnx.linear.weighted import weighted_blocks


@dataclass(frozen=True)
class MixedTiers:
    """A `Dispatch` of experts of ``types``, their columns weighed by ``columns``. The kernels take
    the matrices of an expert in one type: that of its gate and up."""

    types: TensorTypes
    columns: Columns = ALIKE

    def __call__(
        self, c: Context, path: str, x: ir.Value, ids: ir.Value, weights: ir.Value, layer: int
    ) -> ir.Value:
        return dispatch_tiers(self._tier, c, path, x, ids, weights, layer, self.types)

    def _tier(self, c: Context, path: str, x: ir.Value, shares: ir.Value, tier: Tier) -> ir.Value:
        assert tier.type is not None
        maker: TierMaker = FloatTier()
        if tier.type != FLOATS:
            maker = QuantisedTier(BITS[tier.type], self._encoded)
        return maker(c, path, x, shares, tier)

    def _encoded(self, c: Context, tier: Tier, expert: int, pair: Pair, bits: int) -> list[Blocks]:
        specs = (c.spec(f"expert_{part}", tier.layer, expert) for part in ("gate", "down"))
        return [
            weighted_blocks(matrix, bits, self.columns.of(spec))
            for matrix, spec in zip(pair, specs, strict=True)
        ]
