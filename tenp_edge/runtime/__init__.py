"""Running exported files: llama.cpp for merged and padded GGUF."""
