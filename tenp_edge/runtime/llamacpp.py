"""Unmodified llama.cpp, through the low-level interface of llama-cpp-python.

One place for three things that every user of it needs: weights are never repacked (a CPU build with
AMX made by gcc 12 dies with SIGILL at the first evaluation of quantised weights, and repacking
doubles the memory), the log is kept instead of printed, and a refused file becomes a UserError with
llama.cpp's own last words.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from tenp_edge.errors import UserError

KV_TYPES = {"F32": 0, "F16": 1, "Q8_0": 8}
_ERROR_LEVEL = 4
_NO_FLASH_ATTENTION, _FLASH_ATTENTION = 0, 1
_log: list[tuple[int, str]] = []


class LlamaCppModel:
    """A GGUF file in llama.cpp on the CPU. Close it, or use it in a ``with``.

    ``context``: tokens the KV cache holds; ``ubatch``: tokens evaluated at once; ``kv_type``: F32,
    F16 or Q8_0 (which needs ``flash_attention``). ``vocab_only`` loads the tokenizer alone, which
    works for every layout.
    """

    def __init__(
        self,
        file: str | Path,
        *,
        context: int = 2048,
        threads: int | None = None,
        kv_type: str = "F16",
        ubatch: int = 512,
        flash_attention: bool = False,
        vocab_only: bool = False,
    ) -> None:
        self._native = _native()
        self._model: Any = None
        self._context: Any = None
        self._model = _load(self._native, Path(file), vocab_only)
        self._vocab = self._native.llama_model_get_vocab(self._model)
        self.vocab_size = int(self._native.llama_vocab_n_tokens(self._vocab))
        self._batch_tokens = min(ubatch, context)
        if not vocab_only:
            self._context = self._make_context(context, threads, kv_type, flash_attention)

    def _make_context(
        self, context: int, threads: int | None, kv_type: str, flash_attention: bool
    ) -> Any:
        if kv_type not in KV_TYPES:
            raise UserError(f"no KV cache type '{kv_type}'", f"--kv-type {', '.join(KV_TYPES)}")
        params = self._native.llama_context_default_params()
        params.n_ctx, params.n_batch = context, self._batch_tokens
        params.n_ubatch = self._batch_tokens
        params.n_threads = params.n_threads_batch = threads or os.cpu_count() or 1
        params.type_k = params.type_v = KV_TYPES[kv_type]
        params.flash_attn_type = _FLASH_ATTENTION if flash_attention else _NO_FLASH_ATTENTION
        made = self._native.llama_init_from_model(self._model, params)
        if not made:
            raise UserError(f"llama.cpp cannot make a context of {context} tokens: {_last_error()}")
        return made

    # -- evaluation ----------------------------------------------------------------------------

    def logits(self, tokens: Sequence[int], first_position: int = 0) -> npt.NDArray[np.float32]:
        """Logits of positions ``first_position``.. of a fresh sequence, [n, vocab] float32."""
        count = len(tokens)
        rows = np.empty((max(0, count - first_position), self.vocab_size), dtype=np.float32)
        self._clear()
        for start in range(0, count, self._batch_tokens):
            stop = min(start + self._batch_tokens, count)
            wanted = range(max(start, first_position), stop)
            self._decode(tokens[start:stop], start, {i - start for i in wanted})
            for position in wanted:
                pointer = self._native.llama_get_logits_ith(self._context, position - start)
                row = np.ctypeslib.as_array(pointer, shape=(self.vocab_size,))
                rows[position - first_position] = row
        return rows

    def _clear(self) -> None:
        memory = self._native.llama_get_memory(self._context)
        self._native.llama_memory_clear(memory, True)

    def _decode(self, tokens: Sequence[int], position: int, outputs: set[int]) -> None:
        batch = self._native.llama_batch_init(len(tokens), 0, 1)
        try:
            batch.n_tokens = len(tokens)
            for index, token in enumerate(tokens):
                batch.token[index] = int(token)
                batch.pos[index] = position + index
                batch.n_seq_id[index] = 1
                batch.seq_id[index][0] = 0
                batch.logits[index] = index in outputs
            status = self._native.llama_decode(self._context, batch)
        finally:
            self._native.llama_batch_free(batch)
        if status:
            raise UserError(
                f"llama.cpp could not evaluate {len(tokens)} tokens at position {position} "
                f"(status {status}): {_last_error()}",
                "a larger context",
            )

    # -- text ----------------------------------------------------------------------------------

    def tokenize(
        self, text: str, *, add_special: bool = True, parse_special: bool = True
    ) -> list[int]:
        """Token ids of ``text``; ``add_special`` adds what the file says (a BOS, usually)."""
        raw = text.encode()
        size = len(raw) + 8
        buffer = (ctypes.c_int32 * size)()
        count = self._native.llama_tokenize(
            self._vocab, raw, len(raw), buffer, size, add_special, parse_special
        )
        if count < 0:
            raise UserError(f"llama.cpp cannot tokenise {len(raw)} bytes of text")
        return list(buffer[:count])

    def detokenize(self, tokens: Sequence[int], *, special: bool = True) -> str:
        """Text of ``tokens``, piece by piece (llama_detokenize "cleans up" spaces for some)."""
        return b"".join(self._piece(token, special) for token in tokens).decode(errors="replace")

    def _piece(self, token: int, special: bool) -> bytes:
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            count = self._native.llama_token_to_piece(self._vocab, token, buffer, size, 0, special)
            if count >= 0:
                return buffer.raw[:count]
            size = -count

    # -- lifetime ------------------------------------------------------------------------------

    def close(self) -> None:
        """Free the context and the weights; harmless when called again."""
        if self._context is not None:
            self._native.llama_free(self._context)
            self._context = None
        if self._model is not None:
            self._native.llama_model_free(self._model)
            self._model = None

    def __enter__(self) -> LlamaCppModel:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_model", None) is not None:
            self.close()


def _load(native: Any, file: Path, vocab_only: bool) -> Any:
    if not file.is_file():
        raise UserError(f"{file} does not exist", "the path of a GGUF file")
    params = native.llama_model_default_params()
    params.use_extra_bufts = False
    params.n_gpu_layers = 0
    params.vocab_only = vocab_only
    _log.clear()
    model = native.llama_model_load_from_file(str(file).encode(), params)
    if not model:
        raise UserError(
            f"llama.cpp refuses {file.name}: {_last_error()}",
            "a merged or padded file: export --layout merged|padded",
        )
    return model


@cache
def _native() -> Any:
    """The low-level module, its log caught. Raises UserError when it is not installed."""
    try:
        from llama_cpp import llama_cpp
    except ImportError as error:
        raise UserError(
            f"llama-cpp-python cannot be loaded: {error}", "pip install llama-cpp-python"
        ) from None
    llama_cpp.llama_log_set(_log_callback(llama_cpp), ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    return llama_cpp


@cache
def _log_callback(llama_cpp: Any) -> Any:
    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
    def keep(level: int, text: bytes, _data: object) -> None:
        _log.append((level, text.decode(errors="replace").rstrip()))
        del _log[:-200]

    return keep


def _last_error() -> str:
    """The most telling line of the log: the last error that gives a reason."""
    errors = [text for level, text in _log if level == _ERROR_LEVEL and text]
    reasons = [text for text in errors if "error loading model" in text] or errors
    line = reasons[-1] if reasons else "it gives no reason"
    return line.split("error loading model:")[-1].split(": ", 1)[-1].strip()


# -- memory ----------------------------------------------------------------------------------------

_DECODE_STEPS = 32


def measure_peak_rss(
    file: str | Path, *, context: int, ubatch: int, kv_type: str, threads: int
) -> int:
    """Peak resident bytes of a fresh process that runs ``file``: all weights read, the KV cache
    touched, one full ubatch of prefill and 32 decode steps. No torch in that process."""
    request = {
        "file": str(file),
        "context": context,
        "ubatch": ubatch,
        "kv_type": kv_type,
        "threads": threads,
    }
    code = f"from {__name__} import _peak_of_request; _peak_of_request()"
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise UserError(
            f"measuring {Path(file).name} failed with exit {done.returncode}: {last}",
            "more free memory, or a smaller --context",
        )
    return int(done.stdout)


def _peak_of_request() -> None:
    """The child of `measure_peak_rss`: request on stdin, bytes on stdout."""
    request = json.loads(sys.stdin.read())
    context, ubatch = request["context"], min(request["ubatch"], request["context"])
    with LlamaCppModel(
        request["file"],
        context=context,
        ubatch=ubatch,
        threads=request["threads"],
        kv_type=request["kv_type"],
        flash_attention=request["kv_type"] != "F32",
    ) as model:
        prompt = [index % model.vocab_size for index in range(ubatch)]
        model._clear()
        model._decode(prompt, 0, {ubatch - 1})
        for step in range(min(_DECODE_STEPS, context - ubatch)):
            model._decode([step % model.vocab_size], ubatch + step, {0})
        _touch(Path(request["file"]))
        sys.stdout.write(str(peak_rss_bytes()))


def _touch(file: Path) -> None:
    """Fault in every page of the mapping llama.cpp made: experts that no token chose count too."""
    for start, size in _mappings(file):
        pages = range(0, size, os.sysconf("SC_PAGE_SIZE"))
        for offset in pages:
            ctypes.c_ubyte.from_address(start + offset).value  # noqa: B018


def _mappings(file: Path) -> list[tuple[int, int]]:
    """Where ``file`` is mapped in this process, (address, bytes); none where /proc is missing."""
    maps = Path("/proc/self/maps")
    if not maps.is_file():
        return []
    spans = [
        line.split()[0].split("-")
        for line in maps.read_text().splitlines()
        if line.endswith(str(file.resolve()))
    ]
    return [(int(start, 16), int(stop, 16) - int(start, 16)) for start, stop in spans]


def peak_rss_bytes() -> int:
    """This process's peak resident memory (VmHWM where /proc has it, else ru_maxrss)."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
