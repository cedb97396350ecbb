"""Calibration: text in, statistics out."""
