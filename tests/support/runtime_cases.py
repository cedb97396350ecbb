"""Per-expert files of tiny models, their padded twins, and the C extension, for runtime tests."""

from __future__ import annotations

import importlib.util
import shutil
import struct
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from support import gguf_bytes as made
from support.gguf_cases import export
from support.mixes import GGUF, mix
from support.plans import cycled, plan_for

from tenp_edge.checkpoint.compression_plan import CompressionPlan
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.exporters.base import ExportOptions
from tenp_edge.runtime.ggml import ragged
from tenp_edge.runtime.gguf.file_origin import OWN
from tenp_edge.runtime.gguf.header import Header, read_header

CheckpointOf = Callable[[str], Path]
_MODULE = "tenp_edge.runtime.ggml._ragged"


def ragged_widths(checkpoint: Checkpoint) -> CompressionPlan:
    """A third, two thirds and the whole in turn, all multiples of 32: legal in every type."""
    full = checkpoint.config.moe_intermediate_size
    return plan_for(checkpoint, cycled(checkpoint, (32, 64, full)))


def export_ragged(
    checkpoint_path: Path, file: Path, quant: str = "F32", layout: str = "per-expert"
) -> CompressionPlan:
    """Write the ragged model; the plan says what was cut."""
    checkpoint = Checkpoint(checkpoint_path)
    plan = ragged_widths(checkpoint)
    export(ModelSource(checkpoint, plan), file, quant, layout)
    return plan


def header_of(checkpoint_path: Path, file: Path) -> Header:
    """Of the file of `export_ragged`."""
    export_ragged(checkpoint_path, file)
    return read_header(file)


def changed(sound: Header, **changes: Any) -> Header:
    """With its architecture's fields replaced (dots written as __) or removed (None)."""
    name = sound.fields["general.architecture"]
    fields = sound.fields | {f"{name}.{k.replace('__', '.')}": v for k, v in changes.items()}
    fields = {key: value for key, value in fields.items() if value is not None}
    return Header("model.gguf", fields, sound.tensors, sound.data_start, {})


def export_mixed(path: Path, file: Path) -> None:
    """Write a model whose experts have types of their own, and every third of them no neurons."""
    checkpoint = Checkpoint(path)
    config = checkpoint.config
    plan = plan_for(checkpoint, cycled(checkpoint, (0, 32, config.moe_intermediate_size)))
    types = mix(config, ("Q4_0", "Q8_0"), ("IQ4_NL",))
    plan = replace(plan, types=types, keeps_places=True)
    options = ExportOptions("Q8_0", "per-expert").typed(plan.file_types)
    GGUF.write(ModelSource(checkpoint, plan), options, file)


def build_extension(directory: Path) -> bool:
    """Make the C extension importable, compiled into ``directory`` where it is not installed.

    False where there is no C compiler.
    """
    if ragged.kernels() is not None:
        return True
    compiler = shutil.which((sysconfig.get_config_var("CC") or "cc").split()[0])
    if compiler is None:
        return False
    sources = (Path(ragged.__file__).with_name(name) for name in ("_ragged.c", "_columns.c"))
    target = directory / f"_ragged{sysconfig.get_config_var('EXT_SUFFIX')}"
    include = sysconfig.get_path("include")
    flags = ["-O3", "-ffp-contract=off", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([compiler, *flags, f"-I{include}", *sources, "-o", target, "-lm"], check=True)
    spec = importlib.util.spec_from_file_location(_MODULE, target)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[_MODULE] = module
    ragged.kernels.cache_clear()
    return ragged.kernels() is not None


def as_older(file: Path, target: Path) -> Path:
    """Per-expert ``file`` as releases before the architecture's own name wrote it."""
    raw, header = file.read_bytes(), read_header(file)
    own = str(header.fields["general.architecture"])
    fields = b""
    for key, (start, end) in header.spans.items():
        value = raw[start + 8 + len(key) : end]
        if key == "general.architecture":
            value = struct.pack("<I", 8) + made.text(own.removeprefix(OWN).encode())
        name = key.removeprefix(OWN) if key.startswith(own) else key
        fields += made.text(name.encode()) + value
    begin = max(end for _, end in header.spans.values())
    infos = sum(24 + len(name) + 8 * len(info.shape) for name, info in header.tensors.items())
    head = raw[:24] + fields + raw[begin : begin + infos]
    head += bytes(-len(head) % 32)
    target.write_bytes(head + raw[header.data_start :])
    return target
