"""tenp-edge: prune the experts of a Mixture-of-Experts model to a RAM budget and export it.

The functions behind the verbs, imported when they are first used (torch takes a second to load):
`inspect_model`, `run_calibrate`, `run_plan`, `run_compress`, `run_export`, `run_validate`, and
`load_pruned`, which gives a transformers model.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tenp_edge.version import __version__ as __version__

if TYPE_CHECKING:
    from tenp_edge.inspection import inspect_model
    from tenp_edge.loading import load_pruned
    from tenp_edge.pipeline import run_compress
    from tenp_edge.verbs import run_calibrate, run_export, run_plan, run_validate

__all__ = [
    "inspect_model",
    "load_pruned",
    "run_calibrate",
    "run_compress",
    "run_export",
    "run_plan",
    "run_validate",
]
_HOMES = {
    "inspect_model": "inspection",
    "load_pruned": "loading",
    "run_compress": "pipeline",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'tenp_edge' has no attribute {name!r}")
    return getattr(import_module(f"tenp_edge.{_HOMES.get(name, 'verbs')}"), name)
