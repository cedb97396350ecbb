"""What the methods of a comparison are called, and what they do, in a few words."""

from __future__ import annotations

from tenp_edge.planning.options.methods import METHODS

_NAMES = {
    "tenp": "TENP as published: busy experts whole, the others narrow",
    "tenp-chosen": "TENP, its shape chosen by predicted loss",
    "wanda-rows": "neurons by weight times input (Wanda)",
    "mone": "rarely used experts replaced by their mean output (MoNE)",
    "coverage-taylor": "neurons by first-order loss, shares of each layer's own total",
    "layer-flap-bias": "neurons by variance (FLAP), their mean output kept as a bias",
    "random": "neurons by chance",
    "drop-aimer": "whole experts removed, by the AIMER score",
}
# The start of a name, and what the rest of it then is.
_STARTS = {
    "drop-": "whole experts removed, by the score {}",
    "global-": "neurons compared across all layers, by the score {}",
    "layer-": "neurons compared within each layer, by the score {}",
    "uniform-": "one width for all experts, neurons by the score {}",
    "tenp-": "TENP with another {}",
    "adaptive-": "adaptive with another choice: {}",
}
_CHANGES = {
    "repair": "repaired (the outputs of cut experts refitted)",
    "heal-routers": "the routers trained a little",
    "heal-norms": "routers and norms trained a little",
}


def explained(name: str) -> str:
    """What the method called ``name`` does, in a few words."""
    base, *changes = name.split("+")
    if base in _NAMES:
        said = _NAMES[base]
    elif base in METHODS:
        said = METHODS[base].about
    else:
        start = next((start for start in _STARTS if base.startswith(start)), "")
        said = _STARTS.get(start, "{}").format(base.removeprefix(start))
    return ", then ".join([said, *(_CHANGES.get(change, change) for change in changes)])
