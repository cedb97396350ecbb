"""Quantised checkpoints are read as the reference decoder of their layout reads them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support import tiny
from support.plans import ragged_plan
from support.quantised import LAYOUTS, stored_in
from support.quantised_codes import Tensors

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.checkpoint.writer import write_checkpoint
from tenp_edge.models.inspection import inspect_model

EXPERTS = 3
Stored = tuple[str, Path, Tensors]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bf16 model, its sizes multiples of every group but not of every block."""
    return tiny.make(
        tmp_path_factory.mktemp("bf16"),
        "qwen3_moe",
        torch_dtype="bfloat16",
        num_hidden_layers=1,
        num_experts=EXPERTS,
    )


@pytest.fixture(scope="module", params=LAYOUTS)
def stored(
    request: pytest.FixtureRequest, original: Path, tmp_path_factory: pytest.TempPathFactory
) -> Stored:
    """(layout, model, what the reference reads): the original in every layout."""
    model = tmp_path_factory.mktemp("stored") / "model"
    return request.param, model, stored_in(request.param, original, model)


def test_equals_the_reference_bit_for_bit(stored: Stored) -> None:
    name, model, expected = stored
    checkpoint = Checkpoint(model)
    assert len(expected) == (2 if LAYOUTS[name].stacked else EXPERTS * 3 + 4)
    for weight, reference in expected.items():
        if LAYOUTS[name].stacked:
            whole = checkpoint.weights[weight]
            own = torch.stack([checkpoint._entry(whole, expert) for expert in range(EXPERTS)])
        else:
            own = checkpoint.read(weight)
        assert own.dtype == torch.bfloat16
        assert torch.equal(own, reference.bfloat16()), weight


def test_rows_are_read_alone(stored: Stored) -> None:
    checkpoint, name = Checkpoint(stored[1]), "model.layers.0.self_attn.q_proj.weight"
    whole = checkpoint.read(name)
    for start, stop in ((0, 1), (0, 128), (5, 43), (40, 41), (127, 128)):
        assert torch.equal(checkpoint.read_rows(name, start, stop), whole[start:stop])


def test_decoding_in_pieces_changes_nothing(
    stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, expert = "model.layers.0.self_attn.q_proj.weight", Checkpoint(stored[1]).expert(0, 1)
    whole = Checkpoint(stored[1]).read(name)
    monkeypatch.setattr("tenp_edge.checkpoint.files._DECODED_AT_ONCE", 1)
    assert torch.equal(Checkpoint(stored[1]).read(name), whole)
    again = Checkpoint(stored[1]).expert(0, 1)
    assert all(torch.equal(getattr(again, n), getattr(expert, n)) for n in ("gate", "up", "down"))


def test_inspect_counts_what_is_stored(stored: Stored, original: Path) -> None:
    name, model, _ = stored
    layout, summary, before = LAYOUTS[name], inspect_model(model), inspect_model(original)
    assert list(summary.quantised) == [layout.title] and not summary.left_out
    matrices = EXPERTS * 3 + 4
    assert summary.needless == matrices * len(layout.beside)
    assert summary.parameters == before.parameters and summary.bytes < before.bytes
    assert summary.active_parameters == before.active_parameters


def test_a_pruned_checkpoint_holds_the_decoded_numbers(
    stored: Stored, original: Path, tmp_path: Path
) -> None:
    """The cut takes the decoded rows, and bf16 is written."""
    name, model, _ = stored
    whole, before = Checkpoint(model), Checkpoint(original)
    plan = ragged_plan(whole)
    write_checkpoint(ModelSource(whole, plan), tmp_path / "pruned")
    pruned = Checkpoint(tmp_path / "pruned")
    assert "quantization_config" not in pruned.config.raw
    assert {tensor.dtype for tensor in pruned.tensors.values()} == {"BF16"}
    for expert in range(EXPERTS):
        own, cut = whole.expert(0, expert), pruned.expert(0, expert)
        kept = plan.neurons(0, expert) if cut.width < 96 else torch.arange(96)
        assert torch.equal(cut.gate, own.gate[kept]) and torch.equal(cut.up, own.up[kept])
        assert torch.equal(cut.down, own.down[:, kept])
        assert near(own.down, before.expert(0, expert).down)
    card = (tmp_path / "pruned" / "README.md").read_text()
    assert f"decoded from {LAYOUTS[name].title}." in card


def near(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Quantised by four bits or more, a matrix stays what it was."""
    return bool((one - other).float().norm() < 0.2 * other.float().norm())
