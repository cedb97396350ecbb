"""The padded twin of a per-expert GGUF: the file's own numbers in a layout llama.cpp can load.

    blk.L.ffn_gate.E.weight (width_E, hidden), E < n  ->  blk.L.ffn_gate_exps.weight (n, F, hidden)
    blk.L.ffn_gate.E.bias (width_E), E < n            ->  blk.L.ffn_gate_exps.bias (n, F)

Stored blocks are copied as they are and the missing neurons are zero bytes, which decode to zeros
in every ggml type; so judging the twin is judging the file as written, its quantisation included.
Only where experts differ in type, or the full width does not fill whole blocks, is a tensor
decoded to float32. An expert without neurons is zeros. One tensor of one expert is in memory at a
time.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from tenp_edge.disk import atomic_file, read_range, require_free
from tenp_edge.errors import UserError
from tenp_edge.progress import QUIET, Progress
from tenp_edge.runtime.gguf.file_origin import OWN
from tenp_edge.runtime.gguf.rope_facts import YARN_TRUNCATE
from tenp_edge.runtime.gguf.tokenizer_file import string

TWIN = "padded twin in unmodified llama.cpp"

_EXPERT = re.compile(r"blk\.(\d+)\.ffn_(gate|up|down)\.(\d+)\.(weight|bias)")
_ALIGNMENT = 32
_F32 = 0
_STRING = 8
_SUPPORTED_VERSION = 2
Bytes = npt.NDArray[np.uint8]


class GgufFile:
    """A GGUF opened for its metadata and tensor table. Raises UserError when it is not one."""

    def __init__(self, file: Path) -> None:
        import gguf

        self.file = file
        if not file.is_file():
            raise UserError(f"{file} does not exist", "the path of a GGUF file")
        try:
            self.reader: Any = gguf.GGUFReader(file)
        except (ValueError, IndexError, KeyError, UnicodeDecodeError) as error:
            raise UserError(
                f"{file.name} is not a GGUF file or is cut short ({file.stat().st_size} bytes)",
                "export it again",
            ) from error

    def value(self, key: str) -> Any:
        """The metadata value of ``key``, None when it is not there."""
        field = self.reader.fields.get(key)
        return None if field is None else field.contents()

    def size(self, key: str) -> int | None:
        """A size under the architecture's prefix ("block_count")."""
        value = self.value(f"{self.value('general.architecture')}.{key}")
        return value if isinstance(value, int) else None

    @cached_property
    def layout(self) -> str | None:
        """``tenp.layout``; None for a file that another tool wrote."""
        version = self.value("tenp.version")
        if version is not None and version > _SUPPORTED_VERSION:
            raise UserError(
                f"{self.file.name} has tenp.version {version}; this tenp-edge reads "
                f"{_SUPPORTED_VERSION}",
                "a newer tenp-edge",
            )
        layout = self.value("tenp.layout")
        return None if layout is None else str(layout)


@dataclass(frozen=True)
class _Target:
    """A tensor of the twin: ``ne`` as ggml counts (row length first), ``kind`` the ggml type."""

    name: str
    ne: tuple[int, ...]
    kind: int
    nbytes: int
    sources: tuple[Any, ...]  # None of an expert without neurons
    merged: bool = False


def write_padded_twin(file: GgufFile, target: Path, progress: Progress = QUIET) -> None:
    """Write the padded twin of per-expert ``file`` as ``target``, streaming."""
    tensors = _targets(file)
    head = _header(file, tensors)
    size = len(head) + sum(_padded(tensor.nbytes) for tensor in tensors)
    require_free(target.parent, size, f"the padded twin of {file.file.name}")
    with (
        atomic_file(target, size) as stream,
        progress.task(f"padded twin of {file.file.name}", size, "bytes") as task,
    ):
        stream.write(head)
        for tensor in tensors:
            _write(stream, file.file, tensor)
            task.advance(_padded(tensor.nbytes))


def _targets(file: GgufFile) -> list[_Target]:
    """The twin's tensors: everything else as it is, the experts of a layer as one."""
    full, count = int(file.value("tenp.full_width")), file.size("expert_count") or 0
    groups: dict[tuple[str, str, str], dict[int, Any]] = {}
    targets = []
    for tensor in file.reader.tensors:
        match = _EXPERT.fullmatch(tensor.name)
        if match is None:
            ne = tuple(int(size) for size in tensor.shape)
            kind, nbytes = int(tensor.tensor_type), int(tensor.n_bytes)
            targets.append(_Target(tensor.name, ne, kind, nbytes, (tensor,)))
        else:
            key = match[1], match[2], match[4]
            groups.setdefault(key, {})[int(match[3])] = tensor
    for (layer, projection, suffix), group in groups.items():
        if (projection, suffix) == ("down", "bias") and len(group) < count:
            raise UserError(
                f"{file.file.name} has experts that give a constant, which llama.cpp cannot hold",
                "leave --twin out",
            )
        experts = [group.get(expert) for expert in range(count)]
        name = f"blk.{layer}.ffn_{projection}_exps.{suffix}"
        targets.append(_merged(name, projection, experts, full))
    return targets


def _merged(name: str, projection: str, experts: Sequence[Any], full: int) -> _Target:
    stored = [tensor for tensor in experts if tensor is not None]
    ne = [int(size) for size in stored[0].shape]
    # gate and up (hidden, width), biases (width); down (width, hidden), its bias (hidden)
    if projection != "down":
        ne[-1] = full
    elif len(ne) == 2:
        ne[0] = full
    row, rows = ne[0], math.prod(ne[1:])
    kinds = {int(tensor.tensor_type) for tensor in stored}
    kind = kinds.pop() if len(kinds) == 1 else _F32
    if row % _block(kind)[0]:
        kind = _F32
    nbytes = len(experts) * rows * _row_bytes(kind, row)
    return _Target(name, (*ne, len(experts)), kind, nbytes, tuple(experts), merged=True)


def _write(stream: BinaryIO, file: Path, target: _Target) -> None:
    for tensor in target.sources:
        if tensor is None:
            stream.write(bytes(target.nbytes // len(target.sources)))
            continue
        raw = _raw(file, tensor)
        data = _grown(raw, tensor, target) if target.merged else raw
        stream.write(np.ascontiguousarray(data).reshape(-1).data)
    stream.write(b"\0" * (_padded(target.nbytes) - target.nbytes))


def _raw(file: Path, tensor: Any) -> Bytes:
    """The tensor's stored bytes; read, since pages of the reader's mapping would stay resident."""
    data = read_range(file, int(tensor.data_offset), int(tensor.n_bytes))
    return np.frombuffer(data, dtype=np.uint8)


def _grown(raw: Bytes, tensor: Any, target: _Target) -> Bytes:
    """The rows of one expert in the target's type, with zeros up to the target's shape."""
    row, *others = target.ne[:-1]
    rows = math.prod(others)
    data = _rows(raw, tensor, target.kind)
    grown = np.zeros((rows, _row_bytes(target.kind, row)), dtype=np.uint8)
    grown[: data.shape[0], : data.shape[1]] = data
    return grown


def _rows(raw: Bytes, tensor: Any, kind: int) -> Bytes:
    """[rows, row bytes] of ``tensor`` as stored, or decoded to float32."""
    by_row = raw.reshape(math.prod(map(int, tensor.shape[1:])), -1)
    if int(tensor.tensor_type) == kind:
        return by_row
    from gguf.quants import dequantize

    assert kind == _F32
    # The plain float types are decoded from their own dtype, block types from bytes.
    dtype = {"F16": "<f2", "F32": "<f4"}.get(tensor.tensor_type.name)
    stored = by_row.view(dtype) if dtype else by_row
    decoded = np.ascontiguousarray(dequantize(stored, tensor.tensor_type), dtype="<f4")
    return decoded.reshape(len(by_row), -1).view(np.uint8)


def _block(kind: int) -> tuple[int, int]:
    """(values, bytes) of one block of ggml type ``kind``."""
    import gguf

    values, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
    return int(values), int(nbytes)


def _row_bytes(kind: int, row: int) -> int:
    values, nbytes = _block(kind)
    return row // values * nbytes


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


# -- the header ------------------------------------------------------------------------------------


def _header(file: GgufFile, tensors: Sequence[_Target]) -> bytes:
    """The file's own metadata as a padded file has it, then the twin's tensor table."""
    fields = list(_raw_fields(file))
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(fields)), *fields]
    offset = 0
    for tensor in tensors:
        parts.append(string(tensor.name))
        parts.append(struct.pack(f"<I{len(tensor.ne)}Q", len(tensor.ne), *tensor.ne))
        parts.append(struct.pack("<IQ", tensor.kind, offset))
        offset += _padded(tensor.nbytes)
    blob = b"".join(parts)
    return blob + b"\0" * (_padded(len(blob)) - len(blob))


def _raw_fields(file: GgufFile) -> Iterator[bytes]:
    """Every metadata field (key, type, value): as stored, but for the layout and the name of the
    architecture, which is llama.cpp's, and without what llama.cpp has no key for."""
    architecture = str(file.value("general.architecture"))
    stock = architecture.removeprefix(OWN)
    changed = {"tenp.layout": "padded", "general.architecture": stock}
    with file.file.open("rb") as stream:
        for name, field in file.reader.fields.items():
            # The reader's own names for the counts, and ours.
            if name.startswith("GGUF.") or name == f"{architecture}.{YARN_TRUNCATE}":
                continue
            if name in changed:
                yield string(name) + struct.pack("<I", _STRING) + string(changed[name])
                continue
            stream.seek(field.offset)
            raw = stream.read(sum(int(part.nbytes) for part in field.parts))
            if name.startswith(f"{architecture}."):
                raw = string(stock + name.removeprefix(architecture)) + raw[len(string(name)) :]
            yield raw
