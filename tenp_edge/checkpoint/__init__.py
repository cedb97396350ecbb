"""Checkpoints and plans on disk, and a model seen through a plan."""
