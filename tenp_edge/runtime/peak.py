"""Peak resident memory of a file as it runs: predicted from its header, and measured.

Both happen in a fresh process that holds what ``tenp-edge run`` holds. Predicting opens the file,
which may be an outline (a header and a hole), computes the sizes of cache and compute buffer, and
measures what the process takes by then; no weight is read and neither of the two is allocated.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
from dataclasses import asdict
from pathlib import Path

from tenp_edge.child import Answer, ChildError, answers, ask
from tenp_edge.errors import UserError
from tenp_edge.footprint import MemoryRun, RunMemory
from tenp_edge.runtime.facts import is_per_expert
from tenp_edge.runtime.gguf_file import read_header
from tenp_edge.runtime.native import native
from tenp_edge.runtime.opening import RunOptions, open_model
from tenp_edge.runtime.perexpert import PerExpertModel
from tenp_edge.runtime.projection import Projection, project, work_bytes
from tenp_edge.runtime.resident import peak_rss_bytes, resident_bytes

DECODE_STEPS = 32
# Code of the kernels and stacks of the threads, first touched by computing: measured 1.0 MiB in our
# runtime and 1.8 MiB in llama.cpp, on files of a few hundred kB; the rest is for larger graphs.
_UNSEEN_BYTES = 4 * 2**20
# What a process takes differs by up to 0.3 MiB from one to the next.
_PROCESS_STEP = 2**20
_known: dict[str, RunMemory] = {}
# What the process of `tenp-edge run` has imported.
_PROGRAM = ("tenp_edge.cli", "tenp_edge.conversation", "tenp_edge.runtime.chat")


def measure_peak_rss(
    file: str | Path, *, context: int, ubatch: int, kv_type: str, threads: int
) -> int:
    """Peak resident bytes of a fresh process that runs ``file``: all weights read, the KV cache
    touched, one full ubatch of prefill and 32 decode steps. No torch in that process."""
    facts = {"file": str(file), **asdict(MemoryRun(context, ubatch, kv_type, threads))}
    try:
        return int(ask(__name__, "_measure", facts, _PROGRAM)["peak_bytes"])
    except (ChildError, UserError) as error:
        raise UserError(
            f"measuring {Path(file).name} failed with {error}",
            "more free memory, or a smaller --context",
        ) from None


def predict_peak(file: str | Path, run: MemoryRun) -> RunMemory:
    """What running ``file`` (or its outline) as ``run`` says takes here, without running it.

    Raises UserError when the runtime refuses the file or the run, ChildError when it dies.
    """
    facts = {"file": str(file), **asdict(run)}
    return RunMemory.from_json(ask(__name__, "_predict", facts, _PROGRAM))


def known_peak(file: Path, run: MemoryRun) -> RunMemory:
    """`predict_peak`, remembered: the same header and run get the very same answer, although what
    a process takes differs by some pages from one to the next."""
    header = read_header(file)
    state = hashlib.sha256(repr((header.data_start, file.stat().st_size, run)).encode())
    with file.open("rb") as stream:
        state.update(stream.read(header.data_start))
    key = state.hexdigest()
    if key not in _known:
        _known[key] = predict_peak(file, run)
    return _known[key]


@answers
def _predict(facts: Answer) -> Answer:
    file, run = _request(facts)
    native()  # loaded before the file is, so that what follows is the file's own share
    before = resident_bytes()
    header = read_header(file)
    weights, per_expert = file.stat().st_size - header.data_start, is_per_expert(header.fields)
    work = work_bytes(header, min(run.ubatch, run.context))
    del header
    sizes = _own_sizes(file, run) if per_expert else project(file, run)
    process = -(-(sizes.process_bytes + _UNSEEN_BYTES) // _PROCESS_STEP) * _PROCESS_STEP
    return RunMemory(
        weights_bytes=weights,
        kv_bytes=sizes.kv_bytes,
        compute_bytes=sizes.compute_bytes + work,
        process_bytes=process,
        file_process_bytes=process - before,
    ).to_json()


def _own_sizes(file: Path, run: MemoryRun) -> Projection:
    """What our own runtime says about itself."""
    with PerExpertModel(
        file,
        context=run.context,
        threads=run.threads,
        kv_type=run.kv_type,
        ubatch=run.ubatch,
        weightless=True,
    ) as model:
        process, found = resident_bytes(), model.memory()
    return Projection(
        found.kv_bytes, found.compute_bytes, process + found.scratch_bytes + found.graph_bytes
    )


@answers
def _measure(facts: Answer) -> Answer:
    file, run = _request(facts)
    with open_model(file, RunOptions(run.context, run.threads, run.ubatch, run.kv_type)) as model:
        prompt = [index % model.vocab_size for index in range(model.batch_tokens)]
        left = max(0, run.context - len(prompt) - DECODE_STEPS)
        if isinstance(model, PerExpertModel):
            model.assume(left)  # Buffers are largest at the end of the context.
        model.evaluate(prompt)
        for step in range(min(DECODE_STEPS, run.context - model.position)):
            model.decode(step % model.vocab_size)
        _touch(file)
        return {"peak_bytes": peak_rss_bytes()}


def _request(facts: Answer) -> tuple[Path, MemoryRun]:
    return Path(facts["file"]), MemoryRun(**{k: v for k, v in facts.items() if k != "file"})


def _touch(file: Path) -> None:
    """Fault in every page of the mappings of ``file``: experts that no token chose count too."""
    for start, size in _mappings(file):
        pages = range(0, size, os.sysconf("SC_PAGE_SIZE"))
        for offset in pages:
            ctypes.c_ubyte.from_address(start + offset).value  # noqa: B018


def _mappings(file: Path) -> list[tuple[int, int]]:
    """Where ``file`` is mapped in this process, (address, bytes); none where /proc is missing."""
    maps = Path("/proc/self/maps")
    if not maps.is_file():
        return []
    spans = [
        line.split()[0].split("-")
        for line in maps.read_text().splitlines()
        if line.endswith(str(file.resolve()))
    ]
    return [(int(start, 16), int(stop, 16) - int(start, 16)) for start, stop in spans]
