"""Linear layers, one module for each way to store a matrix."""
