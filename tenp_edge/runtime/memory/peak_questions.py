"""What `peak` asks of a fresh process: how much running a file takes, and a prompt for it.

It has loaded what `tenp-edge run` loads and as little besides as can be, since what it holds is
counted as the run's: hashes and subprocesses are for the process that asks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

from tenp_edge.runtime.child import Answer, answers
from tenp_edge.runtime.ggml.model import PerExpertModel
from tenp_edge.runtime.gguf.file_origin import is_per_expert
from tenp_edge.runtime.gguf.header import Header, read_header
from tenp_edge.runtime.gguf.vocabulary_checks import vocabulary_size
from tenp_edge.runtime.llamacpp.model import LlamaCppModel
from tenp_edge.runtime.llamacpp.native import native
from tenp_edge.runtime.llamacpp.projection import Projection, project, work_bytes
from tenp_edge.runtime.memory.footprint import PROCESS_STEP, MemoryRun, RunMemory
from tenp_edge.runtime.memory.resident import resident_bytes
from tenp_edge.runtime.onnx.directory import is_onnx
from tenp_edge.runtime.vocabulary import Vocabulary
from tenp_edge.threads import usable_threads

# Code of the kernels, and what else is first touched by computing. In the sweep of
# benchmarks/bench_memory.py at most 0.4 MiB in our runtime and 4.1 MiB in llama.cpp; 0.4 and 1 MiB
# more. What a fault maps along of shared libraries depends on the page cache: asked while they are
# not in it, and run when they have just been written, our runtime was 1.2 MiB above.
_OWN_KERNELS_BYTES, _LLAMA_KERNELS_BYTES = 2 * 2**20, 5 * 2**20
# Each thread has a stack and a heap of its own (0.15 MiB measured, 1 to 16 threads). A prompt has
# its text, its ids and copies of them; choosing a token takes, per entry of the vocabulary, scores
# in float64, their negatives and their order.
_THREAD_BYTES = 160 * 2**10
_PROMPT_TOKEN_BYTES = 64
_CHOICE_BYTES = 32


@answers
def predict(facts: Answer) -> Answer:
    file, run = _request(facts)
    native()  # loaded before the file is, so that what follows is the file's own share
    before = resident_bytes()
    header = read_header(file)
    weights, per_expert = file.stat().st_size - header.data_start, is_per_expert(header.fields)
    work = work_bytes(header, min(run.ubatch, run.context))
    unseen = _unseen(header, run, per_expert)
    if "tokenizer.chat_template" in header.fields:
        for name in facts.get("conversation", ()):
            import_module(name)
    del header
    sizes = _own_sizes(file, run) if per_expert else project(file, run)
    process = sizes.process_bytes + unseen
    process = -(-process // PROCESS_STEP) * PROCESS_STEP
    return RunMemory(
        weights_bytes=weights,
        kv_bytes=sizes.kv_bytes,
        compute_bytes=sizes.compute_bytes + work,
        process_bytes=process,
        file_process_bytes=process - before,
    ).to_json()


def _unseen(header: Header, run: MemoryRun, per_expert: bool) -> int:
    """What only a run touches."""
    threads = max(run.threads, usable_threads())  # as many as `run` takes by default
    kernels = _OWN_KERNELS_BYTES if per_expert else _LLAMA_KERNELS_BYTES
    text = _CHOICE_BYTES * vocabulary_size(header) + _PROMPT_TOKEN_BYTES * run.context
    return kernels + text + _THREAD_BYTES * threads


def _own_sizes(file: Path, run: MemoryRun) -> Projection:
    """What our own runtime says about itself."""
    with PerExpertModel(file, **asdict(run), weightless=True) as model:
        process, memory = resident_bytes(), model.memory()
    process += memory.scratch_bytes + memory.graph_bytes
    return Projection(memory.kv_bytes, memory.compute_bytes, process)


@answers
def prompt(facts: Answer) -> Answer:
    """A text of at most ``tokens`` tokens, from all over the vocabulary: every part of the
    embedding is read."""
    file, max_tokens = Path(facts["file"]), int(facts["tokens"])
    with _vocabulary(file) as vocabulary:
        text = " ".join(_words(vocabulary, max_tokens)) or "a"
        text = " ".join([text] * -(-max_tokens // max(1, len(vocabulary.tokenize(text)))))
        while (count := len(vocabulary.tokenize(text))) > max_tokens and len(text) > 1:
            text = text[: len(text) * max_tokens // count]
        return {"text": text}


def _words(vocabulary: Vocabulary, wanted: int) -> Iterator[str]:
    """Tokens at even distances through the vocabulary, those that are text by themselves."""
    for number in range(wanted):
        piece = vocabulary.piece(number * vocabulary.size // wanted)
        with suppress(UnicodeDecodeError):
            if word := piece.decode().strip():
                yield word


@contextmanager
def _vocabulary(file: Path) -> Iterator[Vocabulary]:
    """That of ``file``, or of an ONNX directory, without its weights."""
    if is_onnx(file):
        from tenp_edge.runtime.directory_vocabulary import open_vocabulary

        yield open_vocabulary(file)
        return
    per_expert = is_per_expert(read_header(file).fields)
    with (
        PerExpertModel(file, context=1, weightless=True)
        if per_expert
        else LlamaCppModel(file, vocab_only=True)
    ) as model:
        yield model.vocabulary


def _request(facts: Answer) -> tuple[Path, MemoryRun]:
    run = MemoryRun(**{name: facts[name] for name in MemoryRun.__dataclass_fields__})
    return Path(facts["file"]), run
