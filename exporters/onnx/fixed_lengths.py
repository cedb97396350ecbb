"""Fixed lengths: defaults, and those that a model or a graph cannot have."""

from __future__ import annotations

from tenp_edge.errors import UserError
from tenp_edge.exporters.base import ExportOptions, FixedLengths
from tenp_edge.models import ModelConfig


def fixed_lengths(config: ModelConfig, options: ExportOptions) -> FixedLengths:
    """What was asked for, else the default as far as the model's context goes."""
    if options.lengths is not None:
        return options.lengths
    default, max_length = FixedLengths(), config.max_position_embeddings
    return FixedLengths(
        default.batch, min(default.length, max_length), min(default.past, max_length - 1)
    )


def check_lengths(config: ModelConfig, options: ExportOptions) -> None:
    """Raise UserError for lengths that are not positive or beyond the model's context."""
    lengths = fixed_lengths(config, options)
    for flag, value in (
        ("--batch", lengths.batch),
        ("--length", lengths.length),
        ("--past", lengths.past),
    ):
        if value < 1:
            raise UserError(f"{flag} {value} leaves a graph without tokens", f"{flag} 1 or more")
    max_length, context = config.max_position_embeddings, lengths.past + 1
    if max(context, lengths.length) > max_length:
        raise UserError(
            f"--length {lengths.length} and --past {lengths.past} are for a context of "
            f"{max(context, lengths.length)} tokens; the model has {max_length}",
            f"--length {min(lengths.length, max_length)} "
            f"--past {min(lengths.past, max_length - 1)} (plan and compress: --ubatch, "
            f"--context {max_length})",
        )
