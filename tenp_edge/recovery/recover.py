"""Mending a pruned model without its gradients: repair and healing, one decoder layer at a time.

Two hidden streams run over the calibration text: the dense model's, and the mended model's. So a
later layer is mended on what the earlier cuts really leave it, towards what the dense layer gives.
`reconstruction` has the closed form, `healing` the training; this is the walk over the layers.

Work in progress lies in DIR/mending.partial (`layer_job`), with the facts of every finished layer
and its tensors. Finished, DIR holds what `overlay.Mended` reads.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tenp_edge.calibration.storage import write_tensors
from tenp_edge.checkpoint.compression_plan import CompressionPlan
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.locking import one_writer
from tenp_edge.checkpoint.overlay import (
    FILE,
    FORMAT,
    VERSION,
    LayerChanges,
    Mended,
    files_digest,
    layer_file,
)
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.disk import read_json, write_json
from tenp_edge.errors import UserError
from tenp_edge.forward.device import choose_device, choose_dtype
from tenp_edge.forward.hidden_states import SPILL_BYTES, FileStates
from tenp_edge.forward.layer_job import LayerJob, Streams
from tenp_edge.forward.streaming import StreamingModel, check_tokens
from tenp_edge.forward.sweep import LayerObserver, Pass, default_batch_tokens, embed, run_layer
from tenp_edge.forward.text_batch import Domain, TextBatch
from tenp_edge.progress import QUIET, Progress
from tenp_edge.recovery.healing import HEALS, LayerText, heal_layer, held_out, relative_error
from tenp_edge.recovery.reconstruction import RIDGE, RoutedInputs, repair_layer
from tenp_edge.resumable import JobRecord

# What the stages cost, in forwards of the same text: three runs of each layer and the moments;
# a backward pass counts as two.
_REPAIR_FORWARDS, _HEAL_FORWARDS = 4, 14
_DENSE, _MENDED = "dense", "mended"
_STATES = 5  # on disk: both streams before and after a layer, and the inputs of its experts


@dataclass(frozen=True)
class MendRules:
    """``repair``: refit W_down of cut experts with this ``repair_ridge``; ``heal``: what is
    distilled after it, a key of `healing.HEALS`, or None."""

    repair: bool = True
    repair_ridge: float = RIDGE
    heal: str | None = None

    @property
    def forwards(self) -> int:
        """About how many forwards of the text it takes."""
        return _REPAIR_FORWARDS + (_HEAL_FORWARDS if self.heal else 0)

    def check(self) -> None:
        """Raise UserError for what cannot be done."""
        if not 0 < self.repair_ridge < float("inf"):
            raise UserError(
                f"--set repair-ridge={self.repair_ridge:g} is not above 0",
                f"--set repair-ridge={RIDGE:g}",
            )
        if self.heal is not None and self.heal not in HEALS:
            raise UserError(f"--set heal={self.heal} is not known", f"--set heal={'|'.join(HEALS)}")


def mended_bytes(checkpoint: Checkpoint, plan: CompressionPlan, rules: MendRules) -> int:
    """About what the mended tensors take on disk: the down projections of all cut experts."""
    if not rules.repair:
        return 0
    cut = sum(w for row in plan.widths.values() for w in row if w < plan.full_width)
    return cut * checkpoint.config.hidden_size * checkpoint.dtype.itemsize


def mend(
    checkpoint: Checkpoint,
    plan: CompressionPlan,
    domains: Sequence[Domain],
    directory: Path,
    rules: MendRules,
    *,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
    progress: Progress = QUIET,
) -> Mended:
    """The mended tensors of what ``plan`` leaves of ``checkpoint``, in ``directory``.

    Continues, or returns what is already there. In float32 unless asked otherwise, and always so
    for healing: bf16 flips near-tied routing, which would be learned from. Memory: one layer's
    weights, a batch's activations, the inputs of one layer's experts (in a file when above 1 GiB),
    and one expert's second moments, width^2 float64 (32 MiB at 2048).
    Raises UserError for rules that cannot be followed, and for text that is too little or not the
    model's.
    """
    rules.check()
    if rules.heal is not None and all(len(domain.tokens) < 2 for domain in domains):
        raise UserError(
            "heal holds text out, and no domain has 2 chunks", "--samples 8 and more text"
        )
    text = TextBatch.of(domains)
    check_tokens(checkpoint.config, text.tokens)
    where = choose_device(device)
    kind = "float32" if dtype == "auto" or rules.heal is not None else dtype
    info = _info(checkpoint, plan, text, rules, seed, kind)
    chosen = choose_dtype(kind, where, checkpoint.dtype)
    shape = (*text.tokens.shape, checkpoint.config.hidden_size)
    layers = checkpoint.config.num_hidden_layers
    job = LayerJob(directory, "mending", info, layers, (_DENSE, _MENDED), shape, chosen, ".json")
    with one_writer(directory):
        finished = _finished(job, progress)
        if finished is not None:
            return finished
        if job.record.found() is None:
            _clear(directory)
            needed = _STATES * job.states_bytes + mended_bytes(checkpoint, plan, rules)
            job.begin(needed, "mending")
        walk = _Walk(job, checkpoint, plan, text, rules, seed, where)
        job.run(walk.embed, walk.layer, "mending", "mended", progress)
        return _finish(job, checkpoint.config.moe_layers)


def _info(
    checkpoint: Checkpoint,
    plan: CompressionPlan,
    text: TextBatch,
    rules: MendRules,
    seed: int,
    dtype: str,
) -> dict[str, Any]:
    """mended.json: everything that decides the weights."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "fingerprint": checkpoint.fingerprint,
        "plan_digest": plan.digest,
        **asdict(rules),
        "seed": seed,
        "dtype": dtype,
        "tokens": text.token_count,
        "data_sha256": text.digest,
    }


def _finished(job: LayerJob, progress: Progress) -> Mended | None:
    """What is in the directory if it is whole and was made from these very inputs."""

    def load() -> Mended | None:
        if _record(job).found() is None:
            return None
        mended = Mended(job.directory)
        mended.check()
        return mended

    mended = job.load_finished(FILE, load, "mending again", progress)
    if mended is not None:
        job.discard()
    return mended


def _record(job: LayerJob) -> JobRecord:
    """mended.json: what the weights were made from, and what it gained."""
    return JobRecord(job.directory / FILE, job.info, dict.fromkeys(("digest", "seconds", "layers")))


def _clear(directory: Path) -> None:
    """Remove what an earlier mending left in ``directory``, and nothing else."""
    for file in [directory / FILE, *directory.glob("layer-*.safetensors")]:
        file.unlink(missing_ok=True)


def _finish(job: LayerJob, moe_layers: Sequence[int]) -> Mended:
    """The layers' tensors get their place, then mended.json, then nothing partial."""
    facts = {layer: read_json(job.result(layer)) for layer in moe_layers}
    files = [layer_file(job.directory, layer) for layer in moe_layers]
    for layer, file in zip(moe_layers, files, strict=True):
        if layer_file(job.partial, layer).is_file():  # else a killed run has moved it
            layer_file(job.partial, layer).replace(file)
    done = {
        "digest": files_digest(files),
        "seconds": sum(row["seconds"] for row in facts.values()),
        "layers": {str(layer): row for layer, row in facts.items()},
    }
    _record(job).write(done)
    job.discard()
    return Mended(job.directory)


# -- the layers ------------------------------------------------------------------------------------


class _Walk:
    """The two streams, layer by layer."""

    def __init__(
        self,
        job: LayerJob,
        checkpoint: Checkpoint,
        plan: CompressionPlan,
        text: TextBatch,
        rules: MendRules,
        seed: int,
        device: torch.device,
    ) -> None:
        self.job, self.checkpoint, self.plan, self.text = job, checkpoint, plan, text
        self.rules, self.seed = rules, seed
        self.dense = StreamingModel(ModelSource(checkpoint), device, job.dtype)
        self.cut = self.dense.with_source(ModelSource(checkpoint, plan))
        self.runs = text.runs(default_batch_tokens(checkpoint.config))

    def embed(self, states: FileStates) -> None:
        """What enters the first layer, the same in both streams."""
        embed(self.dense, self.text.tokens, self.runs, states)

    def layer(self, index: int, before: Streams, after: Streams) -> None:
        """Both streams through one layer, and what was done to it."""
        started = time.monotonic()
        facts: dict[str, Any] = {}
        self._pass(self.dense, index, before[_DENSE], after[_DENSE])
        if index in self.checkpoint.config.moe_layers:
            facts = self._mend(index, before[_MENDED], after[_DENSE], after[_MENDED])
        else:
            self._pass(self.dense, index, before[_MENDED], after[_MENDED])
        facts["seconds"] = round(time.monotonic() - started, 3)
        write_json(self.job.result(index), facts, indent=None)

    def _mend(
        self, index: int, inputs: FileStates, targets: FileStates, onward: FileStates
    ) -> dict[str, Any]:
        """Mend layer ``index``; what the next layer gets goes to ``onward``."""
        facts: dict[str, Any] = {}
        changes: dict[str, torch.Tensor] = {}
        source = ModelSource(self.checkpoint, self.plan)
        with RoutedInputs(self.text.active, self.cut, self.job.partial, SPILL_BYTES) as seen:
            facts["loss_cut"] = self._pass(self.cut, index, inputs, onward, targets, seen)
            if self.rules.repair:
                changes |= repair_layer(self.cut, source, index, seen, self.rules.repair_ridge)
        facts["repaired"] = len(changes)
        facts["loss"] = facts["loss_cut"]
        if changes:
            facts["loss"] = self._pass(self._with(changes), index, inputs, onward, targets)
        if self.rules.heal is not None:
            begun, model = time.monotonic(), self._with(changes)
            counts = [len(span) for span in self.text.spans.values()]
            text = LayerText(inputs, targets, self.text.active, held_out(counts))
            healed = heal_layer(model, source, index, self.rules.heal, text, self.seed)
            facts["held_out"] = [healed.before, healed.after]
            facts["heal_seconds"] = round(time.monotonic() - begun, 3)
            changes |= healed.tensors
            if healed.tensors:
                facts["loss"] = self._pass(self._with(changes), index, inputs, onward, targets)
        write_tensors(layer_file(self.job.partial, index), changes)
        return facts

    def _with(self, changes: dict[str, torch.Tensor]) -> StreamingModel:
        source = ModelSource(self.checkpoint, self.plan, mended=LayerChanges(changes))
        return self.cut.with_source(source)

    def _pass(
        self,
        model: StreamingModel,
        index: int,
        inputs: FileStates,
        onward: FileStates,
        targets: FileStates | None = None,
        seen: RoutedInputs | None = None,
    ) -> float:
        """Layer ``index`` of ``model`` from ``inputs`` to ``onward``; its mean loss against
        ``targets`` (0 without). ``seen`` takes down what its experts receive."""
        judge = None if targets is None else _Judge(self.text, targets, seen)
        passes = [Pass(self.runs, inputs, onward)]
        run_layer(model, index, passes, None if judge is None else judge.attach)
        return 0.0 if judge is None else judge.loss


class _Judge(LayerObserver):
    """What a layer's output loses against ``targets``, [n, seq, hidden]; ``seen`` takes down what
    its experts receive."""

    def __init__(self, text: TextBatch, targets: FileStates, seen: RoutedInputs | None) -> None:
        self.text, self.targets, self.seen = text, targets, seen
        self.losses: list[torch.Tensor] = []

    def attach(self, layer: nn.Module) -> LayerObserver:
        if self.seen is not None:
            self.seen.attach(layer)
        return self

    def end(self, run: slice, output: torch.Tensor) -> None:
        targets, active = self.targets.read(run.start, run.stop), self.text.active[run]
        self.losses.append(relative_error(output.cpu(), targets)[active])
        if self.seen is not None:
            self.seen.finish(targets.float().norm(dim=-1))

    @property
    def loss(self) -> float:
        """Mean over the real tokens."""
        return float(torch.cat(self.losses).double().mean())
