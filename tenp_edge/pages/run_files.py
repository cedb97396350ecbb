"""What a run left in its directory, as it stands in the JSON files. Nothing is computed anew."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenp_edge.disk import read_json
from tenp_edge.errors import UserError
from tenp_edge.evaluation.fitting import fits, measured_peak

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
    def model_argument(self) -> str:
        """How a command names the model."""
        return str((self.environment or {}).get("model_argument") or "MODEL")

    @property
    def measured_bytes(self) -> int | None:
        """The peak memory of the file as it ran, None where none was measured."""
        return measured_peak(self.validation)

    @property
    def fits(self) -> bool | None:
        """Whether the run keeps to its budget; None without one."""
        predicted, device = self.memory["total_bytes"], self.memory.get("device")
        return fits(self.record.get("budget_bytes"), predicted, self.measured_bytes, device)

    @property
    def not_measured(self) -> str:
        """Why there is no validation."""
        if self._settings.get("no-validate"):
            return "the run was made with --no-validate"
        if self.manifest is not None and not self.manifest.get("complete"):
            return (
                "the run ended before its validation. The same compress command again continues "
                "where it stopped"
            )
        return "there is no validation.json in the directory of the run"

    @property
    def _settings(self) -> Json:
        """What the recipe says; nothing where somebody edited it into something else."""
        try:
            return tomllib.loads(self.recipe)
        except tomllib.TOMLDecodeError:
            return {}


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
