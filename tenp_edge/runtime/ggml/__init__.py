"""Per-expert GGUF files on stock ggml."""
