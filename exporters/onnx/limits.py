"""What of a model or of a user's choices ONNX cannot hold, said before any long work."""

from __future__ import annotations

from tenp_edge.errors import UserError
from tenp_edge.exporters.onnx.router import expert_groups
from tenp_edge.models import ModelConfig
from tenp_edge.registry import ExportOptions

_NEEDED = {"default": (), "linear": ("factor",), "yarn": ("original_max_position_embeddings",)}


def check_model(config: ModelConfig, options: ExportOptions) -> None:
    """Raise UserError with the reason where the graph would compute something else."""
    _check_options(config, options)
    _check_rope(config)
    groups = expert_groups(config)
    if config.family.router_score == "sigmoid" and 1 < groups == config.num_experts:
        raise UserError(
            f"the router scores groups by their best two experts, and each of the {groups} groups "
            "has one",
            "a plan that keeps more experts per layer",
        )


def _check_options(config: ModelConfig, options: ExportOptions) -> None:
    if options.tensor_types:
        raise UserError("--tensor-type is for GGUF: ONNX has one type per --quant", "leave it out")
    if options.imatrix_file is not None:
        raise UserError("--imatrix-out is for GGUF", "leave it out")
    if options.latent_cache and config.mla is None:
        raise UserError(
            f"{config.family.model_type} has no latent attention: its cache is keys and values",
            "leave --latent-cache out",
        )


def _check_rope(config: ModelConfig) -> None:
    """The keys that transformers itself needs to compute the scaled frequencies."""
    scaling, kind = config.rope.scaling, config.rope.kind
    needed = set(_NEEDED[kind])
    if kind == "yarn" and config.mla is not None and scaling.get("mscale_all_dim"):
        needed.add("factor")
    missing = sorted(key for key in needed if not scaling.get(key))
    if missing:
        raise UserError(
            f"config.json: rope scaling {kind} lacks {missing[0]}",
            "the config.json that belongs to the checkpoint",
        )
