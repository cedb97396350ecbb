"""Unmodified llama.cpp, through the low-level interface of llama-cpp-python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tenp_edge.errors import UserError
from tenp_edge.runtime.llamacpp.llama_vocabulary import LlamaVocabulary
from tenp_edge.runtime.llamacpp.native import forget_log, load_model, native, reason
from tenp_edge.runtime.memory.footprint import known_kv_type
from tenp_edge.runtime.session import Logits, Session, check_context, thread_count
from tenp_edge.runtime.slots import Part, Slot

_NO_FLASH_ATTENTION, _FLASH_ATTENTION = 0, 1


class LlamaCppModel(Session):
    """A GGUF file in llama.cpp. Close it, or use it in a ``with``.

    ``context``: tokens the KV cache holds; ``ubatch``: tokens evaluated at once; ``kv_type``: of
    `KV_TYPES` (blocks need ``flash_attention``); ``parallel``: sequences that share the cache;
    ``gpu_layers``: how many layers a GPU build puts on the GPU. ``vocab_only`` loads the
    tokenizer alone. ``name``: what errors call the file.
    """

    runtime = "llama.cpp"

    def __init__(
        self,
        file: str | Path,
        *,
        context: int = 2048,
        threads: int | None = None,
        kv_type: str = "F16",
        ubatch: int = 512,
        flash_attention: bool = False,
        parallel: int = 1,
        gpu_layers: int = 0,
        vocab_only: bool = False,
        name: str | None = None,
    ) -> None:
        check_context(context)
        self._native = native()
        self._model: Any = None
        self._state: Any = None
        self._model = load_model(
            Path(file), vocab_only=vocab_only, gpu_layers=gpu_layers, name=name
        )
        super().__init__(LlamaVocabulary(self._model), context, min(ubatch, context), parallel)
        self._vocab_size, self.kv_type = self.vocabulary.size, kv_type
        if not vocab_only:
            self._state = self._make_state(threads, kv_type, flash_attention)

    def _make_state(self, threads: int | None, kv_type: str, flash_attention: bool) -> Any:
        stored = known_kv_type(kv_type)
        params = self._native.llama_context_default_params()
        params.n_ctx, params.n_batch = self.context, self.batch_tokens
        params.n_ubatch = self.batch_tokens
        params.n_threads = params.n_threads_batch = thread_count(threads)
        params.type_k = params.type_v = stored.ggml_id
        params.flash_attn_type = _FLASH_ATTENTION if flash_attention else _NO_FLASH_ATTENTION
        params.swa_full = False
        params.n_seq_max, params.kv_unified = len(self.slots), len(self.slots) > 1
        forget_log()
        made = self._native.llama_init_from_model(self._model, params)
        if not made:
            raise UserError(f"llama.cpp cannot make a context of {self.context} tokens: {reason()}")
        return made

    @property
    def vocab_size(self) -> int:
        return self._vocab_size

    # -- evaluation ----------------------------------------------------------------------------

    def _run(self, parts: Sequence[Part], all_logits: bool) -> Logits:
        wanted = self._decode(parts, all_logits)
        rows = np.empty((len(wanted), self._vocab_size), dtype=np.float32)
        for row, index in enumerate(wanted):
            pointer = self._native.llama_get_logits_ith(self._state, index)
            rows[row] = np.ctypeslib.as_array(pointer, shape=(self._vocab_size,))
        return rows

    def _decode(self, parts: Sequence[Part], all_logits: bool) -> list[int]:
        """Evaluate ``parts``; the places in the batch whose logits were asked for."""
        count, wanted = sum(len(part.tokens) for part in parts), []
        batch = self._native.llama_batch_init(count, 0, 1)
        try:
            batch.n_tokens = count
            index = 0
            for part in parts:
                for place, token in enumerate(part.tokens):
                    batch.token[index] = int(token)
                    batch.pos[index] = part.slot.position + place
                    batch.n_seq_id[index] = 1
                    batch.seq_id[index][0] = part.slot.number
                    batch.logits[index] = all_logits or place == len(part.tokens) - 1
                    wanted += [index] if batch.logits[index] else []
                    index += 1
            forget_log()
            status = self._native.llama_decode(self._state, batch)
        finally:
            self._native.llama_batch_free(batch)
        if status:
            raise UserError(
                f"llama.cpp could not evaluate {count} tokens at position "
                f"{parts[0].slot.position} (status {status}): {reason()}",
                "a larger context",
            )
        return wanted

    def make_room(self, sizes: Mapping[Slot, int]) -> bool:
        """The sequences share the cells of one cache (``kv_unified``)."""
        held = {slot: slot.position for slot in self.slots} | dict(sizes)
        return sum(held.values()) <= self.context

    def _forget(self, slot: Slot, keep: int) -> None:
        memory = self._native.llama_get_memory(self._state)
        if keep or len(self.slots) > 1:
            self._native.llama_memory_seq_rm(memory, slot.number, keep, -1)
        else:
            self._native.llama_memory_clear(memory, True)

    def _nearest(self, slot: Slot, keep: int) -> int:
        """The window before ``keep`` must still be there (llama.cpp's server asks the same); the
        state of a recurrent layer is only that of the last position."""
        window = self._native.llama_model_n_swa(self._model)
        memory = self._native.llama_get_memory(self._state)
        oldest = self._native.llama_memory_seq_pos_min(memory, slot.number)
        if self._carries_state:
            return keep if keep == slot.settled else 0
        return keep if window == 0 or oldest <= max(0, keep - window) else 0

    def copy_prefix(self, source: Slot, target: Slot, count: int) -> int:
        """Both see the same cells; layers of a window or a state could not be gone back in."""
        if self._carries_state or self._native.llama_model_n_swa(self._model):
            return 0
        memory = self._native.llama_get_memory(self._state)
        self._native.llama_memory_seq_cp(memory, source.number, target.number, 0, count)
        target.tokens = source.tokens[:count]
        return count

    @property
    def _carries_state(self) -> bool:
        model, native = self._model, self._native
        return bool(native.llama_model_is_recurrent(model) or native.llama_model_is_hybrid(model))

    # -- lifetime ------------------------------------------------------------------------------

    def close(self) -> None:
        """Free the context and the weights; harmless when called again."""
        if self._state is not None:
            self._native.llama_free(self._state)
            self._state = None
        if self._model is not None:
            self._native.llama_model_free(self._model)
            self._model = None

    def __del__(self) -> None:
        if getattr(self, "_model", None) is not None:
            self.close()
