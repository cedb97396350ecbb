"""Models by their hub id, from a stand-in of the hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.hub import COMMIT, Hub, running

from tenp_edge.checkpoint.model_origin import bundled
from tenp_edge.cli.hub import local_model, spoken
from tenp_edge.errors import UserError

REPOSITORY = {
    "README.md": b"card",
    "config.json": b"{}",
    "model.safetensors": b"weights",
    "tokenizer.json": b"{}",
    "LICENSE": b"licence",
    "pytorch_model.bin": b"pickle",
    "modeling_own.py": b"code",
    "original/model.safetensors": b"again",
    "consolidated.safetensors": b"again",
    "model-Q4_K_M.gguf": b"GGUF",
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    from huggingface_hub import constants

    with running() as made:
        made.files |= REPOSITORY
        monkeypatch.setattr(constants, "ENDPOINT", made.address)
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            f"{made.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield made


def names(directory: Path) -> set[str]:
    return {file.relative_to(directory).as_posix() for file in directory.rglob("*")}


def test_only_what_a_model_needs_is_fetched(hub: Hub) -> None:
    fetched = local_model(Path("somebody/model"))
    assert fetched.name == COMMIT
    wanted = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "LICENSE"}
    assert names(fetched) == wanted
    assert spoken(fetched) == "somebody/model"


def test_a_revision_behind_the_name(hub: Hub) -> None:
    hub.branch = "v1.5"
    fetched = local_model(Path("somebody/model@v1.5"))
    assert (fetched / "config.json").is_file()
    assert spoken(fetched) == f"somebody/model@{COMMIT}"
    assert local_model(Path(spoken(fetched))) == fetched
    with pytest.raises(UserError) as caught:
        local_model(Path("somebody/model@v2"))
    assert caught.value.message == "somebody/model has no revision 'v2'"
    assert caught.value.hint == (
        "a branch, tag or commit that the hub shows; somebody/model is the newest"
    )


def test_a_gguf_of_a_repository(hub: Hub) -> None:
    assert local_model(Path("somebody/model/model-Q4_K_M.gguf")).read_bytes() == b"GGUF"
    with pytest.raises(UserError) as caught:
        local_model(Path("somebody/model/model-Q8_0.gguf"))
    assert caught.value.message == "somebody/model has no file model-Q8_0.gguf"


def test_what_is_there_is_not_looked_up(hub: Hub, tmp_path: Path) -> None:
    assert local_model(tmp_path) == tmp_path
    assert local_model(Path("no/such/model")) == Path("no/such/model")
    assert hub.requests == []


def test_the_bundled_model_by_a_name_that_leads_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory of its name, as `demo -o demo` writes, goes before it."""
    monkeypatch.chdir(tmp_path)
    assert spoken(bundled()) == "demo" and local_model(Path("demo")) == bundled()
    Path("demo").mkdir()
    assert local_model(Path(spoken(bundled()))) == bundled()
