"""What a plan says about itself: how it was made, what it predicts, what it needs."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from tenp_edge.calibration.text_kind import is_one_kind
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.plan_record import PlanRecord, TrapezoidRecord
from tenp_edge.models import ModelConfig, expected_tensors
from tenp_edge.planning.budget.allocators import Tenp
from tenp_edge.planning.budget.search import Search
from tenp_edge.planning.measured.kl_law import predicted_kl
from tenp_edge.planning.memory.pricing import Priced
from tenp_edge.planning.memory.table import decode_tokens_per_second
from tenp_edge.planning.options.devices import device_words
from tenp_edge.units import format_size, percent


def memory_json(search: Search, priced: Priced) -> dict[str, Any]:
    """The memory table of the plan's run, as JSON values."""
    target = search.spec.target
    return {
        **priced.memory.to_json(),
        "device": target.profile.name,
        "context": target.run.context,
        "kv_type": target.run.kv_type,
        "ubatch": target.run.ubatch,
        "tokens_per_second": round(_speed(search, priced), 2),
    }


def _speed(search: Search, priced: Priced) -> float:
    """Decode speed, with the routed experts weighted by use where the statistics say so.

    Fixed shapes compute all of them.
    """
    target, relative = search.spec.target, 1.0
    if target.options.layout in target.exporter.fixed_layouts:
        relative = priced.config.num_experts / priced.config.num_experts_per_tok
    elif search.evidence is not None and not priced.config.is_uniform:
        active = _active_ratio(search, priced)
        relative = 1.0 if active is None else active / priced.keep_ratio
    return decode_tokens_per_second(
        priced.config, priced.manifest, target.profile, target.run, relative
    )


def _active_ratio(search: Search, priced: Priced) -> float | None:
    if search.evidence is None:
        return None
    places = search.pricer.keeps_places
    return search.evidence.active_ratio(priced.widths, priced.full_width, places)


def make_record(checkpoint: Checkpoint, search: Search, priced: Priced) -> PlanRecord:
    """How the plan was made and what it predicts."""
    spec, evidence = search.spec, search.evidence
    options, target, widths = spec.options, spec.target, priced.widths
    file, keep = target.options, priced.keep_ratio
    trapezoid = _trapezoid(search, priced) if keep < 1 else None
    return PlanRecord(
        method=spec.method.name,
        allocation=spec.allocated.allocation,
        keep_ratio_target=keep if options.keep is None else options.keep,
        keep_ratio=keep,
        fits_whole=keep == 1.0,
        budget_bytes=target.budget_bytes if options.keep is None else options.budget_bytes,
        width_multiple=target.width_multiple,
        format=target.exporter.format,
        layout=priced.manifest.layout,
        quant=priced.manifest.quant,
        imatrix=file.imatrix,
        tensor_types=file.tensor_types,
        shard_bytes=file.shard_bytes,
        latent_cache=file.latent_cache,
        lengths=None if file.lengths is None else asdict(file.lengths),
        targets=file.targets,
        expert_score=options.expert_score if evidence else None,
        neuron_score=evidence.scores.neuron if evidence else None,
        seed=options.seed,
        layer_retention={
            str(layer): sum(row) / (len(row) * priced.full_width) for layer, row in widths.items()
        },
        model_retention=_parameters(priced.config) / _parameters(checkpoint.config),
        trapezoid=trapezoid,
        chosen_by=None if trapezoid is None else _chosen_by(search),
        active_ratio=_active_ratio(search, priced),
        predicted_loss=None if evidence is None else evidence.predicted_loss(widths),
        predicted_kl=None if evidence is None else search.kl_of(widths),
        predicted_kl_range=None if evidence is None else search.kl_range_of(widths),
        type_shares=None if priced.types is None else priced.manifest.type_shares,
        unreached=() if evidence is None else tuple(evidence.unreached),
        notes=tuple(_notes(search, priced)),
    )


def _chosen_by(search: Search) -> str:
    return "bytes with the paper's shape" if search.choice is None else "predicted loss"


def _trapezoid(search: Search, priced: Priced) -> TrapezoidRecord | None:
    """alpha, beta and the shape, as they really are in the widths; None for other allocations."""
    allocator, options = search.allocator, search.spec.options
    if not isinstance(allocator, Tenp):
        return None
    full, shape = allocator.space.full, allocator.shape
    whole = tuple(sum(w == full for w in row) for row in priced.widths.values())
    narrow = min(min(row) for row in priced.widths.values())
    return TrapezoidRecord(
        whole_share=sum(whole) / allocator.space.total_experts,
        whole_experts=whole,
        narrow_width=narrow,
        beta=narrow / full,
        shallow=shape.shallow,
        deep=shape.deep,
        middle=shape.middle,
        slope=shape.deep - shape.shallow,
        pinned=tuple(
            name
            for name in ("whole_share", "shallow", "deep", "middle")
            if getattr(options, name) is not None
        ),
    )


def _notes(search: Search, priced: Priced) -> list[str]:
    """What a reader of the plan should know, in sentences."""
    spec, evidence = search.spec, search.evidence
    target, notes = spec.target, list(priced.manifest.notes)
    if spec.options.context is None and target.run.context < target.profile.context:
        notes.append(
            f"planned for a context of {target.run.context}: the model knows no more "
            f"({device_words(target.profile.name)} would take {target.profile.context})"
        )
    if priced.keep_ratio == 1.0:
        notes.append("the full model fits: nothing is cut")
    elif evidence is None and spec.method.allocation != "uniform":
        notes.append(
            "planned by bytes alone, without calibration: the first experts of a layer stand for "
            "the best ones"
        )
    if spec.allocated is not spec.method:
        notes.append("the merged layout takes one width for all experts: uniform allocation")
    if evidence is not None and evidence.scores.block > 1 and priced.keep_ratio < 1:
        blocked, single = (
            predicted_kl(loss, search.measured) for loss in evidence.block_losses(priced.widths)
        )
        notes.append(
            f"neurons stay in whole blocks of {evidence.scores.block}, so that down keeps its "
            f"bytes: predicted KL {blocked:.2g}, of as many single neurons {single:.2g}"
        )
    if evidence is not None and evidence.unreached:
        notes.append(
            f"no calibration token reached {len(evidence.unreached)} experts: they are ranked "
            "last and keep their neurons of the largest norm"
        )
    if evidence is not None and priced.keep_ratio < 1 and is_one_kind(evidence.statistics):
        notes.append(
            "the calibration saw one kind of text: the plan is for that kind. --protect much keeps "
            "more for others, at the cost of this one"
        )
    return notes


def blocks_chosen(plain: Priced, blocks: Priced, multiple: int) -> tuple[str, ...]:
    """Said of a plan in whole ``blocks``: what as many neurons take at the bytes a neuron of the
    ``plain`` one, whose widths are smaller multiples."""
    per_neuron = plain.memory.experts_bytes / plain.keep_ratio
    saved = round(per_neuron * blocks.keep_ratio) - blocks.memory.experts_bytes
    # A padded file is as wide as its widest expert: there blocks may save nothing.
    saves = f", which saves {format_size(saved)}" if saved > 0 else ""
    fit, others = percent(blocks.keep_ratio), percent(plain.keep_ratio)
    return (
        f"widths are multiples of {multiple}, whole blocks of {blocks.manifest.quant}{saves}: "
        f"{fit} of the neurons fit, of other widths {others}",
    )


def blocks_offered(plain: Search, blocks: Search) -> tuple[str, ...]:
    """Said where the whole model fits: what experts of whole blocks would save."""
    full, width = plain.space.full, blocks.space.full
    if full == width:
        return ()
    whole, narrower = (s.pricer(s.widths(s.total)).memory.weights_bytes for s in (plain, blocks))
    quant, keep = plain.spec.target.options.quant, math.ceil(1e4 * width / full) / 1e4
    return (
        f"experts of {full} neurons are no whole blocks of {quant}: with {width} "
        f"({percent(width / full)}) the weights take {format_size(whole - narrower)} less; --quant "
        f"{quant} --method enp --keep {keep} instead of --ram cuts them so",
    )


def _parameters(config: ModelConfig) -> int:
    return sum(math.prod(spec.shape) for spec in expected_tensors(config))
