"""Exporters: one package per format, behind the contract in `tenp_edge.exporters.base`."""
