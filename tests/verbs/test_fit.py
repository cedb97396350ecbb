"""`fit`: from headers alone, here and on a hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.command import refused, run
from support.gguf_cases import export
from support.hub_server import Hub, served

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.verbs import fit, hub_headers
from tenp_edge.verbs.fit_options import FitOptions

MIB = 2**20
# A device whose own bandwidth is not measured.
DEVICE = ("--profile", "laptop-8gb")


@pytest.fixture(scope="module")
def size() -> int:
    """MiB that hold the whole model in no type: what the process takes differs by environment."""
    found = json.loads(run("fit", "demo", *DEVICE, "--json").stdout)
    return (min(row["whole_peak_bytes"] for row in found["fits"]) - 1) // MIB


def test_every_type_with_what_fits_of_it(size: int) -> None:
    done = run("fit", "demo", "--ram", f"{size}MiB", *DEVICE, "--json")
    found = json.loads(done.stdout)
    assert [row["quant"] for row in found["fits"]] == list(fit.TYPES)
    assert found["parameters"] > found["active_parameters"] > 0
    assert found["read_bytes"] is None and found["bandwidth_measured"] is False
    for row in found["fits"]:
        assert row["peak_bytes"] <= size * MIB and 0 < row["kept"] <= 1
        assert row["whole_peak_bytes"] > size * MIB and row["tokens_per_second"] > 0
    kept = {row["quant"]: row["kept"] for row in found["fits"]}
    assert kept[found["best"]] >= 0.5 > kept["Q8_0"]


def test_what_is_said(size: int) -> None:
    done = run("fit", "demo", "--ram", f"{size}MiB", *DEVICE)
    assert f"verdict   fits into {size}.00 MiB with " in done.stdout
    assert "quality   not known before a calibration" in done.stdout
    assert "and not in steps of 16.7 %" in " ".join(done.stdout.split())  # 32 of 192 neurons
    again = f"tenp-edge compress demo --profile laptop-8gb --ram {size}MiB -o OUT"
    last = f"next      make it:  {again}\n"
    assert done.stdout.endswith(last)


def test_what_does_not_fit() -> None:
    done = run("fit", "demo", "--ram", "40MiB", "--context", "512", "--profile", "laptop-8gb")
    assert done.returncode == 0
    assert "does not fit into 40.00 MiB" in done.stdout
    assert "next      more memory:  tenp-edge fit demo --ram " in done.stdout


def test_the_whole_model_of_a_device() -> None:
    found = fit.run_fit(str(demo()), FitOptions(profile="laptop-8gb"))
    assert found.best is not None and found.best.kept == 1.0 and not found.measured
    assert found.budget_bytes == 5 * 2**30 and found.device == "laptop-8gb"


def test_the_whole_model_without_a_type() -> None:
    done = run("fit", "demo", "--profile", "phone-nnapi", "--quiet")
    assert done.stdout == "fits into 6.00 GiB whole, unquantised\n"


def test_auto_is_this_machine() -> None:
    size = FitOptions(profile="AUTO", budget_bytes=2**30)
    assert fit.run_fit(str(demo()), size).measured


def demo() -> Path:
    from tenp_edge.checkpoint.model_origin import bundled

    return bundled()


@pytest.fixture(scope="module")
def hub(
    checkpoint_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Hub]:
    """A hub with a checkpoint, and the same as a GGUF."""
    files = tmp_path_factory.mktemp("gguf")
    checkpoint = Checkpoint(checkpoint_of("qwen3_moe"))
    export(ModelSource(checkpoint), files / "small.gguf", layout="merged")
    (files / "mmproj.gguf").write_bytes(b"x" * 1000)
    empty = tmp_path_factory.mktemp("empty")
    (empty / "notes.bin").write_bytes(b"1")
    models = {"us/moe": checkpoint.path, "us/moe-GGUF": files, "us/other": empty}
    models["us/demo"] = demo()
    with served(models) as running:
        yield running


def asked(hub: Hub, *arguments: object) -> SimpleNamespace:
    """In a process of its own: the hub's client reads the address when it is imported."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "0",  # this hub is here, whatever keeps others away
    }
    command = [sys.executable, "-m", "tenp_edge", "fit", *(str(a) for a in arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=300, check=False
    )
    return SimpleNamespace(code=done.returncode, out=done.stdout, err=done.stderr)


def test_a_model_on_the_hub(hub: Hub, checkpoint_of: Callable[[str], Path]) -> None:
    done = asked(hub, "us/moe", "--ram", "1GiB", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    here = json.loads(run("fit", checkpoint_of("qwen3_moe"), "--ram", "1GiB", "--json").stdout)
    numbers = ("parameters", "stored_bytes", "best", "context")
    assert [found[name] for name in numbers] == [here[name] for name in numbers]
    files = [[row["file_bytes"] for row in one["fits"]] for one in (found, here)]
    assert files[0] == pytest.approx(files[1], abs=64)  # the model's name is in the header
    assert found["read_bytes"] > 0


def test_only_headers_are_read(hub: Hub) -> None:
    before = dict(hub.sent)
    done = asked(hub, "us/demo", "--profile", "laptop-8gb", "--json")
    assert done.code == 0, done.err
    sent = {file: count - before.get(file, 0) for file, count in hub.sent.items()}
    weights = (demo() / "model.safetensors").stat().st_size
    assert sent["model.safetensors"] == hub_headers._FIRST_BYTES < weights / 10
    assert json.loads(done.out)["read_bytes"] == sum(sent.values()) < weights / 10


def test_a_gguf_on_the_hub(hub: Hub) -> None:
    done = asked(hub, "us/moe-GGUF/small.gguf", "--ram", "1GiB", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["family"] == "qwen3_moe"
    assert hub.sent.keys() >= {"small.gguf"} and "mmproj.gguf" not in hub.sent


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "us/nothing",
            "error: the hub shows no model us/nothing (none of that name, or not without a login)\n"
            "try:   its exact name, or hf auth login\n",
        ),
        (
            "us/other",
            "error: us/other has no safetensors and no GGUF\n"
            "try:   the repository of the original model\n",
        ),
        (
            "us/moe-GGUF/large.gguf",
            "error: us/moe-GGUF has no file large.gguf\ntry:   us/moe-GGUF/FILE.gguf\n",
        ),
    ],
)
def test_what_the_hub_has_not(name: str, said: str, hub: Hub) -> None:
    done = asked(hub, name)
    assert done.code == 2 and done.out == ""
    assert done.err == f"fit: reading the headers of {name} ...\n{said}"


def test_without_a_network() -> None:
    done = asked(Hub("http://127.0.0.1:9", {}), "Qwen/Qwen3-30B-A3B")
    assert done.code == 2
    assert done.err.splitlines()[1:] == [
        "error: Qwen/Qwen3-30B-A3B is not a directory here and the hub cannot be reached "
        "(ConnectError)",
        "try:   a model directory or a GGUF file that is here",
    ]


def test_what_is_no_model() -> None:
    assert refused("fit", "no such place") == (
        "error: no such place does not exist\ntry:   a model directory, a GGUF, or OWNER/NAME\n"
    )
