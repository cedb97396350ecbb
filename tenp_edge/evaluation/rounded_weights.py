"""What rounding does to some rows, and models whose weights are rounded in part."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import torch

from tenp_edge.checkpoint.files import ExpertWeights
from tenp_edge.checkpoint.source import ModelSource, Rows, WeightSource
from tenp_edge.checkpoint.tensor_types import TensorTypes, other_key
from tenp_edge.evaluation.rounding_job import RoundingJob
from tenp_edge.evaluation.type_sensitivity import SAMPLED_ABOVE
from tenp_edge.exporters.base import ExportData, Requantiser
from tenp_edge.exporters.mixing import Mixer, SampledRows
from tenp_edge.models import ModelConfig, TensorSpec

# Weights of experts that are encoded for every mixed plan; a plan says only what losses mean.
EMULATED_ABOVE = 2 * 10**7
MEASURED_LAYERS = 8  # of a large model: those whose matrices are rounded


def is_large(config: ModelConfig) -> bool:
    """Whether encoding all experts would take too long."""
    return config.expert_weights > SAMPLED_ABOVE


def relative_errors(
    mixer: Mixer, samples: Sequence[SampledRows], types: Sequence[str]
) -> dict[str, float]:
    """Type -> sum of E_kj^2 q_j over sum of W_kj^2 q_j, averaged over ``samples``; types whose
    blocks are longer than a row are left out, of rows that are no whole blocks the first are taken.
    """
    found: dict[str, float] = {}
    for kind in types:
        shares = [share for s in samples if (share := _relative_error(mixer, s, kind)) is not None]
        if shares:
            found[kind] = sum(shares) / len(shares)
    return found


def _relative_error(mixer: Mixer, sample: SampledRows, kind: str) -> float | None:
    rows, importance = sample.rows.float(), sample.importance
    length = _whole_blocks(mixer, kind, rows.shape[-1])
    if not length:
        return None
    rows = rows[:, :length]
    weights = torch.ones(length) if importance is None else importance[:length]
    total = float((rows.square() @ weights).sum())
    if total <= 0:
        return None
    part = SampledRows(rows, None if importance is None else weights.contiguous())
    error = mixer.rounded(part, kind) - rows
    return float((error.square() @ weights).sum()) / total


def _whole_blocks(mixer: Mixer, kind: str, length: int) -> int:
    """The longest rows, up to ``length``, that ``kind`` holds; 0: none."""
    return next((n for n in range(length, 0, -1) if mixer.legal_type(kind, n) == kind), 0)


def partly_rounded(
    source: ModelSource,
    job: RoundingJob,
    data: ExportData,
    kind: str,
    keys: Collection[str],
    experts: Mapping[int, Collection[str]],
) -> Partly:
    """``source`` with the matrices of ``keys`` (`other_key`) and the projections of ``experts``
    ("gate" for both gate and up, "down"), layer by layer, in the type ``kind``."""
    writer, plain, config = job.writer, job.mixer.mixed_types[0], source.config
    assert isinstance(writer, Requantiser)

    def rows(part: str) -> dict[int, tuple[str, ...]]:
        return {
            layer: (kind if part in experts.get(layer, ()) else plain,) * config.num_experts
            for layer in config.moe_layers
        }

    matrices = job.mixer.typed_matrices(config, job.options)
    others = {m.key: kind if m.key in keys else plain for m in matrices}
    options = job.options.typed(TensorTypes(rows("gate"), rows("down"), others))
    return Partly(source, writer.requantised(source, options, data), keys, frozenset(experts))


class Partly:
    """``rounded`` in the matrices of ``keys`` (`other_key`) and the experts of ``layers``,
    ``source`` elsewhere (a `WeightSource`)."""

    def __init__(
        self,
        source: ModelSource,
        rounded: WeightSource,
        keys: Collection[str],
        layers: Collection[int],
    ) -> None:
        self._source, self._rounded = source, rounded
        self._keys, self._layers = keys, layers
        self.config: ModelConfig = rounded.config
        self.stored_dtype = None if layers else source.stored_dtype

    @property
    def tensors(self) -> Mapping[str, TensorSpec]:
        return self._rounded.tensors

    def read(self, name: str) -> torch.Tensor:
        return self._from(name).read(name)

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        return self._from(name).read_rows(name, start, stop)

    def held(self, name: str) -> Rows:
        return self._from(name).held(name)

    def expert(self, layer: int, expert: int) -> ExpertWeights:
        return self._experts(layer).expert(layer, expert)

    def held_experts(self, layer: int) -> Callable[[int], ExpertWeights]:
        return self._experts(layer).held_experts(layer)

    def _experts(self, layer: int) -> WeightSource:
        return self._rounded if layer in self._layers else self._source

    def _from(self, name: str) -> WeightSource:
        spec = self.tensors[name]
        roles = ("kv_b", "k_b", "v_b") if spec.role == "kv_b" else (spec.role,)
        own = any(other_key(spec.layer, role) in self._keys for role in roles)
        return self._rounded if own or name not in self._source.tensors else self._source
