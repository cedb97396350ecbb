"""Unmodified llama.cpp."""
