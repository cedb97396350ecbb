"""Whether a run keeps to its RAM: by what was measured where it was to run here. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tenp_edge.runtime.gguf.padded_twin import TWIN

HERE = "this-machine"  # the profile that --profile auto makes


def measured_peak(report: Mapping[str, Any] | None) -> int | None:
    """Bytes that the file took at most as it ran, by its validation report (as JSON); None where
    none were measured. A padded twin is not the file: its peak says nothing about the file's."""
    checked = report or {}
    measured: int | None = checked.get("measured_peak_rss")
    return None if checked.get("measured_as") == TWIN else measured


def fits(
    budget_bytes: int | None, predicted_bytes: int, measured_bytes: int | None, device: str | None
) -> bool | None:
    """Whether the peak is within the budget; None without one. It is what was measured where
    ``device``, the profile that was planned for, is this machine; else what was predicted."""
    if budget_bytes is None:
        return None
    measured = measured_bytes if device == HERE else None
    return (predicted_bytes if measured is None else measured) <= budget_bytes
