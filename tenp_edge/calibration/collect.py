"""Calibration: tokens in, statistics out, one decoder layer at a time; resumes after a kill.

Work in progress lies in DIR/calibration.partial (`layer_job`), with one file of sums per finished
layer. Finished, DIR holds statistics.safetensors and .json.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tenp_edge.calibration.coverage import coverage, warn_coverage
from tenp_edge.calibration.expert_observer import observe
from tenp_edge.calibration.input_observer import InputObserver, matrix_roles
from tenp_edge.calibration.order_priors import ORDER_PRIORS
from tenp_edge.calibration.statistics import make_empty
from tenp_edge.calibration.storage import (
    DIGEST,
    VERSION,
    Statistics,
    check_fingerprint,
    drop_damaged_gradients,
    input_tensors,
    join_files,
    layer_tensors,
    load_statistics,
    write_tensors,
)
from tenp_edge.checkpoint.compression_plan import CompressionPlan
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.locking import one_writer
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.errors import UserError
from tenp_edge.forward.device import choose_device, choose_dtype
from tenp_edge.forward.experts import routed_experts, weight_norms
from tenp_edge.forward.hidden_states import FileStates
from tenp_edge.forward.layer_job import LayerJob, Streams
from tenp_edge.forward.streaming import StreamingModel, check_tokens
from tenp_edge.forward.sweep import LayerObserver, Pass, default_batch_tokens, embed, run_layer
from tenp_edge.forward.text_batch import Domain, TextBatch
from tenp_edge.progress import QUIET, Progress
from tenp_edge.resumable import JobRecord

_STATES = "hidden"


def calibrate(
    checkpoint: Checkpoint,
    domains: Sequence[Domain],
    directory: Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    seed: int = 0,
    batch_tokens: int | None = None,
    progress: Progress = QUIET,
    plan: CompressionPlan | None = None,
) -> Statistics:
    """Statistics of ``domains`` in ``directory``; continues or returns what is already there.

    With ``plan`` every layer is observed whole, but passes on what the pruned one would: later
    layers see what earlier cuts leave them.
    ``seed`` is only recorded: it says how the domains were sampled. Raises UserError when the
    directory belongs to another model or another process writes to it, or the tokens do not fit
    the model or the disk.
    """
    target = choose_device(device)
    chosen = choose_dtype(dtype, target, checkpoint.dtype)
    batch_tokens = batch_tokens or default_batch_tokens(checkpoint.config)
    text = _checked(checkpoint, domains)
    info = _info(checkpoint, text, seed, chosen, batch_tokens)
    info |= {} if plan is None else {"pruned_by": plan.digest}
    shape = (*text.tokens.shape, checkpoint.config.hidden_size)
    layers, result = max(checkpoint.config.moe_layers) + 1, ".safetensors"
    job = LayerJob(directory, "calibration", info, layers, (_STATES,), shape, chosen, result)
    with one_writer(directory):
        finished = _finished(job, progress)
        if finished is not None:
            return finished
        _open(job)
        model = StreamingModel(ModelSource(checkpoint), target, chosen)
        onward = None if plan is None else model.with_source(ModelSource(checkpoint, plan))
        _run(job, model, onward, text, batch_tokens, progress)
        statistics = _finish(job)
    warn_coverage(coverage(statistics), progress)
    return statistics


# -- what is being calculated ----------------------------------------------------------------------


def _checked(checkpoint: Checkpoint, domains: Sequence[Domain]) -> TextBatch:
    """``domains`` as one batch, if they can be calibrated on."""
    if not checkpoint.config.is_uniform:
        raise UserError(
            "the checkpoint is already pruned; calibration needs the original",
            "the checkpoint it was made from",
        )
    if not domains or any(not len(domain.tokens) for domain in domains):
        raise UserError("there is nothing to calibrate on", "--data NAME=FILE")
    text = TextBatch.of(domains)
    check_tokens(checkpoint.config, text.tokens)
    return text


def _info(
    checkpoint: Checkpoint,
    text: TextBatch,
    seed: int,
    dtype: torch.dtype,
    batch_tokens: int,
) -> dict[str, Any]:
    """statistics.json: everything that decides the sums."""
    config = checkpoint.config
    return {
        "format": "tenp-edge statistics",
        "version": VERSION,
        "fingerprint": checkpoint.fingerprint,
        "model_type": config.family.model_type,
        "layers": list(config.moe_layers),
        "experts": config.num_experts,
        "width": config.moe_intermediate_size,
        "hidden": config.hidden_size,
        "joint": dict(ORDER_PRIORS),
        "domains": {
            name: {"samples": len(span), "tokens": int(text.lengths[span.start : span.stop].sum())}
            for name, span in text.spans.items()
        },
        "seq_len": text.seq_len,
        "seed": seed,
        "dtype": str(dtype).removeprefix("torch."),
        "batch_tokens": batch_tokens,
        "data_sha256": text.digest,
    }


def _finished(job: LayerJob, progress: Progress) -> Statistics | None:
    """The statistics in the directory if they are whole and of these very inputs."""
    stored = job.load_finished(
        "statistics.json", lambda: load_statistics(job.directory), "calibrating again", progress
    )
    if stored is None:
        return None
    check_fingerprint(job.directory, stored.info, job.info["fingerprint"], "another -o")
    if _record(job).found() is None:
        return None
    job.discard()
    return stored


def _record(job: LayerJob) -> JobRecord:
    """statistics.json: what the sums are of, and the digest of their file."""
    return JobRecord(job.directory / "statistics.json", job.info, {DIGEST: None})


def _open(job: LayerJob) -> None:
    """Continue the calibration of these inputs, or clear another one's remains and begin."""
    begun = job.record.read()
    if begun is not None and begun.get("fingerprint") != job.info["fingerprint"]:
        raise UserError(
            f"{job.directory} holds the unfinished calibration of another checkpoint",
            "another output directory, or delete this one",
        )
    if job.record.found() is None:
        job.begin(2 * job.states_bytes + _sums_bytes(job.info), "calibration")


def _sums_bytes(info: Mapping[str, Any]) -> int:
    """Twice the statistics (layer files and the whole), all float32: per domain 9 sums a neuron
    and one a hidden feature, which the other matrices' inputs hardly add to; norms and joint order
    once."""
    experts, domains = len(info["layers"]) * info["experts"], len(info["domains"])
    values = info["width"] * (9 * domains + 8) + info["hidden"] * domains
    return int(2 * 4 * experts * values)


# -- the layers ------------------------------------------------------------------------------------


def _run(
    job: LayerJob,
    model: StreamingModel,
    onward: StreamingModel | None,
    text: TextBatch,
    batch_tokens: int,
    progress: Progress,
) -> None:
    """Every layer over all sequences. ``onward`` gives the layer whose output the next one
    receives, where it is another: then each of the two is in memory in its turn."""
    runs = text.domain_runs(batch_tokens)

    def step(index: int, before: Streams, after: Streams) -> None:
        named: dict[str, torch.Tensor] = {}

        def attach(layer: nn.Module) -> LayerObserver:
            return _Collector(model, layer, index, text, job.info, named)

        target = after[_STATES] if index + 1 < job.layers else None
        seen = None if onward is not None else target
        run_layer(model, index, [Pass(runs, before[_STATES], seen)], attach)
        if onward is not None and target is not None:
            run_layer(onward, index, [Pass(runs, before[_STATES], target)])
        write_tensors(job.result(index), named)

    def begin(states: FileStates) -> None:
        embed(model, text.tokens, runs, states)

    job.run(begin, step, "calibrating", "calibrated", progress)


class _Collector(LayerObserver):
    """All that is summed up in one layer, into ``named`` by stored names when it is done."""

    def __init__(
        self,
        model: StreamingModel,
        layer: nn.Module,
        index: int,
        text: TextBatch,
        info: Mapping[str, Any],
        named: dict[str, torch.Tensor],
    ) -> None:
        self.index, self.text, self.named = index, text, named
        self.active = text.active.to(model.device)
        self.sums = {
            name: make_empty(info["experts"], info["width"], info["hidden"])
            for name in info["domains"]
        }
        self.inputs = InputObserver(layer, matrix_roles(model.config, index))
        self.experts = (
            observe(layer, model.config, index, info) if index in info["layers"] else None
        )

    def begin(self, run: slice) -> None:
        active, domain = self.active[run].reshape(-1), self.text.domain_of(run)
        self.inputs.begin(domain, active)
        if self.experts is not None:
            self.experts.begin(self.sums[domain], active, domain, run.stop - run.start)

    def end(self, run: slice, output: torch.Tensor) -> None:
        if self.experts is not None:
            self.experts.after(output)

    def done(self, layer: nn.Module) -> None:
        if self.experts is not None:
            self.experts.end()
            norms = weight_norms(routed_experts(layer))
            use = self.experts.sequence_use()
            orders = self.experts.eliminations(self.sums, norms)
            rounding = self.experts.roundings(self.sums)
            means = self.experts.mean_outputs(self.sums)
            self.named |= layer_tensors(self.index, self.sums, norms, orders, use, rounding, means)
        self.named |= input_tensors(self.index, self.inputs.sums)


# -- the end ---------------------------------------------------------------------------------------


def _finish(job: LayerJob) -> Statistics:
    """One file of all layers; then the JSON; then nothing partial."""
    # Old statistics lose their JSON first: a pair of different runs must never be read as one.
    record = _record(job)
    record.file.unlink(missing_ok=True)
    record.write({DIGEST: join_files(job.results, job.directory / "statistics.safetensors")})
    job.discard()
    drop_damaged_gradients(job.directory)
    return load_statistics(job.directory, fresh=True)
