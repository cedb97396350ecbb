"""The token chunks that a verb works on: the user's files, or the standard library's text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tenp_edge.checkpoint import Checkpoint
from tenp_edge.data import (
    Domain,
    default_texts,
    load_texts,
    load_tokenizer,
    make_domains,
    parse_data,
)
from tenp_edge.errors import UserError
from tenp_edge.options import (
    CalibrationOptions,
    ValidationOptions,
)
from tenp_edge.progress import QUIET, Progress
from tenp_edge.refine import slice_samples

HELD_OUT_SHARE = 5  # with one's own data, at least a fifth of the chunks is kept for validation


def calibration_domains(
    checkpoint: Checkpoint,
    options: CalibrationOptions,
    progress: Progress = QUIET,
    hold_out: bool = False,
) -> list[Domain]:
    """The token chunks that ``options`` describe: the user's files, or the standard library.

    With ``hold_out`` more chunks follow those of each domain where there is text
    (`refine.slice_samples`), for plans to be measured on.
    """
    _check_counts(checkpoint, options.samples, options.seq_len, "--seq-len")
    tokenizer = load_tokenizer(checkpoint.path)
    if not options.data:
        progress.note(
            "calibrating on the standard library's text; your own prompts give a better model "
            "(--data name=file.jsonl)"
        )
        texts: Mapping[str, Any] = default_texts("calibration")
    else:
        files = parse_data(options.data)
        texts = {name: load_texts(path, tokenizer, progress) for name, path in files.items()}
    spare = slice_samples(len(texts), options.samples, options.seq_len) if hold_out else 0
    return make_domains(
        texts, tokenizer, options.samples, options.seq_len, options.seed, progress, spare
    )


def validation_domains(
    checkpoint: Checkpoint, options: ValidationOptions, seed: int = 0
) -> list[Domain]:
    """Chunks to validate on: the user's files, or held-out text of the standard library."""
    _check_counts(checkpoint, options.samples, options.seq_len, "--eval-seq-len")
    tokenizer = load_tokenizer(checkpoint.path)
    if options.data:
        files = parse_data(options.data)
        texts: Mapping[str, Any] = {n: load_texts(path, tokenizer) for n, path in files.items()}
    else:
        texts = default_texts("heldout")
    return make_domains(texts, tokenizer, options.samples, options.seq_len, seed)


def most_tokens(options: CalibrationOptions | ValidationOptions) -> int:
    """Tokens that will be drawn at most; the built-in text has two domains."""
    return (len(options.data) or 2) * options.samples * options.seq_len


def split_domain(domain: Domain, wanted: int) -> tuple[Domain, Domain]:
    """Cut ``wanted`` chunks (at most a fifth of a short domain) off the end for validation."""
    held = min(wanted, max(1, len(domain.tokens) // HELD_OUT_SHARE))
    cut = len(domain.tokens) - held
    first = Domain(domain.name, domain.tokens[:cut], domain.lengths[:cut])
    return first, Domain(domain.name, domain.tokens[cut:], domain.lengths[cut:])


def _check_counts(checkpoint: Checkpoint, samples: int, seq_len: int, flag: str) -> None:
    """Refuse before any text is read."""
    if samples < 1:
        raise UserError(f"{samples} samples are none", "8 or more; 32 is the default")
    limit = checkpoint.config.max_position_embeddings
    if not 2 <= seq_len <= limit:
        raise UserError(
            f"{flag} {seq_len} is outside 2..{limit}, the model's context", f"{flag} {limit}"
        )
