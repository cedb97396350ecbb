"""What a run of an exported file takes in memory: the question, and a runtime's own answer.

Shared by the planner, the exporters and the runtimes; a leaf, so that a runtime can answer without
torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tenp_edge.errors import UserError


@dataclass(frozen=True)
class KvType:
    """A type of the KV cache: ggml's number of it, and ``block`` values in ``block_bytes``."""

    ggml_id: int
    block: int
    block_bytes: int

    def row_bytes(self, elements: int) -> int:
        """Bytes of a row of ``elements`` values, in whole blocks."""
        return -(-elements // self.block) * self.block_bytes

    @property
    def value_bytes(self) -> float:
        return self.block_bytes / self.block


# What every runtime of GGUF files here keeps a cache in; what is not in it cannot be planned. Those
# that llama.cpp knows, but for IQ4_NL, whose name is longer than a file's field for it.
KV_TYPES = {
    "F32": KvType(0, 1, 4),
    "F16": KvType(1, 1, 2),
    "BF16": KvType(30, 1, 2),
    "Q8_0": KvType(8, 32, 34),
    "Q5_1": KvType(7, 32, 24),
    "Q5_0": KvType(6, 32, 22),
    "Q4_1": KvType(3, 32, 20),
    "Q4_0": KvType(2, 32, 18),
}
KV_NAMES = "F16, F32, BF16, Q8_0, Q5_1, Q5_0, Q4_1 or Q4_0"  # in the words of the help
# Copies of the states of layers that carry one, in our own runtime (`ggml.states`).
STATE_SNAPSHOTS = 2
# Caches are rounded up to whole steps of so many places, as in llama.cpp.
CONTEXT_STEP = 256
# ggml's GGML_MAX_N_THREADS: it aborts the process above.
MOST_THREADS = 512
# What a process takes differs by up to 0.3 MiB from one to the next: it is told in whole MiB, which
# differ by one where it lies at the edge of two.
PROCESS_STEP = 2**20


def cache_places(context: int, window: int | None, ubatch: int) -> int:
    """Places of one layer's cache for ``context`` tokens, in llama.cpp and in our own runtime.

    A layer with a ``window`` keeps that and the ``ubatch`` tokens that are computed at once: the
    first of them still sees the window before it (llama.cpp's llama_kv_cache_iswa).
    """
    if window is not None:
        context = min(_whole_steps(context), window + min(ubatch, context))
    return _whole_steps(context)


def _whole_steps(count: int) -> int:
    return -(-count // CONTEXT_STEP) * CONTEXT_STEP


@dataclass(frozen=True)
class MemoryRun:
    """A run: ``context`` tokens in the KV cache, ``ubatch`` prompt tokens at a time."""

    context: int = 4096
    ubatch: int = 512
    kv_type: str = "F16"
    threads: int = 2


@dataclass(frozen=True)
class RunMemory:
    """Peak resident bytes of a run by what they are for, as its runtime answers for this machine.

    ``weights_bytes``: everything of the file that is read as weights; ``kv_bytes``: the whole
    cache; ``compute_bytes``: activations of a full ubatch at a full context, and what the kernels
    need beside them. ``process_bytes`` is measured here, for this very file: interpreter and
    libraries, vocabulary, header, descriptions of tensors and graphs. ``file_process_bytes`` is the
    share of it that depends on the file, and is about the same on every machine.
    """

    weights_bytes: int
    kv_bytes: int
    compute_bytes: int
    process_bytes: int
    file_process_bytes: int

    @property
    def total_bytes(self) -> int:
        """Predicted peak resident memory on this machine."""
        return self.weights_bytes + self.kv_bytes + self.compute_bytes + self.process_bytes

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> RunMemory:
        return cls(**raw)


@dataclass(frozen=True)
class PlannedRun:
    """The run that a file was planned for, as the file carries it. ``ram_budget``: the peak that it
    was to stay below, in bytes, 0 where only a ratio was given; ``device``: the profile's name."""

    context: int
    ubatch: int
    kv_type: str
    ram_budget: int = 0
    device: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, raw: object) -> PlannedRun | None:
        """None for what cannot be the run of a plan: files come from anywhere."""
        if not isinstance(raw, Mapping):
            return None
        context, ubatch, budget = (_count(raw.get(n)) for n in ("context", "ubatch", "ram_budget"))
        kv_type, device = (str(raw.get(name) or "").strip() for name in ("kv_type", "device"))
        return cls(context, ubatch, kv_type, budget, device) if context and ubatch else None


def known_kv_type(name: str) -> KvType:
    """The KV cache type ``name``; UserError with the others when there is none."""
    if name not in KV_TYPES:
        raise UserError(f"no KV cache type '{name}'", f"--kv-type {'|'.join(KV_TYPES)}")
    return KV_TYPES[name]


def _count(value: object) -> int:
    """0 for what is no number of tokens or bytes."""
    fits = isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**63
    return value if fits else 0  # type: ignore[return-value]
