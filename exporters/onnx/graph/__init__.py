"""The graph: inputs, layers and operators."""
