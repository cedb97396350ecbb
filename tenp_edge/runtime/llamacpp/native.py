"""llama.cpp's C interface, opened once: its log kept, and no weights ever repacked.

The one place for what every user of it needs. Weights are never repacked: a CPU build with AMX made
by gcc 12 dies with SIGILL at the first evaluation of quantised weights, and repacking doubles the
memory. (Our own runtime puts weights in plain CPU buffers, where neither can happen.) A refused
file becomes a UserError with llama.cpp's own last words.
"""

from __future__ import annotations

import ctypes
import re
import sys
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from tenp_edge.errors import UserError

_DEBUG_LEVEL, _ERROR_LEVEL = 1, 4
_PLAIN_LOAD = 0  # llama.cpp cannot map a file without allocating for it.
_log: list[tuple[int, str]] = []


@cache
def native() -> Any:
    """The low-level module, its log caught. Raises UserError when it is not installed."""
    try:
        module = _interface()
    except (ImportError, OSError, RuntimeError) as error:
        raise UserError(
            f"llama-cpp-python cannot be loaded: {error}", "pip install llama-cpp-python"
        ) from None
    _keep_log(module)
    module.llama_backend_init()
    return module


def _interface() -> Any:
    """The module ``llama_cpp.llama_cpp`` alone. Its package would load chat formats, disk caches,
    Jinja and a second wrapper too: 10 MiB that every run would hold. The copy is ours; an import of
    the package elsewhere makes its own."""
    spec = find_spec("llama_cpp")
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError("it is not installed")
    before = {name: sys.modules.pop(name) for name in _loaded()}
    package = ModuleType("llama_cpp")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["llama_cpp"] = package
    try:
        return import_module("llama_cpp.llama_cpp")
    finally:
        for name in _loaded():
            del sys.modules[name]
        sys.modules.update(before)


def _loaded() -> list[str]:
    return [name for name in sys.modules if name.split(".")[0] == "llama_cpp"]


def _keep_log(found: Any) -> None:
    found.llama_log_set(_log_callback(found), ctypes.c_void_p(0))


@cache
def _log_callback(llama_cpp: Any) -> Any:
    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
    def keep(level: int, text: bytes, _data: object) -> None:
        if level != _DEBUG_LEVEL:
            _log.append((level, text.decode(errors="replace").rstrip()))
            del _log[:-200]

    return keep


def load_model(
    file: Path,
    *,
    vocab_only: bool = False,
    gpu_layers: int = 0,
    weightless: bool = False,
    name: str | None = None,
) -> Any:
    """The model handle of ``file``; UserError with the reason when llama.cpp refuses it.

    ``weightless``: only the header is read and nothing is allocated, to ask for sizes. ``name``:
    what errors call the file.
    """
    if not file.is_file():
        raise UserError(f"{file} does not exist", "the path of a GGUF file")
    params = native().llama_model_default_params()
    params.use_extra_bufts = False
    params.n_gpu_layers = gpu_layers
    params.vocab_only = vocab_only
    if weightless:
        params.no_alloc, params.load_mode = True, _PLAIN_LOAD
    forget_log()
    model = native().llama_model_load_from_file(str(file).encode(), params)
    if not model:
        why = reason()
        ours = "architecture: 'tenp-" in why or "_exps.weight' not found" in why
        raise UserError(
            f"llama.cpp refuses {name or file.name}: {why}",
            "tenp-edge run, or a file of --layout merged" if ours else "export the file again",
        )
    return model


def forget_log() -> None:
    """Before a call that may fail, so that `reason` speaks of that call. The log is one for the
    process: somebody who imported the llama_cpp package since then has taken it."""
    _keep_log(native())
    _log.clear()


def logged() -> list[str]:
    """What it said since then (its last 200 lines)."""
    return [text for _level, text in _log]


def reason() -> str:
    """The first error of the log: the ones after it only say that loading failed."""
    errors = [text for level, text in _log if level == _ERROR_LEVEL and text]
    line = errors[0] if errors else "it gives no reason"
    # Before its words stand the names of its functions.
    return re.sub(r"^(\w+: )+", "", line.split("error loading model: ")[-1]).strip()
