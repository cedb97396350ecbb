"""`doctor`: what this machine has, what is wrong with it, what it could run. Loads no torch."""

from __future__ import annotations

import os
import platform
import re
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tenp_edge import machine
from tenp_edge.disk import free_bytes
from tenp_edge.errors import UserError
from tenp_edge.planning.memory.known_models import fitting
from tenp_edge.planning.options.devices import this_machine
from tenp_edge.runtime.memory.bandwidth import read_bandwidth
from tenp_edge.units import counted, format_size
from tenp_edge.version import __version__

GOOD, NOTE, BROKEN = "good", "note", "broken"
_PACKAGES = ("torch", "transformers", "llama-cpp-python", "onnxruntime", "gguf", "huggingface-hub")
# Enough for a reading; a slow disk stops at the time.
_DISK_BYTES, _BLOCK_BYTES, _DISK_SECONDS = 64 * 2**20, 4 * 2**20, 0.6
_SMALL_DISK = 20 * 2**30
_FAULTY_COMPILER = 12  # of gcc, with AMX
_COMMENT_BYTES = 4 * 2**20


@dataclass(frozen=True)
class Finding:
    """One line of the report. ``remedy``: what to do about a state that is not good."""

    label: str
    text: str
    state: str = GOOD
    remedy: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """All findings, and the models that fit ``budget_bytes``: name, and what fits of it."""

    findings: tuple[Finding, ...]
    budget_bytes: int
    models: tuple[tuple[str, str], ...]

    @property
    def is_broken(self) -> bool:
        return any(finding.state == BROKEN for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        return {
            "broken": self.is_broken,
            "budget_bytes": self.budget_bytes,
            "findings": [asdict(finding) for finding in self.findings],
            "models": [{"model": name, "fits": fits} for name, fits in self.models],
        }


def run_doctor(directory: Path) -> Diagnosis:
    """Look at the machine, and at the disk of ``directory``, where files will be written."""
    found = [
        *_memory(),
        *_cores(),
        *_accelerators(),
        *_disk(directory),
        *_llama_cpp(),
        *_extension(),
        *_versions(),
    ]
    budget = this_machine().budget_bytes
    return Diagnosis(tuple(found), budget, tuple(fitting(budget)))


def _memory() -> Iterator[Finding]:
    memory, profile = machine.memory(), this_machine()
    of = " (the container's limit)" if memory.limited else ""
    text = f"{format_size(memory.total)}{of}, {format_size(memory.available)} free now"
    bandwidth = read_bandwidth(machine.physical_cores())
    yield Finding("memory", f"{text}; reads {bandwidth / 1e9:.1f} GB/s")
    spare = f"--ram auto is {format_size(profile.budget_bytes)}, the rest is the system's"
    if memory.available < profile.budget_bytes:
        free = format_size(memory.available)
        yield Finding("", spare, NOTE, f"end other programs first, or plan for {free}")
    else:
        yield Finding("", spare)


def _cores() -> Iterator[Finding]:
    cores = machine.cores()
    text = f"{cores.name}, {counted(cores.usable, 'cores')} to use"
    if cores.quota is not None and cores.quota < cores.usable:
        text += f", {cores.quota:g} cores' worth of time in this container"
    yield Finding("processor", text)
    sets = machine.instruction_sets()
    if sets:
        yield Finding("", ", ".join(sets))
    if sets and not {"AVX2", "NEON"} & set(sets):
        yield Finding("", "no AVX2: generating will be slow", NOTE, "a newer machine")


def _accelerators() -> Iterator[Finding]:
    found = machine.accelerators()
    for one in found:
        size = "" if one.memory is None else f", {format_size(one.memory)}"
        yield Finding(
            "graphics",
            f"{one.name}{size}",
            NOTE,
            "per-expert files run on the CPU; --layout merged files on GPUs, in a GPU build of "
            "llama.cpp",
        )
    if not found:
        yield Finding("graphics", "no GPU or NPU found: everything runs on the CPU")


def _disk(directory: Path) -> Iterator[Finding]:
    free = free_bytes(directory)
    nearest = next((p for p in (directory, *directory.parents) if p.is_dir()), Path())
    try:
        writing, reading = disk_speed(nearest)
    except OSError as error:
        why = f"{nearest} cannot be written: {error.strerror}"
        yield Finding("disk", why, BROKEN, "another directory: tenp-edge doctor DIR")
        return
    text = f"{format_size(free)} free in {nearest}, writes {writing / 1e6:,.0f} MB/s"
    text += f", reads {reading / 1e6:,.0f} MB/s"
    few = free < _SMALL_DISK
    remedy = "a model of 15 B parameters takes 30 GB, and its pruned copy as much again"
    yield Finding("disk", text, NOTE if few else GOOD, remedy if few else "")


def disk_speed(directory: Path) -> tuple[float, float]:
    """Bytes a second written to, and read from, a file in ``directory``, which is removed. Under
    two seconds. Raises OSError where none can be written."""
    file = directory / f".tenp-edge-doctor-{os.getpid()}"
    block = os.urandom(_BLOCK_BYTES)  # which no file system compresses
    try:
        with file.open("wb", buffering=0) as stream:
            start, written = time.perf_counter(), 0
            while written < _DISK_BYTES and time.perf_counter() - start < _DISK_SECONDS:
                written += stream.write(block)
            os.fsync(stream.fileno())
            writing = written / (time.perf_counter() - start)
        return writing, _reading_speed(file)
    finally:
        file.unlink(missing_ok=True)


def _reading_speed(file: Path) -> float:
    with file.open("rb", buffering=0) as stream:
        if hasattr(os, "posix_fadvise"):  # not out of memory
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < _DISK_SECONDS:
            count = len(stream.read(_BLOCK_BYTES))
            done += count
            if not count:
                break
        return done / max(time.perf_counter() - start, 1e-9)


# -- the runtimes ----------------------------------------------------------------------------------


def _llama_cpp() -> Iterator[Finding]:
    from tenp_edge.runtime.ggml.library import open_library
    from tenp_edge.runtime.llamacpp.native import native

    try:
        library = open_library()
        features = features_of(native().llama_print_system_info().decode(errors="replace"))
    except UserError as error:
        yield Finding("llama.cpp", error.message, BROKEN, error.hint or "")
        return
    ggml = library.ggml_version().decode(errors="replace")
    yield Finding("llama.cpp", f"ggml {ggml}, tested; built for {', '.join(features)}")
    yield from amx_fault(features, _compiler())
    unused = _unused(features)
    if unused:
        yield Finding(
            "",
            f"built without {unused}, which this processor has: slower",
            NOTE,
            "pip install --force-reinstall --no-cache-dir --no-deps "
            f"--no-binary llama-cpp-python llama-cpp-python=={version('llama-cpp-python')}",
        )


def features_of(info: str) -> list[str]:
    """What is switched on in llama.cpp's line about itself ("CPU : AVX2 = 1 | ...")."""
    return [name for name, value in re.findall(r"(\w+) = (\d+)", info) if value != "0"]


def amx_fault(features: list[str], compiler: int | None) -> Iterator[Finding]:
    """A CPU build with AMX made by gcc 12 dies at the first evaluation of repacked weights."""
    if not any(name.startswith("AMX") for name in features):
        return
    if compiler == _FAULTY_COMPILER:
        yield Finding(
            "",
            "built by gcc 12 with AMX: llama-cpp-python by itself dies with SIGILL on quantised "
            "files. tenp-edge goes round it",
            NOTE,
            "for other programs: CC=gcc-13 CXX=g++-13, or CMAKE_ARGS=-DGGML_AMX_INT8=OFF, then "
            "reinstall llama-cpp-python",
        )


def _compiler() -> int | None:
    """Major version of the gcc that compiled ggml's CPU code; None where the file does not say."""
    spec = find_spec("llama_cpp")
    folders = [Path(place) / "lib" for place in (spec and spec.submodule_search_locations) or ()]
    for file in (file for folder in folders for file in folder.glob("libggml-cpu*")):
        with suppress(OSError), file.open("rb") as stream:
            stream.seek(max(0, file.stat().st_size - _COMMENT_BYTES))
            found = re.search(rb"GCC: \([^)]*\) (\d+)\.", stream.read())
            if found:
                return int(found[1])
    return None


def _unused(features: list[str]) -> str:
    """The best instruction set that the build leaves unused."""
    wanted = (("AVX-512", "AVX512"), ("AVX2", "AVX2"))
    has = machine.instruction_sets()
    return next((name for name, built in wanted if name in has and built not in features), "")


def _extension() -> Iterator[Finding]:
    if find_spec("tenp_edge.runtime.ggml._ragged"):
        yield Finding("extension", "the C extension is there")
        return
    yield Finding(
        "extension",
        "the C extension is missing: generating is a little slower",
        NOTE,
        "a C compiler, then install tenp-edge again",
    )


def _versions() -> Iterator[Finding]:
    bits = 64 if sys.maxsize > 2**32 else 32
    python = f"Python {platform.python_version()} ({bits} bits), {platform.system()}"
    yield Finding("versions", f"tenp-edge {__version__}, {python} {platform.machine()}")
    known, missing = [], []
    for name in _PACKAGES:
        try:
            known.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    yield Finding("", ", ".join(known))
    if missing:
        names = " ".join(missing)
        yield Finding("", f"not installed: {', '.join(missing)}", BROKEN, f"pip install {names}")
