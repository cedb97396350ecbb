"""GGUF files: headers and metadata read and checked, before anything is loaded."""
