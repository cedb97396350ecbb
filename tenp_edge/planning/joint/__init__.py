"""Widths and types of every tensor chosen together."""
