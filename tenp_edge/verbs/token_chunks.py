"""The token chunks that a verb works on: of the user's text, or of the text in the package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

from tenp_edge.calibration.held_out import slice_samples
from tenp_edge.calibration.text.builtin_text import Split
from tenp_edge.calibration.text.chat_format import ChatWriter
from tenp_edge.calibration.text.domains import (
    LEAST_TOKENS,
    load_tokenizer,
    make_domains,
    split_at,
)
from tenp_edge.calibration.text.sources import (
    BUILTIN,
    DEFAULT,
    Source,
    is_set,
    most_tokens_of,
    parse_data,
    texts_of,
)
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.errors import UserError
from tenp_edge.forward.text_batch import Domain
from tenp_edge.planning.options.settings import Option, options_of
from tenp_edge.progress import QUIET, Progress
from tenp_edge.verbs.compare_options import CompareOptions
from tenp_edge.verbs.options import (
    CalibrationOptions,
    CompressOptions,
    HeldOutOptions,
)

Chunks = TypeVar("Chunks", bound=CalibrationOptions | HeldOutOptions)
Both = TypeVar("Both", CompareOptions, CompressOptions)
HELD_OUT_SHARE = 5  # with one's own data, at least a fifth of the chunks is kept for validation


def fitted(checkpoint: Checkpoint, options: Chunks, progress: Progress = QUIET) -> Chunks:
    """``options`` with the usual chunk cut to the model's context, which is said. Raises UserError
    for numbers that were chosen and cannot be, before any text is read."""
    samples, seq_len = (_option(options, field) for field in ("samples", "seq_len"))
    if options.samples < 1:
        raise UserError(
            f"--{samples.name} {options.samples} leaves no text",
            f"--{samples.name} {samples.default}",
        )
    limit = checkpoint.config.max_position_embeddings
    if LEAST_TOKENS <= options.seq_len <= limit:
        return options
    if options.seq_len != seq_len.default:
        raise UserError(
            f"--{seq_len.name} {options.seq_len} is outside {LEAST_TOKENS}..{limit}, "
            "the model's context",
            f"--{seq_len.name} {min(limit, seq_len.default)}",
        )
    progress.note(f"chunks of {limit} tokens, the model's context, not of {options.seq_len}")
    return replace(options, seq_len=limit)


def both_fitted(checkpoint: Checkpoint, options: Both, progress: Progress) -> Both:
    """`fitted` text to calibrate on and to validate on, with one note."""
    calibration = fitted(checkpoint, options.calibration, progress)
    said = calibration is not options.calibration
    validation = fitted(checkpoint, options.validation, QUIET if said else progress)
    return replace(options, calibration=calibration, validation=validation)


def _option(options: Chunks, field: str) -> Option:
    """As the verb of ``options`` declares it."""
    return next(one for one in options_of(type(options)).values() if one.path == (field,))


def calibration_domains(
    checkpoint: Checkpoint,
    options: CalibrationOptions,
    progress: Progress = QUIET,
    hold_out: bool = False,
) -> list[Domain]:
    """The token chunks that ``options`` describe: the user's text, or the bundled one.

    With ``hold_out`` more chunks follow those of each domain where there is text
    (`held_out.slice_samples`), for plans to be measured on.
    """
    options = fitted(checkpoint, options, progress)
    tokenizer = load_tokenizer(checkpoint.path)
    if not options.data:
        progress.note(
            "calibrating on the text in the package; your own prompts give a better model "
            "(--data name=file.jsonl)"
        )
    sources = parse_data(options.data)
    count = sum(len(source.domains) for source in sources)
    spare = slice_samples(count, options.samples, options.seq_len) if hold_out else 0
    return _drawn(sources, "calibration", tokenizer, options, options.seed, progress, spare)


def validation_domains(
    checkpoint: Checkpoint,
    options: HeldOutOptions,
    seed: int = 0,
    progress: Progress = QUIET,
) -> list[Domain]:
    """Chunks to validate on: of the user's text, or of the bundled one's held-out part."""
    options = fitted(checkpoint, options, progress)
    tokenizer = load_tokenizer(checkpoint.path)
    return _drawn(parse_data(options.data), "heldout", tokenizer, options, seed, progress)


def compress_domains(
    checkpoint: Checkpoint,
    calibration: CalibrationOptions,
    validation: HeldOutOptions,
    progress: Progress = QUIET,
) -> tuple[list[Domain], list[Domain], list[Domain]]:
    """Chunks for calibration, for validation, and for plans to be measured on: none in two of them.

    Validation is on ``validation.data``. Without it, a file of the calibration keeps the end of
    what was drawn for it, and the bundled text or the standard library has a held-out part.
    """
    user_data = tuple(argument for argument in calibration.data if not is_set(argument))
    if validation.data or not user_data:
        drawn = calibration_domains(checkpoint, calibration, progress, hold_out=True)
        used, rest = _cut(drawn, calibration.samples)
        held_on = replace(validation, data=validation.data or calibration.data)
        return used, validation_domains(checkpoint, held_on, calibration.seed), rest
    parse_data(calibration.data)  # a domain named twice is refused before it is taken apart
    samples = calibration.samples + validation.samples
    chosen = replace(calibration, data=user_data, samples=samples)
    drawn, rest = _cut(calibration_domains(checkpoint, chosen, progress, hold_out=True), samples)
    pairs = [split_domain(domain, validation.samples) for domain in drawn]
    used, held = [first for first, _ in pairs], [last for _, last in pairs]
    sets = tuple(argument for argument in calibration.data if is_set(argument))
    if not sets:
        return used, held, rest
    more = compress_domains(checkpoint, replace(calibration, data=sets), validation, progress)
    return used + more[0], held + more[1], rest + more[2]


def _cut(domains: Sequence[Domain], count: int) -> tuple[list[Domain], list[Domain]]:
    pairs = [split_at(domain, count) for domain in domains]
    return [first for first, _ in pairs], [rest for _, rest in pairs]


def most_tokens(options: CalibrationOptions | HeldOutOptions) -> int:
    """Tokens that will be drawn at most; the sets that ship have several domains each."""
    split: Split = "calibration" if isinstance(options, CalibrationOptions) else "heldout"
    tokens = options.samples * options.seq_len
    return sum(most_tokens_of(argument, split, tokens) for argument in options.data or DEFAULT)


def split_domain(domain: Domain, wanted: int) -> tuple[Domain, Domain]:
    """Cut ``wanted`` chunks (at most a fifth of a short domain) off the end for validation. Raises
    UserError where nothing would be left to calibrate on."""
    if len(domain.tokens) < 2:
        tokens = int(domain.lengths.sum())
        raise UserError(
            f"domain '{domain.name}' is one chunk of {tokens} tokens: "
            "there is none to calibrate on beside the one to validate on",
            f"--seq-len {max(8, tokens // 4)}, or --data {domain.name}=FILE with more text",
        )
    held = min(wanted, max(1, len(domain.tokens) // HELD_OUT_SHARE))
    return split_at(domain, len(domain.tokens) - held)


def _drawn(
    sources: Sequence[Source],
    split: Split,
    tokenizer: Any,
    options: CalibrationOptions | HeldOutOptions,
    seed: int,
    progress: Progress,
    spare: int = 0,
) -> list[Domain]:
    writer, domains = ChatWriter(tokenizer, progress), []
    for source in sources:
        texts = texts_of([source], split, writer, progress)
        # The default is made for what the package holds: nothing to say where it runs out.
        usual = source.place == BUILTIN and options.samples <= type(options).samples
        domains += make_domains(
            texts,
            tokenizer,
            options.samples,
            options.seq_len,
            seed,
            QUIET if usual else progress,
            spare,
        )
    return domains
