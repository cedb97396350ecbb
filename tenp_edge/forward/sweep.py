"""The sweep over a model's layers: all of a text through one layer, then through the next.

    embeddings -> states 0 -> layer 0 -> states 1 -> layer 1 -> ... -> states n -> output matrix

One layer's weights are in memory at a time, and the activations of one run of rows. What is between
two layers lies in memory or in files (`hidden_states`). Whoever wants to see more than the states
attaches a `LayerObserver` to each layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tenp_edge.checkpoint.source import WeightSource
from tenp_edge.forward.hidden_states import SPILL_BYTES, FileStates, MemoryStates, States
from tenp_edge.forward.streaming import StreamingModel, check_tokens
from tenp_edge.forward.text_batch import batches
from tenp_edge.models import ModelConfig
from tenp_edge.progress import QUIET, Progress

# Tokens that go through a layer at once: enough that every expert gets a large group, few enough
# that a batch's activations (about ten times its hidden states) stay near 300 MiB.
_BATCH_TOKENS = (4096, 8192)
_BATCH_ELEMENTS = 2**23


class LayerObserver:
    """Sees every run of rows go through one layer; what is not overridden does nothing."""

    def begin(self, run: slice) -> None:
        """The next forward is of these rows."""

    def forward(
        self, model: StreamingModel, layer: nn.Module, hidden: torch.Tensor
    ) -> torch.Tensor:
        """What the rows become, from ``hidden`` [n, seq, hidden], on the model's device."""
        return model.run(layer, hidden)

    def end(self, run: slice, output: torch.Tensor) -> None:
        """``output`` [n, seq, hidden]: of the forward that just ran, on the model's device."""

    def done(self, layer: nn.Module) -> None:
        """The last run is over; the layer is about to be freed."""


Attach = Callable[[nn.Module], LayerObserver]


@dataclass(frozen=True)
class Pass:
    """``runs`` of rows from ``before`` a layer to ``after`` it: the same states where nobody needs
    the old ones, None where what comes out is only looked at."""

    runs: Sequence[slice]
    before: States
    after: States | None


def run_layer(
    model: StreamingModel, index: int, passes: Sequence[Pass], attach: Attach | None = None
) -> None:
    """Layer ``index`` of ``model`` over all ``passes``. Its weights are read once, and gone when
    this returns: that is what bounds the peak.

    ``attach`` is given the layer before its first run.
    """
    layer = model.layer(index)
    observer = LayerObserver() if attach is None else attach(layer)
    for one in passes:
        for run in one.runs:
            hidden = one.before.read(run.start, run.stop).to(model.device)
            observer.begin(run)
            output = observer.forward(model, layer, hidden)
            observer.end(run, output)
            if one.after is not None:
                one.after.write(run.start, output.cpu())
    observer.done(layer)


def embed(
    model: StreamingModel, tokens: torch.Tensor, runs: Sequence[slice], states: States
) -> None:
    """What enters the first layer, of ``tokens`` [n, seq], to ``states``."""
    for run in runs:
        states.write(run.start, model.embed(tokens[run]))


def each_layer(
    count: int, step: Callable[[int], None], title: str, progress: Progress, start: int = 0
) -> None:
    """``step`` with every layer's number from ``start`` on."""
    with progress.task(title, count, "layers") as task:
        task.advance(start)
        for index in range(start, count):
            step(index)
            task.advance()


def sweep(
    model: StreamingModel,
    tokens: torch.Tensor,
    states: States,
    title: str,
    progress: Progress = QUIET,
    attach: Callable[[int, nn.Module], LayerObserver] | None = None,
) -> None:
    """``tokens`` [n, seq] through all layers; ``states`` hold at last what the output matrix gets.

    ``attach`` is given every layer and its number. Raises UserError for tokens that the model does
    not have.
    """
    check_tokens(model.config, tokens)
    runs = batches(len(tokens), tokens.shape[1], default_batch_tokens(model.config))
    embed(model, tokens, runs, states)

    def step(index: int) -> None:
        watch = None if attach is None else lambda layer: attach(index, layer)
        run_layer(model, index, [Pass(runs, states, states)], watch)

    each_layer(model.config.num_hidden_layers, step, title, progress)


def default_batch_tokens(config: ModelConfig) -> int:
    """Tokens that go through a layer of ``config`` at once."""
    min_tokens, max_tokens = _BATCH_TOKENS
    return min(max_tokens, max(min_tokens, _BATCH_ELEMENTS // config.hidden_size))


def open_states(
    shape: tuple[int, int, int], dtype: torch.dtype, work: Path | None, spill_bytes: int
) -> States:
    """Hidden states [n, seq, hidden]: in memory, or in a temporary file when large."""
    size = shape[0] * shape[1] * shape[2] * dtype.itemsize
    if work is None or size <= spill_bytes:
        return MemoryStates(torch.empty(shape, dtype=dtype))
    return FileStates(work / "hidden.partial", shape, dtype, temporary=True)


# -- logits ----------------------------------------------------------------------------------------

Sequences = Callable[[], Iterator[torch.Tensor]]


@contextmanager
def streamed(
    source: WeightSource,
    tokens: torch.Tensor,
    *,
    device: torch.device,
    dtype: torch.dtype,
    first_position: int = 0,
    progress: Progress = QUIET,
    work: Path | None = None,
    spill_bytes: int = SPILL_BYTES,
    name: str = "reference",
    attach: Callable[[int, nn.Module], LayerObserver] | None = None,
) -> Iterator[Sequences]:
    """Run every layer over ``tokens`` [n, seq]; what it yields gives, as often as it is called,
    float32 logits [seq - first_position, vocab] of each sequence in turn.

    Hidden states stay in memory, or in a file in ``work`` when they are above ``spill_bytes``.
    ``attach`` is given every layer and its number.
    """
    model = StreamingModel(source, device, dtype)
    shape = (*tokens.shape, source.config.hidden_size)
    with open_states(shape, dtype, work, spill_bytes) as states:
        sweep(model, tokens, states, f"{name} forward", progress, attach)

        def sequences() -> Iterator[torch.Tensor]:
            head = model.head()
            for number in range(len(tokens)):
                yield head(states.read(number, number + 1)[0, first_position:])

        yield sequences


def streaming_logits(
    source: WeightSource, tokens: torch.Tensor, **options: Any
) -> Iterator[torch.Tensor]:
    """The logits of `streamed`, once: float32 [seq - first_position, vocab] of each sequence of
    ``tokens`` [n, seq]; it has the options."""
    with streamed(source, tokens, **options) as sequences:
        yield from sequences()
