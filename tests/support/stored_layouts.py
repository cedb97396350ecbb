"""Tiny checkpoints rewritten as others store them: experts stacked, weights quantised."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.models import ModelConfig

Tensors = dict[str, torch.Tensor]
FILE = "model.safetensors"


def rewritten(model: Path, change: Callable[[Tensors], Tensors]) -> Path:
    """``model``, its tensors changed in place."""
    tensors = change(load_file(model / FILE))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, model / FILE)
    return model


def stack_experts(
    model: Path, *, transposed: bool = False, interleaved: bool = False, suffix: str = ""
) -> Path:
    """The routed experts of every layer in two tensors, their biases (if any) in two more; of a
    family whose experts have gates."""
    config = Checkpoint(model).config

    def change(tensors: Tensors) -> Tensors:
        for layer in config.moe_layers:
            prefix = f"{config.moe_prefix(layer)}experts."
            own = [
                [tensors.pop(config.expert_tensor(layer, expert, index)) for index in range(3)]
                for expert in range(config.num_experts)
            ]
            join = _interleave if interleaved else _append
            gate_up = torch.stack([join(gate, up) for gate, up, _ in own])
            down = torch.stack([row[2] for row in own])
            for name, matrix in (("gate_up_proj", gate_up), ("down_proj", down)):
                tensors[prefix + name + suffix] = matrix.mT if transposed else matrix
            if config.family.expert_bias:
                names = [
                    [config.expert_bias(layer, expert, index) for index in range(3)]
                    for expert in range(config.num_experts)
                ]
                biases = [[tensors.pop(name) for name in row] for row in names]
                tensors[f"{prefix}gate_up_proj_bias"] = torch.stack([join(*b[:2]) for b in biases])
                tensors[f"{prefix}down_proj_bias"] = torch.stack([b[2] for b in biases])
        return tensors

    return rewritten(model, change)


def per_expert(model: Path) -> Tensors:
    """What is stored in ``model`` of its language model, experts one by one where they are
    stacked."""
    config, tensors = Checkpoint(model).config, load_file(model / FILE)
    tensors = {name.replace(config.stored_prefix, "model.", 1): t for name, t in tensors.items()}
    for layer in config.moe_layers:
        prefix, (first, second) = config.moe_prefix(layer), config.family.stacked_names
        if prefix + first not in tensors:
            continue
        names = (first, second, f"{first}_bias", f"{second}_bias")
        parts = [tensors.pop(prefix + name) for name in names if prefix + name in tensors]
        transposed = parts[0].shape[-1] != config.hidden_size
        gate_up, down = (part.mT if transposed else part for part in parts[:2])
        for number in range(config.num_experts):
            own = [*_halves(config, gate_up[number]), down[number]]
            if config.family.expert_bias:
                own += [*_halves(config, parts[2][number]), parts[3][number]]
            tensors |= dict(zip(config.expert_tensors(layer, number), own, strict=True))
    return tensors


def _halves(config: ModelConfig, both: torch.Tensor) -> list[torch.Tensor]:
    return [both[::2], both[1::2]] if config.family.gate_up_interleaved else list(both.chunk(2))


def _append(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return torch.cat([gate, up])


def _interleave(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Row 2 i is gate's row i, row 2 i + 1 is up's."""
    return torch.stack([gate, up], dim=1).flatten(0, 1)
