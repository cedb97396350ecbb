"""GGUF files as models to start from, and the checkpoints of the same values."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
from support.gguf_cases import export

from tenp_edge.checkpoint.files import Checkpoint, TensorEntry, plan_shards, write_shards
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.models import expected_tensors


def write_gguf(checkpoint: Path, file: Path, quant: str = "Q8_0", layout: str = "merged") -> Path:
    """The whole model of ``checkpoint``, as others publish it: without a word of ours."""
    export(ModelSource(Checkpoint(checkpoint)), file, quant, layout)
    return without_fields(file, ("tenp.",))


def without_fields(file: Path, starts: Sequence[str]) -> Path:
    """``file`` without the metadata whose keys begin so."""
    return rewritten(file, drop=tuple(starts))


def rewritten(
    file: Path,
    drop: tuple[str, ...] = (),
    add: dict[str, object] | None = None,
    rename: dict[str, str] | None = None,
    part: slice = slice(None),
    without_tensors: Sequence[str] = (),
    extra: dict[str, tuple[int, np.ndarray]] | None = None,
    target: Path | None = None,
) -> Path:
    """``file`` with other metadata, other names of tensors, a part of them, or ``extra`` ones (type
    and rows of blocks); by gguf-py."""
    reader = gguf.GGUFReader(file)
    architecture = (add or {}).get("general.architecture")
    name = architecture or reader.fields["general.architecture"].contents()
    made = (target or file).with_suffix(".made")
    writer = gguf.GGUFWriter(made, str(name))
    for key, field in reader.fields.items():
        own = key.startswith(("GGUF.", "general.architecture", *drop)) or key in (add or {})
        if not own:
            kind = field.types[0]
            inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), kind, sub_type=inner)
    for key, value in (add or {}).items():
        if key != "general.architecture":
            kind = gguf.GGUFValueType.get_type(value)
            kind = gguf.GGUFValueType.UINT32 if kind == gguf.GGUFValueType.INT32 else kind
            writer.add_key_value(key, value, kind)
    for tensor in reader.tensors[part]:
        if tensor.name not in without_tensors:
            writer.add_tensor(
                (rename or {}).get(tensor.name, tensor.name),
                np.array(tensor.data),
                raw_dtype=tensor.tensor_type,
            )
    for name, (kind, data) in (extra or {}).items():
        writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType(kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    del reader
    made.replace(target or file)
    return target or file


def split(file: Path, count: int) -> Path:
    """``file`` cut into ``count`` parts, as llama.cpp names them; the first of them."""
    tensors = len(gguf.GGUFReader(file).tensors)
    for number in range(count):
        bounds = slice(number * tensors // count, (number + 1) * tensors // count)
        added: dict[str, object] = {
            "split.no": number,
            "split.count": count,
            "split.tensors.count": tensors,
        }
        target = part_name(file, number + 1, count)
        drop = () if number == 0 else ("tokenizer.", "general.")
        rewritten(file, drop=drop, add=added, part=bounds, target=target)
    return part_name(file, 1, count)


def part_name(file: Path, number: int, count: int) -> Path:
    return file.with_name(f"{file.stem}-{number:05}-of-{count:05}.gguf")


def dequantised(source: Path, original: Path, directory: Path) -> Path:
    """The values of the GGUF ``source`` as a float32 checkpoint with the config of ``original``."""
    config, checkpoint = Checkpoint(original).config, Checkpoint(source)
    entries = [TensorEntry(spec.name, "F32", spec.shape) for spec in expected_tensors(config)]
    directory.mkdir()
    for _ in write_shards(directory, plan_shards(entries), checkpoint.read):
        pass
    (directory / "config.json").write_text(json.dumps(config.raw | {"torch_dtype": "float32"}))
    for file in original.glob("*token*"):
        shutil.copy(file, directory)
    return directory


def tensors_of(file: Path) -> dict[str, tuple[int, bytes]]:
    """Type and bytes of every tensor of a file, by name."""
    return {
        tensor.name: (int(tensor.tensor_type), tensor.data.tobytes())
        for tensor in gguf.GGUFReader(file).tensors
    }
