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
    from tenp_edge.checkpoint.compression_plan import CompressionPlan, load_plan
    from tenp_edge.errors import UserError
    from tenp_edge.exporters.base import ExportOptions
    from tenp_edge.forward.transformers_model import load_pruned
    from tenp_edge.models.inspection import inspect_model
    from tenp_edge.planning.options.spec import PlanOptions
    from tenp_edge.runtime.generation import generate, run_text
    from tenp_edge.runtime.opening import RunOptions, open_model
    from tenp_edge.runtime.sampling import SamplingOptions
    from tenp_edge.verbs.calibrate import run_calibrate, run_merge
    from tenp_edge.verbs.compare import run_compare
    from tenp_edge.verbs.compare_options import CompareOptions
    from tenp_edge.verbs.compress import run_compress
    from tenp_edge.verbs.export import run_export
    from tenp_edge.verbs.options import (
        CalibrationOptions,
        CompressOptions,
        MeasureOptions,
        ValidationOptions,
    )
    from tenp_edge.verbs.plan import run_plan
    from tenp_edge.verbs.validate import run_validate

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
    "CalibrationOptions": "verbs.options",
    "CompareOptions": "verbs.compare_options",
    "CompressOptions": "verbs.options",
    "CompressionPlan": "checkpoint.compression_plan",
    "ExportOptions": "exporters.base",
    "MeasureOptions": "verbs.options",
    "PlanOptions": "planning.options.spec",
    "RunOptions": "runtime.opening",
    "SamplingOptions": "runtime.sampling",
    "UserError": "errors",
    "ValidationOptions": "verbs.options",
    "generate": "runtime.generation",
    "inspect_model": "models.inspection",
    "load_plan": "checkpoint.compression_plan",
    "load_pruned": "forward.transformers_model",
    "open_model": "runtime.opening",
    "run_calibrate": "verbs.calibrate",
    "run_compare": "verbs.compare",
    "run_compress": "verbs.compress",
    "run_export": "verbs.export",
    "run_merge": "verbs.calibrate",
    "run_plan": "verbs.plan",
    "run_text": "runtime.generation",
    "run_validate": "verbs.validate",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tenp_edge' has no attribute {name!r}")
    return getattr(import_module(f"tenp_edge.{_HOMES[name]}"), name)
