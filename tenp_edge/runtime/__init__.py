"""Running exported GGUF files without torch.

Merged and padded files run in llama.cpp (`LlamaCppModel`), per-expert files on its ggml
(`PerExpertModel`); `open_model` picks, `run_text` and `bench` use either.
"""
