"""The ways to spend a budget of bytes: each turns it into files that fit (`Filled`).

A way may offer several; the one that measures best is its row. So the ways to beat are as good as
they can be: their type is chosen by the very text that the table is measured on. A way whose plan
is searched offers one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import lcm
from typing import Any

from tenp_edge.calibration.storage import Statistics
from tenp_edge.checkpoint.compression_plan import Widths
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.evaluation.comparison.compared_methods import Case, Mend
from tenp_edge.evaluation.matched.filled import Filled, file_options, filled, whole
from tenp_edge.exporters.base import Exporter, ExportOptions
from tenp_edge.planning.allocators import allocator_of
from tenp_edge.planning.budget import largest_fitting, whole_widths
from tenp_edge.planning.kl_law import predicted_kl, together_kl
from tenp_edge.planning.methods import METHODS
from tenp_edge.planning.pricing import draft
from tenp_edge.planning.probes import best_way
from tenp_edge.planning.score_tables import Evidence, scores_of
from tenp_edge.planning.spec import DEFAULT_METHOD, Knobs, PlanOptions
from tenp_edge.planning.trials import Trial
from tenp_edge.recovery.recover import MendRules

WIDTH_MULTIPLE = 32  # rows of down as long as the shortest blocks
_PARTS = 1000  # of the neurons: how closely the largest plan is searched
_PRUNED_TYPES, _REMOVAL_TYPES = 3, 2  # candidates, the best by prediction
_LEAST_KEPT = 0.05


@dataclass
class Calibrated:
    """One calibration of one model: what ways build from.

    ``whole_kl``: nats that each type costs the whole model, as it was measured.
    """

    checkpoint: Checkpoint
    writer: Exporter
    statistics: Statistics
    seed: int
    whole_kl: Mapping[str, float]
    mend: Mend | None = None
    trials: Sequence[Trial] = ()
    width_multiple: int = WIDTH_MULTIPLE
    _cases: dict[int, Case] = field(default_factory=dict)
    _searches: dict[tuple[Any, ...], _Search] = field(default_factory=dict)

    @property
    def layout(self) -> str:
        return self.writer.layouts[0]

    def case(self, multiple: int) -> Case:
        """With widths in multiples of ``multiple``."""
        if multiple not in self._cases:
            self._cases[multiple] = Case(
                self.checkpoint, self.statistics, multiple, self.seed, self.mend, self.trials
            )
        return self._cases[multiple]

    def search(self, method: str, knobs: Knobs, options: ExportOptions, multiple: int) -> _Search:
        """Made once: what its plans cost is remembered from budget to budget."""
        key = (method, knobs, options.quant, multiple)
        if key not in self._searches:
            self._searches[key] = _Search(self, self.case(multiple), method, knobs, options)
        return self._searches[key]

    def multiples(self, options: ExportOptions) -> tuple[int, ...]:
        """Every legal width, and whole blocks of the type where an expert holds several."""
        block = lcm(self.width_multiple, self.writer.width_limits(options).block)
        full = self.checkpoint.config.moe_intermediate_size
        wide = block > self.width_multiple and full % block == 0 and full > block
        return (self.width_multiple, block) if wide else (self.width_multiple,)


Candidates = Callable[[Calibrated, int], list[Filled]]


@dataclass(frozen=True)
class Way:
    """A row of the table. ``candidates``: files of at most so many bytes, perhaps none;
    ``mends``: weights that stay are changed, for which the calibration's text is needed."""

    name: str
    about: str
    candidates: Candidates
    mends: bool = False


# -- one type for all ------------------------------------------------------------------------------


def whole_types(writer: Exporter) -> tuple[str, ...]:
    """Every type that a whole model is tried in."""
    tried = {*writer.automatic_quants, *writer.weighted_quants}
    return tuple(quant for quant in writer.quants if quant in tried)


def whole_in_one(calibrated: Calibrated, nbytes: int) -> list[Filled]:
    """The whole model in every type that fits."""
    files = [
        whole(calibrated.checkpoint, calibrated.writer, quant) for quant in calibrated.whole_kl
    ]
    return [file for file in files if file.file_bytes <= nbytes]


def pruned(calibrated: Calibrated, nbytes: int) -> list[Filled]:
    """The default's widths in the types that promise most."""
    return _best(calibrated, nbytes, DEFAULT_METHOD, Knobs(), _PRUNED_TYPES)


def removed(score: str) -> Candidates:
    """Whole experts removed, the least by expert score ``score`` first."""

    def candidates(calibrated: Calibrated, nbytes: int) -> list[Filled]:
        return _best(calibrated, nbytes, "drop", Knobs(expert_score=score), _REMOVAL_TYPES)

    return candidates


def _best(
    calibrated: Calibrated, nbytes: int, method: str, knobs: Knobs, count: int
) -> list[Filled]:
    """The ``count`` files of least predicted loss, of types that need pruning to fit."""
    made = []
    for quant in calibrated.whole_kl:
        options = file_options(calibrated.writer, quant, calibrated.layout)
        for multiple in calibrated.multiples(options):
            search = calibrated.search(method, knobs, options, multiple)
            neurons = search.largest(nbytes)
            if neurons is not None:
                way = replace(knobs, **search.way(neurons))
                made.append(calibrated.search(method, way, options, multiple).filled(neurons))
    made.sort(key=lambda file: file.predicted_kl or 0.0)
    return list({file.key: file for file in reversed(made)}.values())[::-1][:count]


class _Search:
    """A method's plans as files of one type, by their number of neurons."""

    def __init__(
        self, calibrated: Calibrated, case: Case, method: str, knobs: Knobs, options: ExportOptions
    ) -> None:
        self.checkpoint, self.writer = calibrated.checkpoint, calibrated.writer
        self.case, self.options, self.method, self.knobs = case, options, METHODS[method], knobs
        self.type_kl = calibrated.whole_kl[options.quant]
        scores = scores_of(self.method, knobs, case.statistics, case.seed)
        self.evidence: Evidence = case.seen_by(scores)
        config = self.checkpoint.config
        self.allocator = allocator_of(self.method, case.space, config, self.evidence, knobs)
        self._sizes: dict[int, int] = {}

    def largest(self, nbytes: int) -> int | None:
        """Neurons of the largest plan in ``nbytes``; None where none fits, or all do."""
        space, least = self.case.space, self.allocator.least_neurons
        if self._bytes(space.total_neurons) <= nbytes or self._bytes(least) > nbytes:
            return None
        close = max(1, space.total_neurons // _PARTS // space.multiple)
        neurons = largest_fitting(
            least, space.total_neurons, space.multiple, self._bytes, nbytes, tolerance=close
        )
        return neurons if neurons >= _LEAST_KEPT * space.total_neurons else None

    def way(self, neurons: int) -> Mapping[str, Any]:
        """What measured best near this size, as for `plan`."""
        keep = neurons / self.case.space.total_neurons
        return best_way(self.case.trials, PlanOptions(), keep) if self.method.probed else {}

    def filled(self, neurons: int) -> Filled:
        widths = self._widths(neurons)
        plan = replace(draft(self.checkpoint, widths), retained=self.evidence.retained(widths))
        cut = predicted_kl(self.evidence.predicted_loss(widths), self.case.trials)
        both = together_kl(cut, self.type_kl)
        return filled(self.checkpoint, self.writer, plan, self.options, both)

    def _widths(self, neurons: int) -> Widths:
        space = self.case.space
        whole = neurons >= space.total_neurons
        return whole_widths(space) if whole else self.allocator.widths(neurons)

    def _bytes(self, neurons: int) -> int:
        if neurons not in self._sizes:
            plan = draft(self.checkpoint, self._widths(neurons))
            file = filled(self.checkpoint, self.writer, plan, self.options)
            self._sizes[neurons] = file.file_bytes
        return self._sizes[neurons]


# -- repaired --------------------------------------------------------------------------------------


def repaired(base: Candidates) -> Candidates:
    """What ``base`` promises most of, repaired: as many bytes, other weights."""

    def candidates(calibrated: Calibrated, nbytes: int) -> list[Filled]:
        assert calibrated.mend is not None, "repairing needs the calibration's text"
        repair, made = MendRules(repair=True), []
        for file in base(calibrated, nbytes)[:1]:
            assert file.plan is not None, "whole models have nothing to repair"
            made.append(replace(file, mended=calibrated.mend(file.plan, repair)))
        return made

    return candidates


# -- the table -------------------------------------------------------------------------------------

WAYS: tuple[Way, ...] = (
    Way("whole", "the whole model in the best type that fits", whole_in_one),
    Way("pruned", "the best type, pruned to fit", pruned),
    Way("pruned+repair", "the same, repaired", repaired(pruned), mends=True),
    Way("reap", "whole experts removed by REAP, best type", removed("reap")),
    Way("easy-ep", "whole experts removed by EASY-EP, best type", removed("easy-ep")),
)
