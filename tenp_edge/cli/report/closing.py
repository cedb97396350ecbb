"""The last words of ``compress``: does it fit, how good is it, where does it run, what to type now.

The same as JSON, for programs.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenp_edge.checkpoint.compression_plan import CompressionPlan
from tenp_edge.cli.hub import spoken
from tenp_edge.cli.report.entries import Entries
from tenp_edge.cli.report.plain_notes import of_interest
from tenp_edge.cli.report.plan_screen import kept_entries, notes_of
from tenp_edge.disk import read_json
from tenp_edge.evaluation.fitting import HERE, fits, measured_peak
from tenp_edge.evaluation.hosts import elsewhere, runs_in
from tenp_edge.evaluation.verdict import Verdict, judge
from tenp_edge.pages.report import ENVIRONMENT
from tenp_edge.runtime.chat_template_of import has_chat_template
from tenp_edge.runtime.locating import Found, locate
from tenp_edge.units import format_size, nats

REPORT = "report.html"
# What the words of the line above mean.
LEGEND = (
    "KL: how far the two models' predictions of the next token are apart, 0 is not at all. "
    "Q8_0 to Q2_K: types of llama.cpp, from 8 bits a number down to 2"
)


@dataclass(frozen=True)
class Closing:
    """What there is to say of a finished run. Sizes in bytes, None where not asked or measured.

    ``device``: the profile that was planned for; ``measured_bytes`` is always of this machine.
    ``original_bytes``: of the original's weights. ``kept``: what stays, in words; ``by_domain``:
    mean KL of each kind of text. ``others``: more labels and texts. ``commands``: what can be done
    next, each with what to type for it; ``more``: where everything else is.
    """

    file: str
    file_bytes: int
    budget_bytes: int | None
    predicted_bytes: int
    measured_bytes: int | None
    context: int
    device: str
    quality: Verdict | None
    runs_in: str
    commands: tuple[tuple[str, str], ...]
    kept: tuple[tuple[str, str], ...] = ()
    by_domain: tuple[tuple[str, float], ...] = ()
    notes: tuple[str, ...] = ()
    others: tuple[tuple[str, str], ...] = ()
    more: str = ""
    original_bytes: int | None = None

    @property
    def fits(self) -> bool | None:
        """Whether what was measured (else predicted) is within the budget; None without one."""
        return fits(self.budget_bytes, self.predicted_bytes, self.measured_bytes, self.device)

    def to_json(self) -> dict[str, Any]:
        return {
            "file": self.file,
            "file_bytes": self.file_bytes,
            "original_bytes": self.original_bytes,
            "fits": self.fits,
            "budget_bytes": self.budget_bytes,
            "predicted_peak_rss": self.predicted_bytes,
            "measured_peak_rss": self.measured_bytes,
            "context": self.context,
            "device": self.device,
            "quality": None if self.quality is None else self.quality.to_json(),
            "runs_in": self.runs_in,
            "next": [command for _, command in self.commands],
        }

    def __str__(self) -> str:
        return str(self.entries)

    @property
    def entries(self) -> Entries:
        """The screen: what there is to say, label by label."""
        lines = [
            ("memory", self._memory()),
            *self._quality(),
            *self.kept,
            ("file", self._file()),
            *self.others,
            ("runs in", self.runs_in),
            *(("note", note) for note in self.notes),
            *([("more", self.more)] if self.more else []),
        ]
        return Entries(lines, self.commands)

    @property
    def line(self) -> str:
        """All in one line."""
        fits = {None: "", True: "fits, ", False: "DOES NOT FIT, "}[self.fits]
        peak = self.predicted_bytes if self.measured_bytes is None else self.measured_bytes
        word = "quality not measured"
        if self.quality is not None:
            word = f"{self.quality.difference} difference to the whole model"
        return f"{self.file}: {fits}{format_size(peak)} at the peak; {word}"

    def _quality(self) -> list[tuple[str, str]]:
        if self.quality is None:
            return [("quality", "not measured")]
        lines = [("quality", str(self.quality)), ("", LEGEND)]
        if len(self.by_domain) > 1:
            kinds = ", ".join(f"{name} {nats(kl)}" for name, kl in self.by_domain)
            lines.insert(1, ("", f"by kind of text, KL: {kinds}"))
        return lines

    def _file(self) -> str:
        size = f"{self.file}, {format_size(self.file_bytes)}"
        if not self.original_bytes:
            return size
        return f"{size}; the original has {format_size(self.original_bytes)} of weights"

    def _memory(self) -> str:
        away = "" if self.device == HERE else f" on {self.device}"
        numbers = f"{format_size(self.predicted_bytes)} predicted{away}"
        if self.measured_bytes is not None:
            where = " on this machine" if away else ""
            numbers += f", {format_size(self.measured_bytes)} measured{where}"
        run = f"{numbers}, context {self.context}"
        if self.budget_bytes is None:
            return run
        word = "fits into" if self.fits else "DOES NOT FIT into"
        return f"{word} {format_size(self.budget_bytes)}: {run}"


def closing(
    model: Path, output: Path, plan: CompressionPlan, checked: Mapping[str, Any] | None
) -> Closing:
    """Of the run that made ``output`` of ``model``; ``checked``: its validation report as JSON."""
    located, record, report = locate(output), plan.record, checked or {}
    prefix = located.path.name
    sizes = [size for name, size in plan.files.items() if name.split("/")[0] == prefix]
    return Closing(
        file=str(located.path),
        file_bytes=sum(sizes),
        budget_bytes=record.budget_bytes,
        predicted_bytes=plan.memory["total_bytes"],
        measured_bytes=measured_peak(report),
        context=plan.memory["context"],
        device=plan.memory["device"],
        quality=judge(report["overall"], report["domains"]) if report else None,
        runs_in=_runs_in(record.format, record.layout),
        commands=tuple(_commands(model, output, located)),
        kept=tuple(kept_entries(plan)),
        by_domain=tuple((row["domain"], row["mean_kl"]) for row in report.get("domains", ())),
        notes=tuple(of_interest(notes_of(plan))),
        more=_more(output),
        original_bytes=_original_bytes(output),
    )


def _runs_in(file_format: str | None, layout: str | None) -> str:
    here, there = runs_in(file_format, layout), elsewhere(file_format, layout)
    return f"{here}. Nowhere else: {there}" if there else here


def _original_bytes(output: Path) -> int | None:
    """Of the original's weights; earlier runs did not record them."""
    known = output / ENVIRONMENT
    return read_json(known).get("model_bytes") if known.is_file() else None


def _more(output: Path) -> str:
    """Where the rest can be seen."""
    page = output / REPORT
    read = f"{page} in a browser; or " if page.is_file() else ""
    return f"{read}the same command with --verbose: widths, types, every measurement"


def _commands(model: Path, output: Path, located: Found) -> Iterator[tuple[str, str]]:
    source, target = shlex.quote(spoken(model)), shlex.quote(str(output))
    if has_chat_template(located):
        yield "talk to it", f"tenp-edge run {target}"
    else:
        yield "continue a text", f'tenp-edge run {target} -p "Once upon a time"'
    yield "serve OpenAI's API", f"tenp-edge serve {target}"
    yield "compare again", f"tenp-edge validate {source} {target}"
