"""Running a per-expert GGUF file on stock ggml: `PerExpertModel`."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tenp_edge.errors import UserError
from tenp_edge.runtime.ggml import bindings as ggml
from tenp_edge.runtime.ggml.cache import Cache
from tenp_edge.runtime.ggml.graph import Graph, GraphShape, Model, PartShape
from tenp_edge.runtime.ggml.library import open_library
from tenp_edge.runtime.ggml.spans import kept_places
from tenp_edge.runtime.ggml.states import States
from tenp_edge.runtime.ggml.uninterrupted import uninterrupted
from tenp_edge.runtime.ggml.weights import Weights
from tenp_edge.runtime.gguf.header import mapped, parse_header
from tenp_edge.runtime.gguf.model_metadata import read_facts
from tenp_edge.runtime.gguf.tensor_checks import check_tensors
from tenp_edge.runtime.gguf.vocabulary_checks import check_vocabulary
from tenp_edge.runtime.llamacpp.vocabulary_file import vocabulary_model
from tenp_edge.runtime.memory.footprint import cache_places, known_kv_type
from tenp_edge.runtime.session import Session, check_context, thread_count
from tenp_edge.runtime.slots import Part, Slot

# One for prompts and one for single tokens; in a large model a description takes 20 MiB.
CACHED_GRAPHS = 2
# ggml packs the buffers of each division of a batch among sequences anew. Over 7 tiny models, 24
# divisions and 3 sizes of batches, at most 10.4 % more than of the even ones.
_UNEVEN_SHARE = 8


@dataclass(frozen=True)
class RuntimeMemory:
    """Bytes that a model takes beside the Python process: ``kv`` of the cache, and of states and
    their snapshots where layers carry some; ``compute`` for a full ubatch at a full
    context, ``scratch`` of the decode extension, ``graph`` the descriptions of two such graphs, as
    many as are kept."""

    weights_bytes: int
    kv_bytes: int
    compute_bytes: int
    scratch_bytes: int
    graph_bytes: int

    @property
    def total_bytes(self) -> int:
        return sum(asdict(self).values())


class PerExpertModel(Session):
    """A per-expert file on the CPU; the same interface as `LlamaCppModel`.

    ``context``: tokens the KV cache holds; ``ubatch``: tokens evaluated at once; ``kv_type``: of
    `KV_TYPES` (blocks need ``flash_attention``); ``parallel``: sequences that share the cache;
    each has windows' rings and states of its own. ``use_extension`` False leaves the C extension
    out: the same numbers for one token and for block types, other roundings of F32 and F16 weights
    elsewhere. ``weightless``: only to ask for its `memory`; it has no KV cache and cannot compute.

    Use one from one thread at a time; several models may run in as many threads. It does not
    survive a fork: the OpenMP threads of the parent are missing in the child, which then waits for
    them, so start processes by spawning. Once closed it cannot be used (KeyError).

    Raises UserError for a file that is damaged, contradicts itself or is not a per-expert file,
    before any of its weights is touched.
    """

    runtime = "tenp-edge (per-expert)"

    def __init__(
        self,
        file: str | Path,
        *,
        context: int = 2048,
        threads: int | None = None,
        kv_type: str = "F16",
        ubatch: int = 512,
        flash_attention: bool = True,
        parallel: int = 1,
        use_extension: bool = True,
        weightless: bool = False,
    ) -> None:
        _check_choices(context, ubatch, kv_type, flash_attention)
        file = Path(file)
        with ExitStack() as stack:
            memory = stack.enter_context(mapped(file))
            header = parse_header(memory, len(memory), file.name)
            self.facts = read_facts(header)
            check_tensors(header, self.facts)
            check_vocabulary(header)
            self._weight_bytes = header.weight_bytes
            library = open_library()
            weights = Weights(library, header, memory)
            stack.callback(weights.close)
            self._cache = Cache(
                library,
                self.facts,
                context,
                kv_type,
                min(ubatch, context),
                parallel=parallel,
                empty=weightless,
            )
            stack.callback(self._cache.close)
            self._states: list[States] = []
            for _ in range(parallel):
                self._states.append(States(library, self.facts, empty=weightless))
                stack.callback(self._states[-1].close)
            self._model = Model(
                library,
                self.facts,
                weights,
                self._cache,
                self._states,
                flash_attention=flash_attention,
                use_extension=use_extension,
            )
            stack.callback(self._model.close)
            self._allocator = stack.enter_context(ggml.Allocator(library))
            self._backend = stack.enter_context(ggml.Backend(library, thread_count(threads)))
            self._written = [0] * parallel
            self._graphs: OrderedDict[GraphShape, Graph] = OrderedDict()
            stack.callback(self._drop_graphs)
            vocabulary = stack.enter_context(vocabulary_model(header, memory)).vocabulary
            super().__init__(vocabulary, context, min(ubatch, context), parallel)
            self.kv_type = kv_type
            self._stack = stack.pop_all()

    @property
    def vocab_size(self) -> int:
        return self.facts.vocab

    def memory(self) -> RuntimeMemory:
        """What this file needs with these choices, computed without touching a weight: it works
        on a header whose file was only extended to its full size."""
        whole = GraphShape((PartShape(self.batch_tokens, self._cache.most),))
        compute, described = self._sizes(whole)
        for shape in self._largest_shared():
            shared, nodes = self._sizes(shape)
            compute = max(compute, shared + shared // _UNEVEN_SHARE)
            described = max(described, nodes)
        return RuntimeMemory(
            weights_bytes=self._weight_bytes,
            kv_bytes=self._cache.nbytes + sum(states.nbytes for states in self._states),
            compute_bytes=compute,
            scratch_bytes=self._model.scratch_bytes,
            graph_bytes=CACHED_GRAPHS * described,
        )

    def _largest_shared(self) -> Iterator[GraphShape]:
        """Full batches at a full context: of one sequence with all others beside it, and of all in
        equal shares."""
        others = min(len(self.slots), self.shared_batch) - 1
        for share in {1, self.shared_batch // (others + 1)} if others else ():
            counts = (self.shared_batch - others * share, *[share] * others)
            yield GraphShape(
                tuple(PartShape(n, self._cache.most, number) for number, n in enumerate(counts))
            )

    def _sizes(self, shape: GraphShape) -> tuple[int, int]:
        """Bytes of a graph's compute buffer, and of its description."""
        graph = self._model.graph(shape)
        try:
            with ggml.Allocator(open_library()) as allocator:
                return allocator.needed(graph.context.graph), graph.context.used_bytes
        finally:
            graph.close()

    # -- evaluation ----------------------------------------------------------------------------

    def _run(self, parts: Sequence[Part], all_logits: bool) -> npt.NDArray[np.float32]:
        graph = self._graph(GraphShape(tuple(map(self._shape, parts)), all_logits))
        for part in parts:
            slot, number = part.slot, part.slot.number
            self._states[number].arrive(slot.position)
            # Even where an interrupt ends the run.
            self._written[number] = max(self._written[number], slot.position + len(part.tokens))
        tokens = [token for part in parts for token in part.tokens]
        graph.run(self._backend, tokens, [part.slot.position for part in parts])
        return graph.logits()

    def _shape(self, part: Part) -> PartShape:
        extent, count = self._cache.extents[part.slot.number], len(part.tokens)
        slots = cache_places(part.slot.position + count, None, count)
        return PartShape(count, min(slots, extent.size), part.slot.number, extent.start)

    def _graph(self, shape: GraphShape) -> Graph:
        """The graph for ``shape``, made or remembered; all of them share one compute buffer."""
        if shape in self._graphs:
            self._graphs.move_to_end(shape)
            return self._graphs[shape]
        while len(self._graphs) >= CACHED_GRAPHS:
            self._graphs.popitem(last=False)[1].close()
        graph = self._model.graph(shape)
        with uninterrupted():
            self._place(graph)
        self._graphs[shape] = graph
        return graph

    def _place(self, graph: Graph) -> None:
        before = self._allocator.nbytes
        try:
            self._allocator.place(graph.context.graph)
        finally:
            if self._allocator.nbytes != before:
                self._drop_graphs()  # They point into the buffer that has been replaced.

    def _drop_graphs(self) -> None:
        while self._graphs:
            self._graphs.popitem()[1].close()

    # -- the cache -----------------------------------------------------------------------------

    def make_room(self, sizes: Mapping[Slot, int]) -> bool:
        for slot in self.slots:
            self._cache.extents.hold(slot.number, slot.position)
        return self._cache.make_room({slot.number: size for slot, size in sizes.items()})

    def _forget(self, slot: Slot, keep: int) -> None:
        """Places beyond the position are masked; with an empty cache none holds anything."""
        settled, slot.under_way = slot.settled, True  # Until the tokens are cut, too.
        self._written[slot.number] = self._written[slot.number] if keep else 0
        self._states[slot.number].return_to(keep, settled)

    def _nearest(self, slot: Slot, keep: int) -> int:
        places, written = self._cache.places, self._written[slot.number]
        nearest = self._states[slot.number].nearest(keep, slot.settled)
        kept = all(
            kept_places(attention.window, places[layer], written, nearest)
            for layer, attention in self.facts.attention.items()
        )
        return nearest if kept else 0

    def copy_prefix(self, source: Slot, target: Slot, count: int) -> int:
        assert not target.tokens
        reached = self._nearest(source, count)
        if not reached or not self.make_room({target: reached}):
            return 0
        self._cache.copy(source.number, target.number, reached)
        states = self._states[source.number]
        self._states[target.number].take(states, reached, source.settled)
        self._written[target.number] = self._written[source.number]
        target.tokens, target.under_way = source.tokens[:reached], False
        return reached

    def keep_shared(self, tokens: Sequence[int], slot: Slot | None = None) -> int:
        slot = slot or self.slots[0]
        shared = slot.shared(tokens)
        kept = super().keep_shared(tokens, slot)
        self._states[slot.number].plan(shared if kept < shared else None, len(tokens) - 1)
        return kept

    def at_once(self, slot: Slot) -> int:
        next_stop = self._states[slot.number].until_snapshot(slot.position)
        return self.batch_tokens if next_stop is None else min(self.batch_tokens, next_stop)

    def close(self) -> None:
        """Free everything; harmless when called again."""
        self._stack.close()


def _check_choices(context: int, ubatch: int, kv_type: str, flash_attention: bool) -> None:
    check_context(context)
    if ubatch < 1:
        raise UserError(f"--ubatch is {ubatch}", "--ubatch of 1 or more")
    if known_kv_type(kv_type).block > 1 and not flash_attention:
        raise UserError(f"a {kv_type} cache needs flash attention", "--kv-type F16")
