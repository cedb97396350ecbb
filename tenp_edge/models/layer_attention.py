"""What a layer's attention is made of: the one place that says how large its cache is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class LayerAttention:
    """Heads of one layer and how far it looks.

    ``head_dim``: elements of a query or key. ``window``: the last so many tokens, the query's own
    included; None is all of them. ``latent``: values that latent attention caches per token in
    place of keys and values, 0 without. ``own_values``: values have a matrix of their own, else
    they are what the keys' one gives.
    """

    heads: int
    kv_heads: int
    head_dim: int
    window: int | None = None
    latent: int = 0
    own_values: bool = True

    @property
    def cache_rows(self) -> tuple[int, ...]:
        """Values per token of each cache tensor: keys and values, or the one latent row."""
        return (self.latent,) if self.latent else (self.kv_heads * self.head_dim,) * 2

    @property
    def state_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """None: attention forgets nothing, so it needs no state (see `mixers.Mixer`)."""
        return {}
