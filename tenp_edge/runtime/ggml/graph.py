"""The whole model as one ggml graph for numbers of new tokens and of cache slots.

ids -> embedding -> [ norm, mixing block, (norm), +  norm, feed forward, (norm), + ] per layer
    -> norm -> output matrix -> (bound) -> logits of the last token, or of all

The mixing block is attention or one that carries a state (`mixers`). A layer may lack it, or the
feed forward. The feed forward is an MLP, or experts with shared ones, or an MLP beside experts:

    stream -- norm -- MLP ------ norm --+-- sum
    stream -- norm -- experts -- norm --+     (their router reads the stream)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tenp_edge.runtime.ggml import bindings as ggml
from tenp_edge.runtime.ggml.branches import Expert, Route, build_branches, gated, ungated
from tenp_edge.runtime.ggml.cache import Cache
from tenp_edge.runtime.ggml.mixers import build_mixer
from tenp_edge.runtime.ggml.products import Products
from tenp_edge.runtime.ggml.ragged import (
    MAX_TOKENS,
    RaggedLayer,
    RaggedSizes,
    Scratch,
    kernels,
    knows,
)
from tenp_edge.runtime.ggml.routing import build_router, residual_input
from tenp_edge.runtime.ggml.spans import Span
from tenp_edge.runtime.ggml.states import States
from tenp_edge.runtime.ggml.step import PartStep, Step
from tenp_edge.runtime.ggml.weights import Constant, Weights
from tenp_edge.runtime.gguf.model_metadata import Facts

_LAYER_NODES, _BRANCH_NODES = 96, 14
_PART_NODES = 40  # of a layer, for every sequence beside the first
_BIAS_NODES = 3  # of a branch
# Lost in any float above 1e-23, and large enough that half of it is still a normal float.
_GATE_OFFSET = 1e-30


@dataclass(frozen=True)
class PartShape:
    """``tokens`` of one ``sequence``, which see ``slots`` places of its extent, from ``start`` on
    (`extents`)."""

    tokens: int
    slots: int
    sequence: int = 0
    start: int = 0


@dataclass(frozen=True)
class GraphShape:
    """What a graph is built for. ``all_logits``: of every token, else of the last of each part."""

    parts: tuple[PartShape, ...]
    all_logits: bool = False

    @property
    def tokens(self) -> int:
        return sum(part.tokens for part in self.parts)

    @property
    def only_last(self) -> bool:
        """Whether there are tokens whose logits nobody wants."""
        return not self.all_logits and self.tokens > len(self.parts)

    @property
    def rows(self) -> int:
        """Of logits."""
        return len(self.parts) if self.only_last else self.tokens


class Model:
    """Weights, cache and every sequence's states, and the graphs over them."""

    def __init__(
        self,
        library: ggml.Library,
        facts: Facts,
        weights: Weights,
        cache: Cache,
        states: Sequence[States],
        *,
        flash_attention: bool,
        use_extension: bool = True,
    ) -> None:
        self.library, self.facts = library, facts
        self.weights, self.cache, self.states = weights, cache, states
        self.flash_attention = flash_attention
        self.rope_divisors = Constant(library, facts.rope.divisors)
        self.sequence = Constant(library, [0], ggml.I32)
        self.experts = {
            layer: [_expert(weights, layer, expert) for expert in range(facts.experts)]
            for layer in facts.widths
        }
        activation = facts.architecture.activation
        self.operations = kernels() if use_extension else None
        operations = self.operations if knows(library, activation) else None
        self.ragged: dict[int, RaggedLayer] = {}
        self.products = Products(library, weights, use_extension=use_extension)
        self.scratch_bytes = self.products.nbytes
        if operations is not None:
            widest = max(max(row) for row in facts.widths.values())
            sizes = RaggedSizes(facts.hidden, facts.experts, facts.top_k, widest)
            scratch = Scratch(library, sizes)
            self.scratch_bytes += scratch.nbytes
            self.ragged = {
                layer: RaggedLayer(
                    library,
                    operations,
                    scratch,
                    experts,
                    facts.top_k,
                    facts.hidden,
                    activation,
                    self.scales(layer),
                )
                for layer, experts in self.experts.items()
            }

    def scales(self, layer: int) -> int | None:
        """(experts) what each expert's output is multiplied by before its weight, if anything."""
        return self.weights.get(f"blk.{layer}.ffn_down_exps.scale")

    def graph(self, shape: GraphShape) -> Graph:
        return Graph(self, shape)

    def close(self) -> None:
        self.rope_divisors.close()
        self.sequence.close()


def _expert(weights: Weights, layer: int, expert: int) -> Expert:
    gate, up, down = (f"blk.{layer}.ffn_{name}.{expert}" for name in ("gate", "up", "down"))
    biases = (weights.get(f"{name}.bias") for name in (gate, up, down))
    matrices = (weights.get(f"{name}.weight") or 0 for name in (up, down))
    return Expert(weights.get(f"{gate}.weight"), *matrices, *biases)


class Graph:
    """A graph that can be run again and again once an allocator has placed it."""

    def __init__(self, model: Model, shape: GraphShape) -> None:
        self.shape = shape
        self._model = model
        self._routes: list[Route] = []
        facts, tokens = model.facts, shape.tokens
        few = tokens <= MAX_TOKENS and bool(model.ragged)
        branch = _BRANCH_NODES + (_BIAS_NODES if facts.architecture.expert_bias else 0)
        per_layer = _LAYER_NODES + 2 * facts.top_k + (0 if few else branch * facts.experts)
        per_layer += _PART_NODES * (len(shape.parts) - 1)
        nodes = 64 + facts.layers * per_layer
        self.context = context = ggml.Context(model.library, nodes, graph_nodes=nodes)
        self._ids = self._input(ggml.I32, tokens)
        several = shape.only_last and len(shape.parts) > 1
        self._last_rows = self._input(ggml.I32, len(shape.parts)) if several else None
        rows = {own.window: self._input(ggml.I64, tokens) for own in facts.attention.values()}
        self._step = Step(
            library=model.library,
            context=context,
            facts=facts,
            weights=model.weights,
            products=model.products,
            cache=model.cache,
            flash_attention=model.flash_attention,
            tokens=tokens,
            positions=self._input(ggml.I32, tokens),
            rows=rows,
            parts=list(self._parts(rows)),
            rope_divisors=model.rope_divisors.tensor,
            sequence=model.sequence.tensor or 0,
        )
        self._logits = self._build()
        model.library.ggml_set_output(self._logits)
        context.expand(self._logits)

    def _parts(self, rows: Mapping[int | None, int]) -> Iterator[PartStep]:
        first = 0
        for part in self.shape.parts:
            spans = self._spans(part, first, rows)
            states = self._model.states[part.sequence].layers
            yield PartStep(self.context, first, part.tokens, spans, states)
            first += part.tokens

    def _spans(
        self, part: PartShape, first: int, rows: Mapping[int | None, int]
    ) -> dict[int | None, Span]:
        """What layers of each window see of their cache."""
        facts, cache = self._model.facts, self._model.cache
        spans: dict[int | None, Span] = {}
        for layer, attention in facts.attention.items():
            window = attention.window
            if window in spans:
                continue
            places = cache.places[layer]
            slots = min(part.slots, places)
            start = part.start if window is None else cache.start(layer, part.sequence)
            mask = self._input(ggml.F16, slots, part.tokens)
            spans[window] = Span(window, start, places, slots, first, rows[window], mask)
        return spans

    def _input(self, kind: int, *sizes: int) -> int:
        new = self.context.new_tensor_1d if len(sizes) == 1 else self.context.new_tensor_2d
        made = new(kind, *sizes)
        self._model.library.ggml_set_input(made)
        return made

    # -- building ------------------------------------------------------------------------------

    def _build(self) -> int:
        context, facts, weights = self.context, self._model.facts, self._model.weights
        embedding = weights["token_embd.weight"]
        x = context.get_rows(embedding, self._ids)
        if facts.architecture.embedding_scale:
            x = context.scale(x, math.sqrt(facts.hidden))
        x = self._scaled(x, facts.multipliers.embedding)
        for layer in range(facts.layers):
            x = self._layer(layer, x)
            context.expand(x)
        norm = weights[f"{facts.architecture.output_norm}.weight"]
        normed = context.mul(context.rms_norm(x, facts.eps), norm)
        head = weights.get("output.weight")
        logits = self._step.product(embedding if head is None else head, normed)
        logits = self._scaled(logits, facts.multipliers.logits)
        if not facts.softcap:
            return logits
        bounded = context.tanh(context.scale(logits, 1.0 / facts.softcap))
        return context.scale(bounded, facts.softcap)

    def _layer(self, layer: int, x: int) -> int:
        """(hidden, tokens) -> the same; the last layer goes on with the last tokens alone, unless
        all logits are wanted."""
        context, step, tokens = self.context, self._step, self.shape.tokens
        facts = self._model.facts
        mixed = build_mixer(step, layer, x)
        if layer == facts.layers - 1 and self.shape.only_last:
            x, mixed = self._last(x), None if mixed is None else self._last(mixed)
            tokens = self.shape.rows
        if mixed is not None:
            x = self._added(layer, "post_attention_norm", mixed, x)
        if layer in facts.widths or layer in facts.mlp_layers:
            x = self._added(layer, "post_ffw_norm", self._feed_forward(layer, x, tokens), x)
        scale = step.weights.get(f"blk.{layer}.layer_output_scale.weight")
        return x if scale is None else context.mul(x, scale)

    def _added(self, layer: int, norm: str, mixed: int, x: int) -> int:
        """``x`` and what a block made of it, which some architectures normalise before."""
        facts = self._model.facts
        if facts.architecture.norms_after:
            mixed = self._step.norm(layer, norm, mixed)
        return self.context.add(self._scaled(mixed, facts.multipliers.residual), x)

    def _scaled(self, x: int, factor: float) -> int:
        return x if factor == 1.0 else self.context.scale(x, factor)

    def _feed_forward(self, layer: int, x: int, tokens: int) -> int:
        """Of the residual stream ``x`` (hidden, tokens), before it is added to it."""
        step, row = self._step, self._model.facts.architecture
        normed = step.norm(layer, row.ffn_norm, x)
        if layer not in self._model.experts:
            return self._mlp(layer, "", normed)
        if not row.dense_beside:
            return self._moe(layer, normed, x, tokens)
        dense = step.norm(layer, "post_ffw_norm_1", self._mlp(layer, "", normed))
        mixed = self._moe(layer, step.norm(layer, "pre_ffw_norm_2", x), x, tokens)
        return self.context.add(dense, step.norm(layer, "post_ffw_norm_2", mixed))

    def _last(self, x: int) -> int:
        """The columns of ``x`` (hidden, tokens) that are of a part's last token."""
        if self._last_rows is not None:
            return self.context.get_rows(x, self._last_rows)
        row = 4 * self._model.facts.hidden
        return self.context.view_2d(
            x, self._model.facts.hidden, 1, row, row * (self.shape.tokens - 1)
        )

    def _moe(self, layer: int, x: int, stream: int, tokens: int) -> int:
        """The experts' sum of ``x``, which the router reads, too, or the ``stream`` before it."""
        context, facts, weights = self.context, self._model.facts, self._model.weights
        bias = weights.get(f"blk.{layer}.exp_probs_b.bias")
        read = x
        if facts.architecture.residual_router:
            scale = weights[f"blk.{layer}.ffn_gate_inp.scale"]
            read = residual_input(context, facts, stream, scale)
        logits = self._step.linear(layer, "ffn_gate_inp", read)
        ids, shares = build_router(context, facts, logits, bias, tokens)
        context.expand(shares)
        ragged = self._model.ragged.get(layer)
        if ragged is not None and tokens <= MAX_TOKENS:
            mixed = ragged.build(context, x, ids, shares)
        else:
            experts = self._model.experts[layer]
            scales = self._model.scales(layer)
            activation, top_k = facts.architecture.activation, facts.top_k
            operations = self._model.operations
            mixed, route = build_branches(
                context, experts, x, ids, shares, top_k, activation, scales, operations
            )
            self._routes.append(route)
        context.expand(mixed)
        if weights.get(f"blk.{layer}.ffn_up_shexp.weight") is None:
            return mixed
        return context.add(mixed, self._shared(layer, x))

    def _shared(self, layer: int, x: int) -> int:
        shared = self._mlp(layer, "_shexp", x)
        if not self._model.facts.architecture.shared_gate:
            return shared
        return self.context.mul(shared, self._shared_gate(layer, x))

    def _shared_gate(self, layer: int, x: int) -> int:
        """sigmoid(g) as llama.cpp computes it: ggml's, or silu(g) / g, a rounding away from it,
        which would be seen in every logit. There g = 0 gives 0 / 0; here it is moved aside."""
        gate = self._step.linear(layer, "ffn_gate_inp_shexp", x)
        if self._model.facts.architecture.gate_is_sigmoid:
            return self.context.sigmoid(gate)
        gate = self.context.scale_bias(gate, 1.0, _GATE_OFFSET)
        return self.context.div(self.context.silu(gate), gate)

    def _mlp(self, layer: int, suffix: str, x: int) -> int:
        step, row = self._step, self._model.facts.architecture
        up = step.linear(layer, f"ffn_up{suffix}", x)
        if not row.gated:
            _, inner = ungated(self.context, row.activation, up)
            return step.linear(layer, f"ffn_down{suffix}", inner)
        gate = step.linear(layer, f"ffn_gate{suffix}", x)
        return step.linear(
            layer, f"ffn_down{suffix}", gated(self.context, row.activation, gate, up)
        )

    # -- running -------------------------------------------------------------------------------

    def run(self, backend: ggml.Backend, tokens: Sequence[int], starts: Sequence[int]) -> None:
        """Evaluate ``tokens``, those of every part from its place in ``starts`` on; the cache holds
        what is before them."""
        count, shape = self.shape.tokens, self.shape
        runs = [
            np.arange(start, start + part.tokens)
            for start, part in zip(starts, shape.parts, strict=True)
        ]
        # Inputs share memory with later nodes, so each run writes them all.
        ggml.array(self._ids, np.int32, (count,))[:] = tokens
        if self._model.facts.architecture.rope is not None:  # else no node reads them
            ggml.array(self._step.positions, np.int32, (count,))[:] = np.concatenate(runs)
        if self._last_rows is not None:
            ends = np.cumsum([part.tokens for part in shape.parts]) - 1
            ggml.array(self._last_rows, np.int32, (len(ends),))[:] = ends
        for part, positions in zip(self._step.parts, runs, strict=True):
            for span in part.spans.values():
                span.write(positions)
        for route in self._routes:
            route.reset()
        backend.compute(self.context.graph)
        for route in self._routes:
            if route.error is not None:
                raise route.error

    def logits(self) -> npt.NDArray[np.float32]:
        """Of the last run, (tokens or parts, vocab): a view that the next run overwrites."""
        view: npt.NDArray[np.float32] = ggml.array(
            self._logits, np.float32, (self.shape.rows, self._model.facts.vocab)
        )
        return view

    def close(self) -> None:
        self.context.close()
