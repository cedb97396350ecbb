"""GGUF exporter."""
