"""The last words of ``compress``: does it fit, how good is it, where does it run, what to type now.

The same as JSON, for programs.
"""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenp_edge.checkpoint.compression_plan import CompressionPlan
from tenp_edge.evaluation.verdict import Verdict, judge
from tenp_edge.runtime.directory_vocabulary import read_settings
from tenp_edge.runtime.gguf.header import read_fields
from tenp_edge.runtime.gguf.padded_twin import TWIN
from tenp_edge.runtime.locating import Found, locate
from tenp_edge.units import format_size

_LLAMA_CPP = "llama.cpp and what is built on it (Ollama, LM Studio)"
# (format, layout) -> what runs such a file.
_RUNS_IN = {
    ("gguf", "per-expert"): "tenp-edge, on a CPU. Nowhere else: for llama.cpp, Ollama or LM Studio "
    "the same command with --layout merged and another -o",
    ("gguf", "merged"): f"tenp-edge, and {_LLAMA_CPP}",
    ("gguf", "padded"): f"tenp-edge, and {_LLAMA_CPP}; the zeros that fill it up save no memory",
    ("onnx", "portable"): "tenp-edge, and any onnxruntime",
    ("onnx", "ort-cpu"): "tenp-edge, and onnxruntime on a CPU, whose own operators it uses",
    ("onnx", "static"): "tenp-edge and onnxruntime, and what a compiler for an NPU makes of it",
}
_THIS_MACHINE = "this-machine"
_WIDTH, _LABELS = 96, 10


@dataclass(frozen=True)
class Closing:
    """What there is to say of a finished run. Sizes in bytes, None where not asked or measured.

    ``device``: the profile that was planned for; ``measured_bytes`` is always of this machine.
    ``commands``: what can be done next, each with what to type for it.
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

    @property
    def fits(self) -> bool | None:
        """Whether what was measured (else predicted) is within the budget; None without one."""
        if self.budget_bytes is None:
            return None
        here = self.device == _THIS_MACHINE
        measured = self.measured_bytes if here else None
        return (self.predicted_bytes if measured is None else measured) <= self.budget_bytes

    def to_json(self) -> dict[str, Any]:
        return {
            "file": self.file,
            "file_bytes": self.file_bytes,
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
        quality = "not measured" if self.quality is None else str(self.quality)
        lines = [
            *_entry("memory", self._memory()),
            *_entry("quality", quality),
            *_entry("file", f"{self.file}, {format_size(self.file_bytes)}"),
            *_entry("runs in", self.runs_in),
        ]
        longest = max((len(what) for what, _ in self.commands), default=0)
        for number, (what, command) in enumerate(self.commands):
            # Never wrapped: a command is there to be copied.
            lines.append(f"{'' if number else 'next':{_LABELS}}{what + ':':{longest + 3}}{command}")
        return "\n".join(lines)

    def _memory(self) -> str:
        away = "" if self.device == _THIS_MACHINE else f" on {self.device}"
        numbers = f"{format_size(self.predicted_bytes)} predicted{away}"
        if self.measured_bytes is not None:
            where = " on this machine" if away else ""
            numbers += f", {format_size(self.measured_bytes)} measured{where}"
        run = f"{numbers}, context {self.context}"
        if self.budget_bytes is None:
            return run
        word = "fits into" if self.fits else "DOES NOT FIT into"
        return f"{word} {format_size(self.budget_bytes)}: {run}"


def _entry(label: str, text: str) -> list[str]:
    indent = " " * _LABELS
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=f"{label:{_LABELS}}",
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def closing(
    model: Path, output: Path, plan: CompressionPlan, checked: Mapping[str, Any] | None
) -> Closing:
    """Of the run that made ``output`` of ``model``; ``checked``: its validation report as JSON."""
    located, record, report = locate(output), plan.record, checked or {}
    prefix = located.path.name
    sizes = [size for name, size in plan.files.items() if name.split("/")[0] == prefix]
    measured = None if report.get("measured_as") == TWIN else report.get("measured_peak_rss")
    key = record.format, record.layout
    return Closing(
        file=str(located.path),
        file_bytes=sum(sizes),
        budget_bytes=record.budget_bytes,
        predicted_bytes=plan.memory["total_bytes"],
        measured_bytes=measured,
        context=plan.memory["context"],
        device=plan.memory["device"],
        quality=judge(report["overall"], report["domains"]) if report else None,
        runs_in=_RUNS_IN.get(key, f"what reads {' '.join(map(str, key))}"),
        commands=tuple(_commands(model, output, located)),
    )


def _commands(model: Path, output: Path, located: Found) -> Iterator[tuple[str, str]]:
    source, target = (shlex.quote(str(path)) for path in (model, output))
    if has_chat_template(located):
        yield "talk to it", f"tenp-edge run {target} --chat"
    else:
        yield "continue a text", f'tenp-edge run {target} -p "Once upon a time"'
    yield "serve OpenAI's API", f"tenp-edge serve {target}"
    yield "compare again", f"tenp-edge validate {source} {target}"


def has_chat_template(located: Found) -> bool:
    """Whether the exported model says how a conversation is written."""
    if located.kind == "gguf":
        return "tokenizer.chat_template" in read_fields(located.path)
    settings = read_settings(located.path / "tokenizer_config.json")
    return (located.path / "chat_template.jinja").is_file() or bool(settings.get("chat_template"))
