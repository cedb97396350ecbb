"""A computation that takes a text through a model layer by layer, on disk (`resumable`).

DIR/NAME.partial holds job.json (which job it is), the hidden states between two layers, and a
result of every finished layer. A layer is done when its result and what enters the next layer are
there under their final names: the same call after a kill repeats at most one layer and ends with
the same bytes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from tenp_edge.disk import require_free
from tenp_edge.errors import UserError
from tenp_edge.forward.hidden_states import FileStates, whole_file
from tenp_edge.forward.sweep import each_layer
from tenp_edge.progress import Progress
from tenp_edge.resumable import JobRecord

Found = TypeVar("Found")
Streams = Mapping[str, FileStates]


@dataclass(frozen=True)
class LayerJob:
    """One such computation in ``directory``.

    ``info``: everything that decides what comes out, JSON values; ``layers``: the first so many of
    the model; ``streams``: names of the hidden states, of ``shape`` [n, seq, hidden] each;
    ``suffix``: of a layer's result.
    """

    directory: Path
    name: str
    info: Mapping[str, Any]
    layers: int
    streams: tuple[str, ...]
    shape: tuple[int, int, int]
    dtype: torch.dtype
    suffix: str

    @property
    def partial(self) -> Path:
        """Where work in progress lies."""
        return self.directory / f"{self.name}.partial"

    @property
    def states_bytes(self) -> int:
        """Of one stream between two layers."""
        return self.states(0)[self.streams[0]].nbytes

    def states(self, layer: int) -> Streams:
        """What enters ``layer``, by stream."""
        return {
            name: FileStates(self.partial / f"{name}-{layer}.bin", self.shape, self.dtype)
            for name in self.streams
        }

    def result(self, layer: int) -> Path:
        """What ``layer`` gives; written by its step, atomically."""
        return self.partial / f"layer-{layer}{self.suffix}"

    @property
    def results(self) -> list[Path]:
        """Of all layers, in their order."""
        return [self.result(layer) for layer in range(self.layers)]

    @property
    def record(self) -> JobRecord:
        """Of which job the work in progress is."""
        return JobRecord(self.partial / "job.json", self.info)

    def begin(self, needed_bytes: int, what: str) -> None:
        """Forget any unfinished job. Raises UserError without ``needed_bytes`` on the disk."""
        self.discard()
        require_free(self.directory, needed_bytes, what)
        self.partial.mkdir(parents=True)
        self.record.write()

    def discard(self) -> None:
        """Remove work in progress."""
        shutil.rmtree(self.partial, ignore_errors=True)

    def load_finished(
        self, file: str, load: Callable[[], Found], again: str, progress: Progress
    ) -> Found | None:
        """What ``load`` finds of a finished job whose record is ``file``; where that is damaged
        it is said, and that the work is done ``again``."""
        if not (self.directory / file).is_file():
            return None
        try:
            return load()
        except (UserError, FileNotFoundError) as error:
            progress.note(f"{str(error).splitlines()[0]}; {again}")
            return None

    def next_layer(self) -> int | None:
        """The first layer that is not done; None where not even the embeddings are there."""
        for layer in range(self.layers, -1, -1):
            done = all(self.result(before).is_file() for before in range(layer))
            ready = all(states.file.is_file() for states in self.states(layer).values())
            if done and (ready or layer == self.layers):
                return layer
        return None

    def run(
        self,
        embed: Callable[[FileStates], None],
        step: Callable[[int, Streams, Streams], None],
        title: str,
        done: str,
        progress: Progress,
    ) -> None:
        """Every layer that is not ``done`` ("calibrated"): ``step`` reads what enters it, writes
        what comes out and its result. ``embed`` fills each stream before the first."""
        start = self.next_layer()
        if start is None:
            start = 0
            for states in self.states(0).values():
                with whole_file(states) as partial:
                    embed(partial)
        elif start:
            progress.note(f"continuing: {start} of {self.layers} layers are {done}")

        def one(index: int) -> None:
            before = self.states(index)
            with ExitStack() as stack:
                after = {
                    name: stack.enter_context(whole_file(states))
                    for name, states in self.states(index + 1).items()
                }
                step(index, before, after)
            for states in before.values():
                states.file.unlink()

        each_layer(self.layers, one, title, progress, start)
