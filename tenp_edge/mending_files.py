"""A mending on disk while it runs, so that a killed one continues.

DIR/mending.partial holds job.json (what is being made), the two streams between two layers, and of
every finished layer its tensors and its facts. The facts come last: a layer that has them is done.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tenp_edge.checkpoint import read_json, write_text
from tenp_edge.disk import require_free
from tenp_edge.mended import FILE, Mended, files_digest, layer_file
from tenp_edge.states import FileStates

PARTIAL = "mending.partial"
# Both streams before and after a layer, and the inputs of its experts.
_STATES = 5


@dataclass(frozen=True)
class MendingJob:
    """One mending on disk."""

    directory: Path
    info: dict[str, Any]
    shape: tuple[int, int, int]
    dtype: torch.dtype

    @property
    def partial(self) -> Path:
        return self.directory / PARTIAL

    def states(self, stream: str, layer: int) -> FileStates:
        """What enters ``layer`` in ``stream`` ("dense" or "mended")."""
        return FileStates(self.partial / f"{stream}-{layer}.bin", self.shape, self.dtype)

    def facts(self, layer: int) -> Path:
        return self.partial / f"layer-{layer}.json"

    def next_layer(self, layers: int) -> int | None:
        """The first layer that is not done, if its input is there; None to begin."""
        for layer in range(layers, -1, -1):
            ready = all(self.states(s, layer).file.is_file() for s in ("dense", "mended"))
            if ready and all(self.facts(before).is_file() for before in range(layer)):
                return layer
        return None


def open_job(
    directory: Path,
    info: dict[str, Any],
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    result_bytes: int,
) -> MendingJob:
    """Continue the mending of these inputs, or clear another one's remains and begin."""
    job = MendingJob(directory, info, shape, dtype)
    file = job.partial / "job.json"
    if file.is_file() and read_json(file) == info:
        return job
    clear(directory)
    require_free(directory, _STATES * job.states("dense", 0).nbytes + result_bytes, "mending")
    job.partial.mkdir(parents=True)
    write_text(file, json.dumps(info, indent=1) + "\n")
    return job


def clear(directory: Path) -> None:
    """Remove what mending left in ``directory``, and nothing else."""
    shutil.rmtree(directory / PARTIAL, ignore_errors=True)
    for file in [directory / FILE, *directory.glob("layer-*.safetensors")]:
        file.unlink(missing_ok=True)


def finish_job(job: MendingJob, moe_layers: Sequence[int]) -> Mended:
    """The layers' tensors get their place, then mended.json, then nothing partial."""
    facts = {layer: read_json(job.facts(layer)) for layer in moe_layers}
    files = [layer_file(job.directory, layer) for layer in moe_layers]
    for layer, file in zip(moe_layers, files, strict=True):
        if layer_file(job.partial, layer).is_file():  # else a killed run has moved it
            layer_file(job.partial, layer).replace(file)
    found = {
        **job.info,
        "digest": files_digest(files),
        "seconds": sum(row["seconds"] for row in facts.values()),
        "layers": {str(layer): row for layer, row in facts.items()},
    }
    write_text(job.directory / FILE, json.dumps(found, indent=1) + "\n")
    shutil.rmtree(job.partial)
    return Mended(job.directory)
