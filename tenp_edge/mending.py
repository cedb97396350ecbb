"""Mending a pruned model without its gradients: repair and healing, one decoder layer at a time.

Two hidden streams run over the calibration text: the dense model's, and the mended model's. So a
later layer is mended on what the earlier cuts really leave it, towards what the dense layer gives.
`ridge` has the closed form, `healing` the training; this is the walk over the layers.

The same call after a kill repeats at most one layer and ends with the same bytes
(`mending_files`). Finished, DIR holds what `mended.Mended` reads.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import pad

from tenp_edge.checkpoint import Checkpoint, read_json, write_text
from tenp_edge.data import Domain
from tenp_edge.errors import UserError
from tenp_edge.forward import (
    StreamingModel,
    batches,
    check_tokens,
    choose_device,
    choose_dtype,
    default_batch_tokens,
)
from tenp_edge.healing import HEALS, LayerText, heal_layer, held_out, relative_error
from tenp_edge.locking import one_writer
from tenp_edge.mended import FILE, FORMAT, VERSION, LayerChanges, Mended, layer_file
from tenp_edge.mending_files import PARTIAL, MendingJob, finish_job, open_job
from tenp_edge.plan import CompressionPlan
from tenp_edge.progress import QUIET, Progress
from tenp_edge.repair import RoutedInputs, repair_layer
from tenp_edge.ridge import RIDGE
from tenp_edge.source import ModelSource
from tenp_edge.states import SPILL_BYTES, FileStates, whole_file
from tenp_edge.statistics import write_tensors

# What the stages cost, in forwards of the same text: three runs of each layer and the moments;
# a backward pass counts as two.
_REPAIR_FORWARDS, _HEAL_FORWARDS = 4, 14


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
    for domain in domains:
        check_tokens(checkpoint.config, domain.tokens)
    where = choose_device(device)
    kind = "float32" if dtype == "auto" or rules.heal is not None else dtype
    text = _Text.of(domains)
    info = _info(checkpoint, plan, text, rules, seed, kind)
    chosen = choose_dtype(kind, where, checkpoint.dtype)
    shape = (*text.tokens.shape, checkpoint.config.hidden_size)
    with one_writer(directory):
        finished = _finished(directory, info, progress)
        if finished is not None:
            return finished
        job = open_job(directory, info, shape, chosen, mended_bytes(checkpoint, plan, rules))
        walk = _Walk(job, checkpoint, plan, text, rules, seed, where)
        walk.run(progress)
        return finish_job(job, checkpoint.config.moe_layers)


@dataclass(frozen=True)
class _Text:
    """All domains' sequences, one domain after the other, ``counts`` of each.

    tokens: [n, seq]; active: [n, seq] bool, False on padding.
    """

    tokens: torch.Tensor
    active: torch.Tensor
    counts: tuple[int, ...]

    @classmethod
    def of(cls, domains: Sequence[Domain]) -> _Text:
        width = max(domain.tokens.shape[1] for domain in domains)
        padded = [pad(domain.tokens, (0, width - domain.tokens.shape[1])) for domain in domains]
        lengths = torch.cat([domain.lengths for domain in domains])
        active = torch.arange(width)[None] < lengths[:, None]
        return cls(torch.cat(padded), active, tuple(len(tokens) for tokens in padded))

    @property
    def digest(self) -> str:
        state = hashlib.sha256(self.tokens.numpy().tobytes() + self.active.numpy().tobytes())
        return state.hexdigest()


def _info(
    checkpoint: Checkpoint,
    plan: CompressionPlan,
    text: _Text,
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
        "tokens": int(text.active.sum()),
        "data_sha256": text.digest,
    }


def _finished(directory: Path, info: dict[str, Any], progress: Progress) -> Mended | None:
    """What is in ``directory`` if it is whole and was made from these very inputs."""
    if not (directory / FILE).is_file():
        return None
    try:
        raw = read_json(directory / FILE)
        if {key: raw.get(key) for key in info} != info:
            return None
        found = Mended(directory)
        found.check()
    except (UserError, FileNotFoundError) as error:
        progress.note(f"{str(error).splitlines()[0]}; mending again")
        return None
    shutil.rmtree(directory / PARTIAL, ignore_errors=True)
    return found


# -- the layers ------------------------------------------------------------------------------------


class _Walk:
    """The two streams, layer by layer."""

    def __init__(
        self,
        job: MendingJob,
        checkpoint: Checkpoint,
        plan: CompressionPlan,
        text: _Text,
        rules: MendRules,
        seed: int,
        device: torch.device,
    ) -> None:
        self.job, self.checkpoint, self.plan, self.text = job, checkpoint, plan, text
        self.rules, self.seed = rules, seed
        self.dense = StreamingModel(ModelSource(checkpoint), device, job.dtype)
        self.cut = self.dense.with_source(ModelSource(checkpoint, plan))
        most = default_batch_tokens(checkpoint.config)
        self.runs = batches(len(text.tokens), text.tokens.shape[1], most)

    def run(self, progress: Progress) -> None:
        layers = self.checkpoint.config.num_hidden_layers
        start = self.job.next_layer(layers)
        if start is None:
            start = 0
            self._embed()
        elif start:
            progress.note(f"continuing: {start} of {layers} layers are mended")
        with progress.task("mending", layers, "layers") as task:
            task.advance(start)
            for index in range(start, layers):
                self._layer(index)
                task.advance()

    def _embed(self) -> None:
        for stream in ("dense", "mended"):
            with whole_file(self.job.states(stream, 0)) as partial:
                for run in self.runs:
                    partial.write(run.start, self.dense.embed(self.text.tokens[run]))

    def _layer(self, index: int) -> None:
        """Both streams through one layer; its files get their names when they are complete."""
        started = time.monotonic()
        job = self.job
        before = {stream: job.states(stream, index) for stream in ("dense", "mended")}
        after = {stream: job.states(stream, index + 1) for stream in before}
        facts: dict[str, Any] = {}
        with whole_file(after["dense"]) as targets, whole_file(after["mended"]) as mended:
            self._pass(self.dense, index, before["dense"], targets)
            if index in self.checkpoint.config.moe_layers:
                facts = self._mend(index, before["mended"], targets, mended)
            else:
                self._pass(self.dense, index, before["mended"], mended)
        facts["seconds"] = round(time.monotonic() - started, 3)
        write_text(job.facts(index), json.dumps(facts) + "\n")
        for states in before.values():
            states.file.unlink()

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
            text = LayerText(inputs, targets, self.text.active, held_out(self.text.counts))
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
        layer = model.layer(index)
        if seen is not None:
            seen.attach(layer)
        losses = []
        for run in self.runs:
            output = model.run(layer, inputs.read(run.start, run.stop).to(model.device)).cpu()
            onward.write(run.start, output)
            if targets is not None:
                wanted, active = targets.read(run.start, run.stop), self.text.active[run]
                losses.append(relative_error(output, wanted)[active])
                if seen is not None:
                    seen.finish(wanted.float().norm(dim=-1))
        return float(torch.cat(losses).double().mean()) if losses else 0.0
