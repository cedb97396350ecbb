"""What a person is told of a plan: does it fit, what stays, what is lost, what to type next."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from shlex import join
from typing import TYPE_CHECKING

from tenp_edge.cli.hub import spoken
from tenp_edge.cli.report import joint_report
from tenp_edge.cli.report.entries import Entries
from tenp_edge.cli.report.plain_notes import of_interest
from tenp_edge.evaluation.verdict import expected
from tenp_edge.planning.measured.expected_kl import expected_kl
from tenp_edge.planning.options.settings import command_words
from tenp_edge.units import format_size, percent

if TYPE_CHECKING:  # torch takes a second to load, and some verbs never need it
    from tenp_edge.checkpoint.compression_plan import CompressionPlan
    from tenp_edge.planning.options.spec import PlanOptions
    from tenp_edge.verbs.options import StatisticsOptions

_UNKNOWN = "how much is lost is not known before a calibration"
_ROUNDED = 0.01
_PARTS = (
    ("experts_bytes", "experts"),
    ("other_weights_bytes", "other weights"),
    ("kv_bytes", "KV cache"),
    ("compute_bytes", "compute buffers"),
    ("overhead_bytes", "the process"),
)


def plan_entries(
    plan: CompressionPlan,
    model: Path,
    options: PlanOptions,
    known: StatisticsOptions,
    output: Path | None,
) -> Entries:
    """The screen of ``plan``, made of ``model`` by these options; ``output``: its plan.json."""
    lines = [
        ("memory", memory_line(plan)),
        ("", ", ".join(f"{name} {format_size(plan.memory[key])}" for key, name in _PARTS)),
        *kept_entries(plan),
        ("expected", expected_line(plan)),
        *_instead(plan),
        *_speed(plan),
        *(("file", f"{name}, {size:,} bytes") for name, size in plan.files.items()),
        *(("note", note) for note in of_interest(notes_of(plan))),
        ("more", "--verbose: the widths of every layer, types, what other RAM numbers would buy"),
    ]
    return Entries(lines, tuple(_commands(plan, model, options, known, output)))


def line(plan: CompressionPlan) -> str:
    return f"{memory_line(plan)}; keeps {kept_line(plan)}; {expected_line(plan)}"


def memory_line(plan: CompressionPlan) -> str:
    """ "fits into 8.00 GiB: 7.98 GiB at the peak, context 4096"."""
    memory, budget = plan.memory, plan.record.budget_bytes
    estimated = " (an estimate)" if memory.get("source") == "estimate" else ""
    peak = f"{format_size(memory['total_bytes'])} at the peak{estimated}, context "
    peak += str(memory["context"])
    if not budget:
        return peak
    word = "fits into" if memory["total_bytes"] <= budget else "DOES NOT FIT into"
    return f"{word} {format_size(budget)}: {peak}"


def kept_line(plan: CompressionPlan) -> str:
    """What stays of the model, and in which types."""
    share = "all" if plan.keep_ratio == 1.0 else percent(plan.keep_ratio)
    bits = (plan.record.type_choice or {}).get("bits_per_weight")
    types = plan.record.quant
    if bits:
        types = f"types of their own, {bits:.1f} bits a weight"
    return f"{share} of the experts' neurons{f', in {types}' if types else ''}"


def kept_entries(plan: CompressionPlan) -> Iterator[tuple[str, str]]:
    """What stays, and where that is not the share that was asked for, why."""
    yield "keeps", kept_line(plan)
    yield from _rounded(plan)


def expected_line(plan: CompressionPlan) -> str:
    """What the plan will cost, in a word and a number."""
    found = expected_kl(plan.record, plan.keep_ratio)
    if found is None:
        return _UNKNOWN if plan.keep_ratio < 1 else f"what {plan.record.quant} costs, no more"
    word = expected(found.kl)
    article = "" if word == "almost no" else "a "
    return f"{article}{word} difference to the whole model (KL about {found})"


def _rounded(plan: CompressionPlan) -> Iterator[tuple[str, str]]:
    """Where the share is not the one that was asked for."""
    asked = plan.record.keep_ratio_target
    if asked - plan.keep_ratio > _ROUNDED:
        step = plan.record.width_multiple
        yield "", f"asked for {percent(asked)}: widths are multiples of {step} neurons"


def _instead(plan: CompressionPlan) -> Iterator[tuple[str, str]]:
    """The whole model in as many bytes, where it is known."""
    choice = plan.record.type_choice or {}
    if "bits_per_weight" in choice and plan.keep_ratio < 1:
        yield "", joint_report.the_whole_model(choice["whole"])


def _speed(plan: CompressionPlan) -> Iterator[tuple[str, str]]:
    speed = plan.memory.get("tokens_per_second")
    if speed:
        shown = f"{speed:.1f}" if speed < 100 else f"{speed:,.0f}"
        yield "speed", f"at most {shown} tokens/s (an estimate)"


def notes_of(plan: CompressionPlan) -> tuple[str, ...]:
    """What a reader of the plan should know, in sentences; of the choice of its types too."""
    note = (plan.record.type_choice or {}).get("note")
    return (*plan.record.notes, *([note] if note else []))


def _commands(
    plan: CompressionPlan,
    model: Path,
    options: PlanOptions,
    known: StatisticsOptions,
    output: Path | None,
) -> Iterator[tuple[str, str]]:
    work = known.statistics
    if work is None and not plan.record.fits_whole:
        yield "weigh the neurons", join(["tenp-edge", "calibrate", spoken(model), "-o", "WORK"])
    words = [*command_words(options), *([] if work is None else ["--calibration", str(work)])]
    yield "make it", join(["tenp-edge", "compress", spoken(model), *words, "-o", "OUT"])
    if output is not None and work is not None and plan.record.format == "gguf":
        given = ["--plan", str(output), "--calibration", str(work), "-o", "model.gguf"]
        yield (
            "only the file",
            join(["tenp-edge", "export", spoken(model), *given]),
        )
