"""What a run left in its directory, as it stands in the JSON files. Nothing is computed anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenp_edge.disk import read_json
from tenp_edge.errors import UserError
from tenp_edge.runtime.gguf.padded_twin import TWIN

Json = Mapping[str, Any]


@dataclass(frozen=True)
class RunFiles:
    """``plan`` is there always; the others are None (``recipe``: empty) where the run did not
    write them. ``mended``: what repair did; ``environment``: what the run was made with."""

    directory: Path
    plan: Json
    manifest: Json | None
    validation: Json | None
    mended: Json | None
    environment: Json | None
    recipe: str

    @property
    def record(self) -> Json:
        found: Json = self.plan["record"]
        return found

    @property
    def memory(self) -> Json:
        found: Json = self.plan["memory"]
        return found

    @property
    def model(self) -> str:
        """What the model is called."""
        if self.environment is not None:
            return str(self.environment["model"])
        reference = str((self.validation or {}).get("reference", ""))
        return Path(reference).name or str(self.plan["model"]["model_type"])

    @property
    def measured_bytes(self) -> int | None:
        """The peak memory of the file as it ran, None where none was measured."""
        checked = self.validation or {}
        measured = checked.get("measured_peak_rss")
        # A padded twin is not the file itself: its peak says nothing about the file's.
        return None if checked.get("measured_as") == TWIN else measured

    @property
    def fits(self) -> bool | None:
        """Within the budget: what was measured, where this machine was the target, else what was
        predicted. None without a budget."""
        budget = self.record.get("budget_bytes")
        if budget is None:
            return None
        here = self.memory.get("device") == "this-machine"
        measured = self.measured_bytes if here else None
        return bool((self.memory["total_bytes"] if measured is None else measured) <= budget)


def read_run(directory: Path) -> RunFiles:
    """Raises UserError where ``directory`` holds no run of ``compress``, or a damaged one."""
    if not (directory / "plan.json").is_file():
        raise UserError(
            f"{directory} holds no run: there is no plan.json in it",
            "the directory that compress wrote (-o)",
        )
    recipe = directory / "recipe.toml"
    return RunFiles(
        directory,
        _checked(directory / "plan.json"),
        _optional(directory / "manifest.json"),
        _optional(directory / "validation.json"),
        _optional(directory / "mended" / "mended.json"),
        _optional(directory / "environment.json"),
        recipe.read_text(encoding="utf-8", errors="replace") if recipe.is_file() else "",
    )


def _checked(file: Path) -> Json:
    plan = read_json(file)
    parts = ("record", "memory", "widths", "model")
    if any(not isinstance(plan.get(part), dict) for part in parts):
        raise UserError(f"{file} is not a tenp-edge plan", "compress again")
    return plan


def _optional(file: Path) -> Json | None:
    return read_json(file) if file.is_file() else None
