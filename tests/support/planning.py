"""What must hold of every plan."""

from __future__ import annotations

import json

from tenp_edge.checkpoint.compression_plan import CompressionPlan
from tenp_edge.checkpoint.files import Checkpoint


def total(plan: CompressionPlan) -> int:
    return int(plan.memory["total_bytes"])


def check_legal(plan: CompressionPlan, checkpoint: Checkpoint, multiple: int = 32) -> None:
    full = checkpoint.config.moe_intermediate_size
    for row in plan.widths.values():
        for width in row:
            removed = width == 0 and (plan.record.method == "drop" or plan.keeps_places)
            assert removed or width == full or (width and width % multiple == 0)
    json.dumps(plan.to_json())
