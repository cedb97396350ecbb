"""Calibration statistics: sums over tokens, per domain, layer, expert and neuron.

Everything is a plain sum (or a maximum), so statistics of two runs add up to the statistics of
both, and every score in `saliency` is a function of these sums alone. Notation, per MoE layer and
routed expert: x [tokens, hidden] the tensor it receives, m [tokens, width] = act(gate) * up, or
without a gate relu(up)^2, y [tokens, hidden] = m W_down^T, g [tokens] the weight that multiplies y
at dispatch, h the residual stream before the MoE block. Sums are float64 while they grow, whatever
the dtype of the forward.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from tenp_edge.forward.scratch import Scratch

# Sums per expert, [experts]:
EXPERT_SUMS = (
    "tokens",  # 1
    "gate",  # g
    "output_norm",  # |y|
    "output_norm_sq",  # |y|^2
    "gated_norm",  # g |y|
    "tenp",  # g |y| (1 - cos(x, y))
    "tenp_residual",  # g |y| (1 - cos(h, h + g y))
    "easy_ep",  # g |y| max(0, 1 - cos(h, h + sum of the token's routed outputs))
)
# Sums per neuron, [experts, width]; p = m * (y W_down) / |y| is the projected contribution:
NEURON_SUMS = (
    "projection",  # p
    "abs_projection",  # |p|
    "gated_projection",  # g p
    "activation",  # m
    "activation_sq",  # m^2
    "gated_activation_sq",  # (g m)^2
    "relative_projection",  # g p / |h|
    "relative_activation_sq",  # (g m)^2 / |h|^2
)
NEURON_MAXIMA = ("gated_activation_max",)  # max |g m|
# Sums per layer, [2]: of log(|h'|^2 / |h|^2), h' the residual stream after the block, and of 1.
GROWTH_SUM = "growth"
# Sums per neuron that need a backward pass (`gradients`), [experts, width], with d = dL/dy . w_k:
GRADIENT_SUMS = (
    "gradient_sq",  # d^2
    "taylor",  # |m d|
)
# Sum per hidden feature, [experts, hidden]: what an importance matrix of gate and up is made of.
INPUT_SUM = "input_sq"  # x^2
# What cutting several neurons of an expert costs (`elimination`), of all domains together, in each
# order of `order_priors.ORDER_PRIORS`: neurons, best first, [experts, width], and the loss of
# keeping the first of them, [experts, width + 1]. No sum: merged statistics lack it.
ELIMINATION = ("order", "losses")
# How often each sequence of the text chose each expert, [sequences, experts], in the order of the
# domains: whether the text is of one kind (`text_kind`). Merged statistics lack it.
SEQUENCE_USE = "sequence_use"
# What every neuron's rounding costs (`rounding`), of all domains together, [experts, width]: the
# loss at an error as large as its row of gate or up, or its column of down. Merged statistics lack
# it. Where experts have no gate, its loss is 0.
ROUNDING = ("rounding_gate", "rounding_up", "rounding_down")
# Of experts that lose all neurons (`mean_outputs`), of all domains together: the mean of every
# neuron, [experts, width], and what the constant that they make takes off the loss, [experts].
# Merged statistics and those of older versions lack them.
MEANS = ("mean_neurons", "mean_taken_off")
# Norms of the weights, [experts, width]: facts of the model, not of the data. The first is missing
# where experts have no gate.
WEIGHT_NORMS = ("gate_norm", "up_norm", "down_norm")
_GROUP_SUMS = EXPERT_SUMS[:-1]  # what one expert's tokens give; easy_ep needs the whole output
_EPSILON = 1e-20
_BLOCK_ELEMENTS = 2**17


@dataclass(frozen=True)
class LayerStatistics:
    """One domain, one layer: name -> float64 [experts], [experts, width] or [experts, hidden]."""

    sums: Mapping[str, torch.Tensor]

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.sums[name]

    @property
    def growth(self) -> torch.Tensor:
        """||h'||^2 / ||h||^2 of an ordinary token: the block's growth of the residual stream, a
        float64 scalar without unit (the geometric mean over tokens)."""
        total, count = self[GROWTH_SUM]
        return torch.exp(total / count.clamp_min(1))


def make_empty(experts: int, width: int, hidden: int = 0) -> LayerStatistics:
    """Statistics of no tokens; without ``hidden`` they leave the sums of inputs out."""
    per_expert = {name: torch.zeros(experts, dtype=torch.float64) for name in EXPERT_SUMS}
    per_neuron = {
        name: torch.zeros(experts, width, dtype=torch.float64)
        for name in (*NEURON_SUMS, *NEURON_MAXIMA)
    }
    growth = {GROWTH_SUM: torch.zeros(2, dtype=torch.float64)}
    inputs = {INPUT_SUM: torch.zeros(experts, hidden, dtype=torch.float64)} if hidden else {}
    return LayerStatistics({**per_expert, **per_neuron, **growth, **inputs})


def accumulate_expert(
    stats: LayerStatistics,
    expert: int,
    *,
    x: torch.Tensor,
    h: torch.Tensor,
    m: torch.Tensor,
    y: torch.Tensor,
    g: torch.Tensor,
    projected: torch.Tensor,
    scratch: Scratch | None = None,
) -> torch.Tensor:
    """Add the tokens routed to one expert, in place: inputs x, residual stream h and outputs y
    [tokens, hidden], neurons m [tokens, width], gates g [tokens], ``projected`` = y W_down
    [tokens, width].

    Products and partial sums are float32, totals float64. Tokens are taken in blocks that stay in
    the processor's cache: on a CPU these sums are bound by memory traffic. ``scratch`` is for the
    caller to keep between calls.
    Returns g |y|, [tokens], which `accumulate_tokens` needs once the token's output is complete.
    """
    g, scratch = g.float(), scratch or Scratch()
    if INPUT_SUM in stats.sums:
        stats[INPUT_SUM][expert] += sum_of_squares(x, scratch)
    products = [_token_products(x[b], h[b], y[b], scratch) for b in _blocks(x)]
    x_norm, h_norm, norm, x_y, h_y = torch.cat(products, dim=1)
    gated_norm: torch.Tensor = g * norm
    turned = _turn(x_norm, x_y, norm, residual=False)
    turned_residual = _turn(h_norm, g * h_y, gated_norm, residual=True)
    one = torch.ones_like(g)
    values = [one, g, norm, norm.square(), gated_norm]
    values += [gated_norm * turned, gated_norm * turned_residual]
    totals = torch.stack(values).sum(dim=1, dtype=_sum_dtype(g)).cpu()
    for name, total in zip(_GROUP_SUMS, totals, strict=True):
        stats[name][expert] += total
    parts = [
        _neuron_sums(m[b], projected[b], g[b], norm[b], h_norm[b], scratch) for b in _blocks(m)
    ]
    sums = torch.stack([part[0] for part in parts]).sum(dim=0, dtype=_sum_dtype(g)).cpu()
    for name, row in zip(NEURON_SUMS, sums, strict=True):
        stats[name][expert] += row
    peak = torch.stack([part[1] for part in parts]).amax(dim=0).cpu().double()
    peaks = stats["gated_activation_max"]
    peaks[expert] = torch.maximum(peaks[expert], peak)
    return gated_norm


def sum_of_squares(
    rows: torch.Tensor, scratch: Scratch, active: torch.Tensor | None = None
) -> torch.Tensor:
    """Over the tokens of ``rows`` (the ``active`` ones), [tokens, n] -> float64 [n] on the CPU."""
    total = torch.zeros(rows.shape[1], dtype=_sum_dtype(rows), device=rows.device)
    counted = torch.ones(len(rows), device=rows.device) if active is None else active.float()
    for block in _blocks(rows):
        total += counted[block] @ scratch.copy("square", rows[block]).square_()
    return total.cpu().double()


def _blocks(rows: torch.Tensor) -> list[slice]:
    """Runs of rows: as many as a core's cache holds on a CPU, all of them elsewhere."""
    size = max(16, _BLOCK_ELEMENTS // rows.shape[1])
    size = size if rows.device.type == "cpu" else max(1, len(rows))
    return [slice(start, start + size) for start in range(0, len(rows), size)]


def _token_products(
    x: torch.Tensor, h: torch.Tensor, y: torch.Tensor, scratch: Scratch
) -> torch.Tensor:
    """|x|, |h|, |y|, x.y and h.y of each token, float32 [5, tokens]."""
    x, h, y = scratch.float("x", x), scratch.float("h", h), scratch.float("y", y)
    product = scratch.like("product", y)
    return torch.stack([_norm(x), _norm(h), _norm(y), _dot(x, y, product), _dot(h, y, product)])


def _neuron_sums(
    m: torch.Tensor,
    projected: torch.Tensor,
    g: torch.Tensor,
    norm: torch.Tensor,
    h_norm: torch.Tensor,
    scratch: Scratch,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The NEURON_SUMS, [8, width], and max |g m|, [width], of a block of tokens.

    Sums over tokens are products with rows of per-token weights: one pass for several of them.
    """
    m, p = scratch.float("m", m), scratch.copy("p", projected)
    one, inverse = torch.ones_like(g), norm.clamp_min(_EPSILON).reciprocal()
    p.mul_(m)
    shorter = h_norm.clamp_min(_EPSILON).reciprocal()
    signed = torch.stack([inverse, g * inverse, g * inverse * shorter]) @ p
    absolute = inverse @ p.abs_()
    square = torch.mul(m, m, out=p)
    squares = torch.stack([one, g.square(), (g * shorter).square()]) @ square
    mean = one @ m
    peak = square.mul_(g.square()[:, None]).amax(dim=0).sqrt_()
    sums = [signed[0], absolute, signed[1], mean, squares[0], squares[1], signed[2], squares[2]]
    return torch.stack(sums), peak


def accumulate_tokens(
    stats: LayerStatistics,
    *,
    h: torch.Tensor,
    routed: torch.Tensor,
    experts: torch.Tensor,
    gated_norm: torch.Tensor,
) -> None:
    """Add what needs the token's whole routed output (EASY-EP's shared token weight), in place.

    h, routed: [tokens, hidden]; experts, gated_norm: [tokens, top_k].
    """
    parts = []
    for block in _blocks(h):
        stream, output = h[block].float(), routed[block].float()
        product = _dot(stream, output, torch.empty_like(output))
        parts.append(_turn(_norm(stream), product, _norm(output), residual=True))
    weighted = gated_norm.float() * torch.cat(parts).clamp_min(0)[:, None]
    flat = experts.reshape(-1).cpu()
    stats["easy_ep"].index_add_(0, flat, weighted.reshape(-1).cpu().double())


def accumulate_growth(
    stats: LayerStatistics,
    *,
    h: torch.Tensor,
    after: torch.Tensor,
    gain: torch.Tensor | None = None,
) -> None:
    """Add how much the block lengthened the residual stream, in place; h, after: [tokens, hidden].

    ``gain`` [tokens] or one number: what the square of the routed sum is multiplied by on its way
    into the stream (`RoutedGain`): the stream then counts in the unit of that sum. The logarithm's
    mean is that of an ordinary token: a few with massive activations do not count.
    """
    parts = [
        (_norm(after[b].float()) / _norm(h[b].float()).clamp_min(_EPSILON)).clamp_min(_EPSILON)
        for b in _blocks(h)
    ]
    ratio = torch.cat(parts)
    if gain is not None:
        ratio = (ratio * gain.clamp_min(_EPSILON).rsqrt()).clamp_min(_EPSILON)
    total = 2 * ratio.log().sum(dtype=_sum_dtype(ratio)).cpu().double()
    stats[GROWTH_SUM].add_(torch.stack([total, torch.tensor(len(ratio), dtype=torch.float64)]))


def _turn(
    u_norm: torch.Tensor, product: torch.Tensor, w_norm: torch.Tensor, *, residual: bool
) -> torch.Tensor:
    """1 - cos(u, v), [tokens], of v = u + w (``residual``) or v = w, from |u|, u.w and |w|.

    A small angle is taken from its sine, 1 - cos = sin^2 / (1 + cos), with
    (|u| |v| sin)^2 = (|u| |w|)^2 - (u.w)^2: an expert's output is small against the residual
    stream, and 1 - cos by subtraction would leave rounding noise only.
    """
    u, p, w = (t.to(_sum_dtype(t)) for t in (u_norm, product, w_norm))
    dot, v = (u.square() + p, u.square() + 2 * p + w.square()) if residual else (p, w.square())
    scale = (u.square() * v.clamp_min(0)).clamp_min(_EPSILON)
    cosine = (dot / scale.sqrt()).clamp(-1, 1)
    sine_sq = ((u * w).square() - p.square()).clamp_min(0) / scale
    return torch.where(cosine > 0, sine_sq / (1 + cosine), 1 - cosine).to(u_norm.dtype)


def _norm(rows: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(torch.linalg.vector_norm(rows, dim=-1))


def _dot(left: torch.Tensor, right: torch.Tensor, product: torch.Tensor) -> torch.Tensor:
    """Row by row: [tokens, n], [tokens, n] -> [tokens]; ``product`` is overwritten."""
    return torch.mul(left, right, out=product).sum(dim=-1)


def _sum_dtype(tensor: torch.Tensor) -> torch.dtype:
    """float64 where the device has it (mps has not)."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64
