"""Fixed lengths: defaults, and those that a model or a graph cannot have."""

from __future__ import annotations

from tenp_edge.errors import UserError
from tenp_edge.models import ModelConfig
from tenp_edge.registry import ExportOptions, FixedLengths


def fixed_lengths(config: ModelConfig, options: ExportOptions) -> FixedLengths:
    """What was asked for, else the default as far as the model's context goes."""
    if options.lengths is not None:
        return options.lengths
    default, most = FixedLengths(), config.max_position_embeddings
    length = min(default.length, most // 2)
    return FixedLengths(default.batch, length, min(default.past, most - length))


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
    most = config.max_position_embeddings
    if lengths.length + lengths.past > most:
        raise UserError(
            f"--length {lengths.length} and --past {lengths.past} make "
            f"{lengths.length + lengths.past} positions; the model has {most}",
            f"--past {max(1, most - lengths.length)} or a smaller --length",
        )
