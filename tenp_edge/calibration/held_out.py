"""The held-out slice of a calibration's text: kept beside its statistics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tenp_edge.calibration.text.domains import load_domains, save_domains
from tenp_edge.disk import read_json
from tenp_edge.errors import UserError
from tenp_edge.forward.text_batch import Domain, TextBatch

SLICE_SAMPLES = 4  # of a domain, at least
SLICE_TOKENS = 4096  # of all domains together, at least
SLICE_FILE = "slice.safetensors"
SLICE_RECORD = "slice.json"  # its digest, where the text itself is not given away
MIN_LENGTH = 16  # shorter sequences tell little


def slice_samples(domains: int, samples: int, seq_len: int) -> int:
    """Sequences to hold out beside ``samples`` of each domain: one domain must be as much text as
    several, and measuring a dozen plans must not cost many times what calibrating does."""
    enough = -(-SLICE_TOKENS // (domains * seq_len))
    return max(SLICE_SAMPLES, min(samples // 4, enough))


def keep_slice(directory: Path, domains: Sequence[Domain]) -> None:
    """Leave ``domains`` in ``directory`` to refine on; the same ones are not written again."""
    file = directory / SLICE_FILE
    if not file.is_file() or slice_digest(load_domains(file)) != slice_digest(domains):
        save_domains(file, domains)


def load_slice(directory: Path) -> list[Domain]:
    """The held-out slice that `calibrate` left in ``directory``. Raises UserError without one."""
    domains = slice_in(directory)
    if not domains:
        raise UserError(
            f"{directory} holds no text to refine on: the calibration took all there was",
            "tenp-edge calibrate again, with more text or fewer --samples",
        )
    return domains


def stored_slice(directory: Path) -> str | None:
    """The digest of the slice in ``directory``, as `slice_digest` of `load_slice` has it.

    None where none of it is long enough to tell anything.
    """
    domains = slice_in(directory)
    if domains or not (directory / SLICE_RECORD).is_file():
        return slice_digest(domains) if domains else None
    digest = read_json(directory / SLICE_RECORD).get("slice")
    return digest if isinstance(digest, str) else None


def slice_in(directory: Path) -> list[Domain]:
    """The slice that `calibrate` left in ``directory``; [] without one, or of a text that is not
    given away."""
    file = directory / SLICE_FILE
    long = [_long_rows(domain) for domain in load_domains(file)] if file.is_file() else []
    return [domain for domain in long if len(domain.tokens)]


def _long_rows(domain: Domain) -> Domain:
    long = domain.lengths >= MIN_LENGTH
    return Domain(domain.name, domain.tokens[long], domain.lengths[long])


def slice_digest(domains: Sequence[Domain]) -> str:
    """Identity of the text that something was measured on."""
    return TextBatch.of(domains).digest[:32]
