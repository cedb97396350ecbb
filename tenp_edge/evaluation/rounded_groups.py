"""What errors in a group of matrices mean for one model: variants with that group in one type.

A group is a role ("q") or the experts' projections (`EXPERT_GROUPS`).
"""

from __future__ import annotations

from collections.abc import Sequence

from tenp_edge.checkpoint.source import ModelSource, WeightSource
from tenp_edge.evaluation.emulated_rounding import EmulatedExperts, ExpertError
from tenp_edge.evaluation.evaluator import LayerCache
from tenp_edge.evaluation.rounded_weights import (
    EMULATED_ABOVE,
    MEASURED_LAYERS,
    is_large,
    partly_rounded,
)
from tenp_edge.evaluation.rounding_job import RoundingJob
from tenp_edge.evaluation.type_sensitivity import spread
from tenp_edge.evaluation.undoing import Suspects, expert_key
from tenp_edge.evaluation.variants import OtherWeights
from tenp_edge.exporters.base import ExportData
from tenp_edge.exporters.mixing import Mixer, TypedMatrix
from tenp_edge.planning.measured.rounding_errors import EXPERT_GROUPS, GroupCost, RoundingErrors

_PROBE_BITS = 3.5  # of the type that groups are measured in


class Groups:
    """One variant a group: its matrices in one type, all else as it is."""

    def __init__(
        self,
        cached: LayerCache,
        job: RoundingJob,
        data: ExportData,
        errors: RoundingErrors,
        suspects: Suspects,
    ) -> None:
        self.job, self.errors, self.config = job, errors, cached.config
        self.matrices = job.mixer.typed_matrices(cached.config, job.options)
        self.source, self.data = ModelSource(cached), data
        roles = dict.fromkeys(matrix.role for matrix in self.matrices)
        self.types = {
            name: _probe_type(job.mixer, self._suspected(name, suspects))
            for name in (*EXPERT_GROUPS, *roles)
        }
        self.names = (*EXPERT_GROUPS, *(role for role in roles if self._error(role)))

    def variants(self) -> list[OtherWeights]:
        return [
            OtherWeights(self._weights(name), name, self._layers(name), ends=self._is_end(name))
            for name in self.names
        ]

    def costs(self, kls: Sequence[float]) -> dict[str, GroupCost]:
        pairs = zip(self.names, kls, strict=True)
        return {
            name: GroupCost(self.types[name], kl, self._error(name), self._layers(name))
            for name, kl in pairs
        }

    def _of(self, role: str) -> list[TypedMatrix]:
        return [matrix for matrix in self.matrices if matrix.role == role]

    def _suspected(self, name: str, suspects: Suspects) -> frozenset[str]:
        """The types that are suspected in any matrix of the group."""
        parts, layers = EXPERT_GROUPS.get(name, ()), self.errors.experts
        keys = [expert_key(layer, part) for layer in layers for part in parts]
        keys += [matrix.key for matrix in self._of(name)]
        return frozenset().union(*(suspects.get(key, frozenset()) for key in keys))

    def _all_layers(self, name: str) -> list[int]:
        if name in EXPERT_GROUPS:
            return list(self.config.moe_layers)
        return [matrix.layer for matrix in self._of(name) if matrix.layer is not None]

    @property
    def sampled_layers(self) -> tuple[int, ...] | None:
        """Those whose experts mixed plans round by `emulated_rounding`; None: plans are encoded."""
        if self._large:
            return self._layers("down")
        return self.config.moe_layers if self.config.expert_weights > EMULATED_ABOVE else None

    @property
    def _large(self) -> bool:
        return is_large(self.config)

    def _layers(self, name: str) -> tuple[int, ...]:
        """Those that are rounded: all of a small model's, some of a large one's."""
        layers = self._all_layers(name)
        wanted = min(MEASURED_LAYERS if self._large else len(layers), len(layers))
        return tuple(layers[i] for i in spread(len(layers), wanted)) if layers else ()

    def _is_end(self, name: str) -> bool:
        return name not in EXPERT_GROUPS and not self._all_layers(name)

    def _error(self, name: str) -> float:
        """Of the matrices that are rounded; of experts their losses say more (`joint.losses`)."""
        if name in EXPERT_GROUPS:
            return 0.0
        layers, total = self._layers(name), 0.0
        for matrix in self._of(name):
            if matrix.layer is None or matrix.layer in layers:
                kind = self.job.mixer.legal_type(self.types[name], matrix.shape[-1])
                total += self.errors.others.get(matrix.key, {}).get(kind, 0.0)
        return total

    def _weights(self, name: str) -> WeightSource:
        if self._large and name in EXPERT_GROUPS:
            return EmulatedExperts(self.source, self._error_of(name), self.data.imatrix)
        keys, parts = {m.key for m in self._of(name)}, EXPERT_GROUPS.get(name, ())
        experts = dict.fromkeys(self.config.moe_layers, parts) if parts else {}
        return partly_rounded(self.source, self.job, self.data, self.types[name], keys, experts)

    def _error_of(self, name: str) -> ExpertError:
        """What the group's type does to the matrices in it."""
        mixer, parts = self.job.mixer, EXPERT_GROUPS[name]

        def error(layer: int, expert: int, part: str) -> float:
            if part not in parts:
                return 0.0
            columns = self.config.hidden_size
            columns = self.config.expert_widths[layer][expert] if part == "down" else columns
            kind = mixer.legal_type(self.types[name], columns)
            return self.errors.of_expert(layer, part).get(kind, 0.0)

        return error


def _probe_type(mixer: Mixer, suspected: frozenset[str]) -> str:
    """Of about _PROBE_BITS a weight, one that needs no importance matrix and, where there is one,
    is not ``suspected``: what undoes training says nothing of the other types."""
    plain = [kind for kind in mixer.mixed_types if not mixer.needs_importance(kind)]
    plain = [kind for kind in plain if kind not in suspected] or plain
    return min(plain, key=lambda k: abs(mixer.tensor_bytes(256, 256, k) / 8192 - _PROBE_BITS))
