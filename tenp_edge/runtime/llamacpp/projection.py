"""What llama.cpp would allocate for a file: its own figures, from a load that allocates nothing.

With ``no_alloc`` it reads the header, builds the cache and the worst graph, and logs the size of
every buffer ("CPU compute buffer size =   55.25 MiB"). The log is the one place where C callers of
every platform can read them; its two decimals are off by 5 kB at most.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tenp_edge.errors import UserError
from tenp_edge.runtime.gguf.header import Header
from tenp_edge.runtime.llamacpp.native import forget_log, load_model, logged, native, reason
from tenp_edge.runtime.memory.footprint import MemoryRun, known_kv_type
from tenp_edge.runtime.memory.resident import resident_bytes

_FLASH_ATTENTION = 1
_HINT = "pip install 'llama-cpp-python>=0.3.36,<0.4'"
_BUFFER = re.compile(r"(\S+) +(KV|output|compute) buffer size = +([\d.]+) MiB")
# The KV cache, and the states of layers that carry one (float32, one per sequence).
_CACHE = re.compile(r"(?:llama_kv_cache|llama_memory_recurrent): size = +([\d.]+) MiB")


@dataclass(frozen=True)
class Projection:
    """Bytes of a run beside the weights; ``process_bytes`` is resident now, buffers aside."""

    kv_bytes: int
    compute_bytes: int
    process_bytes: int


def project(file: Path, run: MemoryRun) -> Projection:
    """llama.cpp's own figures for ``run``; UserError when it refuses the file or the run.

    One row of logits is asked for, as `tenp-edge run` does.
    """
    llama = native()
    model = load_model(file, weightless=True)
    params = llama.llama_context_default_params()
    tokens = min(run.ubatch, run.context)
    params.n_ctx, params.n_batch, params.n_ubatch = run.context, tokens, tokens
    params.n_outputs_max = 1
    params.type_k = params.type_v = known_kv_type(run.kv_type).ggml_id
    params.flash_attn_type = _FLASH_ATTENTION
    params.swa_full = False  # As `LlamaCppModel` opens it: a window layer keeps its window.
    forget_log()
    state = llama.llama_init_from_model(model, params)
    if not state:
        raise UserError(f"llama.cpp cannot make a context of {run.context} tokens: {reason()}")
    process, lines = resident_bytes(), "\n".join(logged())
    compute = sum(_bytes(size) for _buffer, kind, size in _BUFFER.findall(lines) if kind != "KV")
    kv = sum(map(_bytes, _CACHE.findall(lines)))
    llama.llama_free(state)
    llama.llama_model_free(model)
    if not kv or not compute:
        raise UserError("this llama.cpp does not tell the sizes of its buffers", _HINT)
    return Projection(kv, compute, process)


def work_bytes(header: Header, tokens: int) -> int:
    """What ggml's CPU backend allocates to convert the activations of the widest product, for
    ``tokens`` rows: llama.cpp counts it nowhere.

    Quantised weights take rows of 8-bit blocks (at most 292 bytes for 256 values), F16 and BF16
    rows of 2 bytes; stacked experts' down takes a row of every chosen expert.
    """
    used = next((v for k, v in header.fields.items() if k.endswith("expert_used_count")), 1)
    assert isinstance(used, int)
    sizes = [
        info.shape[0]
        * (used if "_down_exps" in info.name else 1)
        * (2 if info.type_name in ("F16", "BF16") else 292 / 256)
        for info in header.tensors.values()
        if len(info.shape) > 1 and info.type_name != "F32"
    ]
    return round(tokens * max(sizes, default=0))


def _bytes(mebibytes: str) -> int:
    return round(float(mebibytes) * 2**20)
