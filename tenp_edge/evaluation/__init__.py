"""Measuring models against the one they were made of."""
