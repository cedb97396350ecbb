"""README.md beside what ``compress`` wrote: a model card of the Hub, numbers included.

It says whose model this is (base model, licence and languages are carried over), what was done in
plain words, how far it is from the original, and what to type. No path of this machine and no text
that was measured on is in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenp_edge.checkpoint.compression_plan import CompressionPlan
from tenp_edge.checkpoint.model_origin import (
    CARD,
    base_model,
    card_data,
    display_name,
    front_matter,
    inherited,
)
from tenp_edge.checkpoint.overlay import Mended
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.disk import write_text
from tenp_edge.evaluation.verdict import judge
from tenp_edge.runtime.memory.footprint import PlannedRun
from tenp_edge.sharing.metrics import eval_results, metrics_table, slug
from tenp_edge.units import format_count, format_size
from tenp_edge.version import __version__

_METRICS_TITLE = "## How close it is to the original"
_ROUNDED = ("F32", "F16", "BF16", "none", None)
_STOCK = """\
```sh
llama-server -m model.gguf -c {context}
ollama create {name} -f Modelfile && ollama run {name}
```

"""


@dataclass(frozen=True)
class Described:
    """What a card is about. ``report``: the validation's JSON, where there is one; ``converses``:
    whether the file says how a conversation is written."""

    source: ModelSource
    plan: CompressionPlan
    report: Mapping[str, Any] | None
    converses: bool = True

    @property
    def base(self) -> str | None:
        """Its hub id."""
        return base_model(self.source.checkpoint.path, self.source.config.raw)

    @property
    def name(self) -> str:
        """Of the original, in a word."""
        checkpoint = self.source.checkpoint
        return display_name(checkpoint.path, self.source.config.raw).split("/")[-1]

    @property
    def title(self) -> str:
        """Of what was made."""
        return f"{self.name}-{'pruned' if self.plan.keep_ratio < 1 else self.plan.record.quant}"


def write_card(described: Described, directory: Path) -> Path:
    """``directory``/README.md, of the exported file there."""
    text = f"{front_matter(_data(described))}\n{_body(described)}"
    write_text(directory / CARD, text)
    return directory / CARD


def add_metrics(described: Described, checkpoint: Path) -> None:
    """Numbers for the card of the pruned checkpoint, which was written before they were known."""
    from huggingface_hub import ModelCard

    if described.report is None or not (checkpoint / CARD).is_file():
        return
    card = ModelCard((checkpoint / CARD).read_text(encoding="utf-8"), ignore_metadata_errors=True)
    data = card_data(checkpoint) | _model_index(described)
    body = card.text.split(_METRICS_TITLE)[0].strip()
    note = "Of the file that was exported from this checkpoint, in its own tensor types."
    text = f"{front_matter(data)}\n{body}\n\n{_metrics(described.report)}\n\n{note}\n"
    write_text(checkpoint / CARD, text)


def _data(described: Described) -> dict[str, Any]:
    record, path = described.plan.record, described.source.checkpoint.path
    base: dict[str, Any] = {}
    if described.base is not None:
        base = {"base_model": described.base, "base_model_relation": "quantized"}
    tags = ["tenp-edge", "moe"]
    tags += ["pruned"] if described.plan.keep_ratio < 1 else []
    tags += ["quantized"] if record.quant not in _ROUNDED else []
    return {
        **base,
        **inherited(path),
        "library_name": record.format,
        "pipeline_tag": "text-generation",
        "tags": [*tags, record.format],
        "model_name": described.title,
        **(_model_index(described) if described.report is not None else {}),
    }


def _model_index(described: Described) -> dict[str, Any]:
    from huggingface_hub.repocard_data import eval_results_to_model_index

    results = eval_results(described.report or {"domains": []})
    return {"model-index": eval_results_to_model_index(described.title, results)}


def _body(described: Described) -> str:
    parts = [
        f"# {described.title}",
        " ".join(_sentences(described)),
        _facts(described),
        *([_metrics(described.report)] if described.report is not None else []),
        "## Run it",
        _running(described),
        "## Licence",
        _licence(described),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _sentences(described: Described) -> Iterator[str]:
    """What was done, in plain words."""
    plan, record = described.plan, described.plan.record
    name = described.name if described.base is None else f"[{described.base}]"
    name += "" if described.base is None else f"(https://huggingface.co/{described.base})"
    yield f"{name}, made smaller by tenp-edge {__version__}."
    if plan.keep_ratio == 1:
        yield "Nothing was removed from it."
    else:
        what = "some experts as a whole" if plan.removes_experts else "neurons of its experts"
        kept = f"{plan.keep_ratio:.1%} of the routed experts' neurons stay"
        yield f"To fit it into less memory, {what} were removed: {kept}."
    yield from _mended(described.source)
    if plan.types is not None:
        yield "Every tensor has a type of its own, chosen by what it costs in accuracy."
    elif record.quant not in _ROUNDED:
        yield f"Its weights are stored as {record.quant}."
    run = described.source.planned_run
    if run is not None and run.context:
        yield _planned(run)


def _mended(source: ModelSource) -> Iterator[str]:
    if isinstance(source.mended, Mended):
        info = source.mended.info
        if info["repair"]:
            yield "What stays of cut experts was refitted to take over what they had written."
        if info["heal"]:
            yield "Its routers were trained for a moment against the original's."


def _planned(run: PlannedRun) -> str:
    room = f" in {format_size(run.ram_budget)} of memory" if run.ram_budget else ""
    return f"It was planned to run{room} at a context of {run.context:,} tokens."


def _facts(described: Described) -> str:
    plan, record = described.plan, described.plan.record
    config = described.source.config
    widths = [width for row in config.expert_widths.values() for width in row]
    peak = (described.report or {}).get("measured_peak_rss")
    rows = {
        "method": record.method or "given widths",
        "routed-expert weights": f"{format_count(config.expert_weights)} ({plan.keep_ratio:.1%})",
        "expert width": f"{min(widths)} to {max(widths)} of {plan.full_width}",
        "file": record.file,
        "predicted peak memory": format_size(plan.memory["total_bytes"]) if plan.memory else None,
        "measured peak memory": None if peak is None else format_size(peak),
        "left out": described.source.checkpoint.left_out_text or None,
    }
    lines = [f"| {name} | {value} |" for name, value in rows.items() if value is not None]
    return "\n".join(["| | |", "|---|---|", *lines])


def _metrics(report: Mapping[str, Any]) -> str:
    """The verdict and the table. The text itself stays here."""
    verdict = str(judge(report["overall"], report["domains"]))
    said = f"{verdict[0].upper()}{verdict[1:]}."
    return f"{_METRICS_TITLE}\n\n{said}\n\n{metrics_table(report)}"


def _running(described: Described) -> str:
    record, context = described.plan.record, described.plan.memory.get("context", 4096)
    talk = "run ." if described.converses else 'run . -p "Once upon a time"'
    ours = f"```sh\npip install tenp-edge\ntenp-edge {talk}\ntenp-edge serve .\n```"
    if record.format != "gguf":
        return ours
    if record.layout == "per-expert":
        return f"{ours}\n\nEvery expert has its own width: the file runs in tenp-edge, on a CPU."
    return _STOCK.format(context=context, name=slug(described.title.lower())) + ours


def _licence(described: Described) -> str:
    licence = inherited(described.source.checkpoint.path).get("license")
    if licence is None:
        return "That of the original model, which binds what is made of it."
    return f"That of the original model: {licence}."
