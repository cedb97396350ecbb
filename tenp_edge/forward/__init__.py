"""The layer-by-layer forward in torch: one decoder layer's weights in memory."""
