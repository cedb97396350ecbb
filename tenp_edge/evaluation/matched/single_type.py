"""Files of one type: the whole model, widths of the default, whole experts removed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import lcm
from typing import Any

from tenp_edge.checkpoint.compression_plan import Widths
from tenp_edge.evaluation.comparison.compared_methods import Case
from tenp_edge.evaluation.matched.calibrated import Calibrated
from tenp_edge.evaluation.matched.filled import Filled, file_options, filled, whole
from tenp_edge.exporters.base import Exporter, ExportOptions
from tenp_edge.planning.budget.allocators import allocator_of
from tenp_edge.planning.budget.search import largest_fitting, whole_widths
from tenp_edge.planning.measured.kl_law import predicted_kl, together_kl
from tenp_edge.planning.measured.probes import best_way
from tenp_edge.planning.memory.pricing import draft
from tenp_edge.planning.options.methods import METHODS
from tenp_edge.planning.options.spec import DEFAULT_METHOD, Knobs, PlanOptions
from tenp_edge.planning.scores.tables import Evidence, scores_of

_PARTS = 1000  # of the neurons: how closely the largest plan is searched
_PRUNED_TYPES, _REMOVAL_TYPES = 3, 2  # candidates, the best by prediction
_LEAST_KEPT = 0.05

Candidates = Callable[[Calibrated, int], list[Filled]]


def whole_types(writer: Exporter) -> tuple[str, ...]:
    """Every type that a whole model is tried in."""
    tried = {*writer.automatic_quants, *writer.weighted_quants}
    return tuple(quant for quant in writer.quants if quant in tried)


def whole_in_one(calibrated: Calibrated, nbytes: int) -> list[Filled]:
    """The whole model in every type that fits."""
    checkpoint, writer = calibrated.checkpoint, calibrated.writer
    files = [whole(checkpoint, writer, quant) for quant in calibrated.whole_kl]
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
        for multiple in _multiples(calibrated, options):
            file = _largest(calibrated, nbytes, method, knobs, options, multiple)
            made += [] if file is None else [file]
    made.sort(key=lambda file: file.predicted_kl or 0.0)
    return list({file.key: file for file in reversed(made)}.values())[::-1][:count]


def _largest(
    calibrated: Calibrated,
    nbytes: int,
    method: str,
    knobs: Knobs,
    options: ExportOptions,
    multiple: int,
) -> Filled | None:
    """The largest plan of one type, in the way that measured best near its size; other widths of as
    many neurons take other bytes, so it is searched again."""
    search = _search(calibrated, method, knobs, options, multiple)
    neurons = search.largest(nbytes)
    if neurons is None:
        return None
    way = search.way(neurons)
    if way:
        search = _search(calibrated, method, replace(knobs, **way), options, multiple)
        neurons = search.largest(nbytes)
    return None if neurons is None else search.filled(neurons)


def _multiples(calibrated: Calibrated, options: ExportOptions) -> tuple[int, ...]:
    """Every legal width, and whole blocks of the type where an expert holds several."""
    least, full = calibrated.width_multiple, calibrated.checkpoint.config.moe_intermediate_size
    block = lcm(least, calibrated.writer.width_limits(options).block)
    wide = block > least and full % block == 0 and full > block
    return (least, block) if wide else (least,)


def _search(
    calibrated: Calibrated, method: str, knobs: Knobs, options: ExportOptions, multiple: int
) -> _Search:
    key = (method, knobs, options.quant, multiple)
    case = calibrated.case(multiple)
    return calibrated.once(key, lambda: _Search(calibrated, case, method, knobs, options))


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
