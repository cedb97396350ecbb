"""What of a model or of a user's choices ONNX cannot hold, said before any long work."""

from __future__ import annotations

from tenp_edge.errors import UserError
from tenp_edge.exporters.base import ExportOptions
from tenp_edge.exporters.onnx.fixed_lengths import check_lengths
from tenp_edge.exporters.onnx.graph.mixers import unknown_mixers
from tenp_edge.exporters.onnx.graph.router import expert_groups
from tenp_edge.exporters.onnx.modes import mode_of, way_of
from tenp_edge.exporters.onnx.targets import targets_of
from tenp_edge.models import ModelConfig, state_bytes
from tenp_edge.models.family import Activation

_ACTIVATIONS: dict[Activation, str] = {
    "silu": "SwiGLU",
    "gelu_tanh": "GELU",
    "swiglu_oai": "clamped SwiGLU",
}


def check_model(config: ModelConfig, options: ExportOptions) -> None:
    """Raise UserError with the reason where the graph would compute something else."""
    _check_options(config, options)
    _check_states(config, options)
    _check_rope(config)
    if way_of(options).static:
        _check_static(config, options)
    _check_activation(config, options)
    _check_widths(config, options)
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


def _check_states(config: ModelConfig, options: ExportOptions) -> None:
    """Blocks that carry a state: of a known kind, and in a mode that has them."""
    unknown = unknown_mixers(config)
    if unknown:
        raise UserError(
            f"ONNX cannot hold {config.family.model_type}: there is no graph for its layers of the "
            f"kind {', '.join(unknown)}",
            "--format gguf",
        )
    if way_of(options).static and state_bytes(config.mixers):
        raise UserError(
            f"--mode {mode_of(options)} cannot hold {config.family.model_type}: a state goes on "
            "from the last token of a step, which a step of fixed length does not end with",
            "--mode portable without --target, --batch, --length and --past",
        )


def _check_widths(config: ModelConfig, options: ExportOptions) -> None:
    """Sizes that the experts' operator takes: it has no partial block."""
    multiple = way_of(options).widths.multiple
    portable = f"--mode portable --quant {options.quant}, which takes any width"
    if config.hidden_size % multiple:
        raise UserError(
            f"--mode {mode_of(options)} --quant {options.quant} needs a hidden size in multiples "
            f"of {multiple}; this model has {config.hidden_size}",
            portable,
        )
    for layer, row in sorted(config.expert_widths.items()):
        if 0 in row:
            raise UserError(
                f"ONNX cannot hold experts without neurons, as expert {row.index(0)} of layer "
                f"{layer} is",
                "--format gguf, or plan again for ONNX",
            )
        odd = [(expert, width) for expert, width in enumerate(row) if width % multiple]
        if odd:
            raise UserError(
                f"--mode {mode_of(options)} --quant {options.quant} needs expert widths in "
                f"multiples of {multiple}; layer {layer} expert {odd[0][0]} has {odd[0][1]}",
                f"plan --set width-multiple={multiple}, or {portable}",
            )


def _check_static(config: ModelConfig, options: ExportOptions) -> None:
    targets_of(options.targets)
    check_lengths(config, options)
    if any(attention.window for attention in config.attention_layers):
        raise UserError(
            f"--mode static cannot hold {config.family.model_type}: which places of a fixed cache "
            "a window covers changes from token to token",
            "--mode portable without --target, --batch, --length and --past",
        )
    if options.latent_cache:
        raise UserError(
            "--mode static keeps keys and values: expanding a latent cache anew for every token is "
            "no work for an NPU",
            "leave --latent-cache out",
        )


def _check_activation(config: ModelConfig, options: ExportOptions) -> None:
    activation = config.family.activation
    if activation not in way_of(options).activations:
        raise UserError(
            f"--mode {mode_of(options)} cannot hold {config.family.model_type}: its operators for "
            f"experts have no {_ACTIVATIONS[activation]}",
            "--mode portable",
        )


def _check_rope(config: ModelConfig) -> None:
    """YaRN's frequencies follow from the length that the model was trained on."""
    scaling = config.rope.scaling
    if config.rope.kind == "yarn" and not scaling.get("original_max_position_embeddings"):
        raise UserError(
            "config.json: rope scaling yarn lacks original_max_position_embeddings",
            "the config.json that belongs to the checkpoint",
        )
