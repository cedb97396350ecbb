"""What every graph maker is handed: the builder, the model, and the makers a mode has chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import onnx_ir as ir

from tenp_edge.exporters.onnx.graph.builder import END, FLOAT, Dims, GraphBuilder
from tenp_edge.exporters.onnx.graph.cache import CacheShape
from tenp_edge.exporters.onnx.linear.plain import FloatLinear, Linear
from tenp_edge.models import MLA, ModelConfig, TensorSpec, expected_tensors


@dataclass(frozen=True)
class Fixed:
    """Lengths of a static graph: sequences, new tokens of each, places of its cache."""

    batch: int
    query: int
    past: int


@dataclass(frozen=True)
class KeyCounts:
    """Keys by their number, int32: ``last`` (batch,) of each row's last one, ``total`` () of all
    places."""

    last: ir.Value
    total: ir.Value


# Cosines and sines of a run's positions.
Rotation = tuple[ir.Value, ir.Value]


@dataclass(frozen=True)
class Run:
    """Values that every layer needs.

    ``shape``: what rows of tokens are reshaped to, (batch, query, whatever is left).
    ``masks``: by window (batch, 1, query, key); bool, True where a query may look, or in a static
    graph float, what is added to the scores; empty where ``keys`` takes their place.
    ``rotations``: of each layer cosines and sines, (batch, query, rotary dimensions / 2).
    ``past``: keys and values of each layer that attends, (batch, heads, past, size).
    ``present``: dimensions of each such layer's keys and values after this run.
    ``states``: what the tokens before left, by layer and name, of ``state_dims``; ``real``: where
    there are some, (batch, query, 1) float, 0 of padding.
    """

    shape: ir.Value | list[int]
    masks: Mapping[int | None, ir.Value]
    rotations: Mapping[int, Rotation]
    past: Mapping[int, tuple[ir.Value, ir.Value]]
    present: Mapping[int, tuple[Dims, Dims]]
    caches: Mapping[int, CacheShape]
    states: Mapping[int, Mapping[str, ir.Value]] = field(default_factory=dict)
    state_dims: Mapping[int, Mapping[str, Dims]] = field(default_factory=dict)
    real: ir.Value | None = None
    static: Fixed | None = None
    keys: KeyCounts | None = None

    @property
    def fixed(self) -> Fixed:
        """The lengths, for makers that only static graphs use."""
        assert self.static is not None
        return self.static


class Norm(Protocol):
    def __call__(
        self, c: Context, path: str, x: ir.Value, weight: TensorSpec, epsilon: float
    ) -> ir.Value:
        """RMSNorm over the last dimension."""
        ...


class Rotary(Protocol):
    def __call__(
        self, c: Context, path: str, x: ir.Value, heads: int, interleaved: bool, layer: int
    ) -> ir.Value:
        """Rotate ``x``, (batch, query, heads x size), by the positions of this run."""
        ...


@dataclass(frozen=True)
class Heads:
    """Heads of the queries and of the cache, what scores are multiplied by, how many tokens a query
    sees (None: all before it), and whether a head has a sink."""

    query: int
    cached: int
    scale: float
    window: int | None = None
    sinks: bool = False


class Attend(Protocol):
    def __call__(
        self,
        c: Context,
        path: str,
        q: ir.Value,
        k: ir.Value,
        v: ir.Value,
        heads: Heads,
        layer: int | None,
    ) -> ir.Value:
        """Attention of q over k and v, all (batch, n, heads x size).

        With ``layer`` k and v are the new ones, which join that layer's cache; with None they are
        past and new already. Returns (batch, query, heads x value size).
        """
        ...


class Dispatch(Protocol):
    def __call__(
        self, c: Context, path: str, x: ir.Value, ids: ir.Value, weights: ir.Value, layer: int
    ) -> ir.Value:
        """The weighted sum of each token's experts: (tokens, hidden) -> (tokens, hidden).

        ``ids`` int64 and ``weights`` float, both (tokens, top_k).
        """
        ...


@dataclass(frozen=True)
class Makers:
    """How a mode writes each thing; a quantisation replaces ``linear``.

    ``pads_values``: MLA's cached values are as long as its keys (see `cache`).
    ``count_keys``: what ``attend`` takes in place of a mask where there is no latent attention.
    """

    norm: Norm
    rotary: Rotary
    attend: Attend
    dispatch: Dispatch
    linear: Linear = field(default_factory=FloatLinear)
    router: Linear = field(default_factory=FloatLinear)
    pads_values: bool = True
    count_keys: Callable[[GraphBuilder, ir.Value], KeyCounts] | None = None

    def counts_keys(self, config: ModelConfig) -> bool:
        """Whether attention counts keys, and so cannot leave out padding on the left."""
        return self.count_keys is not None and config.mla is None


@dataclass
class Context:
    """The graph being built of ``config``. ``run`` is there once the inputs are.

    ``latent``: MLA's cache holds the latent instead of keys and values.
    """

    g: GraphBuilder
    config: ModelConfig
    makers: Makers
    latent: bool = False
    run: Run = field(init=False)
    specs: Mapping[tuple[str, int | None, int | None], TensorSpec] = field(init=False)
    _present: list[tuple[int, ir.Value, ir.Value]] = field(init=False, default_factory=list)
    _states: list[tuple[int, str, ir.Value]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.specs = {(s.role, s.layer, s.expert): s for s in expected_tensors(self.config)}

    def has(self, role: str, layer: int | None = None) -> bool:
        return (role, layer, None) in self.specs

    def spec(self, role: str, layer: int | None = None, expert: int | None = None) -> TensorSpec:
        return self.specs[role, layer, expert]

    @property
    def mla(self) -> MLA:
        assert self.config.mla is not None
        return self.config.mla

    def linear(
        self, path: str, x: ir.Value, role: str, layer: int, expert: int | None = None
    ) -> ir.Value:
        """A linear layer of the model by its role, with its bias where it has one."""
        bias = self.specs.get((f"{role}_bias", layer, expert))
        return self.makers.linear(self.g, path, x, self.spec(role, layer, expert), bias)

    def norm(
        self, path: str, x: ir.Value, role: str, layer: int | None, epsilon: float
    ) -> ir.Value:
        return self.makers.norm(self, path, x, self.spec(role, layer), epsilon)

    def present(self, layer: int, key: ir.Value, value: ir.Value) -> None:
        """Keep one layer's keys and values, past and new, as outputs."""
        self._present.append((layer, key, value))

    def keep_state(self, layer: int, name: str, value: ir.Value) -> None:
        """Keep what the next run reads as ``run.states[layer][name]``, as an output."""
        self._states.append((layer, name, value))

    def convolution_inputs(self, path: str, columns: ir.Value, layer: int, taps: int) -> ir.Value:
        """The state "conv", and behind it ``columns`` (batch, channels, query): (batch, channels,
        taps - 1 + query). The last taps - 1 of them are the next state."""
        before = self.run.states[layer]["conv"]
        seen = self.g.op(f"{path}/seen", "Concat", [before, columns], axis=-1)
        last = self.g.op(f"{path}/last", "Slice", [seen, [1 - taps], [END], [-1]])
        self.keep_state(layer, "conv", last)
        return seen

    def finish(self) -> None:
        """Announce the kept caches: outputs come after the logits, which callers look for first."""
        for layer, key, value in self._present:
            for name, kept, dims in zip(
                ("key", "value"), (key, value), self.run.present[layer], strict=True
            ):
                self.g.output(kept, f"present.{layer}.{name}", FLOAT, dims)
        for layer, name, value in self._states:
            dims = self.run.state_dims[layer][name]
            self.g.output(value, f"present_state.{layer}.{name}", FLOAT, dims)
