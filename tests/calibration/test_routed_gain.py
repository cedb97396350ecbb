"""What norms behind the experts make of an error of their sum, against errors that are made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support import tiny

from tenp_edge.calibration.expert_observer import norms_of
from tenp_edge.calibration.routed_gain import RoutedGain
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.forward.experts import routed_experts
from tenp_edge.forward.streaming import StreamingModel

Make = Callable[[str], Path]
CPU, F32 = torch.device("cpu"), torch.float32


@pytest.mark.parametrize("layer", [0, 2])
def test_gain_is_what_small_errors_become(layer: int, checkpoint_of: Make) -> None:
    """Random errors of a thousandth: their mean square after the layer, over that before."""
    generator = torch.Generator().manual_seed(0)
    model = StreamingModel(ModelSource(Checkpoint(checkpoint_of("gemma4_text"))), CPU, F32)
    module = model.layer(layer)
    gain = RoutedGain(norms_of(module, model.config, layer), module.layer_scalar)
    hidden = model.embed(torch.randint(0, tiny.VOCAB, (1, 24), generator=generator))
    plain = model.run(module, hidden)
    squared = gain.squared()
    assert squared is not None and squared.shape == (24,)
    became = errors_after(model, module, hidden, plain, generator, 400)
    # Two of 64 directions are lost in the norms, and the weights of the others differ.
    assert float((became / squared).log().abs().mean()) < 0.15


def errors_after(
    model: StreamingModel,
    module: torch.nn.Module,
    hidden: torch.Tensor,
    plain: torch.Tensor,
    generator: torch.Generator,
    rounds: int,
) -> torch.Tensor:
    """[tokens]: mean square of random errors of the experts' sum after the layer, over before."""
    became = torch.zeros(hidden.shape[1])
    for _ in range(rounds):
        error = torch.zeros(0)

        def disturb(_: object, __: object, output: torch.Tensor) -> torch.Tensor:
            nonlocal error
            size = output.norm(dim=-1, keepdim=True) / output.shape[-1] ** 0.5
            error = 1e-3 * size * torch.randn(output.shape, generator=generator)
            return output + error

        hook = routed_experts(module).register_forward_hook(disturb)
        moved = model.run(module, hidden) - plain
        hook.remove()
        became += moved[0].square().sum(-1) / error.square().sum(-1) / rounds
    return became


def test_gain_is_the_square_of_what_blocks_are_multiplied_by(checkpoint_of: Make) -> None:
    generator = torch.Generator().manual_seed(0)
    model = StreamingModel(ModelSource(Checkpoint(checkpoint_of("granitemoehybrid"))), CPU, F32)
    module, hidden = model.layer(0), model.embed(torch.arange(8)[None])
    gain = RoutedGain(norms_of(module, model.config, 0), None, model.config.multipliers.residual)
    squared = gain.squared()
    assert squared is not None and float(squared) == 0.25
    plain = model.run(module, hidden)
    became = errors_after(model, module, hidden, plain, generator, 1)
    torch.testing.assert_close(became, squared.expand(8), rtol=1e-2, atol=0)


def test_no_gain_where_nothing_stands_between(checkpoint_of: Make) -> None:
    model = StreamingModel(ModelSource(Checkpoint(checkpoint_of("qwen3_moe"))), CPU, F32)
    module = model.layer(0)
    gain = RoutedGain(norms_of(module, model.config, 0), None)
    model.run(module, model.embed(torch.arange(8)[None]))
    assert gain.squared() is None
