"""GGUF: one file for llama.cpp (merged, padded) or for our own runtime (per-expert)."""

from tenp_edge.exporters.gguf.exporter import EXPORTER

__all__ = ["EXPORTER"]
