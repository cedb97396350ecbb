"""Many plans in one forward measure what each would alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import plans
from support.calibrating import domain

from tenp_edge.checkpoint.compression_plan import CompressionPlan
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.evaluation.divergence import concatenate, score_tokens, scored_positions
from tenp_edge.evaluation.evaluator import STATES, DenseStates, LayerCache
from tenp_edge.evaluation.measured_variants import Measured, measure_variants
from tenp_edge.evaluation.variants import DENSE, OtherWeights, Planned
from tenp_edge.forward.hidden_states import CachedFileStates
from tenp_edge.forward.sweep import streaming_logits
from tenp_edge.forward.text_batch import Domain

CPU: dict[str, Any] = {"device": torch.device("cpu"), "dtype": torch.float32}


def measured_plans(
    checkpoint: Checkpoint, chosen: list[CompressionPlan], data: list[Domain], **how: Any
) -> list[Measured]:
    variants = [Planned(plan) for plan in chosen]
    return measure_variants(LayerCache(checkpoint.path), variants, data, **CPU, **how)


def alone(checkpoint: Checkpoint, plan: CompressionPlan, data: Domain) -> float:
    """Mean KL of one plan, both models run by themselves."""
    runs = [
        list(streaming_logits(ModelSource(checkpoint, by), data.tokens, **CPU))  # type: ignore[arg-type]
        for by in (None, plan)
    ]
    scores = []
    for p, q, tokens, length in zip(*runs, data.tokens, data.lengths.tolist(), strict=True):
        places = scored_positions(length)
        rows = slice(places.start, places.stop)
        targets = tokens[places.start + 1 : places.stop + 1]
        scores.append(score_tokens(p[rows], q[rows], targets))
    return float(concatenate(scores).kl.mean())


def one_layer(checkpoint: Checkpoint, layer: int) -> CompressionPlan:
    """Only ``layer`` is cut."""
    full = checkpoint.config.moe_intermediate_size
    widths = plans.cycled(checkpoint, (full,))
    widths[layer] = tuple(full // 3 for _ in widths[layer])
    return plans.plan_for(checkpoint, widths)


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v2"])
@pytest.mark.parametrize("spill_bytes", [2**30, 0])
def test_together_is_alone(
    checkpoint_of: Callable[[str], Path], tmp_path: Path, family: str, spill_bytes: int
) -> None:
    checkpoint = Checkpoint(checkpoint_of(family))
    data = [domain("code", 2, seq_len=24), domain("prose", 1, seq_len=16, seed=1)]
    chosen = [
        plans.ragged_plan(checkpoint),
        one_layer(checkpoint, checkpoint.config.moe_layers[-1]),
        plans.removal_plan(checkpoint, checkpoint.config.num_experts - 2),
        plans.whole_plan(checkpoint),
    ]
    how = {"work": tmp_path, "spill_bytes": spill_bytes, "dense": DenseStates()}
    found = measured_plans(checkpoint, chosen, data, **how)
    assert found[1:2] == measured_plans(checkpoint, chosen[1:2], data, **how)  # beside the kept
    for plan, measured in zip(chosen, found, strict=True):
        for row, own in zip(measured.domains, data, strict=True):
            assert row.mean_kl == pytest.approx(alone(checkpoint, plan, own), rel=1e-4, abs=1e-9)
    assert found[0].mean_kl > 0 == found[3].mean_kl
    assert found[0].mean_kl == sum(row.mean_kl for row in found[0].domains) / 2
    assert list(tmp_path.iterdir()) == []


def test_equal_layers_run_once(
    checkpoint_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plans that cut only the last layer share the first two with the dense model: 2 + 3 runs."""
    from tenp_edge.forward.streaming import StreamingModel

    checkpoint = Checkpoint(checkpoint_of("qwen3_moe"))
    ran, run = [], StreamingModel.run

    def counted(self: StreamingModel, layer: torch.nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        ran.append(layer)
        return run(self, layer, hidden)

    monkeypatch.setattr(StreamingModel, "run", counted)
    widths = plans.cycled(checkpoint, (96,))
    widths[2] = (32,) * 8
    chosen = [one_layer(checkpoint, 2), plans.plan_for(checkpoint, widths, seed=1)]
    measured_plans(checkpoint, chosen, [domain("code", 1, seq_len=16)])
    assert len(ran) == 2 + 3


def test_no_more_hidden_states_than_models(
    checkpoint_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three plans and the dense model in four files at most; equal plans share theirs."""
    checkpoint = Checkpoint(checkpoint_of("qwen3_moe"))
    widths = [plans.cycled(checkpoint, (width,)) for width in (32, 48, 64)]
    chosen = [plans.plan_for(checkpoint, row) for row in (*widths, widths[0])]
    seen: set[str] = set()
    write = CachedFileStates.write

    def noted(self: CachedFileStates, start: int, hidden: torch.Tensor) -> None:
        write(self, start, hidden)
        seen.update(file.name for file in (tmp_path / STATES).iterdir())

    monkeypatch.setattr(CachedFileStates, "write", noted)
    found = measured_plans(checkpoint, chosen, [domain("code", 2)], work=tmp_path, spill_bytes=0)
    assert len(seen) == 4
    assert found[0] == found[3] != found[1]


def test_what_makes_two_layers_alike(checkpoint_of: Callable[[str], Path]) -> None:
    checkpoint = Checkpoint(checkpoint_of("deepseek_v2"))
    cut, again = (Planned(plans.ragged_plan(checkpoint)) for _ in range(2))
    (dense, moe), other = (0, checkpoint.config.moe_layers[0]), Planned(one_layer(checkpoint, 2))
    assert cut.key(moe) == again.key(moe) != other.key(moe) == DENSE
    assert cut.key(dense) == cut.key(None) == DENSE
    source = ModelSource(checkpoint)
    assert OtherWeights(source, "Q8_0").key(None) == OtherWeights(source, "Q8_0", (1,)).key(1)
    assert OtherWeights(source, "Q8_0", (1,), ends=False).key(None) == DENSE
    assert OtherWeights(source, "Q8_0", (1,)).key(0) == DENSE
    assert OtherWeights(source, "Q8_0").key(1) != OtherWeights(source, "Q4_0").key(1)
