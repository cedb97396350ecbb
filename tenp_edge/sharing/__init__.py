"""What others are given with a model: its card, files for other programs, the hub."""
