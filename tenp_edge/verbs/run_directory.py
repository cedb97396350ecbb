"""The output directory of ``compress``: which stages are done, and for which inputs.

manifest.json is the run's record (`resumable`): of this model, and by which command. Each stage has
an identity of its own in it, a key (a hash of everything the stage depends on), and the files it
wrote with their sizes and SHA-256: another command may use what a stage did. A stage whose key and
files are still there, byte for byte, is not run again. A file that changed is removed and its stage
runs again, which is said.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tenp_edge.checkpoint.digests import file_digest, file_digests
from tenp_edge.checkpoint.locking import LOCK
from tenp_edge.checkpoint.model_origin import LICENCES
from tenp_edge.errors import UserError
from tenp_edge.progress import QUIET, Progress
from tenp_edge.resumable import JobRecord

FILE = "manifest.json"
FORMAT = "tenp-edge run"
_OVERWRITE = "another -o, or --force to overwrite it"
# What a process that was killed at its first file may leave: not somebody else's.
_FIRST = (LOCK, f"{FILE}.partial")
# Everything a run may leave in its directory, and so everything --force may delete.
OUTPUTS = (
    "calibration",
    "calibration-pruned",
    "checkpoint",
    "mended",
    "pack",
    "onnx",
    "model.gguf",
    "plan.json",
    "plan.safetensors",
    "recipe.toml",
    "README.md",
    "Modelfile",
    "validation.json",
    "environment.json",
    "report.html",
    "onnx.partial",
    "model.gguf.partial",
    ".onnx.validation",
    ".model.gguf.validation",
    FILE,
)


def key_of(*inputs: object) -> str:
    """A short hash of JSON-able stage inputs."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()[:16]


class RunDirectory:
    """One compress run on disk; its caller holds the lock. ``complete``: it ended before, with this
    very command; ``clears``: what is there goes when it begins. Raises UserError when the directory
    belongs to something else."""

    def __init__(
        self,
        path: Path,
        fingerprint: str,
        command: str,
        force: bool = False,
        progress: Progress = QUIET,
    ) -> None:
        self.path, self._progress = path, progress
        self._record = JobRecord(
            path / FILE,
            {"format": FORMAT, "fingerprint": fingerprint},
            {"command": command, "stages": {}, "complete": False},
            _OVERWRITE,
        )
        self._stages: dict[str, Any] = {}
        self._whole: dict[str, bool] = {}
        self.complete = self.worked = False
        self.clears = force and not self._is_unfinished(command)
        if not self.clears and path.exists():
            self._adopt(fingerprint, command)

    def begin(self) -> None:
        """Nothing is left that could be refused: the directory is this run's from here on."""
        if self.clears:
            self._clear()
        self.path.mkdir(parents=True, exist_ok=True)
        self._save()

    def done(self, stage: str, key: str) -> bool:
        """True when ``stage`` ran with these inputs and all its files are as they were written."""
        return self.has_run(stage, key) and self._is_whole(stage)

    def has_run(self, stage: str, key: str) -> bool:
        """True when ``stage`` ran with these inputs, whatever became of its files."""
        record = self._stages.get(stage)
        return record is not None and record["key"] == key

    def digests(self, stage: str) -> Mapping[str, str]:
        """SHA-256 of the files of a finished stage, by name."""
        files = self._stages[stage]["files"]
        return {name: entry["sha256"] for name, entry in files.items()}

    def finish(
        self, stage: str, key: str, files: Iterable[Path], known: Mapping[Path, str] | None = None
    ) -> None:
        """Record ``stage`` with the files it wrote; ``known``: digests that need no reading."""
        listed, known = sorted(files), known or {}
        unread = [file for file in listed if file not in known]
        digests = {**known, **file_digests(unread, f"hashing the {stage}", self._progress)}
        entries = {
            file.relative_to(self.path).as_posix(): {"bytes": _size(file), "sha256": digests[file]}
            for file in listed
        }
        self._stages[stage] = {"key": key, "files": entries}
        self._whole[stage] = self.worked = True
        self._save()

    def discard(self, stage: str) -> None:
        """Remove the files that an earlier run of ``stage`` recorded, whole or not."""
        record = self._stages.get(stage, {"files": {}})
        for name in record["files"]:
            file = self.path / name
            file.unlink(missing_ok=True)
            while file.parent != self.path and _is_empty(file.parent):
                file.parent.rmdir()
                file = file.parent

    def end(self) -> None:
        """Record that the run has come to its end."""
        self._save(complete=True)

    def _is_whole(self, stage: str) -> bool:
        """Whether the files are those that were written; what is not is removed, and it is said."""
        if stage not in self._whole:
            files = self._stages[stage]["files"]
            lost = [
                name for name, entry in files.items() if _size(self.path / name) != entry["bytes"]
            ]
            rest = {name: entry for name, entry in files.items() if name not in lost}
            damaged = self._damaged(stage, rest)
            for name in damaged:
                self._progress.note(f"{self.path / name} changed after it was written: made again")
                (self.path / name).unlink()
            self._whole[stage] = not lost and not damaged
        return self._whole[stage]

    def _damaged(self, stage: str, files: Mapping[str, Mapping[str, Any]]) -> list[str]:
        total = sum(entry["bytes"] for entry in files.values())
        with self._progress.task(f"checking the {stage}", total, "bytes") as task:
            return [
                name
                for name, entry in files.items()
                if file_digest(self.path / name, task.advance) != entry["sha256"]
            ]

    def _adopt(self, fingerprint: str, command: str) -> None:
        if all(file.name in _FIRST for file in self.path.iterdir()):
            return
        state = self._record.read()
        if state is None:
            raise UserError(
                f"{self.path} is not empty and was not written by tenp-edge",
                "an empty or new directory for -o",
            )
        if state.get("format") != FORMAT:
            raise UserError(f"{self.path / FILE} was not written by tenp-edge", "another -o")
        other = str(state.get("fingerprint"))
        if other != fingerprint:
            raise UserError(
                f"{self.path} belongs to another model "
                f"({other[:12]}, this one is {fingerprint[:12]})",
                _OVERWRITE,
            )
        if state.get("complete") and state.get("command") != command:
            raise UserError(
                f"{self.path} holds a finished run with other settings",
                f"{self._reuse()}--force to overwrite it",
            )
        self.complete = bool(state.get("complete"))
        self._stages = _sound_stages(state.get("stages"))

    def _is_unfinished(self, command: str) -> bool:
        """Whether this very command was here and did not come to its end: --force continues it."""
        try:
            state = self._record.found()
        except UserError:
            return False
        return state is not None and state["command"] == command and not state["complete"]

    def _reuse(self) -> str:
        calibration = self.path / "calibration"
        if not (calibration / "statistics.json").is_file():
            return "another -o, or "
        return f"another -o with --calibration {calibration} (it is not made again), or "

    def _clear(self) -> None:
        """Delete what a run leaves behind, and nothing else."""
        licences = (file for pattern in LICENCES for file in self.path.glob(pattern))
        for target in [*(self.path / name for name in OUTPUTS), *licences]:
            if target.is_dir() and not target.is_symlink():
                shutil.rmtree(target)
            else:
                target.unlink(missing_ok=True)

    def _save(self, complete: bool = False) -> None:
        self._record.write({"stages": self._stages, "complete": complete})


def _is_empty(directory: Path) -> bool:
    return directory.is_dir() and not any(directory.iterdir())


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _sound_stages(stages: Any) -> dict[str, Any]:
    """The records that say all that is read of them. Older versions recorded sizes alone: such
    stages run again."""
    listed = stages.items() if isinstance(stages, dict) else ()
    return {stage: record for stage, record in listed if _is_sound(record)}


def _is_sound(record: Any) -> bool:
    try:
        entries = list(record["files"].values())
        numbers = [entry["bytes"] for entry in entries]
        names = [record["key"], *(entry["sha256"] for entry in entries)]
    except (KeyError, TypeError, AttributeError):
        return False
    return all(isinstance(n, int) for n in numbers) and all(isinstance(n, str) for n in names)
