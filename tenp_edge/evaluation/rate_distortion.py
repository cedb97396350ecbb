"""The least loss that so many bits allow at all: what no choice of types and widths can beat.

A weight of variance s^2 whose error costs a per unit of its square is told in r bits with an error
of at least s^2 2^-2r, if it is Gaussian (Shannon); so its energy e = a s^2, the loss at an error as
large as itself, leaves e 2^-2r. Of many weights the least total for a number of bits has one error
level for all whose energy is above it, and no bit for the others ("reverse water-filling", Cover
and Thomas, Elements of Information Theory, theorem 10.3.3). A neuron may also be cut: then it takes
no bit, and costs its cut once, however many weights it had.

What ggml's types add to this: steps instead of the best code (about a quarter of a bit), scales
(0.06 to 0.5 bits), one type for a whole matrix. What a plan may have below it: cuts that take each
other's error away, and repair.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from tenp_edge.calibration.statistics import INPUT_SUM, ROUNDING
from tenp_edge.calibration.storage import Statistics
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.scoring.neuron_scores import relative
from tenp_edge.scoring.saliency import domain_tokens, sum_of

_STEPS = 40
_MOST_WEIGHTS = 4_000_000
_TINY = 1e-30


@dataclass(frozen=True)
class Neurons:
    """``energies`` [neurons, weights]: of every weight; ``cut`` [neurons]: what is lost where the
    neuron goes, in the same unit."""

    energies: torch.Tensor
    cut: torch.Tensor


def least_loss(parts: Sequence[Neurons], bits: float) -> float:
    """The least sum of losses of all neurons of ``parts``, told in ``bits`` in all."""
    largest = max(float(part.energies.max()) for part in parts)
    weights = sum(part.energies.numel() for part in parts)
    high = math.log2(max(largest, _TINY)) + 1
    low = high - 2 * bits / weights - 100
    for _ in range(_STEPS):
        level = (low + high) / 2
        _, spent = _at(parts, level)
        low, high = (level, high) if spent > bits else (low, level)
    return _at(parts, high)[0]


def _at(parts: Sequence[Neurons], level: float) -> tuple[float, float]:
    """Loss and bits at an error level of 2 ** ``level``: a bit more takes off 2 ln 2 of it."""
    loss = bits = 0.0
    price = 2 * math.log(2) * 2.0**level
    for part in parts:
        logs = part.energies.clamp_min(_TINY).log2()
        spent = (logs - level).clamp_min(0).sum(dim=1, dtype=torch.float64) / 2
        kept = logs.clamp_max(level).exp2().sum(dim=1, dtype=torch.float64)
        cut = part.cut.double() < kept + price * spent
        loss += float(torch.where(cut, part.cut.double(), kept).sum())
        bits += float(spent[~cut].sum())
    return loss, bits


def expert_neurons(checkpoint: Checkpoint, statistics: Statistics) -> Iterator[Neurons]:
    """The routed experts' neurons, layer by layer, in the unit of `losses.cut_losses`.

    A matrix's loss at an error as large as itself (ROUNDING) is spread over the weights of a
    neuron: by column for gate and up (variance of the column times its mean squared input), by row
    for down.
    """
    for layer in checkpoint.config.moe_layers:
        sums, inputs = statistics.rounding(layer), _inputs(statistics, layer)
        cut, energies = _neuron_losses(statistics, layer), []
        for expert in range(checkpoint.config.num_experts):
            weights = checkpoint.expert(layer, expert)
            shares = [_shares(w.float(), inputs[expert]) for w in weights.matrices[:-1]]
            shares.append(_shares(weights.down.float().T, torch.ones(weights.down.shape[0])))
            names = ROUNDING[-len(shares) :]
            losses = [sums[name][expert].float() for name in names]
            pairs = zip(losses, shares, strict=True)
            energies.append(torch.cat([loss[:, None] * share for loss, share in pairs], dim=1))
        yield Neurons(torch.cat(energies), cut.flatten())


def _shares(matrix: torch.Tensor, squares: torch.Tensor) -> torch.Tensor:
    """How a row's energy lies over its columns, [columns]; the sum is 1. ``matrix`` [neurons,
    columns] is fed columns of mean ``squares``."""
    energy = matrix.square().mean(dim=0) * squares
    return energy / energy.sum().clamp_min(_TINY)


def _neuron_losses(statistics: Statistics, layer: int) -> torch.Tensor:
    """Predicted loss of cutting each neuron alone, float32 [experts, width]."""
    norms, domains = statistics.weight_norms(layer), statistics.domains
    total = sum_of(
        relative(statistics.layer(domain, layer), norms) / domain_tokens(statistics, domain)
        for domain in domains
    )
    return (total / len(domains)).float()


def _inputs(statistics: Statistics, layer: int) -> torch.Tensor:
    """Summed squares of each expert's inputs, float32 [experts, hidden]."""
    by_domain = (statistics.layer(domain, layer)[INPUT_SUM] for domain in statistics.domains)
    return sum_of(by_domain).float()


def least_expert_loss(checkpoint: Checkpoint, statistics: Statistics) -> Callable[[int], float]:
    """By a number of bytes, the least predicted loss with all routed experts in them.

    Needs statistics that know what rounding costs. Of a large model every n-th neuron stands for
    n of them.
    """
    step = -(-checkpoint.config.expert_weights // _MOST_WEIGHTS)
    layers = [
        Neurons(part.energies[::step].clone(), part.cut[::step])
        for part in expert_neurons(checkpoint, statistics)
    ]
    return lambda nbytes: step * least_loss(layers, 8 * nbytes / step)
