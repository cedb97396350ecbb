"""Plans that choose types expert by expert: with the widths, or of the whole model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tenp_edge.checkpoint.tensor_types import AUTO
from tenp_edge.evaluation.matched.calibrated import Calibrated
from tenp_edge.evaluation.matched.filled import Filled, filled
from tenp_edge.exporters.base import ExportOptions
from tenp_edge.planning.joint.plan import JointPlanner, joint_pricer
from tenp_edge.planning.joint.search import Chosen, JointSearch
from tenp_edge.planning.joint.tables import ExpertTable, Tables
from tenp_edge.planning.measured.probes import best_way
from tenp_edge.planning.options.devices import this_machine
from tenp_edge.planning.options.spec import PlanOptions
from tenp_edge.planning.options.target import resolve
from tenp_edge.planning.scores.tables import scores_of

_ROUNDS = 4  # of a manifest: what is not matrices hardly changes from plan to plan


def joint(calibrated: Calibrated, nbytes: int) -> list[Filled]:
    """Widths and types in one search, as `plan` does; nothing where rounding was not measured."""
    file = _within(calibrated, nbytes, {})
    if file is None:
        return []
    way = best_way(calibrated.trials, PlanOptions(), file.keep_ratio) if file.keep_ratio < 1 else {}
    way = {**way, "ranking": "global"} if way else {}
    return [(_within(calibrated, nbytes, way) if way else None) or file]


def own_types(calibrated: Calibrated, nbytes: int) -> list[Filled]:
    """The types of all tensors in one search, nothing cut."""
    file = _within(calibrated, nbytes, {}, whole=True)
    return [] if file is None else [file]


def _within(
    calibrated: Calibrated,
    nbytes: int,
    way: Mapping[str, Any],
    whole: bool = False,
) -> Filled | None:
    """The least predicted loss within ``nbytes`` of file; None where the smallest is larger."""
    if calibrated.rounding is None:
        return None
    planner = _planner(calibrated, way)
    tables = _uncut(planner.tables) if whole else planner.tables
    search = JointSearch(tables)
    chosen: Chosen | None = search.smallest
    widest = len(planner.tables.widths) - 1

    def made(found: Chosen) -> Filled:
        if whole:
            found = replace(found, width=0 * found.width + widest)
        return _filled(calibrated, planner, found)

    assert chosen is not None
    besides, best = made(chosen).file_bytes - chosen.nbytes, None
    for _ in range(_ROUNDS):
        chosen = search.within(nbytes - besides)
        if chosen is None:
            break
        file = made(chosen)
        if file.file_bytes <= nbytes:
            best = file
            break
        besides = file.file_bytes - chosen.nbytes
    return best


def _planner(calibrated: Calibrated, way: Mapping[str, Any]) -> JointPlanner:
    """As `planner` makes it, of options changed by ``way``; its budget is not used."""
    key = ("joint", *sorted(way.items()))
    return calibrated.once(key, lambda: _new_planner(calibrated, way))


def _new_planner(calibrated: Calibrated, way: Mapping[str, Any]) -> JointPlanner:
    config, errors = calibrated.checkpoint.config, calibrated.rounding
    assert errors is not None
    options = replace(PlanOptions(seed=calibrated.seed), **way)
    spec = resolve(options, this_machine(), config.max_position_embeddings).with_type(AUTO)
    case = calibrated.case(calibrated.width_multiple)
    scores = scores_of(spec.method, options, calibrated.statistics, calibrated.seed)
    pricer = joint_pricer(calibrated.checkpoint, spec)
    evidence = case.seen_by(scores)
    return JointPlanner(calibrated.checkpoint, spec, evidence, errors, pricer, calibrated.trials)


def _uncut(tables: Tables) -> Tables:
    """Only the full width is left to choose."""

    def last(table: ExpertTable) -> ExpertTable:
        kept = {name: getattr(table, name)[:, -1:] for name in ("cut", "gate_up", "down")} | {
            name: getattr(table, name)[-1:] for name in ("gate_up_bytes", "down_bytes")
        }
        return replace(table, **kept)

    return replace(tables, widths=tables.widths[-1:], experts=tuple(map(last, tables.experts)))


def _filled(calibrated: Calibrated, planner: JointPlanner, chosen: Chosen) -> Filled:
    plan = planner.drafted(chosen)
    options = ExportOptions(AUTO, calibrated.layout, imatrix=True)
    kl = planner.kl(chosen.loss)
    return filled(calibrated.checkpoint, calibrated.writer, plan, options, kl)
