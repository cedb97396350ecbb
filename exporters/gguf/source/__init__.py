"""A GGUF as the model to start from: its config, its weights, its metadata."""
