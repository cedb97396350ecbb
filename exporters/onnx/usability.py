"""What onnxruntime's mobile usability checker says of static graphs, to be kept beside them.

It counts what NNAPI and CoreML would take, and in how many pieces. The integers at the entry and
the router stay on the CPU, so its advice tends to be harsher than the graphs deserve.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Mapping
from typing import Any

import onnx

REPORT_NAME = "mobile-usability.txt"


def usability_report(graphs: Mapping[str, onnx.ModelProto]) -> bytes:
    """The report of all ``graphs``, by file name; their weights are not needed."""
    stream = io.StringIO()
    logger = logging.Logger("usability", logging.INFO)
    logger.addHandler(logging.StreamHandler(stream))
    for file, graph in graphs.items():
        shaped = onnx.shape_inference.infer_shapes(graph, strict_mode=True, data_prop=True)
        for provider, partitions in _checks().items():
            logger.info("%s, %s:", file, provider)
            partitions(shaped).print_analysis(logger, provider)
    return stream.getvalue().encode()


def _checks() -> dict[str, Callable[[onnx.ModelProto], Any]]:
    from onnxruntime.tools.mobile_helpers import usability_checker as checker

    programs = "coreml_supported_mlprogram_ops.md"
    return {
        "NNAPI": lambda graph: checker.check_nnapi_partitions(graph, True),
        "CoreML": lambda graph: checker.check_coreml_partitions(graph, True, programs),
    }
