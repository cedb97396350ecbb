"""What the training scripts share: experts that train fast, balance, optimiser, state.

The model is transformers' own; only its experts' forward is replaced (`padded_experts_forward`):
tokens sorted by expert, groups padded to a multiple of 64, products in `product_type`.
"""

import signal
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

# oneDNN compiles a kernel for every new shape: group sizes are rounded up so that shapes repeat.
GROUP_MULTIPLE = 64

_FAST_BF16 = ("amx_bf16", "avx512_bf16")
_CPU = torch.cpu.get_capabilities()


def product_type(device: torch.device) -> torch.dtype:
    """bfloat16 on a GPU and where the processor multiplies it (with AMX three times float32's
    speed); elsewhere it is emulated, at a third of float32's speed."""
    fast = device.type != "cpu" or any(_CPU.get(kind) for kind in _FAST_BF16)
    return torch.bfloat16 if fast else torch.float32


class Schedule(Protocol):
    """The part of a recipe that the learning rate and the optimiser need."""

    @property
    def peak_learning_rate(self) -> float: ...

    @property
    def warmup_steps(self) -> int: ...

    @property
    def decay_share(self) -> float: ...

    @property
    def weight_decay(self) -> float: ...


# --- experts ----------------------------------------------------------------------------------


class _Dispatch(torch.autograd.Function):
    """Copy each token into its slots of the padded groups: (tokens, hidden) -> (slots, hidden).

    The gradient of a gather is a scatter, which is slow on CPUs; but here its transpose is again
    a gather, through the inverse table `slot_of` (tokens, k).
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, token_of: Tensor, slot_of: Tensor) -> Tensor:
        ctx.save_for_backward(slot_of)
        return torch.cat([states, states.new_zeros(1, states.shape[1])])[token_of]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (slot_of,) = ctx.saved_tensors
        return gradient[slot_of].sum(dim=1), None, None


class _Collect(torch.autograd.Function):
    """Bring expert outputs back to their tokens: (slots, hidden) -> (tokens, k, hidden)."""

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, slot_of: Tensor, pair_of: Tensor) -> Tensor:
        ctx.save_for_backward(pair_of)
        return outputs[slot_of]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (pair_of,) = ctx.saved_tensors
        pairs = gradient.flatten(0, 1)
        return torch.cat([pairs, pairs.new_zeros(1, pairs.shape[1])])[pair_of], None, None


def grouped_linear(groups: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    """Each expert's rows times its weight: (slots, in), (experts, out, in) -> (slots, out).

    ``ends``: behind the last row of each expert, int32 (experts,).
    """
    kind = product_type(groups.device)
    groups, weights = groups.to(kind), weights.to(kind)
    if groups.is_cuda:
        return F.grouped_mm(groups, weights.transpose(1, 2), offs=ends)
    # Split once: indexing one expert at a time would make every gradient a full tensor.
    parts = groups.split(ends.diff(prepend=ends.new_zeros(1)).tolist())
    return torch.cat([part @ weight.t() for part, weight in zip(parts, weights, strict=True)])


def expert_counts(chosen: Tensor, experts: int) -> Tensor:
    """How often each expert was chosen, int64 (experts,). `bincount` makes a GPU wait."""
    chosen = chosen.flatten()
    return chosen.new_zeros(experts).scatter_add_(0, chosen, torch.ones_like(chosen))


def padded_experts_forward(
    self: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """All experts over token groups padded to a multiple of 64.

    Pairs (token, choice) are sorted by expert; each expert owns a run of slots, as many as it was
    chosen, rounded up. Unused slots point to a row of zeros behind the last token.
    """
    tokens, k = top_k_index.shape
    expert_of_pair = top_k_index.flatten()
    counts = expert_counts(expert_of_pair, self.num_experts)
    sizes = (counts + GROUP_MULTIPLE - 1) // GROUP_MULTIPLE * GROUP_MULTIPLE
    ends = sizes.cumsum(0)
    padding_before = (ends - sizes) - (counts.cumsum(0) - counts)
    if sizes.is_cuda:
        # Asking how many would make the GPU wait: as many as there can be, the rest the last's.
        slot_count = (tokens * k // GROUP_MULTIPLE + 1 + self.num_experts) * GROUP_MULTIPLE
        ends[-1] = slot_count
    else:
        slot_count = int(ends[-1])

    order = expert_of_pair.argsort(stable=True)
    slots = torch.arange(len(order), device=order.device) + padding_before[expert_of_pair[order]]
    slot_of = torch.empty_like(order).index_copy_(0, order, slots).view(tokens, k)
    pair_of = order.new_full((slot_count,), tokens * k).index_copy_(0, slots, order)

    groups, ends = _Dispatch.apply(hidden_states, pair_of // k, slot_of), ends.int()
    gate, up = grouped_linear(groups, self.gate_up_proj, ends).chunk(2, dim=-1)
    outputs = grouped_linear(F.silu(gate) * up, self.down_proj, ends)
    chosen = _Collect.apply(outputs, slot_of, pair_of)
    return (chosen * top_k_weights.unsqueeze(-1)).sum(dim=1).to(hidden_states.dtype)


ALL_EXPERTS_FUNCTIONS.register("padded", padded_experts_forward)


class RouterBalance:
    """Collects every router's choices in a forward pass: the load-balance loss, and the counts.

    E * sum_e f_e * P_e per layer (Switch Transformer, arXiv 2101.03961, eq. 4): f_e the share of
    choices, P_e the mean probability. Taken over the whole batch, which mixes the domains, it
    leaves experts free to specialise in one of them.
    """

    def __init__(self, model: nn.Module) -> None:
        self.terms: list[Tensor] = []
        self.shares: list[tuple[nn.Module, Tensor]] = []
        for name, module in model.named_modules():
            if name.endswith("mlp.gate"):
                module.register_forward_hook(self._collect)

    def _collect(self, router: nn.Module, inputs: Any, outputs: tuple[Tensor, ...]) -> None:
        logits, _, chosen = outputs
        experts = logits.shape[-1]
        share = expert_counts(chosen, experts) / chosen.numel()
        self.shares.append((router, share))
        self.terms.append(experts * (share * logits.float().softmax(-1).mean(0)).sum())

    def take(self) -> Tensor:
        """Mean over the layers (1.0 is perfect balance); forgets what was collected."""
        loss = torch.stack(self.terms).mean()
        self.terms.clear()
        self.shares.clear()
        return loss

    @torch.no_grad()
    def move_bias(self, speed: float) -> None:
        """DeepSeek-V3's balance without a loss (arXiv 2412.19437, section 2.1.2): the selection
        bias of an expert goes down by ``speed`` when it is overloaded, else up. Before `take`."""
        for router, share in self.shares:
            bias = router.get_buffer("e_score_correction_bias")
            bias += speed * torch.sign(share.mean() - share)


def token_loss(model: nn.Module, rows: Tensor, reduction: str = "mean") -> Tensor:
    """Next-token cross-entropy in nats of (sequences, length + 1) ids."""
    fast = product_type(rows.device) == torch.bfloat16
    with torch.autocast(rows.device.type, torch.bfloat16, enabled=fast):
        logits = model(input_ids=rows[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten(), reduction=reduction)


# --- training ---------------------------------------------------------------------------------


def learning_rate(step: int, steps: int, recipe: Schedule) -> float:
    """Warm-up, flat, then down to zero in a straight line over the last `decay_share`."""
    warmup = min(1.0, (step + 1) / recipe.warmup_steps)
    decay = min(1.0, (steps - step) / max(1.0, recipe.decay_share * steps))
    return recipe.peak_learning_rate * warmup * decay


def make_optimizer(model: nn.Module, recipe: Schedule) -> torch.optim.AdamW:
    """AdamW; norms and the embedding are not decayed."""
    decayed = [p for n, p in model.named_parameters() if p.ndim > 1 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim == 1 or "embed" in n]
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), eps=1e-10, fused=True)


def save_state(path: Path, **state: Any) -> None:
    """Write under a temporary name and rename: a kill leaves the previous state whole."""
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    temporary.replace(path)


def interruptions() -> list[int]:
    """A list that SIGINT and SIGTERM append to: the step ends and saves, so nothing is lost."""
    received: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: received.append(number))
    return received


# --- measuring --------------------------------------------------------------------------------


def unigram_perplexity(train: np.ndarray, heldout: np.ndarray, vocab_size: int) -> float:
    """Perplexity of add-one smoothed training counts: what knowing no context is worth."""
    counts = np.bincount(train, minlength=vocab_size) + 1
    return float(np.exp(-np.log(counts / counts.sum())[heldout].mean()))


def windows(tokens: np.ndarray, length: int, most: int | None = None) -> Tensor:
    """Disjoint windows of a stream, (windows, length + 1); each starts without context."""
    count = (len(tokens) - 1) // length
    count = count if most is None else min(count, most)
    rows = np.stack([tokens[i * length : (i + 1) * length + 1] for i in range(count)])
    return torch.from_numpy(rows.astype(np.int64))


@torch.no_grad()
def mean_loss(model: nn.Module, rows: Tensor, at_once: int) -> float:
    """Cross-entropy per token, nats, of rows (n, length + 1)."""
    total = sum(token_loss(model, part, reduction="sum").item() for part in rows.split(at_once))
    return total / rows[:, 1:].numel()
