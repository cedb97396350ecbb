"""Read a safetensors checkpoint one tensor at a time; write one the same way.

Reading uses pread and tells the kernel to drop the pages: an mmap'd checkpoint counts as resident
memory, and these checkpoints are larger than RAM. Writing follows a manifest fixed beforehand, so
a shard's header is written before its first tensor is read, and an interrupted run skips the
shards that are already complete.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, fields
from functools import cached_property
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import torch

from tenp_edge.checkpoint.digests import HashedStream
from tenp_edge.checkpoint.stored import DECODERS
from tenp_edge.disk import atomic_file, read_range, write_text
from tenp_edge.models import Shape
from tenp_edge.models.headers import (
    DTYPE_BYTES,
    INDEX_NAME,
    ModelFiles,
    StoredTensor,
)
from tenp_edge.models.layouts import PartRule, StoredWeight
from tenp_edge.models.stored_weights import StackedExperts

TORCH_DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F64": torch.float64,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I8": torch.int8,
    "U8": torch.uint8,
}
_DECODED_AT_ONCE = 2**18
_F32 = "F32"
_DTYPE_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


def dtype_name(dtype: torch.dtype) -> str:
    """The safetensors name of a torch dtype ("BF16")."""
    return _DTYPE_NAMES[dtype]


def read_stored(stored: StoredTensor) -> torch.Tensor:
    """The whole of a stored tensor, in its shape and dtype."""
    return _read_bytes(stored, stored.offset, stored.nbytes).reshape(stored.shape)


def _read_bytes(stored: StoredTensor, offset: int, nbytes: int) -> torch.Tensor:
    dtype = TORCH_DTYPES.get(stored.dtype, torch.uint8)  # blocks of other types are bytes
    if not nbytes:  # which frombuffer refuses
        return torch.empty(0, dtype=dtype)
    return torch.frombuffer(read_range(stored.file, offset, nbytes), dtype=dtype)


@dataclass(frozen=True)
class ExpertWeights:
    """One routed expert: gate (where the family has one) and up are (width, hidden), down is
    (hidden, width); their biases, where it has some, are (width,), (width,) and (hidden,)."""

    gate: torch.Tensor | None
    up: torch.Tensor
    down: torch.Tensor
    gate_bias: torch.Tensor | None = None
    up_bias: torch.Tensor | None = None
    down_bias: torch.Tensor | None = None

    @property
    def width(self) -> int:
        return self.up.shape[0]

    @classmethod
    def of(cls, parts: Mapping[str, torch.Tensor]) -> ExpertWeights:
        """Of the tensors that there are, by their names here (`ModelConfig.expert_parts`)."""
        made: dict[str, Any] = {"gate": None, **parts}
        return cls(**made)

    @property
    def parts(self) -> dict[str, torch.Tensor]:
        """Every tensor that is there, by its name here."""
        every = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in every.items() if tensor is not None}

    @property
    def matrices(self) -> tuple[torch.Tensor, ...]:
        """Gate (if any), up and down."""
        return (self.up, self.down) if self.gate is None else (self.gate, self.up, self.down)

    def mapped(self, change: Callable[[torch.Tensor], torch.Tensor]) -> ExpertWeights:
        """``change`` of every tensor that is there."""
        return ExpertWeights.of({name: change(tensor) for name, tensor in self.parts.items()})


class Checkpoint(ModelFiles):
    """A model directory whose weights can be read, one at a time, in their stored dtype.

    Quantised weights are decoded, as the reference decoder of their layout does bit for bit, and
    given in `dtype`. Nothing but headers is read until a weight is asked for.
    """

    _held: Mapping[str, torch.Tensor] = MappingProxyType({})

    def read(self, name: str) -> torch.Tensor:
        """The whole weight in its stored dtype."""
        weight = self.weights.get(name)
        if weight is None or weight.is_plain:
            return self._tensor(name if weight is None else weight.tensors["weight"])
        return self._decoded(weight, 0, weight.shape[0])

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Entries ``start:stop`` of the first dimension, reading only their bytes."""
        weight = self.weights.get(name)
        if weight is None or weight.is_plain:
            return self._rows(name if weight is None else weight.tensors["weight"], start, stop)
        return self._decoded(weight, start, stop)

    def stored(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Tensor ``name`` of the files as it is, a part of a quantised weight too; of its first
        dimension ``start:stop``."""
        return self._tensor(name) if stop is None else self._rows(name, start, stop)

    def holding(self, tensors: Iterable[str]) -> Checkpoint:
        """The same with these stored tensors in memory, as they lie in the files."""
        held = copy(self)
        held._held = {name: self._tensor(name) for name in tensors}
        return held

    def expert(self, layer: int, expert: int) -> ExpertWeights:
        """One routed expert, whether stored per expert or stacked (gate_up_proj, down_proj)."""
        stacked = self.stacked.get(layer)
        if stacked is not None:
            return self._stacked_expert(stacked, expert)
        stored = map(self.read, self.config.expert_tensors(layer, expert))
        return ExpertWeights.of(dict(zip(self.config.parts_of(layer, expert), stored, strict=True)))

    def _stacked_expert(self, stacked: StackedExperts, expert: int) -> ExpertWeights:
        gate_up, down, *biases = (self._entry(weight, expert) for weight in stacked.weights)
        if not stacked.gated:
            return ExpertWeights(None, gate_up, down)
        gate, up = _halves(gate_up, interleaved=stacked.interleaved)
        if not biases:
            return ExpertWeights(gate, up, down)
        halves = _halves(biases[0], interleaved=stacked.interleaved)
        return ExpertWeights(gate, up, down, *halves, biases[1])

    def _entry(self, weight: StoredWeight, expert: int) -> torch.Tensor:
        """One expert's part of a stacked weight, (rows, columns)."""
        if weight.is_plain:
            entry = self._rows(weight.tensors["weight"], expert, expert + 1)[0]
        else:
            _, *shape = weight.stored_shape
            entry = torch.empty(shape, dtype=self.dtype)
            names = weight.tensors.items()
            parts = {part: self._rows(name, expert, expert + 1)[0] for part, name in names}
            _decode_into(entry, weight, parts)
        return entry.T.contiguous() if weight.transposed else entry

    def _decoded(self, weight: StoredWeight, start: int, stop: int) -> torch.Tensor:
        """Rows ``start:stop`` of a quantised weight, reading whole blocks of rows; where the rows
        are not apart in the file, reading all and decoding those."""
        (rows, *entry), rules, step = weight.shape, weight.rules, weight.row_step
        first, last = start // step * step, min(-(-stop // step) * step, rows)
        dtype = TORCH_DTYPES[self.dtype_of(weight.name)]
        decoded = torch.empty(last - first, prod(entry), dtype=dtype)
        parts = {
            part: self._part_rows(name, rules[part], first, last)
            for part, name in weight.tensors.items()
        }
        _decode_into(decoded, weight, parts)
        return decoded[start - first : stop - first].reshape(stop - start, *entry)

    def _part_rows(self, name: str, rule: PartRule, start: int, stop: int) -> torch.Tensor:
        """What tensor ``name`` of a quantised matrix holds for its rows ``start:stop``."""
        if rule.rows and not rule.transposed and self.tensors[name].shape:
            return self._rows(name, start // rule.rows, -(-stop // rule.rows))
        return _rows_of(self._tensor(name), rule, start, stop)

    def dtype_of(self, name: str) -> str:
        """The safetensors name ("BF16") of the dtype that `read` gives the weight in."""
        weight = self.weights.get(name)
        if weight is not None and not weight.is_plain:
            floats = {self.tensors[tensor].dtype for tensor in weight.tensors.values()} == {_F32}
            return _F32 if floats else dtype_name(self.dtype)
        return self.tensors[name if weight is None else weight.tensors["weight"]].dtype

    def nbytes(self, name: str) -> int:
        """Bytes of the weight as `read` gives it."""
        return prod(self.weights[name].shape) * DTYPE_BYTES[self.dtype_of(name)]

    def expert_dtype(self, layer: int, expert: int, tensor: str) -> str:
        """The dtype ("BF16") of one tensor of an expert, by its name in `ExpertWeights`."""
        projection, _, bias = tensor.partition("_")
        if layer in self.stacked:
            stacked, index = self.stacked[layer], int(projection == "down")
            return self.dtype_of((stacked.biases if bias else stacked.weights)[index].name)
        name_of = self.config.expert_bias if bias else self.config.expert_tensor
        return self.dtype_of(name_of(layer, expert, self.config.family.matrices.index(projection)))

    @property
    def has_quantised_experts(self) -> bool:
        return any(w.part == "routed experts" and not w.is_plain for w in self.weights.values())

    def _tensor(self, name: str) -> torch.Tensor:
        if name in self._held:
            return self._held[name]
        return read_stored(self.tensors[name])

    def _rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        if name in self._held:
            return self._held[name][start:stop]
        stored = self.tensors[name]
        row = stored.nbytes // stored.shape[0]
        flat = _read_bytes(stored, stored.offset + start * row, (stop - start) * row)
        return flat.reshape(stop - start, *stored.shape[1:])

    @cached_property
    def dtype(self) -> torch.dtype:
        """The dtype the embedding is stored in, or that the config names where it is quantised:
        what experts are read in and a pruned checkpoint is written in."""
        embedding = self.weights[self.config.embedding_name]
        if not embedding.is_plain:
            return cast(torch.dtype, getattr(torch, self.config.dtype))
        return TORCH_DTYPES[self.tensors[embedding.tensors["weight"]].dtype]


def _decode_into(
    target: torch.Tensor, weight: StoredWeight, parts: Mapping[str, torch.Tensor]
) -> None:
    """Fill ``target`` [rows, columns] from ``parts``, some rows at a time.

    It is there before what the decoder needs for the while, and that is small: the heap of a layer
    of experts that are decoded one after the other would else be half holes (1.2 GiB of 2.4).
    """
    decoder, facts, rules = DECODERS[weight.layout.name], weight.layout.facts, weight.rules
    (rows, columns), step = target.shape, weight.row_step
    count = max(1, _DECODED_AT_ONCE // (columns * step)) * step
    for start in range(0, rows, count):
        stop = min(start + count, rows)
        slices = {part: _rows_of(parts[part], rules[part], start, stop) for part in parts}
        target[start:stop] = decoder(slices, (stop - start, columns), facts)


def _rows_of(tensor: torch.Tensor, rule: PartRule, start: int, stop: int) -> torch.Tensor:
    """What ``tensor``, a part of a quantised matrix, holds for its rows ``start:stop``."""
    if not rule.rows or not tensor.ndim:
        return tensor
    first, last = start // rule.rows, -(-stop // rule.rows)
    return tensor.narrow(int(rule.transposed), first, last - first)


def _halves(both: torch.Tensor, *, interleaved: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Gate's and up's rows of ``both``, (2 width, ...)."""
    if interleaved:
        return both[::2].contiguous(), both[1::2].contiguous()
    gate, up = both.chunk(2)
    return gate, up


@dataclass(frozen=True)
class TensorEntry:
    """A tensor that will be written to a safetensors file: name, dtype ("BF16") and shape."""

    name: str
    dtype: str
    shape: Shape

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True)
class Shard:
    """One safetensors file of a manifest; ``nbytes`` is its exact size on disk."""

    name: str
    entries: tuple[TensorEntry, ...]

    @cached_property
    def header(self) -> bytes:
        offset = 0
        table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        for entry in self.entries:
            end = offset + entry.nbytes
            table[entry.name] = {
                "dtype": entry.dtype,
                "shape": list(entry.shape),
                "data_offsets": [offset, end],
            }
            offset = end
        text = json.dumps(table, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text

    @property
    def nbytes(self) -> int:
        return len(self.header) + sum(entry.nbytes for entry in self.entries)


def plan_shards(entries: Sequence[TensorEntry], shard_bytes: int = 4 * 10**9) -> list[Shard]:
    """Cut ``entries`` into files of at most ``shard_bytes``, with Hugging Face's names."""
    groups: list[list[TensorEntry]] = [[]]
    used = 0
    for entry in entries:
        if groups[-1] and used + entry.nbytes > shard_bytes:
            groups.append([])
            used = 0
        groups[-1].append(entry)
        used += entry.nbytes
    if len(groups) == 1:
        return [Shard("model.safetensors", tuple(groups[0]))]
    return [
        Shard(f"model-{number:05}-of-{len(groups):05}.safetensors", tuple(group))
        for number, group in enumerate(groups, 1)
    ]


Blocks = torch.Tensor | Iterable[torch.Tensor]


def write_shards(
    directory: Path,
    shards: Sequence[Shard],
    read: Callable[[str], Blocks],
    digests: dict[str, str] | None = None,
) -> Iterator[TensorEntry]:
    """Write ``shards`` one tensor at a time, yielding each entry as it is done (for progress).

    ``read`` gives a tensor, or its rows in blocks when it is too large to be held at once.
    A shard appears under its own name only when complete; one that is there with the right size
    is kept, so the same call resumes an interrupted one. The index is written last.
    ``digests`` receives the SHA-256 of every shard that is written, by name.
    """
    digests = {} if digests is None else digests
    for shard in shards:
        if not is_written(directory, shard):
            yield from _write_shard(directory / shard.name, shard, read, digests)
    if len(shards) > 1:
        weight_map = {entry.name: shard.name for shard in shards for entry in shard.entries}
        total = sum(entry.nbytes for shard in shards for entry in shard.entries)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_text(directory / INDEX_NAME, json.dumps(index, indent=1))


def is_written(directory: Path, shard: Shard) -> bool:
    """Whether ``shard`` is there, complete: it only gets its name then."""
    file = directory / shard.name
    return file.is_file() and file.stat().st_size == shard.nbytes


def _write_shard(
    target: Path, shard: Shard, read: Callable[[str], Blocks], digests: dict[str, str]
) -> Iterator[TensorEntry]:
    with atomic_file(target, shard.nbytes) as file:
        stream = HashedStream(file)
        stream.write(shard.header)
        for entry in shard.entries:
            got, written = read(entry.name), 0
            for block in [got] if isinstance(got, torch.Tensor) else got:
                assert tuple(block.shape[1:]) == entry.shape[1:], entry.name
                assert dtype_name(block.dtype) == entry.dtype, entry.name
                written += stream.write(tensor_bytes(block))
            assert written == entry.nbytes, entry.name
            yield entry
    digests[shard.name] = stream.digest


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The tensor's raw little-endian bytes, without a copy when it is contiguous."""
    flat = tensor.detach().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy().data) if flat.numel() else memoryview(b"")
