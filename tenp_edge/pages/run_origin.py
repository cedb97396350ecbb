"""How to make the file again: the command, the recipe, hashes, versions, the machine."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from tenp_edge.pages.document import Section, folded, missing, paragraph, scrolling, table
from tenp_edge.pages.markup import Child, joined, tag
from tenp_edge.pages.run_files import RunFiles
from tenp_edge.units import format_size

_UNKNOWN = "The run did not record its environment: it was made by an earlier version."


def recipe(run: RunFiles) -> Section:
    """The command and every option, hashes of what came out."""
    about = (
        "The same command on the same machine writes the same bytes. recipe.toml lies in the "
        "run's directory."
    )
    command = f"tenp-edge compress {shlex.quote(run.model_argument)} --recipe recipe.toml -o OUT"
    parts: list[Child] = [_code("The command", command)]
    if run.recipe:
        parts.append(folded("recipe.toml", _code("recipe.toml", run.recipe)))
    else:
        parts.append(missing("The run left no recipe.toml."))
    parts.append(folded("Hashes", table("Hashes", ("", "hash"), _hashes(run), words=(1,))))
    return Section("recipe", "The recipe", about, joined(parts))


def _code(label: str, text: str) -> Markup:
    return scrolling(label, tag("pre", tag("code", text)), "code")


def _hashes(run: RunFiles) -> Iterator[Sequence[Child]]:
    yield "original model", _hash(run.plan["model"]["fingerprint"])
    yield "plan", _hash(run.plan.get("digest", ""))
    if run.mended is not None:
        yield "repaired weights", _hash(run.mended.get("digest", ""))
    calibration = (run.mended or {}).get("data_sha256")
    if calibration:
        yield "calibration text", _hash(calibration)
    for stage in (run.manifest or {}).get("stages", {}).values():
        for name, entry in stage["files"].items():
            if not name.startswith("mended/"):
                yield name, _hash(entry["sha256"])


def _hash(digest: str) -> Markup:
    return tag("code", digest, class_="hash")


def environment(run: RunFiles) -> Section:
    """Versions and the machine."""
    known = run.environment
    if known is None:
        return Section("environment", "The environment", "", missing(_UNKNOWN))
    machine = known["machine"]
    facts = [
        ("finished", known["finished"]),
        ("system", machine["system"]),
        ("processor", f"{machine['processor']}, {machine['cores']} cores"),
        ("memory", format_size(machine["memory_bytes"])),
        *_how_it_ran(run),
    ]
    versions = sorted(known["versions"].items(), key=lambda item: item[0] != "tenp-edge")
    return Section(
        "environment",
        "The environment",
        "What the run was made with.",
        joined(
            (
                table("Machine", ("", ""), facts, words=(1,)),
                folded("Versions", table("Versions", ("package", "version"), versions, words=(1,))),
            )
        ),
    )


def _how_it_ran(run: RunFiles) -> Iterator[tuple[str, str]]:
    checked: Mapping[str, Any] = run.validation or {}
    if checked:
        yield "validation ran in", f"{checked['judged_through']}, reference in {checked['dtype']}"
        yield "reference ran on", str(checked["device"])


def note(run: RunFiles) -> Markup | None:
    """What the plan had to say."""
    notes = run.record.get("notes") or ()
    return joined(paragraph(f"{text}.", kind="about") for text in notes) if notes else None
