"""Weights as a file would hold them, against those read back from the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support import plans, tiny
from support.calibrating import domain, run

from tenp_edge.calibration.imatrix import Importance
from tenp_edge.calibration.storage import Statistics
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource, StoredModel, WeightSource
from tenp_edge.exporters.base import ExportData, ExportOptions, Requantiser
from tenp_edge.exporters.gguf import EXPORTER


def assert_same(held: WeightSource, stored: StoredModel) -> None:
    """Tensor by tensor, whole, by rows and by expert, bit for bit."""
    assert held.config == stored.config
    assert list(held.tensors) == list(stored.tensors)
    for name, spec in stored.tensors.items():
        assert torch.equal(held.read(name), stored.read(name)), name
        if spec.role in ("embed", "output"):
            assert torch.equal(held.read_rows(name, 3, 9), stored.read_rows(name, 3, 9))
            assert torch.equal(held.held(name)(5, 40), stored.held(name)(5, 40))
    for layer in held.config.moe_layers:
        ours, theirs = held.expert(layer, 1), stored.expert(layer, 1)
        assert ours.parts.keys() == theirs.parts.keys()
        assert all(torch.equal(ours.parts[name], theirs.parts[name]) for name in ours.parts)


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("layout", ["per-expert", "padded"])
def test_every_family(
    checkpoint_of: Callable[[str], Path], tmp_path: Path, family: str, layout: str
) -> None:
    checkpoint = Checkpoint(checkpoint_of(family))
    source = ModelSource(checkpoint, plans.ragged_plan(checkpoint))
    options = ExportOptions("Q4_K_M", layout)
    EXPORTER.write(source, options, tmp_path / "model.gguf")
    assert isinstance(EXPORTER, Requantiser)
    held = EXPORTER.requantised(source, options)
    assert_same(held, EXPORTER.read_back(tmp_path / "model.gguf", checkpoint.config))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Statistics]:
    """A model wide enough for the blocks of 256, and its statistics."""
    directory = tmp_path_factory.mktemp("wide")
    sizes = {"hidden_size": 256, "moe_intermediate_size": 256, "num_experts": 4}
    sizes |= {"num_hidden_layers": 2}
    checkpoint = Checkpoint(tiny.make(directory / "model", "qwen3_moe", **sizes))
    return checkpoint, run(checkpoint.path, directory / "work", [domain("code", 2)])


@pytest.mark.parametrize("quant", ["F16", "Q8_0", "Q5_K_M", "IQ4_XS", "Q4_0", "Q3_K_M", "Q2_K"])
def test_every_type_with_an_importance_matrix(
    measured: tuple[Checkpoint, Statistics], tmp_path: Path, quant: str
) -> None:
    checkpoint, statistics = measured
    source, data = ModelSource(checkpoint), ExportData(Importance(statistics))
    options = ExportOptions(quant, "per-expert", imatrix=True)
    EXPORTER.write(source, options, tmp_path / "model.gguf", data)
    assert isinstance(EXPORTER, Requantiser)
    held = EXPORTER.requantised(source, options, data)
    assert_same(held, EXPORTER.read_back(tmp_path / "model.gguf", checkpoint.config))
