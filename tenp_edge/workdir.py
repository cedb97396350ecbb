"""The output directory of ``compress``: which stages are done, and for which inputs.

manifest.json records, per stage, a key (a hash of everything the stage depends on) and the files
it wrote with their sizes. A stage whose key and files are still there is not run again: that is
how a killed run continues, and how another RAM number reuses the calibration.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tenp_edge.checkpoint import read_json, write_text
from tenp_edge.errors import UserError

FILE = "manifest.json"
FORMAT = "tenp-edge run"
# Everything a run may leave in its directory, and so everything --force may delete.
OUTPUTS = (
    "calibration",
    "calibration-pruned",
    "checkpoint",
    "mended",
    "onnx",
    "model.gguf",
    "plan.json",
    "plan.safetensors",
    "validation.json",
    FILE,
)


def key_of(*inputs: object) -> str:
    """A short hash of JSON-able stage inputs."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()[:16]


class RunDirectory:
    """One compress run on disk. Raises UserError when the directory belongs to something else."""

    def __init__(self, path: Path, fingerprint: str, command: str, force: bool = False) -> None:
        self.path = path
        self._state: dict[str, Any] = {
            "format": FORMAT,
            "fingerprint": fingerprint,
            "command": command,
            "stages": {},
        }
        if force:
            self._clear()
        elif path.exists():
            self._adopt(fingerprint, command)
        path.mkdir(parents=True, exist_ok=True)
        self._save()

    def done(self, stage: str, key: str) -> bool:
        """True when ``stage`` ran with these inputs and all its files are whole."""
        record = self._state["stages"].get(stage)
        return (
            record is not None
            and record["key"] == key
            and all(_size(self.path / name) == size for name, size in record["files"].items())
        )

    def finish(self, stage: str, key: str, files: Iterable[Path]) -> None:
        """Record ``stage`` with the files it wrote."""
        sizes = {str(file.relative_to(self.path)): _size(file) for file in sorted(files)}
        self._state["stages"][stage] = {"key": key, "files": sizes}
        self._save()

    def complete(self) -> None:
        self._state["complete"] = True
        self._save()

    def _adopt(self, fingerprint: str, command: str) -> None:
        if not any(self.path.iterdir()):
            return
        if not (self.path / FILE).is_file():
            raise UserError(
                f"{self.path} is not empty and was not written by tenp-edge",
                "an empty or new directory for -o",
            )
        state = read_json(self.path / FILE)
        if state.get("format") != FORMAT:
            raise UserError(f"{self.path / FILE} was not written by tenp-edge", "another -o")
        if state["fingerprint"] != fingerprint:
            raise UserError(
                f"{self.path} belongs to another model "
                f"({state['fingerprint'][:12]}, this one is {fingerprint[:12]})",
                "another -o, or --force to overwrite it",
            )
        if state.get("complete") and state["command"] != command:
            raise UserError(
                f"{self.path} holds a finished run with other settings",
                "another -o, or --force to overwrite it",
            )
        self._state["stages"] = state["stages"]

    def _clear(self) -> None:
        """Delete what a run leaves behind, and nothing else."""
        for name in OUTPUTS:
            target = self.path / name
            if target.is_dir() and not target.is_symlink():
                shutil.rmtree(target)
            else:
                target.unlink(missing_ok=True)

    def _save(self) -> None:
        write_text(self.path / FILE, json.dumps(self._state, indent=1) + "\n")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1
