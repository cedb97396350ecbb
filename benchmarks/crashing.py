"""Jobs of the tool on a tiny model, in forked processes that can be killed before any operation on
a file. For `kill_test` and `two_writers`, which say how to call them.

A job runs in a child of this process, which has all modules loaded: a second a run instead of ten.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from random_checkpoint import write_random_checkpoint
from random_tokenizer import write_full_tokenizer

from tenp_edge.errors import UserError
from tenp_edge.exporters.gguf import exporter as gguf
from tenp_edge.progress import QUIET, Progress
from tenp_edge.runtime.child import ChildError
from tenp_edge.verbs import options as take
from tenp_edge.verbs.calibrate import run_calibrate
from tenp_edge.verbs.compress import run_compress

REFUSED = 2
Job = Callable[[Path, Path, Progress], object]
_CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "hidden_act": "silu",
    "hidden_size": 32,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_hidden_layers": 2,
    "vocab_size": 264,
    "rms_norm_eps": 1e-6,
    "torch_dtype": "float32",
    "bos_token_id": 0,
    "eos_token_id": 0,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "norm_topk_prob": True,
    "tie_word_embeddings": True,
    "rope_theta": 1000000.0,
}
# Measured anew in every run, or the name of its directory.
_MEASURED = {"seconds", "heal_seconds", "candidate"}


def write_model(directory: Path) -> Path:
    """A model of two layers of four experts, with a tokenizer and 20 kB of text in text.txt."""
    write_random_checkpoint(directory, _CONFIG)
    write_full_tokenizer(directory, 264)
    (directory / "text.txt").write_text(Path(__file__).read_text(encoding="utf-8") * 3)
    return directory


# -- jobs ------------------------------------------------------------------------------------------


def _calibration(model: Path) -> take.CalibrationOptions:
    data = (f"text={model / 'text.txt'}",)
    return take.CalibrationOptions(data=data, samples=2, seq_len=32, device="cpu")


def _options(model: Path) -> take.CompressOptions:
    plan = take.PlanOptions(keep=0.5, profile="pi5-8gb", quant="Q8_0")
    return take.CompressOptions(
        calibration=_calibration(model), plan=plan, no_validate=True, repair=False
    )


def compress(model: Path, out: Path, progress: Progress = QUIET) -> object:
    return run_compress(model, out, _options(model), progress)


def repair(model: Path, out: Path, progress: Progress = QUIET) -> object:
    return run_compress(model, out, replace(_options(model), repair=True, heal="routers"), progress)


def onnx(model: Path, out: Path, progress: Progress = QUIET) -> object:
    plan = take.PlanOptions(keep=0.5, format="onnx", profile="pi5-8gb", quant="none")
    return run_compress(model, out, replace(_options(model), plan=plan), progress)


def calibrate(model: Path, out: Path, progress: Progress = QUIET) -> object:
    return run_calibrate(model, out, _calibration(model), progress, gradients=True)


def validated(model: Path, out: Path, progress: Progress = QUIET) -> object:
    """All of it, the comparison included."""
    validation = take.ValidationOptions(
        data=(f"text={model / 'text.txt'}",), samples=1, seq_len=32, threads=1
    )
    return run_compress(
        model, out, replace(_options(model), no_validate=False, validation=validation), progress
    )


JOBS: dict[str, Job] = {
    "compress": compress,
    "repair": repair,
    "calibrate": calibrate,
    "onnx": onnx,
    "validated": validated,
}


def load_all(model: Path, scratch: Path, names: Sequence[str]) -> None:
    """Run in this process what loads every module of the jobs ``names``, so that its children need
    not. No backward pass: a process that made one cannot fork."""
    torch.set_num_threads(1)
    _prepare()
    compress(model, scratch / "warm", QUIET)
    if "onnx" in names:
        onnx(model, scratch / "warm-onnx", QUIET)


def _prepare() -> None:
    logging.disable(logging.WARNING)
    vars(gguf)["known_peak"] = not_asked


def not_asked(*_: object) -> NoReturn:
    """Instead of `known_peak`."""
    raise ChildError("no process is started to ask the runtime: its answer differs by pages")


# -- processes -------------------------------------------------------------------------------------


@dataclass
class _Operations:
    """Counts what a process does to files under ``out``, and kills it before number ``kill_at``."""

    out: Path
    kill_at: int
    count: int = 0
    names: list[str] = field(default_factory=list)

    def watch(self) -> None:
        """From here on; there is no way back. fsync is not audited, so it is wrapped."""
        sys.addaudithook(self._audited)
        sync = os.fsync

        def counted(descriptor: int) -> None:
            self._one("fsync")
            sync(descriptor)

        os.fsync = counted

    def _audited(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "fcntl.flock":
            self._one("flock")
        elif event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"):
            self._on_path(event, arguments[0])
        elif event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            self._on_path("open", arguments[0])

    def _on_path(self, event: str, path: object) -> None:
        if isinstance(path, str | bytes | os.PathLike):
            name = os.fsdecode(path)
            if not name.startswith("/") or name.startswith(str(self.out)):
                self._one(f"{event} {Path(name).name}")

    def _one(self, name: str) -> None:
        self.count += 1
        self.names.append(name)
        if self.count == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Ended:
    """How a job's process ended: its exit code, or minus the signal; what it said; how many
    operations on files it made (of a killed one: unknown)."""

    code: int
    said: str
    operations: tuple[str, ...] = ()


def start(job: Job, model: Path, out: Path, kill_at: int = 0, delay: float = 0.0) -> int:
    """A process that runs ``job``; its number, for `wait`. Kills itself before file operation
    ``kill_at``, counted from 1."""
    child = os.fork()
    if not child:
        _run(job, model, out, kill_at, delay)
    return child


def _run(job: Job, model: Path, out: Path, kill_at: int, delay: float) -> NoReturn:
    torch.set_num_threads(1)
    _prepare()
    code, said = 0, ""
    operations = _Operations(out, kill_at)
    try:
        time.sleep(delay)
        operations.watch()
        job(model, out, QUIET)
    except UserError as error:
        code, said = REFUSED, str(error)
    except BaseException:
        code, said = 1, traceback.format_exc()
    with _report(out, os.getpid()).open("w") as stream:
        json.dump([said, operations.names], stream)
    os._exit(code)


def wait(child: int, out: Path) -> Ended:
    """How the process ``child`` of `start` ended."""
    _, status = os.waitpid(child, 0)
    report = _report(out, child)
    said, names = json.loads(report.read_text()) if report.is_file() else ("", [])
    report.unlink(missing_ok=True)
    return Ended(os.waitstatus_to_exitcode(status), said, tuple(names))


def run(job: Job, model: Path, out: Path, kill_at: int = 0) -> Ended:
    """`start` and `wait`."""
    return wait(start(job, model, out, kill_at), out)


def _report(out: Path, child: int) -> Path:
    return out.parent / f"report-{out.name}-{child}.json"


# -- what is compared ------------------------------------------------------------------------------


def contents(out: Path) -> dict[str, str]:
    """SHA-256 of every file in ``out``; of those that record seconds, without them, and of those
    that record where they are, without that."""
    files = [file for file in sorted(out.rglob("*")) if file.is_file()]
    return {str(file.relative_to(out)): _content(file, out) for file in files}


def _content(file: Path, out: Path) -> str:
    # The page is made of the other files, and says when and where the run was.
    data = b"" if file.name in ("environment.json", "report.html") else file.read_bytes()
    if file.name == "recipe.toml":
        data = data.replace(str(out).encode(), b"OUT")
    if file.name == "README.md":
        data = b"\n".join(line for line in data.splitlines() if b"measured peak" not in line)
    if file.name in ("mended.json", "manifest.json", "refine.json", "validation.json"):
        data = json.dumps(_timeless(json.loads(data)), sort_keys=True).encode()
    return hashlib.sha256(data).hexdigest()


def _timeless(value: Any) -> Any:
    """JSON without what is measured anew each time, and without the sizes of files that hold it."""
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if k not in _MEASURED and "rss" not in k}
        return {
            key: None if key in ("mended/mended.json", "validation.json") else _timeless(entry)
            for key, entry in kept.items()
        }
    return [_timeless(entry) for entry in value] if isinstance(value, list) else value
