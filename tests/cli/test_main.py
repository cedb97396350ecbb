"""The command line as a user meets it: exact errors, exit codes, help, docs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import make_cli
import pytest
from safetensors.torch import load_file, save_file
from support import tiny
from support.command import refused, run, started

from tenp_edge.models import FAMILIES
from tenp_edge.version import __version__

TINY = ("--samples", "1", "--seq-len", "64")


def test_version() -> None:
    assert started("--version").stdout == f"tenp-edge {__version__}\n"


def test_a_name_that_is_no_text() -> None:
    """Python holds its bytes as half characters, which no file takes."""
    assert refused("plan", "mod\udce8le", "--keep", "0.5") == (
        "error: 'mod\ufffdle' is not text in UTF-8, or the locale is another one\n"
        "try:   a link to it with a plain name (ln -s); or LC_ALL=C.UTF-8 before the command\n"
    )


def test_documentation_is_the_help() -> None:
    written = Path(make_cli.__file__).with_name("cli.md").read_text(encoding="utf-8")
    assert written == make_cli.render(), "run: python docs/make_cli.py"


@pytest.mark.parametrize(
    ("words", "said", "hint"),
    [
        (("plan", "demo", "--kep", "1"), "no such option: --kep", "--help, --keep, --recipe; or "),
        (("plan",), "missing argument 'model'", ""),
        (("serve", "x", "--port", "y"), "'--port' must be a valid integer", ""),
        (("plan", "demo", "--ram"), "option '--ram' requires an argument", ""),
    ],
)
def test_what_cannot_be_read_is_refused_in_our_words(
    words: tuple[str, ...], said: str, hint: str
) -> None:
    error, ways = refused(*words).splitlines()
    assert error == f"error: {said}"
    assert ways.startswith(f"try:   {hint}") and ways.endswith("--help")


def test_inspect_prints_json(checkpoint_of: Callable[[str], Path]) -> None:
    found = json.loads(run("inspect", checkpoint_of("qwen3_moe"), "--json").stdout)
    assert found["family"] == "qwen3_moe"
    assert found["experts"] == 8


def test_the_bundled_model_has_a_name(tmp_path: Path) -> None:
    found = json.loads(run("inspect", "demo", "--json", cwd=tmp_path).stdout)
    assert found["family"] == "qwen3_moe"
    (tmp_path / "demo").mkdir()
    assert "demo" in refused("inspect", "demo", cwd=tmp_path), "a directory of that name goes first"


def test_a_recipe_that_is_not_there() -> None:
    assert refused("compress", "demo", "--recipe", "nowhere") == (
        "error: there is no recipe file nowhere\ntry:   the recipe.toml of a run, OUT/recipe.toml\n"
    )


def test_a_size_needs_a_unit() -> None:
    assert refused("plan", "demo", "--ram", "8") == (
        "error: '8' has no unit\ntry:   8GiB or 8MiB\n"
    )
    assert refused("plan", "demo", "--ram", "0") == (
        "error: '0' is not a size above zero\ntry:   8GiB, 7.5GB or 512MiB\n"
    )


def test_hub_id_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    done = started("inspect", "nobody/no-model", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: nobody/no-model is not a directory here and could not be fetched from the hub "
        "(LocalEntryNotFoundError)\n"
        "try:   on a machine with network: hf download nobody/no-model --local-dir DIR; "
        "then pass DIR\n"
    )


def test_no_size(checkpoint_of: Callable[[str], Path]) -> None:
    assert refused("plan", checkpoint_of("olmoe")) == (
        "error: one size is needed: --ram, --keep or --profile\ntry:   --ram 8GiB, or --keep 0.6\n"
    )
    assert refused("plan", checkpoint_of("olmoe"), "--ram", "8GiB", "--keep", "0.5") == (
        "error: --ram and --keep are two sizes, and one is needed\ntry:   leave --keep out\n"
    )


def test_unparsable_size(checkpoint_of: Callable[[str], Path]) -> None:
    assert refused("plan", checkpoint_of("olmoe"), "--ram", "much") == (
        "error: 'much' is not a size\ntry:   a number with a unit: 8GiB, 7.5GB, 512MiB\n"
    )


def test_output_of_another_model(checkpoint_of: Callable[[str], Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = ("--keep", "0.6", "--samples", "1", "--seq-len", "64", "--no-validate", "-o", out)
    assert run("compress", checkpoint_of("olmoe"), *first).returncode == 0
    message = refused("compress", checkpoint_of("mixtral"), *first)
    assert message.startswith(f"error: {out} belongs to another model (")
    assert message.endswith("try:   another -o, or --force to overwrite it\n")


def test_output_directory_with_foreign_files(
    checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    arguments = ("compress", checkpoint_of("olmoe"), "--keep", "0.6", "-o", tmp_path)
    assert refused(*arguments) == (
        f"error: {tmp_path} is not empty and was not written by tenp-edge\n"
        "try:   an empty or new directory for -o\n"
    )
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


def test_dense_model(refuse: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert refuse("inspect", tmp_path) == (
        "error: 'llama' is a dense model: it has no routed experts to prune\n"
        "try:   a Mixture-of-Experts checkpoint of one of: " + ", ".join(sorted(FAMILIES))
    )


def test_weights_that_are_not_numbers(refuse: Callable[..., str], tmp_path: Path) -> None:
    model = tiny.make(tmp_path / "model", "qwen3_moe")
    tensors = load_file(model / "model.safetensors")
    name = "model.layers.1.mlp.experts.3.up_proj.weight"
    tensors[name][0, 0] = float("nan")
    save_file(tensors, model / "model.safetensors")
    out = tmp_path / "out"
    assert refuse("compress", model, "--keep", "0.6", *TINY, "-o", out) == (
        f"error: {name} holds 1 values that are not finite (NaN or infinity)\n"
        "try:   a sound copy of the checkpoint"
    )
    assert not list(out.glob("*.gguf*")) and not (out / "checkpoint").exists()


def test_empty_and_non_utf8_data(
    refuse: Callable[..., str], checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    empty, latin = tmp_path / "empty.txt", tmp_path / "latin.txt"
    empty.write_text("")
    latin.write_bytes("café".encode("latin-1"))
    calibrate = ("calibrate", checkpoint_of("olmoe"), *TINY, "-o", tmp_path / "work")
    assert refuse(*calibrate, "--data", f"a={empty}") == (
        f"error: {empty} holds no text\ntry:   a file with text in it"
    )
    assert refuse(*calibrate, "--data", f"a={latin}") == (
        f"error: {latin} is not UTF-8 text (byte 0xe9: unexpected end of data)\n"
        "try:   iconv -f latin1 -t utf-8 FILE > NEW"
    )
    assert not (tmp_path / "work").exists()


def test_zero_samples(
    refuse: Callable[..., str], checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    command = ("calibrate", checkpoint_of("olmoe"), "--samples", "0", "-o", tmp_path / "w")
    assert refuse(*command) == "error: --samples 0 leaves no text\ntry:   --samples 32"
    assert not (tmp_path / "w").exists()


def test_budget_below_the_floor(
    refuse: Callable[..., str], checkpoint_of: Callable[[str], Path]
) -> None:
    message = refuse("plan", checkpoint_of("olmoe"), "--ram", "1MiB", "--context", "256")
    assert message.startswith("error: the smallest plan needs ")
    assert " with --context 256; --ram allows 1.00 MiB\ntry:   --ram " in message
