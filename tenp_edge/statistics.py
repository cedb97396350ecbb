"""Calibration statistics: sums over tokens, per domain, layer, expert and neuron.

Everything is a plain sum (or a maximum), so statistics of two runs add up to the statistics of
both, and every score in `saliency` is a function of these sums alone. Notation, per MoE layer and
routed expert: x [tokens, hidden] the tensor it receives, m [tokens, width] = act(gate) * up, and
y [tokens, hidden] = m W_down^T, g [tokens] the weight that multiplies y at dispatch, h the residual
stream before the MoE block. Sums are float64 while they grow, whatever the dtype of the forward.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tenp_edge.checkpoint import (
    TORCH_DTYPES,
    Shard,
    StoredTensor,
    TensorEntry,
    dtype_name,
    read_header,
    read_json,
    read_range,
    write_shards,
    write_text,
)
from tenp_edge.digests import file_digest
from tenp_edge.errors import UserError
from tenp_edge.joint import ORDER_PRIORS, Elimination
from tenp_edge.models import ModelConfig
from tenp_edge.statistics_checks import check_info, check_model, check_tensors

VERSION = 2
# In statistics.json and gradients.json: SHA-256 of the safetensors file beside it.
DIGEST, GRADIENTS_DIGEST = "sha256", "gradients_sha256"
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
# What cutting several neurons of an expert costs (`joint`), of all domains together, in each order
# of `joint.ORDER_PRIORS`: neurons, best first, [experts, width], and the loss of keeping the first
# of them, [experts, width + 1]. No sum: merged statistics lack it.
ELIMINATION = ("order", "losses")
# How often each sequence of the text chose each expert, [sequences, experts], in the order of the
# domains: whether the text is of one kind (`kinds`). Merged statistics lack it.
SEQUENCE_USE = "sequence_use"
# In the JSON of merged statistics: the `data_sha256` of all that were added up.
MERGED = "merged_from"
_MERGE = "tenp-edge merge WORK1 WORK2 -o WORK, of different text or seeds"
# Norms of the weights, [experts, width]: facts of the model, not of the data.
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


class Scratch:
    """Float32 buffers by name, kept between calls: fresh ones cost more in page faults than the
    arithmetic done in them."""

    def __init__(self) -> None:
        self._buffers: dict[str, torch.Tensor] = {}

    def like(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        """An uninitialised float32 tensor of the shape of ``rows``; the same memory every time."""
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < rows.numel() or buffer.device != rows.device:
            buffer = torch.empty(rows.numel(), dtype=torch.float32, device=rows.device)
            self._buffers[name] = buffer
        return buffer[: rows.numel()].view(rows.shape)

    def copy(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        """``rows`` in float32, free to be overwritten."""
        return self.like(name, rows).copy_(rows)

    def float(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        """``rows`` in float32, not to be overwritten."""
        return rows if rows.dtype == torch.float32 else self.copy(name, rows)


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
    """Add the tokens routed to one expert, in place; ``projected`` = y W_down, [tokens, width].

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
    peak = torch.stack([part[1] for part in parts]).amax(dim=0).double().cpu()
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
    return total.double().cpu()


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
    stats["easy_ep"].index_add_(0, flat, weighted.reshape(-1).double().cpu())


def accumulate_growth(stats: LayerStatistics, *, h: torch.Tensor, after: torch.Tensor) -> None:
    """Add how much the block lengthened the residual stream, in place; h, after: [tokens, hidden].

    The logarithm's mean is that of an ordinary token: a few with massive activations do not count.
    """
    parts = [
        (_norm(after[b].float()) / _norm(h[b].float()).clamp_min(_EPSILON)).clamp_min(_EPSILON)
        for b in _blocks(h)
    ]
    ratio = torch.cat(parts)
    total = 2 * ratio.log().sum(dtype=_sum_dtype(ratio)).double().cpu()
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


def merge(left: LayerStatistics, right: LayerStatistics) -> LayerStatistics:
    """Statistics of both token sets together; a sum that one of them lacks is left out."""
    return LayerStatistics(
        {
            name: torch.maximum(value, right[name])
            if name in NEURON_MAXIMA
            else value + right[name]
            for name, value in left.sums.items()
            if name in right.sums
        }
    )


# -- on disk ---------------------------------------------------------------------------------------


class _StoredSums(Mapping[str, torch.Tensor]):
    """The sums of one domain and layer, read lazily: a score needs two or three of them."""

    def __init__(self, names: Sequence[str], read: Callable[[str], torch.Tensor]) -> None:
        self._names, self._read_sum = names, read
        self._known: dict[str, torch.Tensor] = {}

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._known:
            self._known[name] = self._read_sum(name)
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@dataclass(frozen=True)
class Statistics:
    """A statistics file: read one layer at a time. ``info`` is its JSON half.

    ``info["domains"]``: name -> {"samples", "tokens"}; ``info["layers"]``: MoE layer indices.
    """

    info: Mapping[str, Any]
    stored: Mapping[str, StoredTensor]

    @property
    def fingerprint(self) -> str:
        return str(self.info["fingerprint"])

    @property
    def domains(self) -> tuple[str, ...]:
        return tuple(self.info["domains"])

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(self.info["layers"])

    def layer(self, domain: str, layer: int) -> LayerStatistics:
        """All sums of one domain and layer, as float64, each read when it is first asked for."""
        prefix = f"{domain}/layers.{layer}."
        return LayerStatistics(
            _StoredSums(self.names, lambda name: self.read(prefix + name).double())
        )

    @property
    def names(self) -> list[str]:
        """The sums that every domain and layer has."""
        names = [*EXPERT_SUMS, *NEURON_SUMS, *NEURON_MAXIMA, INPUT_SUM, GROWTH_SUM]
        return [*names, *(GRADIENT_SUMS if self.has_gradients else ())]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor that the methods below read, by its stored name."""
        experts, width, hidden = (int(self.info[name]) for name in ("experts", "width", "hidden"))
        of_sum: dict[str, tuple[int, ...]] = dict.fromkeys(EXPERT_SUMS, (experts,))
        of_sum |= dict.fromkeys((*NEURON_SUMS, *NEURON_MAXIMA, *GRADIENT_SUMS), (experts, width))
        of_sum |= {INPUT_SUM: (experts, hidden), GROWTH_SUM: (2,)}
        own: dict[str, tuple[int, ...]] = dict.fromkeys(WEIGHT_NORMS, (experts, width))
        if self.has_elimination:
            shapes = ((experts, width), (experts, width + 1))
            for score in ORDER_PRIORS:
                own |= dict(zip(elimination_names(score), shapes, strict=True))
        found = {f"layers.{layer}.{name}": own[name] for layer in self.layers for name in own}
        for domain in self.domains:
            for layer in self.layers:
                prefix = f"{domain}/layers.{layer}."
                found |= {prefix + name: of_sum[name] for name in self.names}
        return found

    @property
    def choices(self) -> int:
        """Experts that a token chooses, by the counts."""
        total = sum(int(counts["tokens"]) for counts in self.info["domains"].values())
        layer = self.layers[0]
        routed = sum(float(self.layer(name, layer)["tokens"].sum()) for name in self.domains)
        return max(1, round(routed / max(total, 1)))

    @property
    def has_gradients(self) -> bool:
        """Whether a backward pass was made, for the scores that need one."""
        return f"{self.domains[0]}/layers.{self.layers[0]}.{GRADIENT_SUMS[0]}" in self.stored

    @property
    def has_elimination(self) -> bool:
        """Whether `elimination` is there: merged statistics lack it."""
        first = f"layers.{self.layers[0]}."
        return all(first + elimination_names(score)[0] in self.stored for score in ORDER_PRIORS)

    def elimination(self, layer: int, score: str) -> Elimination:
        """The order in which a layer's neurons are best cut, and what that costs; ``score``: one of
        `joint.ORDER_PRIORS`."""
        order, losses = (self.read(f"layers.{layer}.{name}") for name in elimination_names(score))
        return Elimination(order.long(), losses.double())

    def sequence_use(self, layer: int) -> torch.Tensor | None:
        """Each sequence's choices of each expert, float64 [sequences, experts]; None if merged."""
        name = f"layers.{layer}.{SEQUENCE_USE}"
        return self.read(name).double() if name in self.stored else None

    def matrix_inputs(self, domain: str, layer: int, role: str) -> torch.Tensor | None:
        """Sum of squared inputs of a matrix outside the routed experts, float64 [inputs].

        None where nothing was collected (embeddings, output, a layer after the last MoE layer).
        """
        name = f"{domain}/layers.{layer}.inputs.{role}"
        return self.read(name).double() if name in self.stored else None

    def weight_norms(self, layer: int) -> dict[str, torch.Tensor]:
        """Row norms of gate and up and column norms of down, float64 [experts, width]."""
        return {name: self.read(f"layers.{layer}.{name}").double() for name in WEIGHT_NORMS}

    def read(self, name: str) -> torch.Tensor:
        """A tensor by its stored name, in the stored dtype."""
        entry = self.stored[name]
        data = read_range(entry.file, entry.offset, entry.nbytes)
        return torch.frombuffer(data, dtype=TORCH_DTYPES[entry.dtype]).reshape(entry.shape)


def load_statistics(
    directory: Path,
    fingerprint: str | None = None,
    config: ModelConfig | None = None,
    fresh: bool = False,
) -> Statistics:
    """Open DIR/statistics.json and .safetensors; UserError when they are damaged, not the bytes
    that were written, or not of the model with this fingerprint and config. ``fresh``: they were
    written a moment ago, and are not read."""
    info = _read_info(directory)
    if info.get("format") != "tenp-edge statistics" or info.get("version") != VERSION:
        raise UserError(
            f"{directory} holds no tenp-edge statistics of version {VERSION}", _again(directory)
        )
    check_info(directory / "statistics.json", info)
    if fingerprint is not None:
        check_fingerprint(directory, info, fingerprint)
    if config is not None:
        check_model(directory / "statistics.json", info, config)
    file = directory / "statistics.safetensors"
    if not file.is_file():
        raise UserError(f"{file} is missing", _again(directory))
    if not fresh:
        _require_whole(file, info.get(DIGEST))
    found = Statistics(info, read_header(file) | _gradients(directory, info, fresh))
    check_tensors(file, found.stored, found.shapes())
    return found


def check_fingerprint(directory: Path, info: Mapping[str, Any], fingerprint: str) -> None:
    """Raise UserError unless the statistics ``info`` in ``directory`` are of this checkpoint."""
    if info["fingerprint"] != fingerprint:
        raise UserError(
            f"the statistics in {directory} belong to another checkpoint "
            f"({info['fingerprint'][:12]}, this one is {fingerprint[:12]})",
            "calibrate this model",
        )


def _read_info(directory: Path) -> dict[str, Any]:
    if (directory / "statistics.json").is_file():
        return read_json(directory / "statistics.json", _again(directory))
    inside = directory / "calibration"
    if (inside / "statistics.json").is_file():
        raise UserError(f"{directory} holds no statistics itself", f"--calibration {inside}")
    raise UserError(f"{directory} holds no statistics", _again(directory))


def _again(directory: Path) -> str:
    return f"tenp-edge calibrate MODEL -o {directory}"


def _require_whole(file: Path, digest: str | None) -> None:
    """UserError unless ``file`` has the SHA-256 ``digest``."""
    if file_digest(file) != digest:
        raise UserError(
            f"{file} is damaged: its bytes are not those that were written", _again(file.parent)
        )


def _gradients(
    directory: Path, info: Mapping[str, Any], fresh: bool = False
) -> dict[str, StoredTensor]:
    """The sums of the backward pass over the same tokens, where one was made."""
    record, file = directory / "gradients.json", directory / "gradients.safetensors"
    found = read_json(record, _again(directory)) if record.is_file() else {}
    digest = found.pop(GRADIENTS_DIGEST, None)
    if found != info:
        return {}
    if not fresh:
        _require_whole(file, digest)
    return read_header(file)


def elimination_names(score: str) -> tuple[str, ...]:
    """Names of a layer's tensors for one of `joint.ORDER_PRIORS`: the order, the losses."""
    return tuple(f"{score}_{part}" for part in ELIMINATION)


def layer_tensors(
    layer: int,
    domains: Mapping[str, LayerStatistics],
    norms: Mapping[str, torch.Tensor],
    eliminations: Mapping[str, Elimination] | None = None,
    sequence_use: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """One layer's tensors under their stored names: neuron sums as float32, the rest float64."""
    named = {f"layers.{layer}.{name}": value.float() for name, value in norms.items()}
    if sequence_use is not None:
        named[f"layers.{layer}.{SEQUENCE_USE}"] = sequence_use.float()
    for score, elimination in (eliminations or {}).items():
        found = (elimination.order, elimination.losses)
        named |= {
            f"layers.{layer}.{name}": value.float()
            for name, value in zip(elimination_names(score), found, strict=True)
        }
    for domain, stats in domains.items():
        for name, value in stats.sums.items():
            stored = value if name in (*EXPERT_SUMS, GROWTH_SUM) else value.float()
            named[f"{domain}/layers.{layer}.{name}"] = stored
    return named


def input_tensors(
    layer: int, domains: Mapping[str, Mapping[str, torch.Tensor]]
) -> dict[str, torch.Tensor]:
    """Sums of squared inputs (`Statistics.matrix_inputs`) under their stored names, float32."""
    return {
        f"{domain}/layers.{layer}.inputs.{role}": value.float()
        for domain, sums in domains.items()
        for role, value in sums.items()
    }


def write_tensors(file: Path, named: Mapping[str, torch.Tensor]) -> str:
    """One safetensors file, atomically; returns its SHA-256."""
    entries = tuple(TensorEntry(k, dtype_name(v.dtype), tuple(v.shape)) for k, v in named.items())
    file.unlink(missing_ok=True)
    shards, digests = [Shard(file.name, entries)], dict[str, str]()
    for _ in write_shards(file.parent, shards, lambda name: named[name], digests):
        pass
    return digests[file.name]


def merge_statistics(parts: Iterable[Statistics], directory: Path) -> Statistics:
    """Add statistics of one model up, domain by domain, and write them to ``directory``."""
    parts = list(parts)
    first = parts[0]
    _require_distinct(parts)
    if any((p.fingerprint, p.layers) != (first.fingerprint, first.layers) for p in parts):
        raise UserError("the statistics belong to different checkpoints and cannot be merged")
    domains: dict[str, dict[str, int]] = {}
    for part in parts:
        for name, counts in part.info["domains"].items():
            total = domains.setdefault(name, dict.fromkeys(counts, 0))
            for key, count in counts.items():
                total[key] += count
    directory.mkdir(parents=True, exist_ok=True)
    merged: dict[str, torch.Tensor] = {}
    for layer in first.layers:
        by_domain = {}
        for name in domains:
            found = [p.layer(name, layer) for p in parts if name in p.domains]
            total_stats = found[0]
            for other in found[1:]:
                total_stats = merge(total_stats, other)
            by_domain[name] = total_stats
        merged |= layer_tensors(layer, by_domain, first.weight_norms(layer))
    merged |= _merged_inputs(parts)
    digest = write_tensors(directory / "statistics.safetensors", merged)
    info = {
        **first.info,
        "domains": domains,
        "merged": len(parts),
        "joint": False,
        MERGED: [source for part in parts for source in _sources(part)],
        DIGEST: digest,
    }
    write_text(directory / "statistics.json", json.dumps(info, indent=1) + "\n")
    return load_statistics(directory, fresh=True)


def _sources(part: Statistics) -> list[str]:
    """The digests of the texts that ``part`` counted."""
    return list(part.info.get(MERGED) or [part.info["data_sha256"]])


def _require_distinct(parts: Sequence[Statistics]) -> None:
    if len(parts) < 2:
        raise UserError("there is one directory of statistics: nothing to add to it", _MERGE)
    sources = [source for part in parts for source in _sources(part)]
    if len(set(sources)) < len(sources):
        raise UserError("the same text would be counted twice: two of them saw it", _MERGE)


def _merged_inputs(parts: Sequence[Statistics]) -> dict[str, torch.Tensor]:
    """The sums of squared inputs of all parts, of dense layers too, under their stored names."""
    totals: dict[str, torch.Tensor] = {}
    for part in parts:
        for name in part.stored:
            if ".inputs." in name:
                value = part.read(name).double()
                totals[name] = totals[name] + value if name in totals else value
    return {name: value.float() for name, value in totals.items()}
