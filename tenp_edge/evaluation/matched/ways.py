"""The ways to spend a budget of bytes: each turns it into files that fit (`Filled`).

A way may offer several; the one that measures best is its row. So the ways to beat are as good as
they can be: their type is chosen by the very text that the table is measured on. A way whose plan
is searched offers one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tenp_edge.evaluation.matched.calibrated import Calibrated
from tenp_edge.evaluation.matched.filled import Filled
from tenp_edge.evaluation.matched.searched import joint, own_types
from tenp_edge.evaluation.matched.single_type import Candidates, pruned, removed, whole_in_one
from tenp_edge.recovery.recover import MendRules


@dataclass(frozen=True)
class Way:
    """A row of the table. ``candidates``: files of at most so many bytes, perhaps none."""

    name: str
    about: str
    candidates: Candidates


def repaired(base: Candidates) -> Candidates:
    """What ``base`` promises most of, repaired: as many bytes, other weights. Nothing where all
    neurons stay."""

    def candidates(calibrated: Calibrated, nbytes: int) -> list[Filled]:
        assert calibrated.mend is not None, "repairing needs the calibration's text"
        repair, made = MendRules(repair=True), []
        for file in base(calibrated, nbytes)[:1]:
            if file.plan is not None and file.keep_ratio < 1:
                made.append(replace(file, mended=calibrated.mend(file.plan, repair)))
        return made

    return candidates


WAYS: tuple[Way, ...] = (
    Way("whole", "the whole model in the best type that fits", whole_in_one),
    Way("own types", "the whole model, every tensor in a type of its own", own_types),
    Way("pruned", "the best type, pruned to fit", pruned),
    Way("pruned+repair", "the same, repaired", repaired(pruned)),
    Way("reap", "whole experts removed by REAP, best type", removed("reap")),
    Way("easy-ep", "whole experts removed by EASY-EP, best type", removed("easy-ep")),
    Way("joint", "widths and types in one search", joint),
    Way("joint+repair", "the same, repaired", repaired(joint)),
)
