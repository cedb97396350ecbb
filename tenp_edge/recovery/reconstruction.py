"""Reconstruction of one layer: what its experts receive is taken down once, then, expert by expert,
the neurons that stay take over for the cut ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn

from tenp_edge.checkpoint.files import TORCH_DTYPES
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.errors import UserError
from tenp_edge.forward.experts import group_by_expert, neurons, routed_experts
from tenp_edge.forward.hidden_states import SPILL_BYTES, CachedFileStates, MemoryStates, States
from tenp_edge.forward.streaming import StreamingModel

RIDGE = 0.1


class Moments:
    """G of one expert over chunks of its tokens: float64 (width, width) on the CPU."""

    def __init__(self, width: int) -> None:
        self.total = torch.zeros(width, width, dtype=torch.float64)

    def add(self, m: torch.Tensor, weight: torch.Tensor) -> None:
        """Tokens' neurons ``m`` [n, width] and their ``weight`` g / ||h'||, [n].

        Products of a chunk in the dtype of ``weight``, chunks in float64.
        """
        scaled = m.to(weight.dtype) * weight[:, None]
        self.total += (scaled.T @ scaled).cpu().double()


def repaired_down(
    down: torch.Tensor, kept: torch.Tensor, moments: torch.Tensor, ridge: float = RIDGE
) -> torch.Tensor:
    """W' [hidden, len(kept)] in float64, from the whole W_down [hidden, width].

    ``kept``: ascending indices; ``moments``: G [width, width]. Nothing cut, or no token: W_S as it
    is. The ridge pulls towards W_S, not towards zero: an expert of few tokens, whose G has fewer
    directions than neurons, keeps its own weights in all the directions that the text never used.
    Raises UserError when ``ridge`` is too small for the arithmetic.
    """
    kept = kept.long()
    retained = down[:, kept].double()
    cut = torch.ones(down.shape[1], dtype=torch.bool)
    cut[kept] = False
    kept_moments = moments[kept][:, kept]
    scale = float(kept_moments.diagonal().mean()) if len(kept) else 0.0
    if not cut.any() or scale == 0.0:
        return retained
    kept_moments = kept_moments + ridge * scale * torch.eye(len(kept), dtype=torch.float64)
    factor, failed = torch.linalg.cholesky_ex(kept_moments)
    if failed:
        raise UserError(
            f"--set repair-ridge={ridge:g} is too small: an expert's moments are singular",
            f"--set repair-ridge={RIDGE:g}",
        )
    # [S, C]: how much of each cut neuron each retained one takes over.
    shares = torch.cholesky_solve(moments[kept][:, cut], factor)
    return retained + down[:, cut].double() @ shares.T


_CHUNK_TOKENS = 4096
_DOWN = -1


class RoutedInputs:
    """What the routed experts of one layer receive: inputs x [tokens, hidden], chosen experts
    [tokens, top_k], weights g / ||h'|| [tokens, top_k].

    ``active`` (bool, a value a token, any shape): False on padding. x of all tokens is in memory,
    or in a file of ``work`` above ``spill_bytes``. `attach` before the
    layer runs over batches of sequences in order, `finish` after each.
    """

    def __init__(
        self,
        active: torch.Tensor,
        model: StreamingModel,
        work: Path,
        spill_bytes: int = SPILL_BYTES,
    ) -> None:
        self.active = active.reshape(-1)
        self.done = 0
        self._chosen: list[torch.Tensor] = []
        self._weights: list[torch.Tensor] = []
        tokens, hidden, dtype = len(self.active), model.config.hidden_size, model.dtype
        shape = (tokens, 1, hidden)
        file = work / "inputs.partial"
        self._states: States = (
            CachedFileStates(file, shape, dtype, temporary=True)
            if tokens * hidden * dtype.itemsize > spill_bytes
            else MemoryStates(torch.empty(shape, dtype=dtype))
        )

    def attach(self, layer: nn.Module) -> None:
        routed_experts(layer).register_forward_pre_hook(self._take_down)

    def _take_down(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        """Pre-hook: (tokens, hidden), chosen (tokens, top_k), g (tokens, top_k)."""
        x, chosen, g = (argument.detach().cpu() for argument in arguments)
        self._states.write(self.done, x[:, None])
        self._chosen.append(chosen)
        self._weights.append(g.float())
        self.done += len(x)

    def finish(self, norms: torch.Tensor) -> None:
        """``norms``: ||h'|| of the batch's tokens, any shape."""
        self._weights[-1] = self._weights[-1] / norms.reshape(-1, 1).clamp_min(1e-30)

    def by_expert(self, experts: int) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        """(expert, its tokens [n], their weights [n]) of every expert that was reached."""
        chosen = torch.cat(self._chosen).masked_fill(~self.active[:, None], experts)
        weights = torch.cat(self._weights)
        for expert, rows, slots in group_by_expert(chosen, experts):
            yield expert, rows, weights[rows, slots]

    def rows(self, rows: torch.Tensor) -> torch.Tensor:
        """x of some tokens, [n, hidden]."""
        if isinstance(self._states, MemoryStates):
            return self._states.hidden[rows, 0]
        return torch.cat([self._states.read(row, row + 1)[0] for row in rows.tolist()])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._states.__exit__(kind, error, trace)


def repair_layer(
    model: StreamingModel, source: ModelSource, index: int, seen: RoutedInputs, ridge: float
) -> dict[str, torch.Tensor]:
    """W_down [hidden, kept width] of every cut expert of layer ``index`` that ``seen`` says was
    reached, by on-disk name, in the stored dtype. One expert's weights and moments in memory at a
    time."""
    plan, checkpoint, config = source.plan, source.checkpoint, source.config
    assert plan is not None
    repaired = {}
    for expert, rows, weights in seen.by_expert(len(config.expert_widths[index])):
        if config.expert_widths[index][expert] in (0, plan.full_width):
            continue
        original = source.original_expert(index, expert)
        whole = checkpoint.expert(index, original)
        moved = whole.mapped(lambda tensor: tensor.to(model.device, model.dtype))
        moments = Moments(plan.full_width)
        for start in range(0, len(rows), _CHUNK_TOKENS):
            part = slice(start, start + _CHUNK_TOKENS)
            m = neurons(moved, seen.rows(rows[part]).to(model.device), config.family.activation)
            moments.add(m, weights[part].to(model.device))
        down = repaired_down(whole.down, plan.neurons(index, original), moments.total, ridge)
        name = config.expert_tensor(index, expert, _DOWN)
        repaired[name] = down.to(TORCH_DTYPES[source.dtype(name)])
    return repaired
