"""ONNX: a directory for onnxruntime, its graph written by hand and its weights streamed."""

from tenp_edge.exporters.onnx.exporter import EXPORTER

__all__ = ["EXPORTER"]
