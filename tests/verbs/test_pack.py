"""pack: whoever has the model and the score file gets the plan and the file of the calibration."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from math import prod
from pathlib import Path

import crashing
import pytest
from support import sharing
from support.command import refused, run

from tenp_edge.checkpoint.compression_plan import CompressionPlan
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.errors import UserError
from tenp_edge.planning.options.spec import PlanOptions
from tenp_edge.progress import QUIET
from tenp_edge.verbs.calibrate import run_calibrate
from tenp_edge.verbs.compress import run_compress
from tenp_edge.verbs.compress_request import CompressRequest
from tenp_edge.verbs.options import ValidationOptions
from tenp_edge.verbs.pack import run_pack
from tenp_edge.verbs.plan import run_plan

LIMIT = 50_800_000  # below every plan by bytes


@pytest.fixture(autouse=True)
def _no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is estimated: a process that is asked answers another page each time."""
    monkeypatch.setattr(crashing.gguf, "known_peak", crashing.not_asked)


@pytest.fixture(scope="module")
def packed(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose calibration measured types too, and its pack."""
    out = Path(shutil.copytree(shared / "out", tmp_path_factory.mktemp("packed") / "out"))
    model = shared / "model"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crashing.gguf, "known_peak", crashing.not_asked)
        asked = sharing.options(model).calibration
        run_calibrate(model, out / "calibration", asked, types=True)
        run_pack(out, out / "pack")
    return out


def planned(model: Path, scores: Path, directory: Path, **asked: object) -> dict[str, bytes]:
    """The bytes of plan.json and plan.safetensors."""
    options = replace(PlanOptions(profile="pi5-8gb"), **asked)
    made: CompressionPlan = run_plan(model, options, scores)
    directory.mkdir()
    made.save(directory / "plan.json")
    return {file.name: file.read_bytes() for file in directory.iterdir()}


@pytest.mark.parametrize(
    "asked",
    [
        {"budget_bytes": 50_898_000},
        {"budget_bytes": 50_919_000},
        {"budget_bytes": 50_919_000, "layout": "merged"},
        {"keep": 0.5, "quant": "Q8_0"},
        {"keep": 0.75, "quant": "Q4_K_M"},
    ],
    ids=str,
)
def test_a_plan_from_the_file_is_the_plan_from_the_statistics(
    asked: dict[str, object], packed: Path, shared: Path, tmp_path: Path
) -> None:
    model = shared / "model"
    from_file = planned(model, packed / "pack" / "scores.zip", tmp_path / "a", **asked)
    from_statistics = planned(model, packed / "calibration", tmp_path / "b", **asked)
    assert from_file == from_statistics
    plan = json.loads(from_file["plan.json"])
    assert ("types" in plan) == ("budget_bytes" in asked)


def test_the_exported_file_is_the_same(packed: Path, shared: Path, tmp_path: Path) -> None:
    asked = replace(
        sharing.options(shared / "model"),
        plan=PlanOptions(profile="pi5-8gb", budget_bytes=50_919_000),
        no_validate=True,
        skip_checkpoint=True,
    )
    for name, known in (("a", packed / "pack" / "scores.zip"), ("b", packed / "calibration")):
        run_compress(shared / "model", tmp_path / name, replace(asked, statistics=known))
    for file in ("model.gguf", "plan.json", "plan.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert not (tmp_path / "a" / "calibration").exists()


@pytest.mark.parametrize("twin", [False, True], ids=["plain", "twin"])
def test_compress_drafts_from_known_scores(
    twin: bool, packed: Path, shared: Path, tmp_path: Path
) -> None:
    """Where no plan by bytes fits: theirs may have experts without neurons."""
    asked = replace(
        sharing.options(shared / "model"),
        plan=PlanOptions(profile="pi5-8gb", budget_bytes=LIMIT),
        validation=ValidationOptions(twin=twin),
    )
    checkpoint = Checkpoint(shared / "model")
    for known in (packed / "pack" / "scores.zip", packed / "calibration"):
        given = CompressRequest(checkpoint, tmp_path, replace(asked, statistics=known), QUIET)
        given.require_disk()
        assert given.draft.keeps_places and given.draft.memory["total_bytes"] <= LIMIT


def test_compress_goes_as_low_before_a_calibration_as_after_one(
    packed: Path, shared: Path, tmp_path: Path
) -> None:
    """Where no plan by bytes fits, it drafts the smallest that widths and types together can
    reach; what lies below is refused with the same numbers."""
    checkpoint = Checkpoint(shared / "model")
    plan = PlanOptions(profile="pi5-8gb", budget_bytes=LIMIT)
    asked = replace(sharing.options(shared / "model"), plan=replace(plan, layout="per-expert"))
    request = CompressRequest(checkpoint, tmp_path, asked, QUIET)
    request.require_disk()
    assert request.draft.types is not None and request.draft.keeps_places
    assert request.draft.memory["total_bytes"] <= LIMIT
    low = replace(asked, plan=replace(asked.plan, budget_bytes=40_000_000))
    said = []
    for known in (None, packed / "calibration"):
        with pytest.raises(UserError, match="the smallest plan needs") as refused:
            CompressRequest(checkpoint, tmp_path, replace(low, statistics=known), QUIET).draft  # noqa: B018
        said.append(str(refused.value))
    assert said[0] == said[1]


def test_it_is_small_and_holds_no_text_and_no_path(packed: Path, shared: Path) -> None:
    file = packed / "pack" / "scores.zip"
    statistics = (packed / "calibration" / "statistics.safetensors").stat().st_size
    assert file.stat().st_size < statistics
    with zipfile.ZipFile(file) as archive:
        held = b"".join(archive.read(name) for name in archive.namelist())
    recipe = (packed / "pack" / "recipe.toml").read_text()
    for text in (held, recipe.encode()):
        assert sharing.SECRET.encode() not in text and str(shared).encode() not in text
    assert recipe.startswith("# tenp-edge compress MODEL --recipe recipe.toml --scores scores.zip")
    assert "keep = 0.5\n" in recipe and "data" not in recipe
    before = file.read_bytes()
    run_pack(packed, packed / "pack")
    assert file.read_bytes() == before


def test_scores_without_measured_types_say_so(packed: Path, shared: Path, tmp_path: Path) -> None:
    said = run("pack", shared / "out", "-o", tmp_path / "pack").stdout
    assert "note      it was not measured what tensor types cost: plans from this" in said
    assert "not measured" not in run("pack", packed).stdout


def test_the_recipe_repeats_the_run(packed: Path, shared: Path, tmp_path: Path) -> None:
    recipe, scores = packed / "pack" / "recipe.toml", packed / "pack" / "scores.zip"
    done = run(
        *("plan", shared / "model", "--recipe", recipe, "--scores", scores),
        *("-o", tmp_path / "plan.json"),
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "plan.safetensors").read_bytes() == (
        packed / "plan.safetensors"
    ).read_bytes()


def test_what_is_refused(packed: Path, shared: Path, small_model: Path, tmp_path: Path) -> None:
    scores = packed / "pack" / "scores.zip"
    keep = ("--keep", "0.5", "--profile", "pi5-8gb", "--quant", "Q8_0")
    said = refused("plan", small_model, "--scores", scores, *keep)
    assert said.startswith(f"error: the scores in {scores} belong to another model (")
    assert said.endswith(
        "try:   the very model that they were made from: the same revision, unquantised\n"
    )
    assert refused("plan", shared / "model", "--scores", scores, "--method", "tenp", *keep) == (
        f"error: {scores} has the scores of method adaptive with its own settings only\n"
        "try:   leave --method and its settings out, or --calibration with statistics\n"
    )
    damaged = tmp_path / "damaged.zip"
    for said, changed in _damages(scores):
        with zipfile.ZipFile(damaged, "w") as archive:
            for name, data in changed.items():
                archive.writestr(name, data)
        assert refused("plan", shared / "model", "--scores", damaged, *keep) == (
            f"error: {damaged} is damaged: {said}\n"
            "try:   the file as it was packed, or --calibration with the statistics themselves\n"
        )
    whole = bytearray(scores.read_bytes())
    with zipfile.ZipFile(scores) as archive:
        found = archive.getinfo("rounding.json")
    start = found.header_offset + 30 + len(found.filename) + found.compress_size // 2
    whole[start : start + 8] = b"\xff" * 8
    damaged.write_bytes(whole)
    assert "is damaged: " in refused("plan", shared / "model", "--scores", damaged, *keep)
    text = tmp_path / "text.zip"
    text.write_text("text")
    assert refused("plan", shared / "model", "--scores", text, *keep) == (
        f"error: {text} is not a score file\ntry:   what tenp-edge pack wrote\n"
    )
    assert refused("pack", tmp_path) == (
        f"error: {tmp_path} holds no finished run\ntry:   what tenp-edge compress wrote (OUT)\n"
    )


def _damages(scores: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """What is said of the score file, and its members with something changed in them."""
    with zipfile.ZipFile(scores) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    info = json.loads(members["scores.json"])
    fields = (("multiple", info | {"multiple": 0}), ("choices", info | {"choices": "two"}))
    sizes = info["statistics"] | {"hidden": []}
    for name, changed in (*fields, ("hidden", info | {"statistics": sizes})):
        yield (
            f"'{name}' is missing or malformed",
            members | {"scores.json": json.dumps(changed).encode()},
        )
    table = next(name for name in members if name.startswith("0/") and name.endswith("/losses"))
    flat = _with_shape(members[table], lambda shape: [prod(shape)])
    yield f"{table} cannot be read", members | {table: flat}
    length = 4 + int.from_bytes(members[table][:4], "little")
    nan = members[table][:length] + b"\xff" * (len(members[table]) - length)
    yield f"{table} cannot be read", members | {table: nan}


def _with_shape(planes: bytes, change: Callable[[list[int]], list[int]]) -> bytes:
    length = int.from_bytes(planes[:4], "little")
    head = json.loads(planes[4 : 4 + length])
    changed = json.dumps(head | {"shape": change(head["shape"])}).encode()
    return len(changed).to_bytes(4, "little") + changed + planes[4 + length :]
