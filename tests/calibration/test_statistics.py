"""The sums are what hooks on the whole model see."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import plans, tiny
from support.calibrating import domain, run, two_domains
from support.neuron_maths import activations
from support.references import reference_model

from tenp_edge.calibration import statistics
from tenp_edge.calibration.input_observer import matrix_roles
from tenp_edge.calibration.merging import merge_statistics
from tenp_edge.calibration.statistics import EXPERT_SUMS, INPUT_SUM, NEURON_MAXIMA, NEURON_SUMS
from tenp_edge.calibration.storage import Statistics
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.forward.text_batch import Domain

# Of the experts' own, in transformers: what it is given is the residual stream.
_NORMS = ("pre_feedforward_layernorm_2", "post_attention_layernorm", "ffn_norm", "norm")
NAMES = (*EXPERT_SUMS, *NEURON_SUMS, *NEURON_MAXIMA)


def hooked_sums(path: Path, data: Domain) -> dict[int, dict[str, torch.Tensor]]:
    """Every sum of method.md, written down once more: hooks on the whole model, float64."""
    checkpoint = Checkpoint(path)
    model = reference_model(path, experts_implementation="eager")
    seen: dict[int, dict[str, Any]] = {layer: {} for layer in checkpoint.config.moe_layers}
    for layer, found in seen.items():
        block = model.model.layers[layer]
        own_norm = next(getattr(block, name) for name in _NORMS if hasattr(block, name))
        own_norm.register_forward_pre_hook(
            lambda _, args, found=found: found.update(h=args[0].flatten(0, -2))
        )
        tiny.experts_of(model, layer).register_forward_pre_hook(
            lambda _, args, found=found: found.update(x=args[0], index=args[1], gates=args[2])
        )
    config = checkpoint.config
    sums = {la: empty(config.num_experts, config.moe_intermediate_size) for la in seen}
    for tokens, length in zip(data.tokens, data.lengths, strict=True):
        with torch.no_grad():
            model(tokens[None, :length])
        for layer, found in seen.items():
            add_layer(sums[layer], checkpoint, layer, **found)
    return sums


def empty(experts: int, width: int) -> dict[str, torch.Tensor]:
    shapes = {name: (experts,) if name in EXPERT_SUMS else (experts, width) for name in NAMES}
    return {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}


def add_layer(
    sums: dict[str, torch.Tensor],
    checkpoint: Checkpoint,
    layer: int,
    h: torch.Tensor,
    x: torch.Tensor,
    index: torch.Tensor,
    gates: torch.Tensor,
) -> None:
    h, x, gates = h.double(), x.double(), gates.double()
    outputs: list[tuple[int, int, torch.Tensor]] = []
    routed = torch.zeros_like(x)
    for e in range(checkpoint.config.num_experts):
        weights = checkpoint.expert(layer, e)
        down, family = weights.down.double(), checkpoint.config.family
        bias = 0.0 if weights.down_bias is None else weights.down_bias.double()
        for t, slot in (index == e).nonzero().tolist():
            g = gates[t, slot]
            m = activations(family, weights, x[t])
            y = m @ down.T
            routed[t] += g * (y + bias)
            outputs.append((e, t, g * y.norm()))
            add_token(sums, e, h[t], x[t], m, y, g, down)
    for e, t, gated_norm in outputs:
        turned = 1 - torch.cosine_similarity(h[t], h[t] + routed[t], dim=0)
        sums["easy_ep"][e] += gated_norm * max(0.0, float(turned))


def add_token(
    sums: dict[str, torch.Tensor],
    e: int,
    h: torch.Tensor,
    x: torch.Tensor,
    m: torch.Tensor,
    y: torch.Tensor,
    g: torch.Tensor,
    down: torch.Tensor,
) -> None:
    norm = y.norm()
    p = m * (down.T @ y) / norm
    cosine, residual = (torch.cosine_similarity(a, b, dim=0) for a, b in ((x, y), (h, h + g * y)))
    values = {
        "tokens": torch.tensor(1.0),
        "gate": g,
        "output_norm": norm,
        "output_norm_sq": norm**2,
        "gated_norm": g * norm,
        "tenp": g * norm * (1 - cosine),
        "tenp_residual": g * norm * (1 - residual),
        "projection": p,
        "abs_projection": p.abs(),
        "gated_projection": g * p,
        "activation": m,
        "activation_sq": m**2,
        "gated_activation_sq": (g * m) ** 2,
        "relative_projection": g * p / h.norm(),
        "relative_activation_sq": (g * m) ** 2 / h.norm() ** 2,
    }
    for name, value in values.items():
        sums[name][e] += value
    peak = sums["gated_activation_max"]
    peak[e] = torch.maximum(peak[e], (g * m).abs())


def assert_same_sums(
    found: Statistics, name: str, layer: int, expected: Any, tolerance: float = 1e-4
) -> None:
    stats = found.layer(name, layer)
    for key in NAMES:
        scale = expected[key].abs().max().clamp_min(1e-12)
        error = float((stats[key] - expected[key]).abs().max() / scale)
        assert error < tolerance, f"{key} of layer {layer} is off by {error:.2e}"


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_streaming_equals_hooks(
    family: str, checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    path = checkpoint_of(family)
    found = run(path, tmp_path, [domain("code", 2, seq_len=24)])
    expected = hooked_sums(path, domain("code", 2, seq_len=24))
    assert found.layers == tuple(expected)
    for layer, sums in expected.items():
        assert_same_sums(found, "code", layer, sums)


def hooked_inputs(path: Path, data: Domain) -> dict[str, torch.Tensor]:
    """Sums of squares at every matrix, by its name, and at each expert ("1.0": layer.expert)."""
    model = reference_model(path, experts_implementation="eager")
    sums: dict[str, Any] = {}

    def add(name: str, rows: torch.Tensor) -> None:
        sums[name] = sums.get(name, 0) + rows.double().square().reshape(-1, rows.shape[-1]).sum(0)

    def add_experts(layer: int, x: torch.Tensor, index: torch.Tensor) -> None:
        for expert in range(Checkpoint(path).config.num_experts):
            add(f"{layer}.{expert}", x[(index == expert).any(1)])

    for layer, module in enumerate(model.model.layers):
        for name, child in module.named_modules():
            if isinstance(child, torch.nn.Linear):
                key = f"{layer}.{name}"
                child.register_forward_pre_hook(lambda _, args, key=key: add(key, args[0]))
        if layer in Checkpoint(path).config.moe_layers:
            tiny.experts_of(model, layer).register_forward_pre_hook(
                lambda _, args, layer=layer: add_experts(layer, args[0], args[1])
            )
    for tokens, length in zip(data.tokens, data.lengths, strict=True):
        with torch.no_grad():
            model(tokens[None, :length])
    return sums


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_inputs_equal_hooks(
    family: str, checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """What importance matrices are made of: of experts, attention, shared and dense layers."""
    checkpoint, data = Checkpoint(checkpoint_of(family)), domain("code", 2, seq_len=24)
    found = run(checkpoint.path, tmp_path, [data])
    expected = hooked_inputs(checkpoint.path, data)
    for layer in range(checkpoint.config.num_hidden_layers):
        roles = matrix_roles(checkpoint.config, layer)
        assert len(roles) >= 2
        for name, role in roles.items():
            sums = found.matrix_inputs("code", layer, role)
            assert sums is not None
            assert torch.allclose(sums, expected[f"{layer}.{name}"], rtol=1e-4), name
    for layer in found.layers:
        for expert, row in enumerate(found.layer("code", layer)[INPUT_SUM]):
            assert torch.allclose(row, expected[f"{layer}.{expert}"], rtol=1e-4)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_projections_add_up_to_the_output(
    family: str, checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """sum_k P_k = mean |y|; every real token is counted top-k times, padding never."""
    checkpoint = Checkpoint(checkpoint_of(family))
    found = run(checkpoint.path, tmp_path, two_domains())
    for layer in found.layers:
        for data in two_domains():
            stats = found.layer(data.name, layer)
            total = int(data.lengths.sum()) * checkpoint.config.num_experts_per_tok
            assert stats["tokens"].sum() == total
            assert torch.allclose(stats["projection"].sum(1), stats["output_norm"], rtol=1e-5)


def test_padding_changes_nothing(checkpoint_of: Callable[[str], Path], tmp_path: Path) -> None:
    path, padded = checkpoint_of("deepseek_v3"), domain("code", 1, seq_len=60)
    bare = Domain("code", padded.tokens[:, :40], padded.lengths)
    found = run(path, tmp_path / "padded", [padded])
    alone = run(path, tmp_path / "bare", [bare])
    assert found.info["domains"] == {"code": {"samples": 1, "tokens": 40}}
    for layer in found.layers:
        assert_same_sums(found, "code", layer, alone.layer("code", layer), 1e-5)


def test_halves_merged_are_the_whole(checkpoint_of: Callable[[str], Path], tmp_path: Path) -> None:
    path, whole = checkpoint_of("qwen2_moe"), domain("code", 6)
    halves = [Domain("code", whole.tokens[part], whole.lengths[part]) for part in HALVES]
    parts = [run(path, tmp_path / str(n), [half]) for n, half in enumerate(halves)]
    parts.append(run(path, tmp_path / "prose", [domain("prose", 2, seed=1)]))
    merged = merge_statistics(parts, tmp_path / "merged")
    everything = run(path, tmp_path / "whole", [whole])
    assert merged.info["domains"]["code"] == everything.info["domains"]["code"]
    assert merged.domains == ("code", "prose")
    for layer in everything.layers:
        assert_same_sums(merged, "code", layer, everything.layer("code", layer), 1e-5)
        for name in ("q", "o", "shared_down"):
            both = (s.matrix_inputs("code", layer, name) for s in (merged, everything))
            assert torch.allclose(*both)  # type: ignore[arg-type]
        inputs = (s.layer("code", layer)[INPUT_SUM] for s in (merged, everything))
        assert torch.allclose(*inputs)


HALVES = (slice(0, 2), slice(2, 6))


def test_bfloat16_is_near_float32(checkpoint_of: Callable[[str], Path], tmp_path: Path) -> None:
    path = checkpoint_of("olmoe")
    exact = run(path, tmp_path / "exact", two_domains())
    rough = run(path, tmp_path / "rough", two_domains(), dtype="bfloat16")
    assert rough.info["dtype"] == "bfloat16"
    first = exact.layers[0]  # later layers may route a token differently
    for name in ("output_norm", "projection", "activation_sq"):
        a, b = (s.layer("code", first)[name] for s in (exact, rough))
        assert 0 < float((a - b).norm() / a.norm()) < 0.05, name


def test_weight_norms(checkpoint_of: Callable[[str], Path], tmp_path: Path) -> None:
    checkpoint = Checkpoint(checkpoint_of("mixtral"))
    norms = run(checkpoint.path, tmp_path, two_domains()).weight_norms(1)
    weights = checkpoint.expert(1, 3)
    assert torch.allclose(norms["gate_norm"][3], weights.gate.double().norm(dim=1))
    assert torch.allclose(norms["up_norm"][3], weights.up.double().norm(dim=1))
    assert torch.allclose(norms["down_norm"][3], weights.down.double().norm(dim=0))


def test_a_small_turn_is_not_rounding_noise() -> None:
    """1 - cos of a tiny output on a large stream, where subtraction in float32 gives 0."""
    h = torch.tensor([[3.0, 4.0, 0.0]])
    w = torch.tensor([[0.0, 0.0, 5e-4]])
    turn = statistics._turn(h.norm(dim=1), (h * w).sum(1), w.norm(dim=1), residual=True)
    exact = 1 - 1 / (1 + 1e-8) ** 0.5
    assert abs(float(turn) / exact - 1) < 1e-5


def test_later_layers_see_what_a_plan_leaves(
    checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """The first MoE layer's sums stay, the others change; a plan that cuts nothing changes none."""
    checkpoint = Checkpoint(checkpoint_of("qwen3_moe"))
    plan, data = plans.ragged_plan(checkpoint), [domain("code", 2)]
    whole = run(checkpoint.path, tmp_path / "whole", data)
    after = run(checkpoint.path, tmp_path / "after", data, plan=plan)
    assert after.info["pruned_by"] == plan.digest
    first, *later = whole.layers
    for name in NAMES:
        assert torch.equal(after.layer("code", first)[name], whole.layer("code", first)[name])
    for layer in later:
        assert not torch.equal(
            after.layer("code", layer)["gate"], whole.layer("code", layer)["gate"]
        )
    same = run(checkpoint.path, tmp_path / "same", data, plan=plans.whole_plan(checkpoint))
    for layer in whole.layers:
        assert_same_sums(same, "code", layer, whole.layer("code", layer), tolerance=1e-6)
