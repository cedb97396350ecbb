"""What of the held-out slice is read to measure rounding, and where it is scored.

A dozen forwards must stay a part of calibrating. So sequences are halved and scored from their
eighth on, where validation scores the second half: as many scored tokens at half of the cost, and
what counts here, how the groups compare, hardly depends on the context. Where that is more than a
matter of a moment, as much is read as makes all forwards `_SHARE` of the calibration's tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.evaluation.rounding_job import RoundingJob
from tenp_edge.forward.text_batch import Domain, token_count
from tenp_edge.models.inspection import inspect_model

_SHARE = 0.35  # of the calibration's tokens, all forwards together
_MOMENT = 10**12  # floating-point operations
_FEWEST = 64  # tokens of a domain, and of a halved sequence
_START = 8  # an eighth of a sequence is context alone


def measured_text(
    checkpoint: Checkpoint, job: RoundingJob, held_out: Sequence[Domain], calibrated: int
) -> list[Domain]:
    """What is read of ``held_out``, beside a calibration of so many tokens."""
    halves = [halved(domain) for domain in held_out]
    forwards, tokens = job.forwards(checkpoint.config), token_count(halves)
    active = inspect_model(checkpoint.path).active_parameters
    if forwards * tokens * 2 * active > _MOMENT:
        tokens = int(_SHARE * calibrated / forwards)
    return shortened(halves, tokens)


def halved(domain: Domain) -> Domain:
    """The first halves of its sequences, at least _FEWEST tokens each."""
    width = max(domain.tokens.shape[1] // 2, _FEWEST)
    return Domain(domain.name, domain.tokens[:, :width], domain.lengths.clamp(max=width))


def shortened(domains: Sequence[Domain], tokens: int) -> list[Domain]:
    """About ``tokens`` of all ``domains`` together, of each as many, at least _FEWEST: whole
    sequences and, where a domain has room for less than one, its first tokens."""
    if token_count(domains) <= tokens:
        return list(domains)
    of_each = max(_FEWEST, tokens // len(domains))
    parts = []
    for domain in domains:
        count = max(1, of_each // domain.tokens.shape[1])
        width = min(of_each, domain.tokens.shape[1])
        lengths = domain.lengths[:count].clamp(max=width)
        parts.append(Domain(domain.name, domain.tokens[:count, :width], lengths))
    return parts


def scored_after_start(length: int) -> range:
    """Positions of a sequence of ``length`` tokens whose prediction counts; the last has no next
    token to be compared with."""
    return range(length // _START, length - 1)
