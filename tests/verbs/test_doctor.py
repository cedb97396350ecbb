"""`doctor`: what it finds, and what it says is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from records import load
from support.command import run

from tenp_edge.planning.memory.known_models import KNOWN, fitting
from tenp_edge.verbs import doctor
from tenp_edge.verbs.doctor import BROKEN, Finding, amx_fault, disk_speed, features_of

GIB = 2**30
FITS = Path(__file__).parents[2] / "docs" / "results" / "fits.json"


def test_a_sound_machine(tmp_path: Path) -> None:
    done = run("doctor", tmp_path)
    assert done.returncode == 0, done.stdout
    words = ("memory", "processor", "graphics", "disk", "llama.cpp", "extension", "versions")
    labels = [line[:10].strip() for line in done.stdout.splitlines()]
    assert [label for label in labels if label in words] == list(words)
    assert not list(tmp_path.iterdir())
    assert "verdict   ready; " in done.stdout


def test_as_json_and_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['tenp-edge', 'doctor', '--json']\n"
        "from tenp_edge.cli.main import app\n"
        "try: app()\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    found = json.loads(done.stdout)
    assert found["broken"] is False and found["budget_bytes"] > 0
    assert {"label", "text", "state", "remedy"} == set(found["findings"][0])


def test_what_is_broken_ends_with_one(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Finding("llama.cpp", "llama-cpp-python is not installed", BROKEN, "pip install it")
    monkeypatch.setattr(doctor, "_llama_cpp", lambda: [broken])
    done = run("doctor")
    assert done.returncode == 1
    assert "llama.cpp llama-cpp-python is not installed\nBROKEN    -> pip install it" in done.stdout
    assert run("doctor", "--quiet").stdout.startswith("something is broken; ")


def test_a_directory_that_takes_no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(directory: Path) -> tuple[float, float]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor, "disk_speed", refuse)
    done = run("doctor", "/")
    assert done.returncode == 1
    assert "disk      / cannot be written: Permission denied" in done.stdout


def test_the_speed_of_a_disk(tmp_path: Path) -> None:
    writing, reading = disk_speed(tmp_path)
    assert writing > 0 and reading > 0 and not list(tmp_path.iterdir())


def test_the_faulty_build() -> None:
    features = features_of("CPU : AVX2 = 1 | AVX512 = 0 | AMX_INT8 = 1 | ")
    assert features == ["AVX2", "AMX_INT8"]
    (fault,) = amx_fault(features, 12)
    assert "dies with SIGILL" in fault.text and "AMX_INT8=OFF" in fault.remedy
    assert not list(amx_fault(features, 13)) and not list(amx_fault(["AVX2"], 12))


def test_known_models_are_those_of_the_record() -> None:
    rows = {row["model"]: row for row in load(FITS).tables["fits"].rows}
    for model in KNOWN:
        row = rows[model.name]
        numbers = (model.stored, model.whole, model.pruned)
        assert numbers == (row["stored"], row["whole"], row["pruned"]), model.name


def test_what_fits() -> None:
    found = dict(fitting(8 * GIB))
    assert found["allenai/OLMoE-1B-7B-0924"] == "whole, in 8 bits"
    assert found["Qwen/Qwen1.5-MoE-A2.7B"] == "about 77 % of the neurons, in 4 bits"
    assert "Qwen/Qwen3-30B-A3B" not in found


def test_a_build_that_leaves_the_processor_unused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_unused", lambda features: "AVX2")
    found = list(doctor._llama_cpp())[-1]
    assert found.text == "built without AVX2, which this processor has: slower"
    # The very version: a newer one has a ggml that is not tested. Not the tools that build it.
    assert found.remedy.endswith(
        f"--no-binary llama-cpp-python llama-cpp-python=={version('llama-cpp-python')}"
    )
