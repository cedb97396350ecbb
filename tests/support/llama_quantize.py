"""llama.cpp's own quantiser (llama_model_quantize), the judge of ours."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping
from pathlib import Path

import llama_cpp.llama_cpp as lib
import numpy as np
import numpy.typing as npt

from tenp_edge.exporters.gguf.types import FILE_TYPES, TYPES

Floats = npt.NDArray[np.float32]
_LINE = re.compile(
    r"\] (\S+) +- \[[^\]]*\], type = +(\w+), size = +[\d.]+ MiB"
    r"(?: -> +[\d.]+ MiB \((\w+)\))?"
)
_lines: list[str] = []


@lib.llama_log_callback  # type: ignore[untyped-decorator]
def _collect(_level: int, text: bytes, _user: object) -> None:
    _lines.append(text.decode(errors="replace"))


def quantize(
    source: Path,
    target: Path,
    quant: str,
    *,
    imatrix: Mapping[str, Floats] | None = None,
    overrides: Mapping[str, str] | None = None,
    threads: int = 1,
    dry_run: bool = False,
) -> dict[str, str]:
    """Run it; the types it says it gave, by tensor."""
    params = lib.llama_model_quantize_default_params()
    params.ftype, params.nthread = FILE_TYPES[quant].file_type, threads
    params.dry_run = dry_run
    kept: list[object] = []
    if imatrix is not None:
        entries = (lib.llama_model_imatrix_data * (len(imatrix) + 1))()
        for entry, (name, values) in zip(entries, imatrix.items(), strict=False):
            flat = np.ascontiguousarray(values, np.float32).ravel()
            kept.append(flat)
            entry.name, entry.size = name.encode(), flat.size
            entry.data = flat.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        params.imatrix = entries
    if overrides is not None:
        rules = (lib.llama_model_tensor_override * (len(overrides) + 1))()
        for rule, (pattern, kind) in zip(rules, overrides.items(), strict=False):
            rule.pattern, rule.type = pattern.encode(), TYPES[kind].ggml_id
        params.tt_overrides = rules
    _lines.clear()
    lib.llama_log_set(_collect, ctypes.c_void_p(0))
    code = lib.llama_model_quantize(str(source).encode(), str(target).encode(), params)
    assert code == 0, "".join(_lines[-10:])
    return {m[1]: (m[3] or m[2]).upper() for m in _LINE.finditer("".join(_lines))}
