"""What a run is made with: versions and the machine. No user, no host, no path."""

from __future__ import annotations

import platform
import sys
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tenp_edge.checkpoint.model_origin import display_name, spelling
from tenp_edge.planning.options.devices import this_machine
from tenp_edge.version import __version__

FORMAT = "tenp-edge environment"
# What the numbers of a run depend on.
_PACKAGES = (
    *("torch", "transformers", "tokenizers", "safetensors", "numpy"),
    *("gguf", "llama-cpp-python", "onnx", "onnxruntime"),
)
_CPU_INFO = Path("/proc/cpuinfo")


def environment_of(model: Path, model_bytes: int | None = None) -> dict[str, Any]:
    """The environment of a run of ``model``, a directory or file, that ends now; JSON values.
    ``model_bytes``: of its weights, as they are stored."""
    here = this_machine()
    return {
        "format": FORMAT,
        "version": 1,
        "model": display_name(model),
        "model_argument": spelling(model),
        "model_bytes": model_bytes,
        "finished": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "versions": _versions(),
        "machine": {
            "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
            "processor": _processor(),
            "cores": here.threads,
            "memory_bytes": here.memory_bytes,
        },
    }


def _versions() -> dict[str, str]:
    found = {"tenp-edge": __version__, "Python": sys.version.split()[0]}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _processor() -> str:
    """What the processor calls itself; its architecture where it does not say."""
    with suppress(OSError):
        for line in _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()
