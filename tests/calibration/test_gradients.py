"""The layer-by-layer backward pass against autograd on the whole model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.calibrating import StopAfter, StoppedError, files_of
from support.noting import Notes, names

from tenp_edge.calibration.collect import calibrate
from tenp_edge.calibration.gradients import collect_gradients
from tenp_edge.calibration.statistics import GRADIENT_SUMS
from tenp_edge.calibration.storage import load_statistics
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.forward.experts import ExpertGroup
from tenp_edge.forward.text_batch import Domain
from tenp_edge.forward.transformers_model import model_of
from tenp_edge.progress import QUIET, Progress


def domains() -> list[Domain]:
    """Two domains; the last sequence of each is padded."""
    generator = torch.Generator().manual_seed(2)
    made = []
    for name, count in (("code", 3), ("prose", 2)):
        tokens = torch.randint(0, 384, (count, 32), generator=generator)
        lengths = torch.full((count,), 32)
        tokens[-1, 20:], lengths[-1] = 0, 20
        made.append(Domain(name, tokens, lengths))
    return made


class _Keeper:
    """Keeps every group of a layer, and the gradient that comes to its output."""

    def __init__(self) -> None:
        self.groups: list[ExpertGroup] = []

    def expert(self, group: ExpertGroup) -> None:
        group.padded_y.retain_grad()
        self.groups.append(group)

    def routed(self, chosen: torch.Tensor, output: torch.Tensor) -> None:
        pass


def whole_model(path: Path, domain: Domain) -> dict[int, dict[str, torch.Tensor]]:
    """The sums of one domain from one backward through the whole model."""
    checkpoint = Checkpoint(path)
    model: Any = model_of(ModelSource(checkpoint), torch.float32)
    keepers = {layer: _Keeper() for layer in checkpoint.config.moe_layers}
    for layer, keeper in keepers.items():
        model.model.layers[layer].mlp.experts.observer = keeper
    model.model.embed_tokens.weight.requires_grad_(True)
    loss = torch.zeros(())
    for tokens, length in zip(domain.tokens, domain.lengths.tolist(), strict=True):
        logits = model(input_ids=tokens[None, :length]).logits[0, :-1]
        loss = loss + torch.nn.functional.cross_entropy(logits, tokens[1:length], reduction="sum")
    loss.backward()
    shape = (checkpoint.config.num_experts, checkpoint.config.moe_intermediate_size)
    found = {}
    for layer, keeper in keepers.items():
        sums = {name: torch.zeros(shape) for name in GRADIENT_SUMS}
        for group in keeper.groups:
            slope = group.padded_y.grad @ group.down
            sums["gradient_sq"][group.expert] += slope.square().sum(0)
            sums["taylor"][group.expert] += (slope * group.m.detach()).abs().sum(0)
        found[layer] = sums
    return found


@pytest.mark.parametrize("family", ["qwen3_moe", "qwen2_moe", "deepseek_v3", "mixtral"])
def test_it_is_the_gradient_of_the_whole_model(
    family: str, checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    path, texts = checkpoint_of(family), domains()
    checkpoint = Checkpoint(path)
    plain = calibrate(checkpoint, texts, tmp_path, device="cpu", dtype="float32")
    assert not plain.has_gradients
    found = collect_gradients(checkpoint, texts, plain, tmp_path, device="cpu", dtype="float32")
    assert found.has_gradients and load_statistics(tmp_path).has_gradients
    for domain in texts:
        expected = whole_model(path, domain)
        for layer in checkpoint.config.moe_layers:
            stats = found.layer(domain.name, layer)
            for name in GRADIENT_SUMS:
                scale = float(expected[layer][name].max())
                assert scale > 0
                got = stats[name].float() / scale
                torch.testing.assert_close(got, expected[layer][name] / scale, rtol=0, atol=1e-4)
    assert {file.name for file in tmp_path.iterdir()} == {
        "statistics.json",
        "statistics.safetensors",
        "gradients.json",
        "gradients.safetensors",
    }


def test_gradients_of_other_tokens_are_not_taken(
    checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    checkpoint, texts = Checkpoint(checkpoint_of("qwen3_moe")), domains()
    plain = calibrate(checkpoint, texts, tmp_path, device="cpu", dtype="float32")
    collect_gradients(checkpoint, texts, plain, tmp_path, device="cpu", dtype="float32")
    other = calibrate(checkpoint, texts[:1], tmp_path, device="cpu", dtype="float32")
    assert not other.has_gradients


# deepseek_v2 of three layers: what is on the disk after two of them, down or back.
LEFT = {
    2: "hidden-0.bin hidden-1.bin hidden-2.bin job.json",
    6: "gradient-2.bin hidden-0.bin hidden-1.bin job.json layer-0.safetensors layer-1.safetensors",
}
THROUGH = "continuing: 2 of 3 layers are through the backward pass"


@pytest.mark.parametrize(("steps", "said"), [(2, []), (6, [THROUGH])])
def test_a_stopped_pass_ends_with_the_same_bytes(
    steps: int, said: list[str], checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """Stopped on the way down, where the states that are there are kept, and on the way back."""

    def collect(directory: Path, progress: Progress) -> None:
        statistics = calibrate(checkpoint, texts, directory, device="cpu", dtype="float32")
        options = {"device": "cpu", "dtype": "float32"}
        collect_gradients(checkpoint, texts, statistics, directory, progress=progress, **options)

    checkpoint, texts = Checkpoint(checkpoint_of("deepseek_v2")), domains()
    collect(tmp_path / "whole", QUIET)
    with pytest.raises(StoppedError):
        collect(tmp_path / "stopped", StopAfter(steps))
    assert names(tmp_path / "stopped" / "gradients.partial") == LEFT[steps].split()
    notes = Notes()
    collect(tmp_path / "stopped", notes)
    assert notes.said == said
    assert files_of(tmp_path / "stopped") == files_of(tmp_path / "whole")
