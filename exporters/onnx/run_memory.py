"""What a run on onnxruntime takes beyond the weights: an estimate, upper where it must err."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from tenp_edge.exporters.base import ExportOptions, FixedLengths
from tenp_edge.exporters.onnx.files.stored import Stored, as_array
from tenp_edge.exporters.onnx.graph.cache import cache_shapes
from tenp_edge.exporters.onnx.linear.quantise import Floats, quantise_blocks, quantise_rows
from tenp_edge.models import ModelConfig, state_bytes
from tenp_edge.runtime.memory.footprint import MemoryRun, RunMemory

# What a session keeps per stored tensor: five nodes or so with names, kernels and a place in the
# execution plan (measured 35 KiB on onnxruntime 1.31).
_TENSOR_BYTES = 40 * 2**10
# A process that has imported what `run` does, onnxruntime among it (measured 49 MiB), and what a
# session of any size takes: its arena and the parsed graph (up to 15 MiB in eight files of the
# bundled model).
_PROCESS_BYTES = (49 + 16) * 2**20
# Of the tokenizer, an entry of the vocabulary, while its file is read (measured 895 to 917).
_ENTRY_BYTES = 920
_PROBE_SECONDS = 0.05


def run_memory(
    config: ModelConfig, options: ExportOptions, weights: Sequence[Stored], run: MemoryRun
) -> RunMemory:
    """Of a session that reads past and returns present: both are held at once.

    Per token of a step: two logits rows and the widest activations. Per token of a step and token
    of context: the scores of every head, twice, and the mask.
    """
    if options.lengths is not None:
        return _fixed_memory(config, options.lengths, weights)
    shapes = cache_shapes(config, options.latent_cache)
    per_token = sum(cache.bytes_per_token for cache in shapes.values())
    width = max(max(row) for row in config.expert_widths.values())
    routed = config.num_experts_per_tok * (3 * config.hidden_size + 3 * width)
    dense = 3 * max(config.intermediate_size, config.shared_intermediate_size)
    token = 2 * config.vocab_size + routed + dense + 8 * config.hidden_size
    cell = 2 * most_heads(config) + 2
    of_file = len(weights) * _TENSOR_BYTES + config.vocab_size * _ENTRY_BYTES
    return RunMemory(
        weights_bytes=sum(stored.nbytes for stored in weights),
        kv_bytes=2 * (per_token * run.context + state_bytes(config.mixers)),
        compute_bytes=4 * min(run.ubatch, run.context) * (token + cell * run.context),
        process_bytes=_PROCESS_BYTES + of_file,
        file_process_bytes=of_file,
    )


def _fixed_memory(
    config: ModelConfig, lengths: FixedLengths, weights: Sequence[Stored]
) -> RunMemory:
    """Of the two sessions of fixed shapes: they share the mapped weights and the host's cache.

    The larger is the prompts' one: two logits rows and the new keys and values per token; experts
    compute one after the other, so that one expert's activations and the sum are held at a time.
    Per token and place: the scores of every head, of which three steps are held at once, and the
    mask. The decoding session adds its nodes.
    """
    shapes = cache_shapes(config, pads_values=False)
    cache = sum(shape.bytes_per_token for shape in shapes.values())
    width = max(max(row) for row in config.expert_widths.values())
    widest = max(width, config.intermediate_size, config.shared_intermediate_size)
    token = 2 * config.vocab_size + 4 * widest + 10 * config.hidden_size + 4 * config.num_experts
    cell = 3 * most_heads(config) + 3
    tokens, places = lengths.batch * lengths.length, lengths.past + lengths.length
    of_file = 2 * len(weights) * _TENSOR_BYTES + config.vocab_size * _ENTRY_BYTES
    return RunMemory(
        weights_bytes=sum(stored.nbytes for stored in weights),
        kv_bytes=cache * lengths.batch * lengths.past,
        compute_bytes=4 * tokens * (token + cell * places) + cache * tokens,
        process_bytes=_PROCESS_BYTES + of_file,
        file_process_bytes=of_file,
    )


def most_heads(config: ModelConfig) -> int:
    """Of any layer."""
    return max(attention.heads for attention in config.attention_layers)


# How a quantisation encodes a matrix; without one it is only laid out as MatMul takes it.
_ENCODERS: dict[str, Callable[[Floats], object]] = {
    "none": lambda rows: rows.T.tobytes(),
    "int8": quantise_rows,
    "int4": lambda rows: quantise_blocks(rows, 4),
}


def encoding_speed(quant: str) -> float:
    """Bytes of float32 weights that ``quant`` encodes per second, tried here."""
    rows, done, start = torch.zeros(512, 1024, dtype=torch.bfloat16), 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < _PROBE_SECONDS:
        floats = as_array(rows)
        _ENCODERS[quant](floats)
        done += floats.nbytes
    return done / elapsed


def run_notes(options: ExportOptions, mode: str) -> tuple[str, ...]:
    notes = []
    if options.latent_cache:
        notes.append("onnxruntime-genai and optimum cannot hold a latent cache: tenp-edge run can")
    if mode == "ort-cpu" and options.quant == "none":
        notes.append(
            "float32 experts take 1.1 to 3.6 times as long as in --mode portable, with less memory"
        )
    return tuple(notes)
