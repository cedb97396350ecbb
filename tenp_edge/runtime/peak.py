"""Peak resident memory of a file as it runs, measured in a fresh process."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

from tenp_edge.errors import UserError
from tenp_edge.runtime.opening import RunOptions, open_model

_DECODE_STEPS = 32


def measure_peak_rss(
    file: str | Path, *, context: int, ubatch: int, kv_type: str, threads: int
) -> int:
    """Peak resident bytes of a fresh process that runs ``file``: all weights read, the KV cache
    touched, one full ubatch of prefill and 32 decode steps. No torch in that process."""
    request = {
        "file": str(file),
        "context": context,
        "ubatch": ubatch,
        "kv_type": kv_type,
        "threads": threads,
    }
    code = f"from {__name__} import _peak_of_request; _peak_of_request()"
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise UserError(
            f"measuring {Path(file).name} failed with exit {done.returncode}: {last}",
            "more free memory, or a smaller --context",
        )
    return int(done.stdout)


def _peak_of_request() -> None:
    """The child of `measure_peak_rss`: request on stdin, bytes on stdout."""
    request = json.loads(sys.stdin.read())
    file, context = Path(request["file"]), request["context"]
    options = RunOptions(
        context=context,
        threads=request["threads"],
        ubatch=request["ubatch"],
        kv_type=request["kv_type"],
        flash_attention=request["kv_type"] != "F32",
    )
    with open_model(file, options) as model:
        prompt = [index % model.vocab_size for index in range(model.batch_tokens)]
        model.evaluate(prompt)
        for step in range(min(_DECODE_STEPS, context - len(prompt))):
            model.decode(step % model.vocab_size)
        _touch(file)
        sys.stdout.write(str(peak_rss_bytes()))


def _touch(file: Path) -> None:
    """Fault in every page of the mappings of ``file``: experts that no token chose count too."""
    for start, size in _mappings(file):
        pages = range(0, size, os.sysconf("SC_PAGE_SIZE"))
        for offset in pages:
            ctypes.c_ubyte.from_address(start + offset).value  # noqa: B018


def _mappings(file: Path) -> list[tuple[int, int]]:
    """Where ``file``, or what lies in it, is mapped in this process, (address, bytes); none where
    /proc is missing."""
    maps = Path("/proc/self/maps")
    if not maps.is_file():
        return []
    target = str(file.resolve())
    spans = [
        line.split()[0].split("-")
        for line in maps.read_text().splitlines()
        if line.endswith(target) or f" {target}{os.sep}" in line
    ]
    return [(int(start, 16), int(stop, 16) - int(start, 16)) for start, stop in spans]


def peak_rss_bytes() -> int:
    """This process's peak resident memory (VmHWM where /proc has it, else ru_maxrss)."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
