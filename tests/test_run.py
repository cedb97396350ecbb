"""`run` and `bench` on the command line, for GGUF files and ONNX directories, without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from serving_cases import make_files
from test_cli import refused, run

PROMPT = ("-p", "def f(x):", "-n", 20, "--temperature", 0)
SMALL = ("--threads", 1, "--kv-type", "F32", "--context", 128)
RUNTIMES = {
    "per-expert": "tenp-edge (per-expert)",
    "merged": "llama.cpp",
    "onnx": "onnxruntime",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_files(tmp_path_factory.mktemp("run"))


def test_every_form_writes_the_same_text_in_its_own_runtime(files: dict[str, Path]) -> None:
    texts = []
    for layout, runtime in RUNTIMES.items():
        done = run("run", files[layout], *PROMPT, *SMALL)
        assert done.returncode == 0, done.stderr
        first, last = done.stderr.splitlines()
        assert first.startswith(f"{files[layout].name}, ") and first.endswith(f"in {runtime}")
        assert last.startswith("20 tokens (length), the first after ")
        texts.append(done.stdout)
    assert texts[0] == texts[1] == texts[2] and len(texts[0]) > 5


@pytest.mark.parametrize("layout", ["per-expert", "onnx"])
def test_prompts_from_a_pipe_and_conversations(files: dict[str, Path], layout: str) -> None:
    def piped(text: str, *flags: object) -> subprocess.CompletedProcess[str]:
        command = ["run", files[layout], "-n", 6, "--temperature", 0, *SMALL, *flags]
        return subprocess.run(
            [sys.executable, "-m", "tenp_edge.cli", *map(str, command)],
            input=text,
            capture_output=True,
            text=True,
            check=True,
        )

    asked = piped("Hi\n\nSo\n", "--chat")
    assert asked.stderr.count("6 tokens (length)") == 2, "one answer per line that is not empty"
    first = piped("not read", "--chat", "-p", "Hi")
    assert first.stderr.count("6 tokens (length)") == 1
    assert asked.stdout.startswith(first.stdout)
    rendered = piped("<user>Hi\n<assistant>")
    assert rendered.stdout == first.stdout, "the template and plain text say the same"
    assert piped("Hi\n", "--chat", "--system", "Be brief").stdout != first.stdout


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
    assert refused("run", file, "-p", "a", "--top-p", 0) == (
        "error: --top-p is 0.0\ntry:   --top-p of above 0 and at most 1\n"
    )
    assert refused("run", file, "-p", "a", "--gpu-layers", 3) == (
        "error: per-expert.gguf has the per-expert layout, which runs on the CPU\n"
        "try:   export --layout merged for --gpu-layers\n"
    )
    assert refused("serve", file, "--temperature", -1, "--port", 0) == (
        "error: --temperature is -1.0\ntry:   --temperature of 0 or more\n"
    )


def test_a_reader_that_has_enough(files: dict[str, Path]) -> None:
    command = ["run", files["per-expert"], "-p", "a", "--context", 4096, "--threads", 1]
    with subprocess.Popen(
        [sys.executable, "-m", "tenp_edge.cli", *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        errors = process.stderr.read().decode()
    assert process.returncode == 1 and "Traceback" not in errors, errors


def test_no_verb_loads_torch(files: dict[str, Path]) -> None:
    script = (
        "import sys\n"
        "from tenp_edge.cli import app\n"
        "import tenp_edge.serving.server\n"
        "app(sys.argv[1:], standalone_mode=False)\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])\n"
    )
    for file in files.values():
        command = ["run", file, *PROMPT, *SMALL]
        done = subprocess.run(
            [sys.executable, "-c", script, *map(str, command)],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.endswith("\n[]\n")
