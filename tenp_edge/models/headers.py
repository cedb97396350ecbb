"""What a model directory says without reading a weight: config.json and safetensors headers.

No torch in here: `inspect` answers from this module alone, sooner than torch can be imported.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from tenp_edge.disk import read_json, require_regular
from tenp_edge.errors import UserError, shown
from tenp_edge.models import (
    FAMILIES,
    PROJECTIONS,
    ModelConfig,
    Part,
    Shape,
    expected_tensors,
    read_config,
)
from tenp_edge.models.wrapper import kinds_text, left_out_kinds

WEIGHT_DTYPES = ("F32", "F16", "BF16")
DTYPE_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2}
INDEX_NAME = "model.safetensors.index.json"
_MAX_HEADER_BYTES = 512 * 2**20
# More tensors than this are only listed where as many are stored.
_MANY_TENSORS = 200_000
_SAMPLES_PER_FILE = 64
_AGAIN = "download the file again"
_PREFIX = "model."  # of the language model's tensors, everywhere but in a wrapped one's files


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: file, byte offset and length, dtype ("BF16") and shape."""

    file: Path
    offset: int
    nbytes: int
    dtype: str
    shape: Shape


def read_header(file: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file, checked against the file's real length.

    As the safetensors library does, it refuses names that are there twice, and tensors that do not
    fill the file from the first byte of the data to the last, one behind the other.
    """
    require_regular(file)
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        if length > min(size - 8, _MAX_HEADER_BYTES):
            raise UserError(
                f"{file.name} is not a safetensors file or is cut short ({size} bytes)",
                _AGAIN,
            )
        try:
            header: dict[str, Any] = json.loads(stream.read(length), object_pairs_hook=_unique)
            entries = {k: v for k, v in header.items() if k != "__metadata__"}
            tensors = {k: _stored(file, 8 + length, v) for k, v in entries.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise UserError(f"{file.name} has a damaged header", _AGAIN) from None
    for name, tensor in tensors.items():
        if tensor.offset + tensor.nbytes > size:
            raise UserError(
                f"{file.name} is cut short: {shown(name)} ends at byte "
                f"{tensor.offset + tensor.nbytes}, the file has {size}",
                _AGAIN,
            )
    _check_places(file, tensors, 8 + length, size)
    return tensors


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key} is there twice")
        found[key] = value
    return found


def _stored(file: Path, base: int, entry: Mapping[str, Any]) -> StoredTensor:
    begin, end = entry["data_offsets"]
    shape, dtype = tuple(entry["shape"]), entry["dtype"]
    # A bool is an int in Python, and a float compares with one.
    if not all(type(number) is int and number >= 0 for number in (begin, end, *shape)):
        raise ValueError("sizes that are no whole numbers")
    if end < begin or not isinstance(dtype, str):
        raise ValueError("offsets or dtype")
    expected = DTYPE_BYTES.get(dtype)
    if expected is not None and prod(shape) * expected != end - begin:
        raise ValueError("offsets do not match the shape")
    return StoredTensor(file, base + begin, end - begin, dtype, shape)


def _check_places(
    file: Path, tensors: Mapping[str, StoredTensor], start: int, file_bytes: int
) -> None:
    """Raise UserError where two tensors overlap, or bytes belong to none."""
    place = start
    for name, tensor in sorted(
        tensors.items(), key=lambda item: (item[1].offset, item[1].offset + item[1].nbytes)
    ):
        if tensor.offset != place:
            raise UserError(
                f"{file.name} has a damaged header: {shown(name)} begins at byte {tensor.offset}, "
                f"what comes before it ends at {place}",
                _AGAIN,
            )
        place += tensor.nbytes
    if place != file_bytes:
        raise UserError(
            f"{file.name} has a damaged header: its tensors end at byte {place}, "
            f"the file has {file_bytes}",
            _AGAIN,
        )


class ModelFiles:
    """A model directory opened by header: its config, and where every tensor lies.

    Raises UserError when the directory, the config or the set of tensors cannot be used.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = _model_directory(Path(path))
        self.config: ModelConfig = read_config(read_json(self.path / "config.json"), FAMILIES)
        self.tensors = _named_as_text_model(_read_index(self.path), self.config.stored_prefix)
        self._check_number()
        self._check()

    @cached_property
    def fingerprint(self) -> str:
        """Identifies the model: config, headers, and a sample of every file's bytes."""
        digest = hashlib.sha256(json.dumps(self.config.raw, sort_keys=True).encode())
        by_file: dict[Path, list[StoredTensor]] = {}
        for name, tensor in sorted(self.tensors.items()):
            digest.update(f"{name}{tensor.dtype}{tensor.shape}".encode())
            by_file.setdefault(tensor.file, []).append(tensor)
        for file, tensors in by_file.items():
            with file.open("rb", buffering=0) as stream:
                for tensor in tensors[:: max(1, len(tensors) // _SAMPLES_PER_FILE)]:
                    stream.seek(tensor.offset + tensor.nbytes // 2)
                    digest.update(stream.read(min(64, tensor.nbytes // 2)))
        return digest.hexdigest()[:32]

    @property
    def left_out(self) -> tuple[str, ...]:
        """Stored tensors that are not part of the language model (vision, MTP layers)."""
        return tuple(sorted(name for name in self.tensors if name not in self.expected))

    @property
    def left_out_text(self) -> str:
        """`left_out` by kind and number, for people; empty where nothing is."""
        return kinds_text(left_out_kinds(self.left_out))

    def is_fused(self, layer: int) -> bool:
        """Whether the layer's experts are stored stacked (gate_up_proj, down_proj)."""
        return f"{self.fused_prefix(layer)}experts.gate_up_proj" in self.tensors

    def fused_prefix(self, layer: int) -> str:
        """Fused checkpoints are written by transformers 5, which calls every MoE block ``mlp``."""
        on_disk, family = self.config.moe_prefix(layer), self.config.family
        in_memory = self.config.layer_prefix(layer) + family.experts_in_memory.removesuffix(
            "experts"
        )
        return on_disk if f"{on_disk}experts.gate_up_proj" in self.tensors else in_memory

    @cached_property
    def expected(self) -> dict[str, tuple[Shape, Part]]:
        """Every stored tensor the config implies, fused where the files are fused."""
        config, fused = self.config, self._fused
        expected: dict[str, tuple[Shape, Part]] = {}
        for spec in expected_tensors(config, without_experts=fused):
            expected[spec.name] = (spec.shape, spec.part)
        for layer in sorted(fused):
            widths, hidden = config.expert_widths[layer], config.hidden_size
            prefix, count = f"{self.fused_prefix(layer)}experts.", len(widths)
            stacked = {
                "gate_up_proj": (count, 2 * widths[0], hidden),
                "down_proj": (count, hidden, widths[0]),
            }
            for name, shape in stacked.items():
                expected[prefix + name] = (shape, "routed experts")
        return expected

    @cached_property
    def _fused(self) -> frozenset[int]:
        return frozenset(layer for layer in self.config.expert_widths if self.is_fused(layer))

    # -- checks --------------------------------------------------------------------------------

    def _check_number(self) -> None:
        """A config.json of any size must not be listed before it is compared with the files."""
        config = self.config
        apart = sum(
            len(row) for layer, row in config.expert_widths.items() if layer not in self._fused
        )
        least = 2 * config.num_hidden_layers + len(PROJECTIONS) * apart
        if least > max(_MANY_TENSORS, len(self.tensors)):
            raise UserError(
                f"config.json implies {least} tensors or more, the checkpoint has "
                f"{len(self.tensors)}",
                "the config.json that belongs to the checkpoint",
            )

    def _check(self) -> None:
        missing = [name for name in self.expected if name not in self.tensors]
        if missing:
            raise UserError(
                f"config.json implies {len(self.expected)} tensors, {len(missing)} of them are "
                f"not in the checkpoint; the first is {missing[0]}",
                "check that every shard is there and that config.json belongs to them",
            )
        for name, (shape, _) in self.expected.items():
            stored = self.tensors[name]
            if stored.dtype not in WEIGHT_DTYPES:
                raise UserError(
                    f"{name} is stored as {stored.dtype}; weights must be BF16, F16 or F32",
                    "the bf16, f16 or f32 checkpoint of the same model",
                )
            if stored.shape != shape:
                raise UserError(
                    f"{name} has shape {list(stored.shape)}, config.json implies {list(shape)}",
                    "check that config.json belongs to this checkpoint",
                )


def _named_as_text_model(
    tensors: Mapping[str, StoredTensor], prefix: str
) -> Mapping[str, StoredTensor]:
    """``tensors`` under the names that a wrapped language model has on its own."""
    if prefix == _PREFIX:
        return tensors
    renamed = {}
    for name, tensor in tensors.items():
        inside = name.startswith(prefix)
        renamed[_PREFIX + name.removeprefix(prefix) if inside else name] = tensor
    if len(renamed) < len(tensors):
        raise UserError(
            f"the checkpoint has tensors both of {prefix}* and of {_PREFIX}* by the same names",
            "the checkpoint as it was published",
        )
    return renamed


def _model_directory(path: Path) -> Path:
    """``path`` itself, or the checkpoint inside an output directory of ``compress``."""
    if (path / "checkpoint" / "config.json").is_file() and not (path / "config.json").is_file():
        return path / "checkpoint"
    if path.suffix == ".gguf" and path.is_file():
        raise UserError(
            f"{path} is a GGUF file; tenp-edge prunes Hugging Face checkpoints",
            "the checkpoint it was made from (a directory with config.json and .safetensors)",
        )
    if not path.is_dir():
        raise UserError(f"{path} is not a model directory", "the path of a downloaded checkpoint")
    return path


def _read_index(path: Path) -> dict[str, StoredTensor]:
    index_file = path / INDEX_NAME
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
        raise UserError(f"{path} has no .safetensors file", "download the weights too")
    if len(files) > 1:
        raise UserError(
            f"{path} has {len(files)} .safetensors files but no model.safetensors.index.json",
            "download the index too",
        )
    return read_header(files[0])


def _read_sharded(path: Path, index: Mapping[str, Any]) -> dict[str, StoredTensor]:
    weight_map = index.get("weight_map")
    names = weight_map.values() if isinstance(weight_map, dict) else ()
    if not weight_map or not names or not all(isinstance(name, str) for name in names):
        raise UserError(
            f"{INDEX_NAME} has no weight_map of tensor names to files", "download the index again"
        )
    shards = sorted(set(names))
    outside = [shard for shard in shards if Path(shard).name != shard]
    if outside:
        raise UserError(
            f"{INDEX_NAME} names a file outside the model directory: {shown(outside[0])}",
            "download the index again",
        )
    missing = [shard for shard in shards if not _is_file(path / shard)]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(shards)} shards are missing, the first is {shown(missing[0])}",
            "download the missing files",
        )
    headers = {shard: read_header(path / shard) for shard in shards}
    absent = [name for name, shard in weight_map.items() if name not in headers[shard]]
    if absent:
        raise UserError(
            f"the index names {len(absent)} tensors that its shards do not hold, "
            f"the first is {shown(absent[0])} in {weight_map[absent[0]]}",
            "download the index and the shards again, from one revision",
        )
    return {name: headers[shard][name] for name, shard in weight_map.items()}


def _is_file(file: Path) -> bool:
    """`Path.is_file`, which raises for a name that the system cannot have."""
    try:
        return file.is_file()
    except OSError:
        return False
