"""SHA-256 hashes of everything the tool computes: proof that a change of the code changed nothing.

    python benchmarks/golden.py record before.json     # in the old checkout
    python benchmarks/golden.py check before.json      # in the new one: lists what differs, exit 1
    python benchmarks/golden.py check before.json --tree DIR --except 'docs/*' --except '*/file'

Statistics, plans of every method and knob, GGUF in three layouts and two types, ONNX in three
modes, recovered weights, KL numbers and generated text: of the bundled model, and of a tiny
checkpoint of each family. Less than two minutes on one core.

Both runs must be on the same machine, with the same libraries and the same OMP_NUM_THREADS (1 if
it is not set): the order in which floats are added up depends on all three; with 2 threads instead
of 1 a quarter of the hashes differ. `record` writes the tiny checkpoints to before.json.models, and
`check` reads them there.

What a file says about its making has hashes of its own, to be excepted where it changes on purpose:
of a GGUF, `file` is the whole and `tensors`, `fields`, `tokenizer` leave out the `tenp.*` fields;
of a plan, `priced` (bytes, memory) and `record` (numbers of the recipe) stand beside `widths` and
`neurons`. Numbers of JSON files are hashed without their keys and order; seconds, measured memory
and the version of the tool are left out.

The command line is called in this process, by the entry point that pyproject.toml names, and files
are read by other libraries, so that modules may move. A flag that is no longer in docs/cli.md is
given as --set NAME=VALUE.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hashes import Hashes, below, digest, files, gguf, numbers, plan, statistics

METHODS = ("adaptive", "tenp", "enp", "free", "drop")
KEEPS = (0.5, 0.75)
# The bundled model takes 67.4 MiB whole; 56 of them are the process: the profile's 48 and those 8
# that `_same_memory` answers.
BUDGET, SMALL_BUDGET = "65MiB", "62MiB"
PROCESS_BYTES = 8 * 2**20
SETTINGS = ("--samples", 2, "--seq-len", 64, "--device", "cpu", "--dtype", "float32")
EVALUATION = ("--eval-samples", 1, "--eval-seq-len", 64)
PROFILE = ("--profile", "pi5-8gb")
NEURON_SCORES = (
    *("enp", "enp-abs", "enp-sum", "energy", "relative", "camera-p", "flap", "wanda", "magnitude"),
    *("random", "heapr", "heapr-sum", "taylor"),
)
EXPERT_SCORES = (
    *("tenp", "frequency", "gate", "ean", "reap", "man", "msan", "easy-ep", "gated-norm"),
    *("tenp-residual", "magnitude", "random"),
)
KNOBS: tuple[tuple[str, tuple[object, ...]], ...] = (
    *(("free", ("--neuron-score", score)) for score in NEURON_SCORES),
    *(("drop", ("--expert-score", score)) for score in EXPERT_SCORES),
    *(("adaptive", ("--ranking", name)) for name in ("global", "layer", "coverage")),
    ("adaptive", ("--ranking", "trapezoid", "--shallow", 0.8, "--deep", 1.2)),
    *(("adaptive", ("--unit", power)) for power in (0, 0.5, 2)),
    ("adaptive", ("--tilt", 0.5)),
    *(("adaptive", ("--guard", name)) for name in ("super", "tail")),
    *(("adaptive", ("--protect", name)) for name in ("none", "little", "much")),
    *(("adaptive", ("--neuron-score", score)) for score in ("energy", "heapr")),
    ("tenp", ("--whole-share", 0.25)),
    ("tenp", ("--shallow", 0.5, "--middle", 0.8, "--deep", 1.5)),
    ("tenp", ("--expert-score", "reap", "--neuron-score", "wanda")),
    ("enp", ("--width-multiple", 16, "--context", 512, "--kv-type", "Q8_0")),
    ("adaptive", ("--layout", "merged", "--quant", "Q4_K_M")),
    ("adaptive", ("--format", "onnx", "--mode", "ort-cpu", "--quant", "int4")),
    ("tenp", ("--format", "onnx", "--mode", "static", "--quant", "int8")),
)


# -- the command line ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tool:
    """The command of a checkout, run in this process in the directory ``work``."""

    tree: Path
    work: Path
    main: Callable[[], object]
    sections: dict[str, str]

    @classmethod
    def of(cls, tree: Path, work: Path) -> Tool:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        os.environ["PYTHONPATH"] = str(tree)  # of the processes that it asks
        sys.path.insert(0, str(tree))
        project = tomllib.loads((tree / "pyproject.toml").read_text())["project"]
        module, _, function = project["scripts"]["tenp-edge"].partition(":")
        sections = (tree / "docs" / "cli.md").read_text().split("\n## ")[1:]
        subprocess.run = _same_memory(subprocess.run)
        by_verb = {text.partition("\n")[0]: text for text in sections}
        tool = cls(tree, work, getattr(import_module(module), function), by_verb)
        package = Path(str(sys.modules["tenp_edge"].__file__)).resolve()
        assert package.is_relative_to(tree), f"{package} was imported, not what is in {tree}"
        return tool

    def __call__(self, verb: str, *arguments: object) -> str:
        """What the command prints. Ends the process where it fails."""
        sys.argv = ["tenp-edge", verb, *self._known(verb, [str(value) for value in arguments])]
        out, err, code = io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), io.StringIO(), None
        start = time.perf_counter()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                self.main()
            except SystemExit as ended:
                code = ended.code
        if code:
            sys.exit(f"{' '.join(sys.argv)} ended with {code}:\n{err.getvalue()}")
        seconds = time.perf_counter() - start
        print(f"{seconds:6.1f} s  {' '.join(sys.argv[1:])}", file=sys.stderr, flush=True)
        out.flush()
        return out.buffer.getvalue().decode()  # type: ignore[attr-defined]

    def _known(self, verb: str, arguments: Sequence[str]) -> list[str]:
        """``arguments`` with --set NAME=VALUE for every flag that ``verb`` no longer has."""
        known: list[str] = []
        for value in arguments:
            if known and known[-1].endswith("="):
                known[-1] += "yes" if value.startswith("-") else value
                if not value.startswith("-"):
                    continue
            if value.startswith("--") and f"`{value}`" not in self.sections[verb]:
                known += ["--set", f"{value[2:]}="]
            else:
                known.append(value)
        return [f"{value}yes" if value.endswith("=") else value for value in known]

    def plan(self, name: str, model: object, *arguments: object) -> Hashes:
        file = self.work / f"{name}.json"
        self("plan", model, *PROFILE, *arguments, "-o", file)
        yield from below(f"plan/{name}", plan(file))

    def gguf(self, name: str, model: object, *arguments: object) -> Hashes:
        file = self.work / f"{name}.gguf"
        self("export", model, *arguments, "-o", file)
        yield from below(f"gguf/{name}", gguf(file))

    def onnx(self, name: str, model: object, *arguments: object) -> Hashes:
        directory = self.work / f"onnx-{name}"
        self("export", model, "--format", "onnx", *arguments, "-o", directory)
        yield from below(f"onnx/{name}", files(directory))


def _same_memory(run: Callable[..., Any]) -> Callable[..., Any]:
    """``subprocess.run``, where a process that is asked what a file takes in memory always answers
    the same for itself: that differs by pages each time, and with every module it imports."""

    def answered(*arguments: Any, **options: Any) -> Any:
        done = run(*arguments, **options)
        if isinstance(done.stdout, str):
            pattern = r'("\w*process_bytes": )\d+'
            done.stdout = re.sub(pattern, rf"\g<1>{PROCESS_BYTES}", done.stdout)
        return done

    return answered


# -- the bundled model -----------------------------------------------------------------------------


def bundled(tool: Tool) -> Hashes:
    yield "environment/threads", os.environ["OMP_NUM_THREADS"]
    yield "environment/torch", version("torch")
    yield "docs/cli.md", digest((tool.tree / "docs" / "cli.md").read_bytes())
    yield "inspect", numbers(json.loads(tool("inspect", "demo", "--json")))
    work = tool.work / "statistics"
    tool("calibrate", "demo", *SETTINGS, "--gradients", "--types", "-o", work)
    yield from below("statistics", statistics(work))
    yield from plans(tool, work)
    yield from exports(tool, work)
    yield from generated(tool)
    yield from compressed(tool)


def plans(tool: Tool, work: Path) -> Hashes:
    calibration = ("--calibration", work)
    for method in METHODS:
        for keep in KEEPS:
            size = ("--keep", keep, "--method", method)
            yield from tool.plan(f"{method}-{keep}", "demo", *size, *calibration)
        size = ("--ram", BUDGET, "--method", method)
        yield from tool.plan(f"{method}-{BUDGET}", "demo", *size, "--quant", "Q8_0", *calibration)
    yield from tool.plan("types", "demo", "--ram", SMALL_BUDGET, *calibration)
    yield from tool.plan("bytes", "demo", "--ram", BUDGET, "--quant", "Q8_0", "--method", "tenp")
    for method, knobs in KNOBS:
        name = "-".join(str(value).removeprefix("--") for value in (method, *knobs))
        chosen = ("--keep", 0.6, "--method", method, *knobs)
        yield from tool.plan(name, "demo", *chosen, *calibration)


def exports(tool: Tool, work: Path) -> Hashes:
    by_layout = {"per-expert": "adaptive-0.5", "padded": "adaptive-0.5", "merged": "enp-0.5"}
    for layout, planned in by_layout.items():
        way = ("--plan", tool.work / f"{planned}.json", "--layout", layout, "--calibration", work)
        for quant in ("F16", "Q4_K_M"):
            yield from tool.gguf(f"{layout}-{quant}", "demo", *way, "--quant", quant)
    matrix = tool.work / "imatrix.gguf"
    whole = ("--quant", "IQ4_XS", "--calibration", work, "--imatrix-out", matrix)
    yield from tool.gguf("whole-IQ4_XS", "demo", *whole)
    yield from below("gguf/imatrix", gguf(matrix))
    for planned in ("adaptive-0.5", "tenp-0.5"):
        for mode, quant in (("portable", "none"), ("portable", "int8"), ("static", "none")):
            way = ("--plan", tool.work / f"{planned}.json", "--mode", mode, "--quant", quant)
            yield from tool.onnx(f"{planned}-{mode}-{quant}", "demo", *way)
    way = ("--plan", tool.work / "enp-0.5.json", "--mode")
    yield from tool.onnx("portable-int4", "demo", *way, "portable", "--quant", "int4")
    yield from tool.onnx("ort-cpu-int4", "demo", *way, "ort-cpu", "--quant", "int4")
    static = (*way, "static", "--quant", "int8", "--samples", 2, "--seq-len", 64)
    yield from tool.onnx("static-int8", "demo", *static)


def generated(tool: Tool) -> Hashes:
    greedy: tuple[object, ...] = ("-p", "def fibonacci(n):", "-n", 8, "--temperature", 0)
    greedy += ("--threads", 1)
    if "`--raw`" in tool.sections["run"]:  # what `run` always did before it had the flag
        greedy += ("--raw",)
    for name in ("per-expert-F16.gguf", "padded-Q4_K_M.gguf", "merged-Q4_K_M.gguf"):
        yield f"run/{name}", digest(tool("run", tool.work / name, *greedy))
    for name in ("onnx-adaptive-0.5-portable-none", "onnx-ort-cpu-int4", "onnx-static-int8"):
        yield f"run/{name}", digest(tool("run", tool.work / name, *greedy))


def compressed(tool: Tool) -> Hashes:
    """All verbs in a row: repaired and healed with KL by stage; then refined and successive."""
    common = ("demo", "--keep", 0.5, *PROFILE, *SETTINGS)
    ways: dict[str, tuple[object, ...]] = {
        "repaired": ("--repair", "--heal", "routers", "--threads", 1, *EVALUATION),
        "refined": ("--method", "tenp", "--refine", "--successive", "--no-validate"),
    }
    for name, way in ways.items():
        out = tool.work / name
        tool("compress", *common, *way, "-o", out)
        yield from below(f"{name}/plan", plan(out / "plan.json"))
        yield from below(f"{name}/checkpoint", files(out / "checkpoint"))
        yield from below(f"{name}/gguf", gguf(out / "model.gguf"))
    report = json.loads((tool.work / "repaired" / "validation.json").read_text())
    yield "repaired/validation", numbers([report["domains"], report["losses"]])


# -- tiny models -----------------------------------------------------------------------------------


def write_models(tree: Path, directory: Path) -> None:
    """The tests' checkpoint of every family, and one whose experts are stacked, if not there."""
    module = next((tree / "tests").rglob("tiny.py"))
    sys.path[:0] = [str(module.parent), str(tree / "tests"), str(tree / "benchmarks")]
    tiny = import_module("tiny")
    for family in tiny.FAMILIES:
        tiny.make(directory / family, family)
    tiny.make(directory / "qwen3_moe-fused", "qwen3_moe", fused=True)


def families(tool: Tool, models: Path) -> Hashes:
    for model in sorted(path for path in models.iterdir() if path.is_dir()):
        yield from below(model.name, family(tool, model))
    few = (*SETTINGS, *EVALUATION, "--questions", 1)
    chosen = ("--method", "all", "--keep", 0.6, "--seeds", 1)
    tool("compare", models / "qwen3_moe", *chosen, *few, "-o", tool.work / "compare")
    compared = json.loads((tool.work / "compare" / "compare.json").read_text())
    yield "compare", numbers(compared)


def family(tool: Tool, model: Path) -> Hashes:
    name, work = model.name, tool.work / f"{model.name}-statistics"
    tool("calibrate", model, *SETTINGS, "-o", work)
    yield from below("statistics", statistics(work))
    for method in ("adaptive", "tenp"):
        size = ("--keep", 0.6, "--width-multiple", 16, "--method", method)
        yield from tool.plan(f"{name}-{method}", model, *size, "--calibration", work)
    way = ("--plan", tool.work / f"{name}-adaptive.json", "--calibration", work)
    for layout in ("per-expert", "padded"):
        yield from tool.gguf(f"{name}-{layout}", model, *way, "--layout", layout)
    yield from tool.gguf(f"{name}-merged", model, "--layout", "merged", "--quant", "F32")
    latent = ("--latent-cache",) if name.startswith("deepseek") else ()
    yield from tool.onnx(f"{name}", model, *way[:2], *latent)


# -- record and check ------------------------------------------------------------------------------


def compute(tree: Path, models: Path, work: Path) -> dict[str, str]:
    """Every hash by name. ``work`` must be empty; ``models`` is written where it is missing."""
    tool = Tool.of(tree, work)
    if not models.is_dir():
        write_models(tree, models)
    return dict(bundled(tool)) | dict(families(tool, models))


def differences(old: dict[str, str], new: dict[str, str], excepted: Sequence[str]) -> list[str]:
    """A line for every name that is in one only, or has two hashes."""

    def said(name: str) -> str:
        if name not in new:
            return f"gone     {name}"
        return f"{'differs' if name in old else 'new    '}  {name}"

    return [
        said(name)
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and not any(fnmatchcase(name, e) for e in excepted)
    ]


def main() -> None:
    arguments = _arguments()
    file, tree = arguments.file.resolve(), arguments.tree.resolve()
    models = file.with_name(f"{file.name}.models")
    old = json.loads(file.read_text()) if arguments.action == "check" else {}
    if old and not models.is_dir():
        sys.exit(f"{models} is missing: record wrote it beside {file.name}")
    with tempfile.TemporaryDirectory() as scratch:
        work = arguments.work.resolve() if arguments.work else Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        new = compute(tree, models, work)
    if arguments.action == "record":
        file.write_text(json.dumps(new, indent=1) + "\n")
        print(f"{len(new)} hashes in {file}")
        return
    changed = differences(old, new, arguments.excepted)
    print("".join(f"{line}\n" for line in changed), end="")
    print(f"{len(changed)} of {len(old)} hashes changed")
    sys.exit(1 if changed else 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=("record", "check"))
    parser.add_argument("file", type=Path)
    here = Path(__file__).resolve().parent.parent
    parser.add_argument("--tree", type=Path, default=here, help="the checkout; default: this one")
    parser.add_argument("--except", dest="excepted", action="append", default=[], metavar="PATTERN")
    parser.add_argument("--work", type=Path, help="an empty directory: keep the files there")
    return parser.parse_args()


if __name__ == "__main__":
    main()
