"""Fixed lengths: defaults, and those that a model or a graph cannot have."""

from __future__ import annotations

from tenp_edge.errors import UserError
from tenp_edge.exporters.base import ExportOptions, FixedLengths
from tenp_edge.models import ModelConfig


def fixed_lengths(config: ModelConfig, options: ExportOptions) -> FixedLengths:
    """What was asked for, else the default as far as the model's context goes."""
    if options.lengths is not None:
        return options.lengths
    default, most = FixedLengths(), config.max_position_embeddings
    return FixedLengths(default.batch, min(default.length, most), min(default.past, most - 1))


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
    most, context = config.max_position_embeddings, lengths.past + 1
    if max(context, lengths.length) > most:
        raise UserError(
            f"--length {lengths.length} and --past {lengths.past} are for a context of "
            f"{max(context, lengths.length)} tokens; the model has {most}",
            f"--length {min(lengths.length, most)} --past {min(lengths.past, most - 1)} (plan and "
            f"compress: --ubatch, --context {most})",
        )
