"""`run` and `bench` on the command line, for GGUF files and ONNX directories, without torch."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib.resources import files as resources
from pathlib import Path

import pytest
from support.command import refused, run, started
from support.plans import ragged_plan
from support.serving_cases import make_files

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.plan_record import PlanRecord
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.cli import main
from tenp_edge.cli.flags import lean_flags
from tenp_edge.exporters.base import ExportOptions
from tenp_edge.exporters.gguf import EXPORTER
from tenp_edge.runtime.memory.footprint import MemoryRun, PlannedRun
from tenp_edge.runtime.memory.peak import measure_peak_rss, predict_peak
from tenp_edge.runtime.memory.planned_run import planned_in_gguf

PROMPT = ("--raw", "-p", "def f(x):", "-n", 20, "--temperature", 0)
SMALL = ("--threads", 1, "--kv-type", "F32", "--context", 128)
RUNTIMES = {
    "per-expert": "tenp-edge (per-expert)",
    "merged": "llama.cpp",
    "onnx": "onnxruntime",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_files(tmp_path_factory.mktemp("run"), positions=512)


def test_every_form_writes_the_same_text_in_its_own_runtime(files: dict[str, Path]) -> None:
    texts = []
    for layout, runtime in RUNTIMES.items():
        done = run("run", files[layout], *PROMPT, *SMALL)
        assert done.returncode == 0, done.stderr
        first, why, last = done.stderr.splitlines()
        assert first.startswith(f"{files[layout].name}, ") and first.endswith(f"in {runtime}")
        assert why == "the answer was cut after 20 tokens, as -n says"
        assert re.fullmatch(r"\d+\.\d tokens/s, \d+ of 128 tokens", last), last
        texts.append(done.stdout)
    assert texts[0] == texts[1] == texts[2] and len(texts[0]) > 5


def test_every_form_converses(files: dict[str, Path]) -> None:
    texts = []
    for file in files.values():
        asked = run("run", file, "-n", 6, "--temperature", 0, *SMALL, "--chat", piped="Hi\nSo\n")
        assert asked.returncode == 0 and asked.stderr.count("of 128 tokens") == 2, asked.stderr
        texts.append(asked.stdout)
    assert texts[0] == texts[1] == texts[2] and texts[0].count("\n") >= 2


@pytest.mark.parametrize("layout", RUNTIMES)
def test_bench_prints_json(files: dict[str, Path], layout: str) -> None:
    small = ("--prompt-tokens", 16, "--generated-tokens", 4, "--repeats", 1)
    done = run("bench", files[layout], *SMALL, *small, "--json")
    found = json.loads(done.stdout)
    assert (found["runtime"], found["threads"], found["kv_type"]) == (RUNTIMES[layout], 1, "F32")
    assert found["prefill_tokens_per_second"] > 0 and found["decode_tokens_per_second"] > 0
    if layout == "merged":
        table = run("bench", files[layout], *SMALL, *small).stdout
        assert "llama.cpp, 1 threads, F32 cache" in table and "generation of 4" in table


def test_refused_commands(files: dict[str, Path], tmp_path: Path) -> None:
    file = files["per-expert"]
    assert refused("run", file, "-p", "a", "--no-prepack") == (
        "error: per-expert.gguf is a GGUF file, which is never prepacked\n"
        "try:   run without --no-prepack\n"
    )
    assert refused("run", tmp_path / "no.gguf", "-p", "a") == (
        f"error: {tmp_path / 'no.gguf'} does not exist\n"
        "try:   the path of a GGUF file, an ONNX directory, or what compress wrote\n"
    )
    assert refused("run", file, "-p", "a", "--top-p", 2) == (
        "error: --top-p is 2.0\ntry:   --top-p of 0 to 1\n"
    )
    assert refused("run", file, "-p", "a", "--gpu-layers", 3) == (
        "error: per-expert.gguf has the per-expert layout, which runs on the CPU\n"
        "try:   leave --gpu-layers out; or make a file for GPUs: tenp-edge compress MODEL "
        "--ram 8GiB --layout merged -o OUT\n"
    )
    assert refused("serve", file, "--temperature", -1, "--port", 0) == (
        "error: --temperature is -1.0\ntry:   --temperature of 0 or more\n"
    )


def test_no_verb_loads_torch(files: dict[str, Path]) -> None:
    script = (
        "import sys\n"
        "from tenp_edge.cli.main import app\n"
        "import tenp_edge.serving.server\n"
        "for file in sys.argv[1:]:\n"
        f"    app(['run', file, *{[*map(str, (*PROMPT, *SMALL))]}], standalone_mode=False)\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])\n"
    )
    command = [sys.executable, "-c", script, *map(str, files.values())]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("\n[]\n")


# -- what a run holds ------------------------------------------------------------------------------

# What `tenp-edge run` may have imported besides tenp_edge and numpy's own: the standard library.
HEAVY = (
    "typer click rich pydantic jinja2 numpy.random llama_cpp tokenizers sentencepiece onnxruntime "
    "torch transformers hashlib secrets argparse logging subprocess gguf"
).split()
FLOOR_MIB = 38  # interpreter, numpy, llama.cpp's libraries, our modules: 34.5 measured
DEMO_MIB = 60  # the bundled model in Q8_0 beside them: 8.1 MiB of weights


@pytest.mark.parametrize("layout", ["per-expert", "merged"])
def test_a_run_loads_only_what_it_needs(files: dict[str, Path], layout: str) -> None:
    script = (
        "import sys\n"
        "from tenp_edge.cli.entry import main\n"
        "main()\n"
        f"print([name for name in {HEAVY} if name in sys.modules])\n"
        "from tenp_edge.runtime.llamacpp.native import native\n"
    )
    command = ["tenp-edge", "run", files[layout], *PROMPT, *SMALL, "--temperature", 0.8]
    script = f"import sys; sys.argv = {[str(part) for part in command]}\n" + script
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("\n[]\n"), done.stdout


def test_the_floor_of_a_run() -> None:
    script = (
        "import tenp_edge.cli.entry, tenp_edge.cli.commands.lean_run\n"
        "from tenp_edge.runtime.llamacpp.native import native\n"
        "from tenp_edge.runtime.memory.resident import peak_rss_bytes\n"
        "native()\n"
        "print(peak_rss_bytes())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < FLOOR_MIB * 2**20


def test_the_peak_of_the_bundled_model(tmp_path: Path) -> None:
    """Predicted from its header, and the command's own: neither may grow unnoticed."""
    model = Checkpoint(Path(str(resources("tenp_edge") / "demo_model")))
    file = tmp_path / "model.gguf"
    EXPORTER.write(ModelSource(model), ExportOptions("Q8_0", "per-expert"), file)
    run_as = MemoryRun(1024, 512, "F16", 1)
    predicted, measured = (
        predict_peak(file, run_as).total_bytes,
        measure_peak_rss(file, **asdict(run_as)),
    )
    assert measured <= predicted <= measured + 4 * 2**20
    assert measured < DEMO_MIB * 2**20


# -- the reader of its flags -----------------------------------------------------------------------


def test_the_small_reader_understands_what_typer_does() -> None:
    typed = ["-p", "-x y", "m.gguf", "-n", "5", "--temperature=0.5", "--chat", "--context", "64"]
    found = lean_flags.read(typed)
    assert found is not None
    assert found.pop("file") == Path("m.gguf")
    assert {key for key, value in found.items() if value != read_defaults()[key]} == {
        "prompt",
        "max_tokens",
        "temperature",
        "chat",
        "context",
    }
    assert (found["prompt"], found["max_tokens"], found["temperature"]) == ("-x y", 5, 0.5)


def read_defaults() -> dict[str, object]:
    return {flag.key: flag.default for flag in lean_flags.RUN}


@pytest.mark.parametrize(
    "typed",
    [
        [],
        ["--help"],
        ["a.gguf", "b.gguf"],
        ["a.gguf", "--unknown"],
        ["a.gguf", "--cont", "5"],
        ["a.gguf", "--context"],
        ["a.gguf", "--context", "five"],
        ["a.gguf", "--context", "0"],
        ["a.gguf", "--threads", "513"],
        ["a.gguf", "--chat=yes"],
        ["a.gguf", "-n=5"],
        ["--", "a.gguf"],
    ],
)
def test_the_small_reader_leaves_the_rest_to_typer(typed: list[str]) -> None:
    assert lean_flags.read(typed) is None


def test_both_readers_have_the_same_flags_and_defaults() -> None:
    command = main.loaded_verb("run")
    typer_flags = {p.name: (p.opts, p.default) for p in command.params if p.name != "file"}
    ours = {flag.key: ([*flag.names], flag.default) for flag in lean_flags.RUN}
    assert {name: sorted(opts) for name, (opts, _) in typer_flags.items()} == {
        name: sorted(names) for name, (names, _) in ours.items()
    }
    assert {n: default for n, (_, default) in typer_flags.items()} == {
        n: default for n, (_, default) in ours.items()
    }


def test_the_entry_point_says_what_is_wrong(files: dict[str, Path]) -> None:
    missing = started("run", "no.gguf", "-p", "a")
    assert (missing.returncode, missing.stdout) == (2, "")
    assert missing.stderr == (
        "error: no.gguf does not exist\n"
        "try:   the path of a GGUF file, an ONNX directory, or what compress wrote\n"
    )
    many = started("run", files["per-expert"], "-p", "a", "--threads", 1000000)
    assert many.returncode == 2 and "512" in many.stderr
    assert started("--version").stdout.startswith("tenp-edge ")
    piped = started("run", files["per-expert"], "-n", 4, "--temperature", 0, *SMALL, piped="def f")
    assert piped.returncode == 0 and piped.stdout


# -- what the file was planned for -----------------------------------------------------------------


def planned_file(directory: Path, model: Path, **run: object) -> Path:
    """A per-expert file that carries a plan for ``run``."""
    memory = {"context": 256, "ubatch": 64, "kv_type": "Q8_0", "device": "toy", **run}
    plan = replace(
        ragged_plan(Checkpoint(model)), memory=memory, record=PlanRecord(budget_bytes=80 * 2**20)
    )
    file = directory / "planned.gguf"
    source = ModelSource(Checkpoint(model), plan)
    EXPORTER.write(source, ExportOptions("F32", "per-expert"), file)
    return file


def test_a_file_runs_as_it_was_planned(
    checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    file = planned_file(tmp_path, checkpoint_of("qwen3_moe"))
    short = ("-p", "a", "-n", 2, "--threads", 1)

    def said(*flags: object) -> str:
        return started("run", file, *short, *flags).stderr.splitlines()[0]

    assert said() == "context 256, Q8_0 cache, 64 prompt tokens at once: as planned for 80.00 MiB"
    assert said("--context", 128) == (
        "context 128, Q8_0 cache, 64 prompt tokens at once; planned for 80.00 MiB"
    )
    assert said("--context", 512, "--kv-type", "F16") == (
        "warning: --context 512 (planned: 256), --kv-type F16 (planned: Q8_0) takes more memory "
        "than was planned for 80.00 MiB"
    )
    refused_run = started("run", file, *short, "--context", 513)
    assert (refused_run.returncode, refused_run.stderr) == (
        2,
        "error: --context 513 is more than the 512 tokens that the model knows\n"
        "try:   --context 512\n",
    )
    benched = run("bench", file, "--prompt-tokens", 16, "--generated-tokens", 4, "--json")
    assert json.loads(benched.stdout)["kv_type"] == "Q8_0"


def test_a_prompt_beyond_what_the_model_knows(files: dict[str, Path]) -> None:
    words = " ".join(f"word{number}" for number in range(400))
    done = started("run", files["per-expert"], "--raw", "-p", words, "--threads", 1)
    assert "try:   a shorter prompt: the model knows " in done.stderr


def test_fields_that_say_nonsense_are_no_plan() -> None:
    for raw in (None, 3, {}, {"context": "much"}, {"context": 0, "ubatch": 512, "kv_type": "F16"}):
        assert PlannedRun.from_json(raw) is None
    assert planned_in_gguf({"tenp.run.context": 512, "tenp.run.ubatch": 64}) is None
    assert PlannedRun.from_json({"context": 512, "ubatch": 64, "kv_type": "F16 "}) == PlannedRun(
        512, 64, "F16"
    )


def test_a_build_without_gpu_says_so(files: dict[str, Path]) -> None:
    done = run("run", files["merged"], *PROMPT, *SMALL, "--gpu-layers", 99)
    assert done.returncode == 0
    assert done.stderr.splitlines()[0] == (
        "--gpu-layers 99 changes nothing: this llama.cpp is built for the CPU alone"
    )
