"""What would fit where a plan does not: every way is priced by the road that the plan takes.

A way that is printed works. The smallest plan of the options that it makes was priced as this one
was, by the runtime's own answer where it is asked, and leaves room for what a process differs by
from one to the next. Only choices that take less memory are tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.errors import UserError
from tenp_edge.planning.budget.search import InfeasibleError, sufficient
from tenp_edge.planning.memory.pricing import Priced, Pricer
from tenp_edge.planning.options.spec import PlanOptions
from tenp_edge.planning.options.target import Target
from tenp_edge.runtime.memory.footprint import KV_TYPES
from tenp_edge.units import format_size

# The smallest plan of such options, or an error where it cannot be run.
Smallest = Callable[[PlanOptions], Priced]
Way = tuple[str, PlanOptions]
_CONTEXTS = (32768, 16384, 8192, 4096, 2048, 1024, 512)
_SMALL_KV = "Q8_0"  # Smaller ones are felt: they are there for those who ask.
_SMALL_UBATCH = 64
# The process is rounded up to a MiB, and the next command measures it anew.
_SPARE_BYTES = 2**20
# Its part that shrinks with a context, a ubatch or a type, generously.
_SHRINKING_PROCESS_BYTES = 4 * 2**20


def refusal(
    error: InfeasibleError, checkpoint: Checkpoint, options: PlanOptions, smallest: Smallest
) -> UserError:
    """The smallest legal plan, what there is for it, and which other choices would fit."""
    target, priced = error.target, error.priced
    needed, budget = priced.memory.total_bytes, target.budget_bytes
    spare = _SPARE_BYTES if priced.memory.source == "runtime" else 0
    short = needed - (budget - spare)
    kinds = (
        _contexts(options, target, priced, short),
        _caches(options, target, priced, short),
        _batches(options, target, priced, short),
        # Where every matrix has a type of its own, they are the smallest already.
        () if priced.types else _types(options, target, checkpoint, priced, short),
    )
    ways = [_first(kind, smallest, budget - spare) for kind in kinds]
    has = f"{target.profile.name} leaves" if options.budget_bytes is None else "--ram allows"
    return UserError(
        f"the smallest plan needs {_more_than(budget, needed)} with --context "
        f"{target.run.context}; {has} {format_size(budget)}",
        " or ".join([*filter(None, ways), f"--ram {sufficient(needed + spare)}"]),
    )


def _more_than(budget: int, needed: int) -> str:
    """``needed`` as it is read; a hundredth more where that reads like ``budget``."""
    said = format_size(needed)
    unit = 2**30 if needed >= 2**30 else 2**20
    return said if said != format_size(budget) else format_size(needed + unit / 100)


def _first(ways: Iterable[Way], smallest: Smallest, budget: int) -> str | None:
    """The first of ``ways`` whose smallest plan fits, with what that needs."""
    for flag, changed in ways:
        try:
            nbytes = smallest(changed).memory.total_bytes
        except UserError:  # The runtime does not do it: heads that Q8_0 cannot hold.
            continue
        if nbytes <= budget:
            return f"{flag} ({format_size(nbytes)})"
    return None


# The kinds of ways. ``short``: bytes that are to be saved; what cannot save them is not tried.


def _contexts(options: PlanOptions, target: Target, priced: Priced, short: int) -> Iterator[Way]:
    """Cache and buffers shrink with the context at most in proportion."""
    shrinking = priced.memory.kv_bytes + priced.memory.compute_bytes + _SHRINKING_PROCESS_BYTES
    for tokens in _CONTEXTS:
        left = tokens / target.run.context
        if left < 1 and (1 - left) * shrinking >= short:
            yield f"--context {tokens}", replace(options, context=tokens)


def _larger_kv(name: str) -> bool:
    return KV_TYPES[name].value_bytes > KV_TYPES[_SMALL_KV].value_bytes


def _caches(options: PlanOptions, target: Target, priced: Priced, short: int) -> Iterator[Way]:
    large = _larger_kv(target.run.kv_type) and not target.exporter.kv_types
    if large and priced.memory.kv_bytes >= short:
        yield f"--kv-type {_SMALL_KV}", replace(options, kv_type=_SMALL_KV)


def _batches(options: PlanOptions, target: Target, priced: Priced, short: int) -> Iterator[Way]:
    shrinking = priced.memory.compute_bytes + _SHRINKING_PROCESS_BYTES
    if target.run.ubatch > _SMALL_UBATCH and shrinking >= short:
        yield f"--set ubatch={_SMALL_UBATCH}", replace(options, ubatch=_SMALL_UBATCH)


def _types(
    options: PlanOptions, target: Target, checkpoint: Checkpoint, priced: Priced, short: int
) -> Iterator[Way]:
    """Types whose weights are that much smaller, the largest first."""
    weighed: list[tuple[int, str]] = []
    for name in target.exporter.quants:
        if name in target.profile.tensor_types or target.exporter.format != target.profile.format:
            imatrix = options.imatrix and name in target.exporter.weighted_quants
            file = replace(target.options, quant=name, imatrix=imatrix)
            try:
                other = Pricer(checkpoint, replace(target, options=file))(priced.widths)
            except UserError:  # It needs an importance matrix, which was ruled out.
                continue
            weighed.append((other.memory.weights_bytes, name))
    for nbytes, name in sorted(weighed, reverse=True):
        saved = priced.memory.weights_bytes - nbytes
        if saved > 0 and saved + _SHRINKING_PROCESS_BYTES >= short:
            yield f"--quant {name}", replace(options, quant=name)
