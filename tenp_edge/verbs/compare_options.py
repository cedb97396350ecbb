"""What compare takes, declared as in `options`. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from tenp_edge.planning.options.settings import Flag
from tenp_edge.verbs.options import CalibrationOptions, HeldOutOptions

COMPARISON, MATCHED = "Comparison", "Comparison at equal sizes"


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """``calibration.seed`` is the first of ``seeds`` calibrations; ``questions`` of each kind and
    domain; ``lm_eval`` task names, ``lm_eval_limit`` items of each (None: all)."""

    methods: Annotated[
        tuple[str, ...],
        Flag(
            "method",
            "A method, a pattern such as 'drop-*', or a set: short, table, claims, uniform, mended "
            "or all; repeat for more.",
            COMPARISON,
            offered=("short", "table", "claims", "uniform", "mended", "all"),
        ),
    ] = ("table",)
    ratios: Annotated[
        tuple[float, ...],
        Flag(
            "keep",
            "Share of the routed-expert parameters kept; repeat for more.",
            COMPARISON,
        ),
    ] = (0.9, 0.75, 0.6, 0.45, 0.3)
    seeds: Annotated[
        int | None,
        Flag(
            "seeds",
            "Calibrations, each with its own sample. Default: 3; with --matched 1.",
            COMPARISON,
        ),
    ] = None
    width_multiple: Annotated[
        int,
        Flag(
            "width-multiple",
            "Cut widths are multiples of this; 1 makes every method's bytes equal.",
            COMPARISON,
        ),
    ] = 1
    matched: Annotated[
        bool,
        Flag(
            "matched",
            "Compare at equal file sizes instead: the whole model in few bits, pruned models in "
            "more, and plans that choose widths and types together.",
            MATCHED,
        ),
    ] = False
    budgets: Annotated[
        tuple[str, ...],
        Flag(
            "budget",
            "A file size, as that of the whole model in this type; repeat for more. Default: Q6_K, "
            "Q5_K_M, Q4_K_M, IQ4_XS, Q3_K_M, IQ3_XXS, Q2_K, IQ2_M, IQ2_XXS and IQ1_M.",
            MATCHED,
            example="IQ4_XS",
        ),
    ] = ()
    files: Annotated[
        bool,
        Flag(
            "files",
            "Also write the file of every row, and measure its speed and its peak memory.",
            MATCHED,
        ),
    ] = False
    questions: Annotated[
        int,
        Flag(
            "questions",
            "Cloze questions and worked sums per domain; 0 leaves them out.",
            COMPARISON,
            least=0,
            example="16",
        ),
    ] = 16
    lm_eval: Annotated[
        tuple[str, ...],
        Flag(
            "lm-eval",
            "A task of lm-eval (needs tenp-edge[lm-eval] and the task's data), run with every "
            "method; repeat for more.",
            COMPARISON,
        ),
    ] = ()
    lm_eval_limit: Annotated[
        int | None, Flag("lm-eval-limit", "Items of each lm-eval task.", COMPARISON)
    ] = None
    calibration: CalibrationOptions = field(default_factory=CalibrationOptions)
    validation: HeldOutOptions = field(default_factory=HeldOutOptions)

    def calibration_seeds(self, default: int) -> range:
        """The seeds of the calibrations; ``default``: how many, where nothing is asked for."""
        first = self.calibration.seed
        return range(first, first + (default if self.seeds is None else self.seeds))
