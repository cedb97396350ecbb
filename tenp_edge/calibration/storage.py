"""Statistics on disk: written by name, read one layer at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

import torch

from tenp_edge.calibration.elimination import Elimination
from tenp_edge.calibration.order_priors import ORDER_PRIORS
from tenp_edge.calibration.statistics import (
    ELIMINATION,
    EXPERT_SUMS,
    GRADIENT_SUMS,
    GROWTH_SUM,
    INPUT_SUM,
    MEANS,
    NEURON_MAXIMA,
    NEURON_SUMS,
    ROUNDING,
    SEQUENCE_USE,
    WEIGHT_NORMS,
    LayerStatistics,
)
from tenp_edge.calibration.statistics_checks import check_info, check_model, check_tensors
from tenp_edge.checkpoint.digests import file_digest
from tenp_edge.checkpoint.files import Shard, TensorEntry, dtype_name, read_stored, write_shards
from tenp_edge.disk import read_json
from tenp_edge.errors import UserError
from tenp_edge.models import ModelConfig
from tenp_edge.models.headers import StoredTensor, read_header
from tenp_edge.resumable import JobRecord

VERSION = 2
# In statistics.json and gradients.json: SHA-256 of the safetensors file beside it.
DIGEST, GRADIENTS_DIGEST = "sha256", "gradients_sha256"


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
        layer_shapes: dict[str, tuple[int, ...]] = dict.fromkeys(self._norms, (experts, width))
        if self.has_rounding:
            layer_shapes |= dict.fromkeys(ROUNDING, (experts, width))
        if self.has_means:
            layer_shapes |= dict(zip(MEANS, ((experts, width), (experts,)), strict=True))
        if self.has_elimination:
            shapes = ((experts, width), (experts, width + 1))
            for score in ORDER_PRIORS:
                layer_shapes |= dict(zip(elimination_names(score), shapes, strict=True))
        all_shapes = {
            f"layers.{layer}.{name}": layer_shapes[name]
            for layer in self.layers
            for name in layer_shapes
        }
        for domain in self.domains:
            for layer in self.layers:
                prefix = f"{domain}/layers.{layer}."
                all_shapes |= {prefix + name: of_sum[name] for name in self.names}
        return all_shapes

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
        `order_priors.ORDER_PRIORS`."""
        order, losses = (self.read(f"layers.{layer}.{name}") for name in elimination_names(score))
        return Elimination(order.long(), losses.double())

    @property
    def has_rounding(self) -> bool:
        """Whether `rounding` is there: merged statistics and those of older versions lack it."""
        return all(f"layers.{la}.{name}" in self.stored for la in self.layers for name in ROUNDING)

    def rounding(self, layer: int) -> dict[str, torch.Tensor]:
        """ROUNDING: every neuron's loss at an error as large as its weights, float64 [experts,
        width] each."""
        return {name: self.read(f"layers.{layer}.{name}").double() for name in ROUNDING}

    @property
    def has_means(self) -> bool:
        """Whether `means` is there."""
        return all(f"layers.{la}.{name}" in self.stored for la in self.layers for name in MEANS)

    def means(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """MEANS: of neurons, float32 [experts, width]; what constants take off, float64
        [experts]."""
        neurons, taken_off = (self.read(f"layers.{layer}.{name}") for name in MEANS)
        return neurons.float(), taken_off.double()

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
        """Row norms of gate (if any) and up, column norms of down, float64 [experts, width]."""
        return {name: self.read(f"layers.{layer}.{name}").double() for name in self._norms}

    @property
    def _norms(self) -> list[str]:
        """WEIGHT_NORMS, but for that of a gate where the experts have none."""
        first = f"layers.{self.layers[0]}."
        return [n for n in WEIGHT_NORMS if n != "gate_norm" or first + n in self.stored]

    def read(self, name: str) -> torch.Tensor:
        """A tensor by its stored name, in the stored dtype and shape (`shapes`)."""
        return read_stored(self.stored[name])


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
            f"{directory} holds no tenp-edge statistics of version {VERSION}",
            _again(directory),
        )
    check_info(directory / "statistics.json", info)
    if fingerprint is not None:
        check_fingerprint(directory, info, fingerprint, CALIBRATE)
    if config is not None:
        check_model(directory / "statistics.json", info, config)
    file = directory / "statistics.safetensors"
    if not file.is_file():
        raise UserError(f"{file} is missing", _again(directory))
    if not fresh:
        _require_whole(file, info.get(DIGEST))
    gradients = _gradients(directory, info, fresh)
    statistics = Statistics(info, read_header(file) | gradients)
    check_tensors(file, statistics.stored, statistics.shapes())
    return statistics


def check_fingerprint(
    directory: Path, info: Mapping[str, Any], fingerprint: str, hint: str
) -> None:
    """Raise UserError unless the statistics ``info`` in ``directory`` are of this checkpoint."""
    if info["fingerprint"] != fingerprint:
        raise UserError(
            f"the statistics in {directory} belong to another checkpoint "
            f"({info['fingerprint'][:12]}, this one is {fingerprint[:12]})",
            hint,
        )


def _read_info(directory: Path) -> dict[str, Any]:
    if (directory / "statistics.json").is_file():
        return read_json(directory / "statistics.json", _again(directory))
    inside = directory / "calibration"
    if (inside / "statistics.json").is_file():
        raise UserError(f"{directory} holds no statistics itself", f"--calibration {inside}")
    raise UserError(f"{directory} holds no statistics", _again(directory))


CALIBRATE = "tenp-edge calibrate MODEL -o WORK, then --calibration WORK"
_GRADIENTS = " --gradients"


def _again(directory: Path, also: str = "") -> str:
    return f"tenp-edge calibrate MODEL{also} -o {quote(str(directory))}"


def _require_whole(file: Path, digest: str | None, also: str = "") -> None:
    """UserError unless ``file`` has the SHA-256 ``digest``."""
    if file_digest(file) != digest:
        raise UserError(
            f"{file} is damaged: its bytes are not those that were written",
            _again(file.parent, also),
        )


def _gradients(
    directory: Path, info: Mapping[str, Any], fresh: bool = False
) -> dict[str, StoredTensor]:
    """The sums of the backward pass over the same tokens, where one was made."""
    stored, file = gradients_record(directory, info).found(), directory / "gradients.safetensors"
    if stored is None:
        return {}
    if not fresh:
        _require_whole(file, stored[GRADIENTS_DIGEST], _GRADIENTS)
    return read_header(file)


def drop_damaged_gradients(directory: Path) -> None:
    """Sums beside new statistics that are not those that were written are made again."""
    record = gradients_record(directory, _read_info(directory))
    file = directory / "gradients.safetensors"
    stored = record.found()
    if stored and not (file.is_file() and file_digest(file) == stored[GRADIENTS_DIGEST]):
        record.file.unlink()


def gradients_record(directory: Path, info: Mapping[str, Any]) -> JobRecord:
    """gradients.json: of which statistics ``info`` the sums beside it are, and their digest."""
    empty = {GRADIENTS_DIGEST: None}
    return JobRecord(directory / "gradients.json", info, empty, _again(directory, _GRADIENTS))


def elimination_names(score: str) -> tuple[str, ...]:
    """Names of a layer's tensors for one of `order_priors.ORDER_PRIORS`: the order, the losses."""
    return tuple(f"{score}_{part}" for part in ELIMINATION)


def layer_tensors(
    layer: int,
    domains: Mapping[str, LayerStatistics],
    norms: Mapping[str, torch.Tensor],
    eliminations: Mapping[str, Elimination] | None = None,
    sequence_use: torch.Tensor | None = None,
    rounding: Mapping[str, torch.Tensor] | None = None,
    means: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, torch.Tensor]:
    """One layer's tensors under their stored names: neuron sums as float32, the rest float64.

    ``norms``: WEIGHT_NORMS, and ``rounding``: ROUNDING, [experts, width]; ``sequence_use``:
    [sequences, experts]; ``means``: MEANS.
    """
    singles = {**norms, **(rounding or {}), **(means or {})}
    named = {f"layers.{layer}.{name}": value.float() for name, value in singles.items()}
    if sequence_use is not None:
        named[f"layers.{layer}.{SEQUENCE_USE}"] = sequence_use.float()
    for score, elimination in (eliminations or {}).items():
        values = (elimination.order, elimination.losses)
        named |= {
            f"layers.{layer}.{name}": value.float()
            for name, value in zip(elimination_names(score), values, strict=True)
        }
    for domain, stats in domains.items():
        for name, value in stats.sums.items():
            stored = value if name in (*EXPERT_SUMS, GROWTH_SUM) else value.float()
            named[f"{domain}/layers.{layer}.{name}"] = stored
    return named


def input_tensors(
    layer: int, domains: Mapping[str, Mapping[str, torch.Tensor]]
) -> dict[str, torch.Tensor]:
    """Sums of squared inputs (`Statistics.matrix_inputs`) under their stored names, float32
    [inputs]; ``domains``: domain -> role -> [inputs]."""
    return {
        f"{domain}/layers.{layer}.inputs.{role}": value.float()
        for domain, sums in domains.items()
        for role, value in sums.items()
    }


def write_tensors(file: Path, named: Mapping[str, torch.Tensor]) -> str:
    """One safetensors file of tensors of any shape, atomically; returns its SHA-256."""
    entries = tuple(TensorEntry(k, dtype_name(v.dtype), tuple(v.shape)) for k, v in named.items())
    return _write(file, entries, lambda name: named[name])


def join_files(parts: Iterable[Path], file: Path) -> str:
    """One safetensors file of the tensors in ``parts``, copied one at a time; its SHA-256."""
    stored = {name: entry for part in parts for name, entry in read_header(part).items()}
    entries = tuple(TensorEntry(name, e.dtype, e.shape) for name, e in stored.items())
    return _write(file, entries, lambda name: read_stored(stored[name]))


def _write(
    file: Path, entries: tuple[TensorEntry, ...], read: Callable[[str], torch.Tensor]
) -> str:
    file.unlink(missing_ok=True)
    digests = dict[str, str]()
    for _ in write_shards(file.parent, [Shard(file.name, entries)], read, digests):
        pass
    return digests[file.name]
