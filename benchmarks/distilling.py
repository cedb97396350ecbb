"""Distilling a split model from the dense one: what `split_smollm` trains with."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from moe_training import interruptions, save_state
from torch import Tensor, nn


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result besides the text and the number of steps."""

    seed: int = 0
    experts: int = 16
    top_k: int = 8
    sampled_sequences: int = 24  # that neurons are grouped and routers fitted by
    heldout_sequences: int = 16  # of each domain
    train_sequences: int = 4096  # of each domain, at most
    sequences_per_step: int = 4
    learning_rate: float = 2e-4
    router_rate: float = 2e-3
    warmup_steps: int = 30
    balance: float = 0.01


def compute_all_experts(model: Any) -> None:
    """Experts as one wide FFN with gates between: every expert for every token, as half of them are
    chosen anyway and a large product is the fastest."""
    for layer in model.model.layers:
        layer.mlp.experts.forward = _all_experts(layer.mlp.experts)


def _all_experts(experts: Any) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def forward(states: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        tokens, hidden = states.shape[0], states.shape[-1]
        gates = states.new_zeros(tokens, experts.num_experts).scatter(
            1, chosen, weights.to(states.dtype)
        )
        both = F.linear(states, experts.gate_up_proj.flatten(0, 1)).view(
            tokens, experts.num_experts, 2, -1
        )
        neurons = F.silu(both[:, :, 0]) * both[:, :, 1] * gates[:, :, None]
        return F.linear(neurons.flatten(1), experts.down_proj.transpose(0, 1).reshape(hidden, -1))

    return forward


def optimizer_of(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    named = list(model.named_parameters())
    groups = [
        {"params": [p for n, p in named if "gate.weight" in n], "base": recipe.router_rate},
        {"params": [p for n, p in named if "gate.weight" not in n], "base": recipe.learning_rate},
    ]
    return torch.optim.AdamW(groups, lr=0.0, weight_decay=0.0, betas=(0.9, 0.95), fused=True)


class Distillation:
    """The split model in training against ``dense`` on ``rows`` [sequences, length];
    saved as one file, WORK/state.pt."""

    def __init__(self, work: Path, dense: Any, model: Any, rows: Tensor, recipe: Recipe) -> None:
        self.file, self.dense, self.model = work / "state.pt", dense, model
        self.rows, self.recipe = rows, recipe
        self.optimizer, self.step = optimizer_of(model, recipe), 0
        if self.file.is_file():
            state = torch.load(self.file, weights_only=True)
            model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step = state["step"]

    def save(self) -> None:
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        save_state(self.file, **state, step=self.step)

    def train_step(self, steps: int) -> float:
        """One update; the KL of its rows in nats. Rates fall along a cosine, to a twentieth."""
        recipe, size = self.recipe, self.recipe.sequences_per_step
        cosine = 0.5 * (1 + math.cos(math.pi * self.step / steps))
        rate = min(1.0, (self.step + 1) / recipe.warmup_steps) * (0.05 + 0.95 * cosine)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base"] * rate
        start = self.step * size % (len(self.rows) - size + 1)
        rows = self.rows[start : start + size]
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                wanted = self.dense(input_ids=rows).logits
            made = self.model(input_ids=rows, output_router_logits=True)
        target = wanted.float().log_softmax(-1)
        kl = F.kl_div(made.logits.float().log_softmax(-1), target, log_target=True, reduction="sum")
        kl = kl / rows.numel()
        (kl + recipe.balance * made.aux_loss).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return float(kl.detach())

    def run(self, steps: int, slice_steps: int) -> Iterator[dict[str, float]]:
        """Trains; after every slice what it took, from its last step. Stops when interrupted."""
        interrupted = interruptions()
        while self.step < steps and not interrupted:
            stop, kls = min(steps, (self.step // slice_steps + 1) * slice_steps), []
            started = time.monotonic()
            while self.step < stop and not interrupted:
                kls.append(self.train_step(steps))
            self.save()
            seconds = (time.monotonic() - started) / max(1, len(kls))
            yield {"step": self.step, "kl": sum(kls) / len(kls), "seconds_per_step": seconds}
