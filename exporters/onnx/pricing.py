"""What a run on onnxruntime takes beyond the weights: an estimate, upper where it must err."""

from __future__ import annotations

from tenp_edge.exporters.onnx.cache import cache_shape
from tenp_edge.models import ModelConfig
from tenp_edge.registry import ExportOptions, RunBytes

# What a session keeps per stored tensor: five nodes or so with names, kernels and a place in the
# execution plan (measured 35 KiB on onnxruntime 1.31). The process itself is the profile's
# overhead (44 MiB with onnxruntime and numpy imported).
_TENSOR_BYTES = 40 * 2**10


def run_bytes(config: ModelConfig, options: ExportOptions, tensors: int) -> RunBytes:
    """Of a session that reads past and returns present: both are held at once.

    Per step token: two logits rows and the widest activations. Per step token and token of context:
    the scores of every head, twice, and the mask.
    """
    cache = cache_shape(config, options.latent_cache)
    width = max(max(row) for row in config.expert_widths.values())
    routed = config.num_experts_per_tok * (3 * config.hidden_size + 3 * width)
    dense = 3 * max(config.intermediate_size, config.shared_intermediate_size)
    token = 2 * config.vocab_size + routed + dense + 8 * config.hidden_size
    return RunBytes(
        kv_per_token=2 * cache.bytes_per_token(config.num_hidden_layers),
        per_step_token=4 * token,
        per_step_cell=4 * (2 * config.num_attention_heads + 2),
        overhead=tensors * _TENSOR_BYTES,
    )


def run_notes(options: ExportOptions, mode: str) -> tuple[str, ...]:
    notes = []
    if options.latent_cache:
        notes.append("onnxruntime-genai and optimum cannot hold a latent cache: tenp-edge run can")
    if mode == "ort-cpu" and options.quant == "none":
        notes.append(
            "float32 experts take up to twice as long as in --mode portable, with less memory"
        )
    return tuple(notes)
