"""tenp-edge: prune the experts of a Mixture-of-Experts model to a RAM budget and export it.

What a program needs is here, imported when it is first used (torch takes a second to load): the
functions behind the verbs (`inspect_model`, `run_*`), the options that they take, `load_pruned`,
which gives a transformers model, and `open_model`, which runs an exported file without torch.
docs/python.md has examples.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tenp_edge.version import __version__ as __version__

if TYPE_CHECKING:
    from tenp_edge.comparison import run_compare
    from tenp_edge.errors import UserError
    from tenp_edge.inspection import inspect_model
    from tenp_edge.loading import load_pruned
    from tenp_edge.options import (
        CalibrationOptions,
        CompareOptions,
        CompressOptions,
        MeasureOptions,
        ValidationOptions,
    )
    from tenp_edge.pipeline import run_compress
    from tenp_edge.plan import CompressionPlan, load_plan
    from tenp_edge.registry import ExportOptions
    from tenp_edge.runtime.generation import generate, run_text
    from tenp_edge.runtime.opening import RunOptions, open_model
    from tenp_edge.runtime.sampling import SamplingOptions
    from tenp_edge.spec import PlanOptions
    from tenp_edge.verbs import run_calibrate, run_export, run_merge, run_plan, run_validate

__all__ = [
    "CalibrationOptions",
    "CompareOptions",
    "CompressOptions",
    "CompressionPlan",
    "ExportOptions",
    "MeasureOptions",
    "PlanOptions",
    "RunOptions",
    "SamplingOptions",
    "UserError",
    "ValidationOptions",
    "generate",
    "inspect_model",
    "load_plan",
    "load_pruned",
    "open_model",
    "run_calibrate",
    "run_compare",
    "run_compress",
    "run_export",
    "run_merge",
    "run_plan",
    "run_text",
    "run_validate",
]
_HOMES = {
    "CalibrationOptions": "options",
    "CompareOptions": "options",
    "CompressOptions": "options",
    "CompressionPlan": "plan",
    "ExportOptions": "registry",
    "MeasureOptions": "options",
    "PlanOptions": "spec",
    "RunOptions": "runtime.opening",
    "SamplingOptions": "runtime.sampling",
    "UserError": "errors",
    "ValidationOptions": "options",
    "generate": "runtime.generation",
    "inspect_model": "inspection",
    "load_plan": "plan",
    "load_pruned": "loading",
    "open_model": "runtime.opening",
    "run_calibrate": "verbs",
    "run_compare": "comparison",
    "run_compress": "pipeline",
    "run_export": "verbs",
    "run_merge": "verbs",
    "run_plan": "verbs",
    "run_text": "runtime.generation",
    "run_validate": "verbs",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tenp_edge' has no attribute {name!r}")
    return getattr(import_module(f"tenp_edge.{_HOMES[name]}"), name)
