"""What a few plans of many widths and types really cost: they say what their losses mean in nats.

The law through plans that are only cut (`kl_law`) promises too little of mixed ones: by a quarter
on the bundled model. So a few plans of the joint search itself, from small to large, run beside the
dense model. Of a large model the experts of some layers are cut and rounded, as in `rounding`: loss
and KL are of those.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from tenp_edge.calibration.imatrix import Importance
from tenp_edge.calibration.storage import Statistics
from tenp_edge.checkpoint.compression_plan import CompressionPlan
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource, WeightSource
from tenp_edge.checkpoint.tensor_types import AUTO
from tenp_edge.evaluation.emulated_rounding import EmulatedExperts, ExpertError
from tenp_edge.evaluation.variants import OtherWeights
from tenp_edge.exporters.base import ExportData, Exporter, ExportOptions, Requantiser
from tenp_edge.planning.budget.search import make_space
from tenp_edge.planning.joint.plan import JointPlanner, joint_pricer
from tenp_edge.planning.joint.search import Chosen
from tenp_edge.planning.measured.rounding_errors import RoundingErrors
from tenp_edge.planning.measured.trials import Trial
from tenp_edge.planning.options.devices import this_machine
from tenp_edge.planning.options.spec import PlanOptions
from tenp_edge.planning.options.target import resolve
from tenp_edge.planning.scores.tables import Evidence, scores_of

# Of the way from the smallest plan to the largest, in logarithms of bytes.
PARTS = (0.4, 0.6, 0.75, 0.9)


def planner_of(
    checkpoint: Checkpoint,
    writer: Exporter,
    layout: str | None,
    statistics: Statistics,
    errors: RoundingErrors,
    measured: Sequence[Trial],
    width_multiple: int | None = None,
) -> JointPlanner:
    """Of the default's plans for this machine."""
    asked = PlanOptions(format=writer.format, layout=layout, width_multiple=width_multiple)
    positions = checkpoint.config.max_position_embeddings
    spec = resolve(asked, this_machine(), positions).with_type(AUTO)
    space = make_space(checkpoint.config, spec.target.width_multiple)
    evidence = Evidence(statistics, space, scores_of(spec.method, spec.options, statistics, 0))
    pricer = joint_pricer(checkpoint, spec)
    return JointPlanner(checkpoint, spec, evidence, errors, pricer, measured)


def decoded(
    checkpoint: Checkpoint,
    plan: CompressionPlan,
    writer: Exporter,
    options: ExportOptions,
    statistics: Statistics,
) -> WeightSource:
    """The weights that a file of ``plan``, which says its types, would hold."""
    assert isinstance(writer, Requantiser)
    data = ExportData(Importance(statistics, plan) if options.imatrix else None)
    options = replace(options, tensor_types=()).typed(plan.file_types)
    return writer.requantised(ModelSource(checkpoint, plan), options, data)


@dataclass(frozen=True)
class MixedPlans:
    """Plans of ``planner`` in the experts of some ``layers``, all else as it is (None: in all of
    the model). ``chosen``: from small to large."""

    planner: JointPlanner
    layers: tuple[int, ...] | None = None

    @cached_property
    def chosen(self) -> tuple[Chosen, ...]:
        search = self.planner.search
        smallest, largest = search.smallest.nbytes, search.largest.nbytes
        sizes = (smallest * (largest / smallest) ** part for part in PARTS)
        return tuple(found for size in sizes if (found := search.within(size)) is not None)

    def variants(self, cached: Checkpoint, imatrix: bool) -> list[OtherWeights]:
        return [
            OtherWeights(
                self._weights(cached, self.planner.drafted(one), imatrix),
                f"mixed {number}",
                self.layers,
                ends=self.layers is None,
            )
            for number, one in enumerate(self.chosen)
        ]

    def _weights(self, cached: Checkpoint, plan: CompressionPlan, imatrix: bool) -> WeightSource:
        planner = self.planner
        if self.layers is None:
            options = replace(planner.options, imatrix=imatrix)
            given = planner.spec.target.exporter, options, planner.evidence.statistics
            return decoded(cached, plan, *given)
        importance = Importance(planner.evidence.statistics, plan) if imatrix else None
        return EmulatedExperts(ModelSource(cached, plan), self._error_of(plan), importance)

    def _error_of(self, plan: CompressionPlan) -> ExpertError:
        """What the types of ``plan`` do to its experts."""
        types, errors, mixer = plan.file_types, self.planner.errors, self.planner.mixer
        config = self.planner.checkpoint.config
        assert types is not None

        def error(layer: int, expert: int, part: str) -> float:
            columns = plan.widths[layer][expert] if part == "down" else config.hidden_size
            kind = mixer.legal_type(types.expert(layer, expert, part), columns)
            return errors.of_expert(layer, part).get(kind, 0.0)

        return error

    def losses(self) -> list[float]:
        """Predicted, of what differs from the dense model."""
        planner = self.planner
        matrices = planner.mixer.typed_matrices(planner.checkpoint.config, planner.options)
        there = [self._differs(table.layer) for table in planner.tables.experts]
        others = [self.layers is None for _ in matrices]
        found = (planner.search.losses(one) for one in self.chosen)
        return [float(of[there].sum() + other[others].sum()) for of, other in found]

    def _differs(self, layer: int) -> bool:
        return self.layers is None or layer in self.layers
