"""Read a safetensors checkpoint one tensor at a time; write one the same way.

Reading uses pread and tells the kernel to drop the pages: an mmap'd checkpoint counts as resident
memory, and these checkpoints are larger than RAM. Writing follows a manifest fixed beforehand, so
a shard's header is written before its first tensor is read, and an interrupted run skips the
shards that are already complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from tenp_edge.errors import UserError
from tenp_edge.models import FAMILIES, ModelConfig, Shape, expected_tensors, read_config

TORCH_DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F64": torch.float64,
    "I32": torch.int32,
    "I64": torch.int64,
}
WEIGHT_DTYPES = ("F32", "F16", "BF16")
DTYPE_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2}
_DTYPE_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}
_MAX_HEADER_BYTES = 512 * 2**20


def dtype_name(dtype: torch.dtype) -> str:
    """The safetensors name of a torch dtype ("BF16")."""
    return _DTYPE_NAMES[dtype]


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: file, byte offset and length, dtype ("BF16") and shape."""

    file: Path
    offset: int
    nbytes: int
    dtype: str
    shape: Shape


@dataclass(frozen=True)
class ExpertWeights:
    """One routed expert: gate and up are (width, hidden), down is (hidden, width)."""

    gate: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor

    @property
    def width(self) -> int:
        return self.gate.shape[0]


def read_header(file: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file, checked against the file's real length."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        if length > min(size - 8, _MAX_HEADER_BYTES):
            raise UserError(
                f"{file.name} is not a safetensors file or is cut short ({size} bytes)",
                "download the file again",
            )
        try:
            header: dict[str, Any] = json.loads(stream.read(length))
            entries = {k: v for k, v in header.items() if k != "__metadata__"}
            tensors = {k: _stored(file, 8 + length, v) for k, v in entries.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{file.name} has a damaged header", "download it again") from error
    for name, tensor in tensors.items():
        if tensor.offset + tensor.nbytes > size:
            raise UserError(
                f"{file.name} is cut short: {name} ends at byte "
                f"{tensor.offset + tensor.nbytes}, the file has {size}",
                "download the file again",
            )
    return tensors


def _stored(file: Path, base: int, entry: Mapping[str, Any]) -> StoredTensor:
    begin, end = entry["data_offsets"]
    tensor = StoredTensor(file, base + begin, end - begin, entry["dtype"], tuple(entry["shape"]))
    expected = DTYPE_BYTES.get(tensor.dtype)
    count = 1
    for size in tensor.shape:
        count *= size
    if begin < 0 or end < begin or (expected is not None and count * expected != tensor.nbytes):
        raise ValueError("offsets do not match the shape")
    return tensor


class Checkpoint:
    """A model directory: config.json and safetensors files, opened by header only.

    Raises UserError when the directory, the config or the set of tensors cannot be used. Nothing
    but headers is read until ``read``, ``read_rows`` or ``expert`` asks for a tensor.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = _model_directory(Path(path))
        self.config: ModelConfig = read_config(read_json(self.path / "config.json"), FAMILIES)
        self.tensors = _read_index(self.path)
        self._check()

    # -- reading -------------------------------------------------------------------------------

    def read(self, name: str) -> torch.Tensor:
        """The whole tensor in its stored dtype."""
        stored = self.tensors[name]
        return self._read_bytes(stored, stored.offset, stored.nbytes).reshape(stored.shape)

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Entries ``start:stop`` of the first dimension, reading only their bytes."""
        stored = self.tensors[name]
        row = stored.nbytes // stored.shape[0]
        flat = self._read_bytes(stored, stored.offset + start * row, (stop - start) * row)
        return flat.reshape(stop - start, *stored.shape[1:])

    def expert(self, layer: int, expert: int) -> ExpertWeights:
        """One routed expert, whether stored per expert or fused (gate_up_proj, down_proj)."""
        if self._is_fused(layer):
            prefix = f"{self._fused_prefix(layer)}experts."
            gate, up = self.read_rows(f"{prefix}gate_up_proj", expert, expert + 1)[0].chunk(2)
            down = self.read_rows(f"{prefix}down_proj", expert, expert + 1)[0]
            return ExpertWeights(gate, up, down)
        names = (self.config.expert_tensor(layer, expert, index) for index in range(3))
        return ExpertWeights(*(self.read(name) for name in names))

    def _read_bytes(self, stored: StoredTensor, offset: int, nbytes: int) -> torch.Tensor:
        buffer = read_range(stored.file, offset, nbytes)
        return torch.frombuffer(buffer, dtype=TORCH_DTYPES[stored.dtype])

    # -- facts ---------------------------------------------------------------------------------

    @property
    def dtype(self) -> torch.dtype:
        """The dtype the experts are stored in; what a pruned checkpoint is written in."""
        return TORCH_DTYPES[self.tensors["model.embed_tokens.weight"].dtype]

    @cached_property
    def fingerprint(self) -> str:
        """Identifies the model: config, headers and a sample of every file's bytes."""
        digest = hashlib.sha256(json.dumps(self.config.raw, sort_keys=True).encode())
        for name, tensor in sorted(self.tensors.items()):
            digest.update(f"{name}{tensor.dtype}{tensor.shape}".encode())
            if tensor.nbytes:
                middle = tensor.offset + tensor.nbytes // 2
                digest.update(read_range(tensor.file, middle, min(64, tensor.nbytes // 2)))
        return digest.hexdigest()[:32]

    @property
    def left_out(self) -> tuple[str, ...]:
        """Stored tensors that are not part of the language model (DeepSeek's MTP layers)."""
        known = self._stored_names()
        return tuple(sorted(name for name in self.tensors if name not in known))

    def _is_fused(self, layer: int) -> bool:
        return f"{self._fused_prefix(layer)}experts.gate_up_proj" in self.tensors

    def _fused_prefix(self, layer: int) -> str:
        """Fused checkpoints are written by transformers 5, which calls every MoE block ``mlp``."""
        on_disk = self.config.moe_prefix(layer)
        in_memory = f"{self.config.layer_prefix(layer)}mlp."
        return on_disk if f"{on_disk}experts.gate_up_proj" in self.tensors else in_memory

    # -- checks --------------------------------------------------------------------------------

    def _stored_names(self) -> dict[str, Shape]:
        """Name and shape of every tensor the config implies, fused where the files are fused."""
        config, expected = self.config, {}
        for spec in expected_tensors(config):
            fused = (
                spec.expert is not None and spec.layer is not None and self._is_fused(spec.layer)
            )
            if not fused:
                expected[spec.name] = spec.shape
        for layer, widths in config.expert_widths.items():
            if self._is_fused(layer):
                count, width, hidden = len(widths), widths[0], config.hidden_size
                prefix = f"{self._fused_prefix(layer)}experts."
                expected[f"{prefix}gate_up_proj"] = (count, 2 * width, hidden)
                expected[f"{prefix}down_proj"] = (count, hidden, width)
        return expected

    def _check(self) -> None:
        expected = self._stored_names()
        missing = [name for name in expected if name not in self.tensors]
        if missing:
            raise UserError(
                f"{len(missing)} tensors that config.json implies are not in the checkpoint, "
                f"the first is {missing[0]}",
                "check that every shard is there and that config.json belongs to it",
            )
        for name, shape in expected.items():
            stored = self.tensors[name]
            if stored.dtype not in WEIGHT_DTYPES:
                raise UserError(
                    f"{name} is stored as {stored.dtype}; weights must be BF16, F16 or F32",
                    "convert the checkpoint to bf16 first",
                )
            if stored.shape != shape:
                raise UserError(
                    f"{name} has shape {list(stored.shape)}, config.json implies {list(shape)}",
                    "check that config.json belongs to this checkpoint",
                )


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from ``file``; UserError when it is missing or not one."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file.parent} has no {file.name}", "a model directory") from None
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{file} is not a JSON object")
    return value


def read_range(file: Path, offset: int, nbytes: int) -> bytearray:
    """``nbytes`` of ``file`` at ``offset``, without leaving them in the page cache if possible."""
    buffer = bytearray(nbytes)
    view = memoryview(buffer)
    with file.open("rb", buffering=0) as stream:
        stream.seek(offset)
        done = 0
        while done < nbytes:
            count = stream.readinto(view[done:])
            if not count:
                raise UserError(f"{file.name} is cut short at byte {offset + done}")
            done += count
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(stream.fileno(), offset, nbytes, os.POSIX_FADV_DONTNEED)
    return buffer


def _model_directory(path: Path) -> Path:
    """``path`` itself, or the checkpoint inside an output directory of ``compress``."""
    if (path / "checkpoint" / "config.json").is_file() and not (path / "config.json").is_file():
        return path / "checkpoint"
    if not path.is_dir():
        raise UserError(f"{path} is not a model directory", "the path of a downloaded checkpoint")
    return path


def _read_index(path: Path) -> dict[str, StoredTensor]:
    index_file = path / "model.safetensors.index.json"
    if index_file.is_file():
        return _read_sharded(path, read_json(index_file))
    files = sorted(path.glob("*.safetensors"))
    if not files:
        pickles = sorted(file.name for pattern in ("*.bin", "*.pt") for file in path.glob(pattern))
        if pickles:
            raise UserError(
                f"{pickles[0]} is a pickle, which can run code when it is opened; "
                "only safetensors is read",
                "convert it with transformers: model.save_pretrained(DIR, safe_serialization=True)",
            )
        raise UserError(f"{path} has no .safetensors file", "a safetensors checkpoint")
    if len(files) > 1:
        raise UserError(
            f"{path} has {len(files)} .safetensors files but no model.safetensors.index.json",
            "download the index too",
        )
    return read_header(files[0])


def _read_sharded(path: Path, index: Mapping[str, Any]) -> dict[str, StoredTensor]:
    weight_map: Mapping[str, str] = index.get("weight_map") or {}
    shards = sorted(set(weight_map.values()))
    if any(Path(shard).name != shard for shard in shards):
        raise UserError("model.safetensors.index.json names files outside the model directory")
    missing = [shard for shard in shards if not (path / shard).is_file()]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(shards)} shards are missing, the first is {missing[0]}",
            "download the missing files",
        )
    headers = {shard: read_header(path / shard) for shard in shards}
    absent = [name for name, shard in weight_map.items() if name not in headers[shard]]
    if absent:
        raise UserError(
            f"the index names {len(absent)} tensors that its shards do not hold, "
            f"the first is {absent[0]} in {weight_map[absent[0]]}",
            "download the index and the shards again, from one revision",
        )
    return {name: headers[shard][name] for name, shard in weight_map.items()}


# -- writing ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TensorEntry:
    """A tensor that will be written to a safetensors file: name, dtype ("BF16") and shape."""

    name: str
    dtype: str
    shape: Shape

    @property
    def nbytes(self) -> int:
        count = DTYPE_BYTES[self.dtype]
        for size in self.shape:
            count *= size
        return count


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


def write_shards(
    directory: Path, shards: Sequence[Shard], read: Callable[[str], torch.Tensor]
) -> Iterator[TensorEntry]:
    """Write ``shards`` one tensor at a time, yielding each entry as it is done (for progress).

    A shard appears under its own name only when complete; one that is there with the right size
    is kept, so the same call resumes an interrupted one. The index is written last.
    """
    for shard in shards:
        target = directory / shard.name
        if not (target.is_file() and target.stat().st_size == shard.nbytes):
            yield from _write_shard(target, shard, read)
    if len(shards) > 1:
        weight_map = {entry.name: shard.name for shard in shards for entry in shard.entries}
        total = sum(entry.nbytes for shard in shards for entry in shard.entries)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_text(directory / "model.safetensors.index.json", json.dumps(index, indent=1))


def _write_shard(
    target: Path, shard: Shard, read: Callable[[str], torch.Tensor]
) -> Iterator[TensorEntry]:
    partial = target.with_name(target.name + ".partial")
    with partial.open("wb") as stream:
        stream.write(shard.header)
        for entry in shard.entries:
            tensor = read(entry.name)
            assert tuple(tensor.shape) == entry.shape and dtype_name(tensor.dtype) == entry.dtype
            stream.write(tensor_bytes(tensor))
            yield entry
        sync(stream.fileno())
    partial.replace(target)


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The tensor's raw little-endian bytes, without a copy when it is contiguous."""
    flat = tensor.detach().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy().data) if flat.numel() else memoryview(b"")


def sync(descriptor: int) -> None:
    """Force a finished file to the disk before it takes its final name."""
    os.fsync(descriptor)


def write_text(file: Path, text: str) -> None:
    """Write ``text`` under a temporary name and rename: a reader sees all of it or none."""
    partial = file.with_name(file.name + ".partial")
    with partial.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        sync(stream.fileno())
    partial.replace(file)
