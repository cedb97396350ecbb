"""GGUF files of random weights in any shape, layout and mix of types, without a checkpoint.

All tensors of one role, shape and type hold the same bytes, drawn from a few encoded blocks; types
of points on a grid are any bits, for their encoders take seconds to begin. Speed does not depend on
weights. Routers and norms are float32 of their own. There is no vocabulary unless
fields of one are given.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import BinaryIO

import torch

from tenp_edge.exporters.gguf.fields import Field, header, padded, text
from tenp_edge.exporters.gguf.layout import Entry, entries
from tenp_edge.exporters.gguf.metadata import Recipe, model_fields
from tenp_edge.exporters.gguf.recipes import TypeRecipe
from tenp_edge.exporters.gguf.types import TYPES, TensorType, legal_type
from tenp_edge.models import ModelConfig

TypeOf = Callable[[Entry], str]
_NO_TOKENIZER: Sequence[Field] = (("tokenizer.ggml.model", text("no_vocab")),)
_POOL_BLOCKS = 16
_DECAY = -0.1  # What a state loses with a token: it must not grow without end.
# Over the spread of a type's values at scale 1.
_GRID_SCALE = {"IQ1": 1 / 8, "IQ2": 1 / 60, "IQ3": 1 / 200}


def typed_entries(config: ModelConfig, layout: str, type_of: TypeOf) -> Iterator[tuple[Entry, str]]:
    """Every tensor of the file, with the type that it gets: ``type_of`` says what it should be."""
    for entry in entries(config, layout, TypeRecipe(config, "F16")):
        tensor = entry.tensor
        floats = tensor.type == "F32"
        yield entry, "F32" if floats else legal_type(type_of(entry), tensor.shape[-1])


def write_random(
    config: ModelConfig,
    layout: str,
    type_of: TypeOf,
    file: Path,
    own: Mapping[str, torch.Tensor] | None = None,
    tokenizer: Sequence[Field] = _NO_TOKENIZER,
) -> None:
    """Write ``file``; ``own``: float32 tensors by name, stored instead of random ones, or behind
    them all; ``tokenizer``: its fields."""
    found = list(typed_entries(config, layout, type_of))
    infos = [
        (e.tensor.name, e.tensor.shape, TYPES[kind].ggml_id, TYPES[kind].nbytes(e.tensor.shape))
        for e, kind in found
    ]
    own, names = own or {}, {entry.tensor.name for entry, _ in found}
    more = {name: tensor for name, tensor in own.items() if name not in names}
    infos += [(name, tuple(t.shape), TYPES["F32"].ggml_id, t.nbytes) for name, t in more.items()]
    with file.open("wb") as stream:
        fields = model_fields(config, layout, 1, Recipe())
        stream.write(header([*fields, *tokenizer], infos))
        for entry, kind in found:
            tensor = entry.tensor
            matrix = tensor.shape[-2:] if len(tensor.shape) > 1 else tensor.shape
            if tensor.name in own:
                stream.write(own[tensor.name].numpy().tobytes())
            else:
                key = matrix, kind, tensor.name if tensor.type == "F32" else entry.role
                data = _random(matrix, kind, zlib.crc32(repr(key).encode()))
                if tensor.name.endswith(".ssm_a"):
                    data = torch.full(matrix, _DECAY).numpy().tobytes()
                for _ in range(tensor.shape[0] if len(tensor.shape) == 3 else 1):
                    stream.write(data)
            _fill_up(stream)
        for values in more.values():
            stream.write(values.numpy().tobytes())
            _fill_up(stream)


def _fill_up(stream: BinaryIO) -> None:
    stream.write(bytes(padded(stream.tell()) - stream.tell()))


@cache
def _random(shape: tuple[int, ...], kind: str, seed: int) -> bytes:
    generator = torch.Generator().manual_seed(seed)
    if len(shape) == 1:
        return torch.ones(shape).numpy().tobytes()
    stored, (rows, columns) = TYPES[kind], shape
    if stored.block == 1:
        return bytes(stored.encode(torch.randn(shape, generator=generator) / columns**0.5))
    pool = _pool(stored, columns, generator)
    count = rows * columns // stored.block
    chosen = torch.randint(_POOL_BLOCKS, (count,), generator=generator)
    return pool[chosen].numpy().tobytes()


def _pool(kind: TensorType, columns: int, generator: torch.Generator) -> torch.Tensor:
    """[blocks, bytes of a block] of weights that suit rows of ``columns``."""
    if kind.name.startswith(("IQ1", "IQ2", "IQ3")):
        size = (_POOL_BLOCKS, kind.block_bytes)
        bits = torch.randint(256, size, dtype=torch.uint8, generator=generator)
        return _scaled(bits, kind.name, _GRID_SCALE[kind.name[:3]] / columns**0.5)
    values = torch.randn(_POOL_BLOCKS, kind.block, generator=generator) / columns**0.5
    encoded = torch.frombuffer(bytearray(kind.encode(values)), dtype=torch.uint8)
    return encoded.reshape(_POOL_BLOCKS, -1)


def _scaled(blocks: torch.Tensor, name: str, scale: float) -> torch.Tensor:
    """With ``scale`` where ggml has a block's float16: in front, in IQ1_M in the upper four bits of
    the last four words."""
    bits = torch.tensor([scale], dtype=torch.float16).view(torch.uint8)
    if name != "IQ1_M":
        blocks[:, :2] = bits
        return blocks
    for word in range(4):
        nibble = bits[word // 2] >> 4 * (word % 2) & 15
        place = 48 + 2 * word + 1
        blocks[:, place] = blocks[:, place] & 15 | nibble << 4
    return blocks
