"""The small files beside the graph: what transformers, optimum and onnxruntime-genai read.

Their bytes are part of the manifest, which is made before a plan has chosen its neurons: whatever
the plan adds has a fixed size (its digest).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.tensor_types import TensorTypes
from tenp_edge.checkpoint.writer import MARKER, copied_files
from tenp_edge.disk import read_json
from tenp_edge.errors import UserError
from tenp_edge.exporters.base import FixedLengths
from tenp_edge.exporters.onnx.graph.cache import cache_shapes
from tenp_edge.models import EXPERT_KEYS, ModelConfig
from tenp_edge.runtime.memory.footprint import PlannedRun
from tenp_edge.version import __version__

MODEL_NAME, PREFILL_NAME, DECODE_NAME = "model.onnx", "prefill.onnx", "decode.onnx"
NO_DIGEST = "0" * 32
FORMAT, VERSION = "tenp-edge onnx", 1
_SHARED_TOKENS = 4096
_RUN_BYTES = 160
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True)
class Genai:
    """How onnxruntime-genai is to run the graph. ``shares_cache``: one buffer of max_length tokens
    is past and present at once, which GroupQueryAttention can do."""

    shares_cache: bool = False


def companion_files(
    checkpoint: Checkpoint, config: ModelConfig, genai: Genai | None, digest: str = NO_DIGEST
) -> dict[str, bytes]:
    """Every companion but tenp.json: those copied from the checkpoint and those written for it.

    ``genai``: None where onnxruntime-genai cannot run the graph.
    """
    base = checkpoint.path
    if checkpoint.is_file:
        raise UserError(
            f"{base.name} has no tokenizer files, which an ONNX directory needs",
            "--format gguf, or the checkpoint that the file was made from",
        )
    files = {str(file.relative_to(base)): file.read_bytes() for file in copied_files(base)}
    files["config.json"] = _json(model_config(checkpoint, config, digest))
    if "generation_config.json" not in files:
        files["generation_config.json"] = _json(_tokens(config.raw))
    if genai is not None:
        generation = json.loads(files["generation_config.json"])
        files["genai_config.json"] = _json(genai_config(config, generation, genai))
    return files


def tenp_file(
    config: ModelConfig,
    mode: str,
    quant: str,
    files: Mapping[str, int],
    left_padding: bool,
    digest: str = NO_DIGEST,
    lengths: FixedLengths | None = None,
    run: PlannedRun | None = None,
    types: TensorTypes | None = None,
) -> bytes:
    """tenp.json: how the directory was made, and the exact sizes that tell a damaged one.

    ``lengths``: those of graphs with fixed shapes; ``run``: what it was planned for; ``types``:
    where every tensor has its own.
    """
    fixed = {} if lengths is None else {"lengths": asdict(lengths)}
    widths = {str(layer): list(row) for layer, row in sorted(config.expert_widths.items())}
    return _json(
        {
            "format": FORMAT,
            "version": VERSION,
            "tool": f"tenp-edge {__version__}",
            "mode": mode,
            "quant": quant,
            **fixed,
            "plan": digest,
            "run": _planned(run or PlannedRun(0, 0, "")),
            "left_padding": left_padding,
            "files": dict(files),
            "expert_widths": widths,
            **({} if types is None else {"types": types.to_json()}),
        }
    )


def _planned(run: PlannedRun) -> dict[str, Any]:
    """As JSON of one size, whatever the numbers: the device's name is filled up with spaces."""
    fields = replace(run, device="").to_json()
    room = _RUN_BYTES - len(json.dumps(fields))
    plain = re.sub(r"[^ -~]|[\\\"]", "?", run.device)
    return {**fields, "device": plain[:room].ljust(room)}


def model_config(checkpoint: Checkpoint, config: ModelConfig, digest: str) -> dict[str, Any]:
    """config.json of what was written: float32, its experts counted, its widths in ``tenp``."""
    left_out = ("auto_map", "torch_dtype", "quantization_config", "experts_implementation")
    raw = {k: v for k, v in config.raw.items() if k not in left_out}
    raw["dtype"] = "float32"
    counts = [key for key in EXPERT_KEYS if raw.get(key) is not None]
    for key in counts or [config.family.experts_key]:
        raw[key] = config.num_experts
    if config.expert_widths != checkpoint.config.expert_widths:
        widths = {str(layer): list(row) for layer, row in sorted(config.expert_widths.items())}
        raw["tenp"] = {
            "version": VERSION,
            "tool": f"tenp-edge {__version__}",
            "source_fingerprint": checkpoint.fingerprint,
            "digest": digest,
            "expert_widths": widths,
        }
    return raw


def genai_config(
    config: ModelConfig, generation: Mapping[str, Any], genai: Genai
) -> dict[str, Any]:
    """For onnxruntime-genai, which knows any decoder by the type "decoder"."""
    # Of the first layer: where layers differ, onnxruntime-genai goes by the graph's inputs.
    cache = next(iter(cache_shapes(config).values()))
    names = {
        "input_ids": "input_ids",
        "attention_mask": "attention_mask",
        "position_ids": "position_ids",
        "past_key_names": "past_key_values.%d.key",
        "past_value_names": "past_key_values.%d.value",
    }
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": MODEL_NAME,
        "head_size": cache.key_size,
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": cache.heads,
        "inputs": names,
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }
    tokens = {**_tokens(config.raw), **_tokens(generation)}
    if "pad_token_id" not in tokens and "eos_token_id" in tokens:
        eos = tokens["eos_token_id"]
        tokens["pad_token_id"] = eos[0] if isinstance(eos, list) else eos
    # A shared cache is allocated whole: not a context of 262,144 tokens unless it is asked for.
    longest = config.max_position_embeddings
    longest = min(longest, _SHARED_TOKENS) if genai.shares_cache else longest
    return {
        "model": {
            **tokens,
            "context_length": config.max_position_embeddings,
            "decoder": decoder,
            "type": "decoder",
            "vocab_size": config.vocab_size,
        },
        "search": {
            "do_sample": False,
            "max_length": longest,
            "past_present_share_buffer": genai.shares_cache,
        },
    }


def is_ours(directory: Path) -> bool:
    """Whether this exporter wrote ``directory``."""
    file = directory / "tenp.json"
    if (directory / MARKER).is_file():  # killed while one export took another's place
        return True
    return file.is_file() and read_json(file).get("format") == FORMAT


def _tokens(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {key: raw[key] for key in _TOKENS if raw.get(key) is not None}


def _json(data: Mapping[str, Any]) -> bytes:
    return (json.dumps(data, indent=1) + "\n").encode()
