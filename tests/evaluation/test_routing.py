"""Routing before and after: the same experts are counted, by the numbers of the whole model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.gguf_cases import export
from support.plans import ragged_plan, removal_plan
from support.validating import domains_of

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.checkpoint.writer import write_checkpoint
from tenp_edge.disk import write_json
from tenp_edge.evaluation.routing import Choices, overlap
from tenp_edge.evaluation.validation import ValidationReport, load_report, validate
from tenp_edge.forward.text_batch import Domain, TextBatch

CheckpointOf = Callable[[str], Path]


def chosen(config: object, layer: list[list[list[int]]], experts: int) -> Choices:
    made = Choices(config, rows=10)  # type: ignore[arg-type]
    made.by_layer[3] = [torch.tensor(layer, dtype=torch.int16)]
    return made


def test_the_share_of_the_same_experts_over_real_tokens(checkpoint_of: CheckpointOf) -> None:
    config = Checkpoint(checkpoint_of("qwen3_moe")).config
    domain = Domain("a", torch.zeros(1, 3, dtype=torch.int64), torch.tensor([2]))
    batch = TextBatch.of([domain])
    left = chosen(config, [[[0, 1], [2, 3], [4, 5]]], 8)
    right = chosen(config, [[[1, 0], [3, 6], [0, 1]]], 8)  # the last token is padding
    found = overlap(left, right, batch)
    assert found is not None and (found.tokens, dict(found.layers)) == (2, {"3": 0.75})
    numbers = {3: torch.tensor([1, 0, 2, 6, 3, 4, 5, 7])}
    renamed = overlap(left, right, batch, numbers)
    assert renamed is not None and renamed.layers["3"] == 0.5


def judged(model: Path, candidate: Path, **more: bool) -> ValidationReport:
    domains = domains_of(model)
    return validate(model, candidate, domains, device="cpu", dtype="float32", threads=1, **more)


def test_a_pruned_checkpoint_and_its_file_route_alike(
    checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    model = checkpoint_of("qwen3_moe")
    checkpoint = Checkpoint(model)
    source = ModelSource(checkpoint, ragged_plan(checkpoint))
    write_checkpoint(source, tmp_path / "checkpoint")
    export(source, tmp_path / "model.gguf", "F32", "per-expert")
    files = tmp_path / "checkpoint", tmp_path / "model.gguf"
    pruned, file = (judged(model, candidate) for candidate in files)
    assert pruned.routing is not None and file.routing is not None
    layers = sorted(checkpoint.config.expert_widths)
    assert list(pruned.routing.layers) == [str(layer) for layer in layers]
    assert pruned.routing.layers[str(layers[0])] == 1.0  # nothing was lost before it
    assert pruned.routing.layers[str(layers[-1])] < 1.0
    for layer, share in pruned.routing.layers.items():
        assert file.routing.layers[layer] == pytest.approx(share, abs=0.01)
    assert judged(model, tmp_path / "model.gguf", split=False).routing is None
    write_json(tmp_path / "validation.json", file.to_json())
    assert load_report(tmp_path / "validation.json") == file


def test_removed_experts_keep_the_numbers_of_the_whole(
    checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    model = checkpoint_of("qwen3_moe")
    plan = removal_plan(Checkpoint(model), 5)
    plan.save(tmp_path / "plan.json")
    source = ModelSource(Checkpoint(model), plan)
    export(source, tmp_path / "model.gguf", "F32", "merged")
    found = judged(model, tmp_path / "model.gguf").routing
    assert found is not None
    first = min(plan.widths)
    kept = set(plan.kept_experts(first))
    assert 0 < len(kept) < len(plan.widths[first])
    # At least the chosen ones that stayed are chosen again in the first layer: the logits of those
    # that stay are the same, and fewer compete.
    whole = judged(model, model)
    assert whole.routing is not None and set(whole.routing.layers.values()) == {1.0}
    assert 0.2 < found.layers[str(first)] < 1.0
