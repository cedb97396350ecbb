"""Refusals name what was typed, and their hints work when they are pasted."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from support import tiny
from support.command import refused, run

from tenp_edge.calibration.storage import load_statistics

CheckpointOf = Callable[[str], Path]
QUICK = ("--samples", 1, "--seq-len", 32)
SHORT = 96  # tokens that the model of `short_model` knows


@pytest.fixture(scope="module")
def short_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("short model")  # a name to be quoted
    return tiny.make(directory, "qwen3_moe", max_position_embeddings=SHORT)


def pasted(command: tuple[object, ...], said: str) -> tuple[str, ...]:
    """The command with the hint of ``said`` pasted: what begins with tenp-edge is a command, and
    flags go to the end of ``command``, in place of those of their names."""
    (line,) = [line.removeprefix("try:").strip() for line in said.splitlines() if "try:" in line]
    words = shlex.split(line.partition(";")[0].partition(", or ")[0].partition(" (")[0])
    if words[0] == "tenp-edge":
        return tuple(words[1:])
    kept = [str(word) for word in command]
    for flag in (word for word in words if word.startswith("--") and word != "--set"):
        if flag in kept:
            del kept[kept.index(flag) : kept.index(flag) + 2]
    for knob in (word.partition("=")[0] for word in words if "=" in word):
        at = next(i for i, word in enumerate(kept) if word.startswith(f"{knob}="))
        del kept[at - 1 : at + 1]
    return (*kept, *words)


# -- text ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "typed", "message", "hint"),
    [
        (
            "validate",
            ("--seq-len", 99999),
            "--seq-len 99999 is outside 8..96, the model's context",
            "--seq-len 96",
        ),
        ("validate", ("--samples", 0), "--samples 0 leaves no text", "--samples 8"),
        (
            "compare",
            ("--eval-seq-len", 99999),
            "--eval-seq-len 99999 is outside 8..96, the model's context",
            "--eval-seq-len 96",
        ),
        (
            "compress",
            ("--set", "eval-seq-len=4"),
            "--set eval-seq-len=4 is outside 8..96, the model's context",
            "--set eval-seq-len=96",
        ),
        (
            "compress",
            ("--set", "eval-samples=0"),
            "--set eval-samples=0 leaves no text",
            "--set eval-samples=8",
        ),
    ],
)
def test_the_flag_that_was_typed(
    verb: str,
    typed: tuple[object, ...],
    message: str,
    hint: str,
    short_model: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    more = (short_model,) if verb == "validate" else ("--keep", "0.6", "-o", out)
    said = refused(verb, short_model, *more, *typed)
    assert said.endswith(f"error: {message}\ntry:   {hint}\n")
    assert not out.exists()


def test_the_usual_chunks_are_cut_to_a_short_context(short_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ("compress", short_model, "--keep", "0.6", "--samples", 1, "--no-validate")
    done = run(*command, "--no-repair", "-o", out)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("note: chunks of 96 tokens, the model's context, not of 512") == 1
    assert load_statistics(out / "calibration").info["seq_len"] == SHORT


def test_nothing_is_left_of_a_run_without_text(short_model: Path, tmp_path: Path) -> None:
    empty, out = tmp_path / "empty.txt", tmp_path / "out"
    empty.write_text("")
    said = refused("compress", short_model, "--keep", "0.6", "--data", f"a={empty}", "-o", out)
    assert f"error: {empty} holds no text\n" in said
    assert not out.exists()


@pytest.mark.parametrize("flag", ["--calibration", "--scores"])
def test_nothing_is_left_of_a_run_without_its_statistics(
    short_model: Path, tmp_path: Path, flag: str
) -> None:
    output, nowhere = tmp_path / "out", tmp_path / "nowhere.zip"
    said = refused("compress", short_model, flag, nowhere, "--keep", 0.5, "-o", output)
    assert f"error: {nowhere} " in said
    assert not output.exists()


def test_fewer_questions_than_none(short_model: Path, tmp_path: Path) -> None:
    command = ("compare", short_model, "--questions", -3, "-o", tmp_path / "out")
    message = "error: --questions -3 is not at least 0\n"
    assert refused(*command) == f"{message}try:   --questions 16\n"
    assert refused(*command, "--matched") == f"{message}try:   --questions 16\n"


# -- what is not there -----------------------------------------------------------------------------


def test_a_plan_that_is_not_there(short_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "a plan.json"
    command = ("export", short_model, "--plan", file, "-o", tmp_path / "model.gguf")
    said = refused(*command)
    assert said == (
        f"error: there is no plan {file}\n"
        f"try:   tenp-edge plan '{short_model}' --ram 8GiB --calibration WORK -o '{file}'\n"
    )
    work = tmp_path / "work"
    assert run("calibrate", short_model, *QUICK, "-o", work).returncode == 0
    again = [str(work) if word == "WORK" else word for word in pasted(command, said)]
    assert run(*again).returncode == 0
    assert run(*command).returncode == 0
    said = refused("export", short_model, "--plan", tmp_path, "-o", tmp_path / "two.gguf")
    assert said.startswith(f"error: {tmp_path} is not a file\n")


def test_the_directory_of_a_plan(short_model: Path, tmp_path: Path) -> None:
    assert run("plan", short_model, "--keep", "0.6", "-o", tmp_path / "plan.json").returncode == 0
    command = ("export", short_model, "--plan", tmp_path, "-o", tmp_path / "model.gguf")
    said = refused(*command)
    assert said == f"error: {tmp_path} is a directory\ntry:   --plan {tmp_path / 'plan.json'}\n"
    # The next honest step: this plan has no neurons.
    said = refused(*pasted(command, said))
    assert said == (
        "error: the plan has widths but no neurons: it was made without calibration\n"
        f"try:   tenp-edge calibrate '{short_model}' -o WORK, then plan --calibration WORK\n"
    )


def test_types_of_a_format_need_types(short_model: Path, tmp_path: Path) -> None:
    command = ("calibrate", short_model, *QUICK, "-o", tmp_path / "work")
    assert refused(*command, "--format", "foo") == (
        "error: no exporter for format 'foo'\ntry:   --format gguf|onnx\n"
    )
    assert refused(*command, "--format", "onnx") == (
        "error: --format onnx says whose types --types measures, and it is not there\n"
        "try:   --types --format onnx, or leave --format out\n"
    )
    assert not (tmp_path / "work").exists()


def test_sums_of_a_backward_pass_that_are_damaged(short_model: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    assert run("calibrate", short_model, *QUICK, "--gradients", "-o", work).returncode == 0
    sums = work / "gradients.safetensors"
    whole = sums.read_bytes()
    sums.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    command = ("plan", short_model, "--keep", "0.6", "--calibration", work)
    said = refused(*command)
    assert said.endswith(f"try:   tenp-edge calibrate '{short_model}' --gradients -o {work}\n")
    assert run(*pasted(command, said), *QUICK).returncode == 0
    assert sums.read_bytes() == whole
    assert run(*command).returncode == 0


def test_a_merge_of_directories_of_runs(short_model: Path, tmp_path: Path) -> None:
    parts = [tmp_path / name for name in ("one", "two")]
    for seed, part in enumerate(parts):
        made = run("calibrate", short_model, *QUICK, "--seed", seed, "-o", part / "calibration")
        assert made.returncode == 0
    command = ("merge", *parts, "-o", tmp_path / "sum")
    inside = [part / "calibration" for part in parts]
    said = refused(*command)
    assert said == (
        "error: the directory of a run holds no statistics itself\n"
        f"try:   tenp-edge merge {inside[0]} {inside[1]} -o {tmp_path / 'sum'}\n"
    )
    assert run(*pasted(command, said)).returncode == 0


def test_statistics_of_another_model(
    short_model: Path, checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    other, work, new = checkpoint_of("olmoe"), tmp_path / "work", tmp_path / "new"
    assert run("calibrate", other, *QUICK, "-o", work).returncode == 0
    said = refused("plan", short_model, "--keep", "0.6", "--calibration", work)
    assert said.endswith(
        f"try:   tenp-edge calibrate '{short_model}' -o WORK, then --calibration WORK\n"
    )
    assert refused("calibrate", short_model, *QUICK, "-o", work).endswith("try:   another -o\n")
    said = refused("merge", work, tmp_path / "none", "-o", new)
    assert said.endswith(f"try:   tenp-edge calibrate MODEL -o {tmp_path / 'none'}\n")
    assert not new.exists()


def test_a_benchmark_that_does_not_fit(chat_file: Path) -> None:
    command = ("bench", chat_file, "--context", 100, "--prompt-tokens", 90, "--repeats", 1)
    more = (*command, "--generated-tokens", 20)
    said = refused(*more)
    assert said.endswith("try:   --context 110, or --prompt-tokens 80\n")
    assert run(*pasted(more, said)).returncode == 0
    assert run(*more, "--prompt-tokens", 80).returncode == 0
    said = refused(*command, "--generated-tokens", 0)
    assert said.endswith("try:   --prompt-tokens 512 --generated-tokens 64 --repeats 3\n")


def test_a_directory_without_graphs_names_the_checkpoint_beside_it(
    checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    (tmp_path / "checkpoint").symlink_to(checkpoint_of("olmoe"))
    export = ("export", checkpoint_of("olmoe"), "--format", "onnx", "-o", tmp_path / "onnx")
    assert run(*export).returncode == 0
    (tmp_path / "onnx/model.onnx").rename(tmp_path / "onnx/prefill.onnx")
    command = ("run", tmp_path / "onnx", "--raw", "-p", "a", "--max-tokens", "1")
    said = refused(*command)
    assert said.endswith(
        f"try:   tenp-edge export {tmp_path / 'checkpoint'} --format onnx "
        f"-o {tmp_path / 'onnx'} --force\n"
    )
    assert run(*pasted(command, said)).returncode == 0
    assert run(*command).returncode == 0
