"""What runs an exported file, in words."""

from __future__ import annotations

_LLAMA_CPP = "llama.cpp and what is built on it (Ollama, LM Studio)"
# (format, layout) -> what runs such a file.
_RUNS_IN = {
    ("gguf", "per-expert"): "tenp-edge, on a CPU",
    ("gguf", "merged"): f"tenp-edge, and {_LLAMA_CPP}",
    ("gguf", "padded"): f"tenp-edge, and {_LLAMA_CPP}; the zeros that fill it up save no memory",
    ("onnx", "portable"): "tenp-edge, and any onnxruntime",
    ("onnx", "ort-cpu"): "tenp-edge, and onnxruntime on a CPU, whose own operators it uses",
    ("onnx", "static"): "tenp-edge and onnxruntime, and what a compiler for an NPU makes of it",
}
_ELSEWHERE = {
    ("gguf", "per-expert"): "for llama.cpp, Ollama or LM Studio compress with --layout merged and "
    "another -o",
}


def runs_in(file_format: str | None, layout: str | None) -> str:
    """What runs a file of this format and layout: "tenp-edge, and any onnxruntime"."""
    key = file_format or "", layout or ""
    return _RUNS_IN.get(key, f"what reads {' '.join(key).strip()}")


def elsewhere(file_format: str | None, layout: str | None) -> str:
    """What to do where that is not enough; empty where it runs widely."""
    return _ELSEWHERE.get((file_format or "", layout or ""), "")
