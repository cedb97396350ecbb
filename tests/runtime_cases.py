"""Per-expert files of tiny models, their padded twins, and the C extension, for runtime tests."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

from gguf_cases import export
from plans import cycled, plan_for

from tenp_edge.checkpoint import Checkpoint
from tenp_edge.plan import CompressionPlan
from tenp_edge.runtime import ragged
from tenp_edge.source import ModelSource

CheckpointOf = Callable[[str], Path]
_MODULE = "tenp_edge.runtime._ragged"


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


def build_extension(directory: Path) -> bool:
    """Make the C extension importable, compiled into ``directory`` where it is not installed.

    False where there is no C compiler.
    """
    if ragged.kernels() is not None:
        return True
    compiler = shutil.which((sysconfig.get_config_var("CC") or "cc").split()[0])
    if compiler is None:
        return False
    source = Path(ragged.__file__).with_name("_ragged.c")
    target = directory / f"_ragged{sysconfig.get_config_var('EXT_SUFFIX')}"
    include = sysconfig.get_path("include")
    flags = ["-O3", "-ffp-contract=off", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([compiler, *flags, f"-I{include}", source, "-o", target, "-lm"], check=True)
    spec = importlib.util.spec_from_file_location(_MODULE, target)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[_MODULE] = module
    ragged.kernels.cache_clear()
    return ragged.kernels() is not None
