"""Insurance of an expert's predicted losses against text that was not calibrated on. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tenp_edge.calibration.coverage import MIN_TOKENS


@dataclass(frozen=True)
class Insurance:
    """Weights of what is added to the losses (`insured`); all zero adds nothing."""

    alike: float = 0.0
    norms: float = 0.0
    even: float = 0.0


# Values of `--protect`. The text to come is taken to be of the kinds that were given, so nothing is
# the default. "little" costs those kinds some per cent at most. "much" keeps other kinds no worse
# than one width for all experts would, and costs the given kinds a factor of two to ten
# (docs/results.md).
NO_INSURANCE = Insurance()
PROTECTION = {
    "none": NO_INSURANCE,
    "little": Insurance(alike=0.1, norms=0.02),
    "much": Insurance(alike=3.0, norms=6.0, even=1.0),
}


def insured(
    losses: torch.Tensor, prior: torch.Tensor, tokens: torch.Tensor, insurance: Insurance
) -> torch.Tensor:
    """``losses`` of one layer's experts by width, [experts, width + 1], and what may be beside.

    ``tokens`` [experts]: how often each was chosen; ``prior`` as ``losses``: what the norms alone
    promise of the cut neurons. Other text

    - chooses other experts: `alike` adds what an expert's loss would be if it were chosen as often
      as the layer's mean. Fewer than MIN_TOKENS tokens count as that many: what one token said is
      not multiplied without end;
    - needs other neurons: `norms` adds the prior;
    - needs them in every expert: `even` adds the square of the share that is cut, times the loss of
      an ordinary whole expert. It rises as one expert gives more, and so draws widths together.
    """
    as_often = (tokens.mean() / tokens.clamp_min(MIN_TOKENS))[:, None]
    cut = torch.linspace(1, 0, losses.shape[1], dtype=losses.dtype)
    whole = (losses[:, :1] * as_often).mean()
    alike = losses * as_often
    return (
        losses
        + insurance.alike * alike
        + insurance.norms * prior
        + insurance.even * whole * cut.square()
    )
