"""TENP as published, transcribed from its equations over single tokens, against what is planned.

The transcription knows nothing of the calibration: transformers' own model runs whole, hooks note
what router and experts receive and return, and every equation is written out in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny
from support.neuron_maths import activations, weights_in
from transformers import AutoModelForCausalLM

from tenp_edge.calibration.collect import calibrate
from tenp_edge.checkpoint.files import Checkpoint, ExpertWeights
from tenp_edge.evaluation.comparison.compared_methods import METHODS, Case
from tenp_edge.evaluation.variants import Planned
from tenp_edge.forward.text_batch import Domain
from tenp_edge.models import Family
from tenp_edge.scoring.saliency import expert_scores, neuron_scores

FAMILIES = ("qwen3_moe", "qwen2_moe", "deepseek_v3", "gpt_oss", "gemma4_text", "nemotron_h")
Sums = dict[tuple[str, int, int], tuple[torch.Tensor, torch.Tensor]]


def domains() -> list[Domain]:
    generator = torch.Generator().manual_seed(3)
    return [
        Domain(name, torch.randint(0, 384, (4, 40), generator=generator), torch.full((4,), 40))
        for name in ("code", "prose")
    ]


def equations(path: Path, texts: list[Domain]) -> Sums:
    """(domain, layer, expert) -> I_e and P_k [width] of one domain, from single tokens."""
    model: Any = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, experts_implementation="eager"
    ).eval()
    config = Checkpoint(path).config
    layers, family = config.moe_layers, config.family
    seen: dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}
    for index in layers:
        experts = tiny.experts_of(model, index)

        def note(module: Any, arguments: tuple[torch.Tensor, ...], at: int = index) -> None:
            seen[at] = (arguments[0], arguments[1], arguments[2])

        experts.register_forward_pre_hook(note)
    found: Sums = {}
    for domain in texts:
        with torch.no_grad():
            model(input_ids=domain.tokens)
        for index in layers:
            x, chosen, weight = seen[index]
            for expert in range(config.num_experts):
                found[domain.name, index, expert] = one_expert(
                    x.double(),
                    chosen == expert,
                    weight.double(),
                    weights_in(model, family, index, expert),
                    family,
                )
    return found


def one_expert(
    x: torch.Tensor,
    chosen: torch.Tensor,
    weight: torch.Tensor,
    weights: ExpertWeights,
    family: Family,
) -> tuple[torch.Tensor, torch.Tensor]:
    """I_e = sum g |y| (1 - cos(x, y));  P_k = mean of m_k <W_down[:, k], y> / |y|, signed.

    y = W_down m, without the bias that some families add."""
    down, tokens = weights.down.double(), 0
    importance, neurons = torch.zeros(()).double(), torch.zeros(down.shape[1]).double()
    for token, slot in chosen.nonzero().tolist():
        m = activations(family, weights, x[token])
        y = down @ m
        g, norm = weight[token, slot], y.norm()
        importance = importance + g * norm * (1 - x[token] @ y / (x[token].norm() * norm))
        neurons += m * torch.stack([column @ y for column in down.T]) / norm
        tokens += 1
    return importance, neurons / max(tokens, 1)


def over_domains(rows: list[torch.Tensor]) -> torch.Tensor:
    """L2-normalised per domain, then added; a domain that never reached the expert adds nothing."""
    return torch.stack([row / row.norm() if row.norm() else row for row in rows]).sum(0)


def published_plan(
    importance: dict[int, torch.Tensor],
    neurons: dict[int, torch.Tensor],
    rho: float,
    full: int,
) -> dict[tuple[int, int], set[int]]:
    """alpha = rho / 2 whole, beta = (rho - alpha) / (1 - alpha), whole experts linear in depth from
    1 to 2 by largest remainders: (layer, expert) -> kept neurons."""
    layers = sorted(importance)
    experts = len(importance[layers[0]])
    alpha = rho / 2
    whole = math.floor(alpha * experts * len(layers) + 0.5)
    beta = (rho * experts * len(layers) - whole) / (experts * len(layers) - whole)
    width = math.floor(beta * full + 1e-9)
    depth = [1 + i / (len(layers) - 1) for i in range(len(layers))]
    exact = [w / sum(depth) * whole for w in depth]
    assert max(exact) < experts
    counts = [math.floor(value) for value in exact]
    by_remainder = sorted(range(len(layers)), key=lambda i: counts[i] - exact[i])
    for i in by_remainder[: whole - sum(counts)]:
        counts[i] += 1
    kept = {}
    for layer, count in zip(layers, counts, strict=True):
        order = importance[layer].argsort(descending=True).tolist()
        for expert in range(experts):
            best = neurons[layer][expert].argsort(descending=True).tolist()
            kept[layer, expert] = set(best[: full if expert in order[:count] else width])
    return kept


@pytest.mark.parametrize("family", FAMILIES)
def test_tenp_is_what_was_published(
    family: str, checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    path, texts = checkpoint_of(family), domains()
    checkpoint = Checkpoint(path)
    statistics = calibrate(checkpoint, texts, tmp_path, device="cpu", dtype="float32")
    sums = equations(path, texts)
    experts = range(checkpoint.config.num_experts)
    importance, neurons = {}, {}
    for layer in checkpoint.config.moe_layers:
        importance[layer] = over_domains(
            [torch.stack([sums[d.name, layer, e][0] for e in experts]) for d in texts]
        )
        neurons[layer] = torch.stack(
            [over_domains([sums[d.name, layer, e][1] for d in texts]) for e in experts]
        )
        # Both are sums of vectors of length 1.
        found = expert_scores(statistics, layer, "tenp")
        torch.testing.assert_close(found, importance[layer], rtol=0, atol=1e-6)
        found = neuron_scores(statistics, layer, "enp")
        torch.testing.assert_close(found, neurons[layer], rtol=0, atol=1e-6)

    case = Case(checkpoint, statistics, width_multiple=1, seed=0)
    for rho in (0.75, 0.5):
        cut = METHODS["tenp"].build(case, int(rho * case.space.total_neurons))
        assert isinstance(cut.candidate, Planned) and cut.candidate.plan is not None
        plan = cut.candidate.plan
        expected = published_plan(importance, neurons, rho, case.space.full)
        assert {key: set(kept.tolist()) for key, kept in plan.retained.items()} == expected  # type: ignore[union-attr]
        assert rho - 1 / case.space.full < plan.keep_ratio <= rho
