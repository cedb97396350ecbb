"""Repair and healing, as a step of the verbs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tenp_edge.checkpoint.compression_plan import CompressionPlan
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.overlay import Mended
from tenp_edge.errors import UserError
from tenp_edge.forward.text_batch import Domain
from tenp_edge.planning.options.methods import method_named
from tenp_edge.planning.options.spec import BLOCKS
from tenp_edge.progress import Progress
from tenp_edge.recovery.recover import MendRules, mend
from tenp_edge.verbs.options import (
    CalibrationOptions,
    CompressOptions,
)


def mend_rules(options: CompressOptions) -> MendRules | None:
    """What the options ask for; None where no weight is to change."""
    keeps_down = options.plan.down == BLOCKS
    by_default = method_named(options.plan.method).repaired and not keeps_down
    repair = by_default if options.repair is None else options.repair
    if options.repair_ridge is not None and not repair:
        raise UserError("repair-ridge says how to repair, and nothing is repaired", "--repair")
    if not repair and options.heal is None:
        return None
    if keeps_down:
        raise UserError(
            "--repair and --set heal change down, whose bytes --set down=blocks keeps",
            "leave --repair and --set heal out, or --set down=blocks",
        )
    ridge = {} if options.repair_ridge is None else {"repair_ridge": options.repair_ridge}
    rules = MendRules(repair=repair, heal=options.heal, **ridge)
    rules.check()
    return rules


def mend_into(
    checkpoint: Checkpoint,
    plan: CompressionPlan,
    domains: Sequence[Domain],
    directory: Path,
    rules: MendRules,
    options: CalibrationOptions,
    progress: Progress,
) -> Mended | None:
    """What ``rules`` make of the plan's model, in ``directory``; None where there is nothing to
    mend, which is said."""
    if plan.keep_ratio == 1.0:
        progress.note("nothing was cut: there is nothing to repair or to heal")
        return None
    if rules.heal is None and all(
        w in (0, plan.full_width) for r in plan.widths.values() for w in r
    ):
        progress.note("every expert is whole or removed: there is nothing to repair")
        return None
    mended = mend(
        checkpoint,
        plan,
        domains,
        directory,
        rules,
        seed=options.seed,
        device=options.device,
        dtype=options.dtype,
        progress=progress,
    )
    layers = mended.info["layers"].values()
    before, after = (
        sum(row[name] for row in layers) / len(layers) for name in ("loss_cut", "loss")
    )
    progress.note(
        f"mended {len(mended)} tensors in {mended.info['seconds']:.0f} s: "
        f"mean loss of a layer {before:.2g} -> {after:.2g}"
    )
    return mended
