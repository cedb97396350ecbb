"""Flags, each declared once, as typer and the lean reader take them."""
