"""The smallest plan that choosing widths and types together can lead to, before a calibration.

Losses decide which experts lose all their neurons, and one that hardly a token reached keeps some:
so the plan that is made may be a little larger, never smaller.
"""

from __future__ import annotations

from math import prod

from tenp_edge.checkpoint.tensor_types import TensorTypes
from tenp_edge.exporters.base import ExportOptions
from tenp_edge.exporters.mixing import Mixer
from tenp_edge.planning.joint.plan import mixable
from tenp_edge.planning.memory.pricing import Priced, Pricer
from tenp_edge.planning.options.target import PlanSpec
from tenp_edge.planning.space import Space


def least(spec: PlanSpec, space: Space, pricer: Pricer, confirm: bool) -> Priced:
    """The narrowest expert of every layer alone, where the file holds the others without neurons;
    else all as narrow as that. Every matrix in the type of the fewest bytes."""
    mixer, config = spec.target.exporter, pricer.checkpoint.config
    assert isinstance(mixer, Mixer)
    types, narrow = mixable(pricer.checkpoint, spec), space.legal_widths[0]
    others = 0 if pricer.keeps_places else narrow

    def smallest(rows: int, columns: int) -> str:
        return min(types, key=lambda kind: mixer.tensor_bytes(rows, columns, kind))

    def everywhere(kind: str) -> dict[int, tuple[str, ...]]:
        return dict.fromkeys(space.layers, (kind,) * space.experts)

    matrices = mixer.typed_matrices(config, ExportOptions("auto", spec.target.options.layout))
    chosen = TensorTypes(
        everywhere(smallest(narrow, config.hidden_size)),
        everywhere(smallest(config.hidden_size, narrow)),
        {matrix.key: smallest(prod(matrix.shape[:-1]), matrix.shape[-1]) for matrix in matrices},
    )
    widths = {layer: (narrow, *[others] * (space.experts - 1)) for layer in space.layers}
    return (pricer.confirm if confirm else pricer)(widths, chosen)
