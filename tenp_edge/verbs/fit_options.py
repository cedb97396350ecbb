"""What `fit` takes. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tenp_edge.planning.options.devices import known_profiles, spare_bytes
from tenp_edge.planning.options.settings import Flag
from tenp_edge.planning.options.spec import SIZE
from tenp_edge.runtime.memory.footprint import KV_TYPES


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """``budget_bytes`` None: what the profile leaves for a run, or this machine."""

    budget_bytes: Annotated[
        int | None,
        Flag(
            "ram",
            "Peak memory of the run: 8GiB, 7.5GB. Default: what this machine can spare.",
            SIZE,
            size=True,
            auto=spare_bytes,
            above=0,
            example="8GiB",
        ),
    ] = None
    profile: Annotated[
        str | None,
        Flag(
            "profile",
            "A device (tenp-edge profiles lists them).",
            SIZE,
            offered=known_profiles,
        ),
    ] = None
    context: Annotated[
        int | None, Flag("context", "Tokens of the KV cache.", above=0, example="4096")
    ] = None
    kv_type: Annotated[
        str | None, Flag("kv-type", "Type of that cache.", choices=tuple(KV_TYPES))
    ] = None
