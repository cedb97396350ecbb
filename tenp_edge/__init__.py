"""tenp-edge: prune the experts of a Mixture-of-Experts model to a RAM budget and export it."""

__version__ = "0.1.0"
