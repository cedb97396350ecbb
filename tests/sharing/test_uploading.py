"""push, against a stand-in of the hub's HTTP API that is a real server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.command import refused, run
from support.hub import TOKEN, Hub, running
from support.sharing import SECRET

SENT = {
    "LICENSE",
    "Modelfile",
    "README.md",
    "model.gguf",
    "plan.json",
    "plan.safetensors",
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub that this process takes for the hub."""
    from huggingface_hub import constants

    with running() as made:
        monkeypatch.setattr(constants, "ENDPOINT", made.address)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(tmp_path / "tokens"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield made


def test_what_goes_is_the_model_and_nothing_private(hub: Hub, shared: Path) -> None:
    done = run("push", shared / "out", "somebody/tiny", "--private", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["address"] == f"{hub.address}/somebody/tiny"
    assert set(hub.files) == SENT == set(told["files"])
    assert hub.private is True
    for name, data in hub.files.items():
        assert data == (shared / "out" / name).read_bytes()
        assert len(data) == told["files"][name]
        assert SECRET.encode() not in data and str(shared).encode() not in data


def test_a_dry_run_needs_no_network_and_no_token(
    hub: Hub, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    done = run("push", shared / "out", "somebody/tiny", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in SENT)
    assert "nothing; without --dry-run: to somebody/tiny" in done.stdout
    assert hub.requests == []


def test_a_branch_and_the_checkpoint(hub: Hub, shared: Path) -> None:
    done = run("push", shared / "out" / "checkpoint", "somebody/tiny", "--revision", "small")
    assert done.returncode == 0, done.stderr
    assert hub.branch == "small"
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= set(hub.files)


def test_after_a_break_what_arrived_is_not_sent_again(
    hub: Hub, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)  # between the client's own five tries
    hub.break_after = 1
    error = refused("push", shared / "out", "somebody/tiny")
    assert "error: the upload to somebody/tiny broke off (" in error
    assert error.endswith("try:   the same command again: what arrived is not sent again\n")
    assert hub.files == {} and len(hub.sent) == 1
    first, hub.break_after = set(hub.sent), None
    hub.requests.clear()
    done = run("push", shared / "out", "somebody/tiny")
    assert done.returncode == 0, done.stderr
    assert hub.requests.count("PUT") == 1
    assert set(hub.files) == SENT and first < set(hub.sent)


def test_tokens_that_are_missing_or_refused(
    hub: Hub, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def said() -> str:
        return refused("push", shared / "out", "somebody/tiny").split("error: ")[1]

    login = "try:   hf auth login, or HF_TOKEN=... before the command\n"
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    assert said() == f"the hub refuses the token (401)\n{login}"
    monkeypatch.delenv("HF_TOKEN")
    assert said() == f"the hub wants a token, and there is none\n{login}"
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.may_write = False
    assert said() == (
        "the token may not write to somebody/tiny (403)\n"
        "try:   a token with write access, or a repository of your own\n"
    )


def test_a_client_that_is_told_to_stay_offline(
    hub: Hub, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert refused("push", shared / "out", "somebody/tiny").endswith(
        "error: HF_HUB_OFFLINE keeps the hub's client offline\n"
        "try:   HF_HUB_OFFLINE=0 before the command\n"
    )
    assert hub.requests == []


def test_what_is_no_repository_or_no_model(shared: Path, tmp_path: Path) -> None:
    assert refused("push", shared / "out", "tiny") == (
        "error: tiny is not a repository of the hub\ntry:   OWNER/NAME\n"
    )
    assert "holds no model" in refused("push", tmp_path, "somebody/tiny")


def test_the_installed_command_takes_the_address_from_its_environment(shared: Path) -> None:
    with running() as hub:
        environment = {
            **os.environ,
            "HF_ENDPOINT": hub.address,
            "HF_TOKEN": TOKEN,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
        }
        done = subprocess.run(
            [sys.executable, "-m", "tenp_edge", "push", shared / "out", "somebody/tiny"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert set(hub.files) == SENT
