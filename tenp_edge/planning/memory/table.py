"""Bytes of a run: weights, KV cache, compute buffers, runtime overhead; and its decode speed. Pure.

Weights are added up from the exporter's manifest, never estimated. Cache, compute buffer and
process come from the runtime itself (`Exporter.run_memory`). Where it cannot be asked, the KV cache
follows llama.cpp's formula, and the compute buffer, which has no closed form across architectures,
is an upper bound fitted to llama.cpp's own no-alloc projections (`compute_bytes`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from tenp_edge.exporters.base import Manifest
from tenp_edge.models import ModelConfig, state_bytes
from tenp_edge.planning.options.devices import THIS_MACHINE_OVERHEAD_BYTES, DeviceProfile
from tenp_edge.runtime.memory.footprint import (
    STATE_SNAPSHOTS,
    MemoryRun,
    RunMemory,
    cache_places,
    known_kv_type,
)

# Token text, hash maps and merges that llama.cpp keeps per entry of the vocabulary: measured 290
# at 150,000 tokens of 3 to 10 letters.
VOCABULARY_BYTES_PER_TOKEN = 300
# Weights that a core multiplies in a second at most: 32 in about 3 cycles of AVX2 (ggml's Q8_0).
_WEIGHTS_PER_SECOND = 50e9
# What a step takes beside: choosing a token, and starting some 40 small operations a layer. The
# least of 150 steps of models of 1 M active parameters: 165 us with 4 layers, 190 us with 6.
_STEP_SECONDS, _LAYER_SECONDS = 100e-6, 10e-6


@dataclass(frozen=True)
class MemoryTable:
    """What the peak resident memory of a run is made of, in bytes.

    ``source``: "runtime" where cache, buffers and process are the runtime's own answer, else
    "estimate".
    """

    experts_bytes: int
    other_weights_bytes: int
    kv_bytes: int
    compute_bytes: int
    overhead_bytes: int
    budget_bytes: int
    source: str = "estimate"

    @property
    def total_bytes(self) -> int:
        """Predicted peak resident memory."""
        return self.weights_bytes + self.kv_bytes + self.compute_bytes + self.overhead_bytes

    @property
    def weights_bytes(self) -> int:
        return self.experts_bytes + self.other_weights_bytes

    @property
    def headroom_bytes(self) -> int:
        """What the budget leaves; negative when the plan does not fit."""
        return self.budget_bytes - self.total_bytes

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "total_bytes": self.total_bytes,
            "headroom_bytes": self.headroom_bytes,
        }


def memory_table(
    config: ModelConfig,
    manifest: Manifest,
    profile: DeviceProfile,
    run: MemoryRun,
    budget: int,
    answer: RunMemory | None = None,
) -> MemoryTable:
    """Predicted memory of running ``manifest`` (of the pruned ``config``) on ``profile``.

    ``answer``: the runtime's own, of this model or of one like it; without, everything but the
    weights and the cache is estimated. The process itself is measured where the profile is this
    machine, and the profile's constant elsewhere.
    """
    experts = expert_bytes(manifest)
    constant = profile.runtime_overhead_bytes
    if answer is None:
        vocabulary = config.vocab_size * VOCABULARY_BYTES_PER_TOKEN
        # The header of a mapped file (tokenizer included) is read once and stays resident.
        header = manifest.file_bytes - manifest.weight_bytes
        base = THIS_MACHINE_OVERHEAD_BYTES if constant is None else constant
        kv, compute = kv_bytes(config, run), compute_bytes(config, run)
        overhead = base + vocabulary + header
    else:
        kv, compute = answer.kv_bytes, answer.compute_bytes
        of_file = answer.file_process_bytes
        overhead = answer.process_bytes if constant is None else constant + of_file
    return MemoryTable(
        experts_bytes=experts,
        other_weights_bytes=manifest.weight_bytes - experts,
        kv_bytes=kv,
        compute_bytes=compute,
        overhead_bytes=overhead,
        budget_bytes=budget,
        source="estimate" if answer is None else "runtime",
    )


def expert_bytes(manifest: Manifest) -> int:
    """Bytes of the routed experts in an exported file."""
    return sum(tensor.nbytes for tensor in manifest.tensors if tensor.part == "routed experts")


def kv_bytes(config: ModelConfig, run: MemoryRun) -> int:
    """The whole KV cache, layer by layer: keys and values per head, or MLA's latent and rotary key
    only, of the whole context or of a window; and the states of layers that carry one, with their
    snapshots."""
    row_bytes = known_kv_type(run.kv_type).row_bytes
    cache = sum(
        cache_places(run.context, attention.window, run.ubatch)
        * sum(map(row_bytes, attention.cache_rows))
        for attention in config.attention_layers
    )
    return cache + (1 + STATE_SNAPSHOTS) * state_bytes(config.mixers)


def compute_bytes(config: ModelConfig, run: MemoryRun) -> int:
    """Upper bound of llama.cpp's compute buffer for a ubatch of prompt tokens and one output.

    With flash attention, as files are run here for every KV type. Per token, in floats:
    the widest MLP (gate, up, their product, four hidden states), or two widths and two outputs of
    every chosen expert (and the shared expert's output); plus one float16 of attention mask per
    cell, of each window. Against llama.cpp's no-alloc projection for Qwen3-30B, Qwen1.5-MoE,
    DeepSeek-V2-Lite, OLMoE, Mixtral (full and half width) and a 40M model, ubatch 32 to 2048,
    context 512 to 32768: never below; at most 14 % above but for Qwen3-30B at half width (20 %) and
    OLMoE (50 %).
    """
    hidden, top_k = config.hidden_size, config.num_experts_per_tok
    width = max(max(row) for row in config.expert_widths.values())
    dense = config.intermediate_size if config.mlp_layers else 0
    mlp = 3 * max(top_k * width, config.shared_intermediate_size, dense) + 4 * hidden
    shared = 2 * hidden if config.shared_intermediate_size else 0
    floats = max(mlp, 2 * top_k * (hidden + width) + shared)
    windows = {attention.window for attention in config.attention_layers}
    cells = sum(cache_places(run.context, window, run.ubatch) for window in windows)
    tokens = min(run.ubatch, run.context)
    return tokens * (4 * floats + 2 * cells + 512)


def decode_tokens_per_second(
    config: ModelConfig,
    manifest: Manifest,
    profile: DeviceProfile,
    run: MemoryRun,
    active_ratio: float = 1.0,
) -> float:
    """How fast tokens can be generated at most: weights and a full KV cache are read once a token,
    every weight read is multiplied once, and a step takes its time however small the model is.

    ``active_ratio``: width of the experts a token is really routed to over their average width
    (above 1 after TENP, which keeps the busy ones whole).
    """
    routed = config.num_experts_per_tok / config.num_experts
    experts = expert_bytes(manifest)
    touched = experts * min(routed * active_ratio, 1.0)
    touched += manifest.weight_bytes - experts - _looked_up_bytes(config, manifest)
    reading = (touched + kv_bytes(config, run)) / profile.memory_bandwidth_bytes_per_second
    weights = touched * _elements(manifest) / manifest.weight_bytes
    multiplying = weights / (profile.threads * _WEIGHTS_PER_SECOND)
    return 1 / (max(reading, multiplying) + _step_seconds(config))


def _step_seconds(config: ModelConfig) -> float:
    return _STEP_SECONDS + config.num_hidden_layers * _LAYER_SECONDS


def _elements(manifest: Manifest) -> int:
    return sum(prod(tensor.shape) for tensor in manifest.tensors)


def _looked_up_bytes(config: ModelConfig, manifest: Manifest) -> int:
    """The input embedding, of which a token reads one row; a tied one is read as the output."""
    if config.tie_word_embeddings:
        return 0
    tables = [
        tensor.nbytes
        for tensor in manifest.tensors
        if tensor.shape == (config.vocab_size, config.hidden_size)
    ]
    return min(tables) if len(tables) > 1 else 0
