"""What a run of an exported file takes in memory: the question, and a runtime's own answer.

Shared by the planner, the exporters and the runtimes; imports nothing, so that a runtime can answer
without torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


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
