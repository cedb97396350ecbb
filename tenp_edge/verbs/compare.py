"""The verb `compare`: calibrate with several seeds, measure every method, write the tables."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from tenp_edge.calibration.storage import Statistics
from tenp_edge.calibration.text.chat_format import ChatWriter
from tenp_edge.calibration.text.domains import load_tokenizer, split_at
from tenp_edge.calibration.text.sources import parse_data, texts_of
from tenp_edge.checkpoint.compression_plan import CompressionPlan
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.locking import one_writer
from tenp_edge.checkpoint.model_origin import display_name
from tenp_edge.checkpoint.overlay import Mended
from tenp_edge.disk import write_json, write_text
from tenp_edge.errors import UserError
from tenp_edge.evaluation.comparison import lm_eval_tasks, plot
from tenp_edge.evaluation.comparison.compared_methods import Contender, Mend, choose_methods
from tenp_edge.evaluation.comparison.grid import MENDED, Comparison, budget, compare
from tenp_edge.evaluation.comparison.measures import Arithmetic, Cloze, Measure, TextMeasure
from tenp_edge.evaluation.comparison.table import markdown
from tenp_edge.evaluation.refine import known_trials
from tenp_edge.forward.device import choose_device, choose_dtype
from tenp_edge.forward.text_batch import Domain
from tenp_edge.pages.compare import write_comparison
from tenp_edge.planning.options.settings import check
from tenp_edge.progress import QUIET, Progress, begin, expect
from tenp_edge.recovery.recover import MendRules, mend
from tenp_edge.verbs.calibrate import GRADIENT_FORWARDS, finished_at, run_calibrate
from tenp_edge.verbs.compare_options import CompareOptions
from tenp_edge.verbs.run_directory import key_of
from tenp_edge.verbs.timing import Pace, pace_of
from tenp_edge.verbs.token_chunks import (
    both_fitted,
    calibration_domains,
    most_tokens,
    validation_domains,
)

SEEDS = 3
FILE, PAGE, PICTURE, TASKS = "compare.json", "compare.md", "compare.png", "lm-eval.json"


def run_compare(
    model: Path, output: Path, options: CompareOptions, progress: Progress = QUIET
) -> dict[str, Any]:
    """Measure ``options.methods`` on ``model`` into ``output``; JSON values, as in compare.json.

    Continues after a kill, one keep ratio at a time. Raises UserError for what no comparison can
    be made of, before the first long step.
    """
    checkpoint, methods = Checkpoint(model), choose_methods(options.methods)
    _check(options)
    options = both_fitted(checkpoint, options, progress)
    with one_writer(output):
        return _compared(checkpoint, methods, output, options, progress)


def _compared(
    checkpoint: Checkpoint,
    methods: Sequence[Contender],
    output: Path,
    options: CompareOptions,
    progress: Progress,
) -> dict[str, Any]:
    where = choose_device(options.calibration.device)
    dtype_name = options.calibration.dtype
    # As in validation: bf16's own rounding would be counted as a candidate's loss.
    dtype = choose_dtype("float32" if dtype_name == "auto" else dtype_name, where, checkpoint.dtype)
    measures = text_measures(checkpoint, options, progress)
    expect(progress, _expected(checkpoint, methods, output, options, measures))
    backward = any(method.needs_gradients for method in methods)
    statistics = calibrations(checkpoint, output, options, progress, backward=backward)
    comparison = Comparison(
        checkpoint=checkpoint,
        methods=methods,
        ratios=options.ratios,
        statistics=statistics,
        trials={seed: known_trials(output / f"calibration-{seed}") for seed in statistics},
        measures=measures,
        mend=_menders(checkpoint, output, options, methods, progress),
        width_multiple=options.width_multiple,
        about={"width_multiple": options.width_multiple, **about(options, measures)},
    )
    result = compare(comparison, output / FILE, device=where, dtype=dtype, progress=progress)
    write_text(output / PAGE, markdown(result))
    write_comparison(output, display_name(checkpoint.path), result)
    if plot.can_draw():
        plot.draw(result, output / PICTURE)
    else:
        progress.note(plot.MISSING)
    if options.lm_eval:
        result["lm_eval"] = _lm_eval(comparison, output / TASKS, options, dtype, progress)
    return result


def _check(options: CompareOptions) -> None:
    check(options)
    for keep in options.ratios:
        if not 0 < keep < 1:
            raise UserError(f"--keep {keep:g} is not a share of the experts", "--keep 0.6")
    if options.budgets or options.files:
        only = ["--budget", *options.budgets[:1]] if options.budgets else ["--files"]
        raise UserError(f"{only[0]} is for --matched", " ".join(["--matched", *only]))
    for flag, value in (("--seeds", options.seeds), ("--width-multiple", options.width_multiple)):
        if value is not None and value < 1:
            raise UserError(f"{flag} {value} is not above zero", f"{flag} 1")
    if options.lm_eval:
        lm_eval_tasks.require_lm_eval()


def calibration_stage(seed: int) -> str:
    return f"calibration, seed {seed}"


def expected_calibrations(
    pace: Pace, output: Path, options: CompareOptions, seeds: int, forwards: float = 0.0
) -> dict[str, float]:
    """Seconds of those that are not there yet, and of so many more ``forwards`` of their text."""
    tokens, stages = most_tokens(options.calibration), {}
    for seed in options.calibration_seeds(seeds):
        done = bool(finished_at(output / f"calibration-{seed}"))
        seconds = 0.0 if done else pace.calibration(tokens) + pace.forward(tokens, forwards)
        stages[calibration_stage(seed)] = seconds
    return stages


def measuring_pass(pace: Pace, measures: Mapping[str, Sequence[Measure]], variants: int) -> float:
    """Seconds of the dense model and so many others on the same text."""
    blocks = (one.block for row in measures.values() for one in row)
    return pace.forward(sum(block.tokens.numel() for block in blocks), 1 + variants)


def _expected(
    checkpoint: Checkpoint,
    methods: Sequence[Contender],
    output: Path,
    options: CompareOptions,
    measures: Mapping[str, Sequence[Measure]],
) -> dict[str, float]:
    """Seconds by stage."""
    pace, seeds = pace_of(checkpoint, options.calibration), len(options.calibration_seeds(SEEDS))
    backward = GRADIENT_FORWARDS if any(m.needs_gradients for m in methods) else 0.0
    mending = sum(method.mends for method in methods) * MendRules().forwards * seeds
    ratio = measuring_pass(pace, measures, len(methods) * seeds)
    ratio += pace.forward(most_tokens(options.calibration), mending)
    calibrated = expected_calibrations(pace, output, options, SEEDS, backward)
    return {**calibrated, **{f"keep {keep:g}": ratio for keep in options.ratios}}


def calibrations(
    checkpoint: Checkpoint,
    output: Path,
    options: CompareOptions,
    progress: Progress,
    seeds: int = SEEDS,
    backward: bool = False,
) -> dict[int, Statistics]:
    """One calibration a seed, with a backward pass where a method needs one."""
    statistics = {}
    for seed in options.calibration_seeds(seeds):
        begin(progress, calibration_stage(seed))
        chosen = replace(options.calibration, seed=seed)
        statistics[seed] = run_calibrate(
            checkpoint.path, output / f"calibration-{seed}", chosen, progress, backward
        )
    return statistics


def _menders(
    checkpoint: Checkpoint,
    output: Path,
    options: CompareOptions,
    methods: Sequence[Contender],
    progress: Progress,
) -> dict[int, Mend]:
    """By calibration seed, what mends a plan on that calibration's text, if a method does."""
    if not any(method.mends for method in methods):
        return {}
    seeds = options.calibration_seeds(SEEDS)
    return {seed: mender(checkpoint, output, options, seed, progress) for seed in seeds}


def mender(
    checkpoint: Checkpoint, output: Path, options: CompareOptions, seed: int, progress: Progress
) -> Mend:
    chosen = replace(options.calibration, seed=seed)

    @cache
    def domains() -> list[Domain]:
        """As `run_calibrate` draws them: the chunks that it holds out are not used."""
        drawn = calibration_domains(checkpoint, chosen, hold_out=True)
        return [split_at(domain, chosen.samples)[0] for domain in drawn]

    def build(plan: CompressionPlan, rules: MendRules) -> Mended:
        name = key_of(seed, plan.digest, asdict(rules))
        return mend(
            checkpoint,
            plan,
            domains(),
            output / MENDED / name,
            rules,
            seed=seed,
            device=chosen.device,
            dtype=chosen.dtype,
            progress=progress,
        )

    return build


def text_measures(
    checkpoint: Checkpoint, options: CompareOptions, progress: Progress
) -> dict[str, Sequence[Measure]]:
    """Held-out text by domain, and the questions made of it."""
    seed = options.calibration.seed
    drawn = validation_domains(checkpoint, options.validation, seed, progress)
    text = [TextMeasure.of(domain) for domain in drawn]
    measures: dict[str, Sequence[Measure]] = {"text": text}
    if not options.questions:
        return measures
    tokenizer = load_tokenizer(checkpoint.path)
    longest = min(options.validation.seq_len, checkpoint.config.max_position_embeddings)
    cloze: list[Measure] = []
    sums: list[Measure] = []
    for name, texts in _texts(options, tokenizer).items():
        cloze_measure = Cloze.of(name, texts, tokenizer, options.questions, seed)
        cloze += [] if cloze_measure is None else [cloze_measure]
        solved = Arithmetic.of(name, texts, tokenizer, options.questions, longest)
        sums += [] if solved is None else [solved]
    measures |= {"cloze": cloze, "arithmetic": sums}
    return {kind: row for kind, row in measures.items() if row}


def _texts(options: CompareOptions, tokenizer: Any) -> Mapping[str, Sequence[str]]:
    sources, writer = parse_data(options.validation.data), ChatWriter(tokenizer)
    texts = texts_of(sources, "heldout", writer)
    return {
        name: [text for kind in kinds.values() for text in kind] for name, kinds in texts.items()
    }


def about(options: CompareOptions, measures: Mapping[str, Sequence[Measure]]) -> dict[str, Any]:
    """What the result says about its own making."""
    calibration, validation = options.calibration, options.validation
    return {
        "calibration": {
            "data": list(calibration.data),
            "samples": calibration.samples,
            "seq_len": calibration.seq_len,
        },
        "evaluation": {
            "data": list(validation.data),
            "samples": validation.samples,
            "seq_len": validation.seq_len,
            "domains": [measure.block.name for measure in measures["text"]],
        },
    }


def _lm_eval(
    comparison: Comparison,
    file: Path,
    options: CompareOptions,
    dtype: torch.dtype,
    progress: Progress,
) -> list[dict[str, Any]]:
    """lm-eval's tasks for every method and ratio with the first calibration."""
    case = comparison.cases()[0]
    tokenizer, rows = load_tokenizer(comparison.checkpoint.path), []
    with progress.task(
        "lm-eval", len(comparison.ratios) * len(comparison.methods), "models"
    ) as task:
        for keep in comparison.ratios:
            for method in comparison.methods:
                cut = method.build(case, budget(case, keep))
                scores = lm_eval_tasks.task_scores(
                    comparison.checkpoint,
                    cut.candidate,
                    tokenizer,
                    options.lm_eval,
                    options.lm_eval_limit,
                    dtype,
                )
                rows.append(
                    {"method": method.name, "keep": keep, "seed": case.seed, "tasks": scores}
                )
                write_json(file, rows)
                task.advance()
    shutil.rmtree(file.parent / MENDED, ignore_errors=True)
    return rows
