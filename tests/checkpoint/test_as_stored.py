"""A quantised checkpoint's rows are taken over as they are stored wherever its layout lets them."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support import tiny
from support.command import run
from support.edits import edit, edit_tensors, refusal
from support.plans import cycled, plan_for, ragged_plan, removal_plan, whole_plan
from support.quantised import LAYOUTS, quantise, stored_in
from support.quantised_codes import Tensors
from transformers import AutoModelForCausalLM

from tenp_edge import load_pruned
from tenp_edge.checkpoint.compression_plan import CompressionPlan
from tenp_edge.checkpoint.files import Checkpoint, tensor_bytes
from tenp_edge.checkpoint.overlay import LayerChanges
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.checkpoint.writer import checkpoint_files, write_checkpoint
from tenp_edge.models.layouts import StoredWeight

EXPERTS, WIDTH = 4, 96
TOKENS = torch.arange(3, 43)[None]
GATE, DOWN = "gate", "down"
NEITHER, ROWS, BOTH = (), (GATE,), (GATE, DOWN)
# What stays as it is of an expert that keeps scattered neurons, and of one that keeps the first and
# the third 32 of its 96.
STAYS = {
    "fp8 blocks": (NEITHER, BOTH),
    "fp8 blocks of exponents": (NEITHER, BOTH),
    "fp8 uneven blocks": (NEITHER, NEITHER),
    "fp8 modelopt": (BOTH, BOTH),
    "mxfp4 gpt-oss": (ROWS, BOTH),
    "nvfp4 modelopt": (ROWS, BOTH),
    "fp8 channels": (BOTH, BOTH),
    "fp8 compressed blocks": (NEITHER, ROWS),
    "int8 channels": (BOTH, BOTH),
    "int4": (ROWS, BOTH),
    "int4 with zero points": (ROWS, BOTH),
    "int8 words": (ROWS, BOTH),
    "mxfp4": (ROWS, BOTH),
    "nvfp4": (ROWS, BOTH),
    "gptq": (ROWS, ROWS),
    "gptq by activations": (ROWS, ROWS),
    "gptq version 2": (ROWS, ROWS),
    "awq": (ROWS, BOTH),
}
SCATTERED, IN_GROUPS, WHOLE, ODD = range(EXPERTS)


@dataclass(frozen=True)
class Written:
    """A checkpoint in one layout, and what is left of it; ``reference``: its decoded numbers."""

    layout: str
    source: ModelSource
    pruned: Checkpoint
    reference: Tensors
    parts: Tensors

    def kept(self, expert: int) -> torch.Tensor:
        assert self.source.plan is not None
        return self.source.plan.neurons(0, expert)

    def stays(self, expert: int, projection: str) -> bool:
        name = self.pruned.config.expert_tensor(0, expert, ("gate", "up", "down").index(projection))
        return not self.pruned.weights[name].is_plain


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    few = {"num_hidden_layers": 1, "num_experts": EXPERTS, "torch_dtype": "bfloat16"}
    return tiny.make(tmp_path_factory.mktemp("bf16"), "qwen3_moe", **few)


def plan_of(checkpoint: Checkpoint) -> CompressionPlan:
    """Scattered neurons, whole groups of them, all, and a number of no group."""
    plan = plan_for(checkpoint, {0: (64, 64, WIDTH, 37)})
    assert plan.retained is not None
    groups = torch.cat([torch.arange(32), torch.arange(64, 96)]).int()
    return replace(plan, retained={**plan.retained, (0, IN_GROUPS): groups})


@pytest.fixture(scope="module", params=LAYOUTS)
def written(
    request: pytest.FixtureRequest, original: Path, tmp_path_factory: pytest.TempPathFactory
) -> Written:
    directory = tmp_path_factory.mktemp("stored")
    reference = stored_in(request.param, original, directory / "model")
    checkpoint = Checkpoint(directory / "model")
    source = ModelSource(checkpoint, plan_of(checkpoint))
    write_checkpoint(source, directory / "pruned", dtype="source")
    parts = load_file(directory / "pruned" / "model.safetensors")
    return Written(request.param, source, Checkpoint(directory / "pruned"), reference, parts)


def test_reads_back_the_rows_of_the_source(written: Written) -> None:
    """Bit for bit, whether they stayed as they were or not."""
    for expert in range(EXPERTS):
        own, cut = written.source.checkpoint.expert(0, expert), written.pruned.expert(0, expert)
        kept = written.kept(expert)
        assert torch.equal(cut.gate, own.gate[kept]) and torch.equal(cut.up, own.up[kept])
        assert torch.equal(cut.down, own.down[:, kept])
    again = ModelSource(written.pruned)
    for name, spec in written.source.tensors.items():
        if spec.expert is None:
            assert torch.equal(again.read(name), written.source.read(name)), name


def test_what_stays_as_it_is(written: Written) -> None:
    scattered, in_groups = STAYS[written.layout]
    for expert, expected in ((SCATTERED, scattered), (IN_GROUPS, in_groups), (WHOLE, BOTH)):
        assert written.stays(expert, "gate") == written.stays(expert, "up") == (GATE in expected)
        assert written.stays(expert, "down") == (DOWN in expected), expert
    stored = load_file(written.source.checkpoint.path / "model.safetensors")
    for name, tensor in stored.items():
        if "experts" not in name:
            assert bytes(tensor_bytes(written.parts[name])) == bytes(tensor_bytes(tensor)), name


def test_the_reference_reads_what_is_left(written: Written) -> None:
    """The publisher's decoder, on the tensors that were written."""
    layout, found = LAYOUTS[written.layout], 0
    for expert in range(EXPERTS):
        for projection in ("gate", "up", "down"):
            module = f"model.layers.0.mlp.experts.{expert}.{projection}_proj"
            beside = [module + suffix for suffix in layout.beside]
            own = {
                name.removeprefix(module): part
                for name, part in written.parts.items()
                if name.startswith(module) and name not in beside
            }
            if written.stays(expert, projection):
                stacked = {suffix: part[None] for suffix, part in own.items()}
                read = layout.decode(stacked)[0] if layout.stacked else layout.decode(own)
                expected = getattr(written.pruned.expert(0, expert), projection)
                assert torch.equal(read[: len(expected)].bfloat16(), expected), module
                found += 1
    assert found


def test_smaller_than_in_bf16_and_as_large_as_predicted(written: Written) -> None:
    source, directory = written.source, written.pruned.path
    size = (directory / "model.safetensors").stat().st_size
    assert checkpoint_files(source, "source") == {"model.safetensors": size}
    assert size < checkpoint_files(source)["model.safetensors"]


def test_config_names_what_is_not_quantised(written: Written) -> None:
    config = json.loads((written.pruned.path / "config.json").read_text())
    stated = config["quantization_config"]
    before = LAYOUTS[written.layout].config
    named = stated.get("modules_to_not_convert") or stated.get("ignore")
    if named is None:
        named = [pattern[2:].replace("\\", "") for pattern in stated.get("dynamic", {})]
    decoded = {
        name.removesuffix(".weight")
        for name, weight in written.pruned.weights.items()
        if weight.is_plain and ".experts." in name
    }
    assert decoded == {name for name in named if ".experts." in name}
    assert set(before.get("ignore", [])) <= set(named)
    others = set(before) - {"ignore", "modules_to_not_convert", "dynamic"}
    assert {key: stated[key] for key in others} == {key: before[key] for key in others}
    count = f"{EXPERTS * 3 + 4 * (not LAYOUTS[written.layout].stacked)} matrices"
    assert count in config["tenp"]["stored"]
    assert config["tenp"]["stored"] in (written.pruned.path / "README.md").read_text()


@pytest.mark.parametrize("name", ["int4", "int8 words", "mxfp4"])
def test_whole_experts_load_in_plain_transformers(
    name: str, original: Path, tmp_path: Path
) -> None:
    """Where it loads the layout at all on a CPU, it loads what is left of whole experts."""
    stored_in(name, original, tmp_path / "model")
    checkpoint = Checkpoint(tmp_path / "model")
    source = ModelSource(checkpoint, removal_plan(checkpoint, 3))
    write_checkpoint(source, tmp_path / "pruned", dtype="source")
    assert not any(weight.is_plain for weight in experts_of(Checkpoint(tmp_path / "pruned")))
    plain = AutoModelForCausalLM.from_pretrained(
        tmp_path / "pruned", experts_implementation="eager"
    )
    theirs, written = plain.model.layers[0].mlp.experts, Checkpoint(tmp_path / "pruned")
    for number in range(3):
        ours = written.expert(0, number)
        assert torch.equal(theirs.gate_up_proj[number], torch.cat([ours.gate, ours.up]))
        assert torch.equal(theirs.down_proj[number], ours.down)
    with torch.no_grad():
        wanted, found = plain(TOKENS).logits, load_pruned(tmp_path / "pruned")(TOKENS).logits
    torch.testing.assert_close(found, wanted, rtol=0, atol=float(wanted.std()) / 10)


def experts_of(checkpoint: Checkpoint) -> list[StoredWeight]:
    return [weight for name, weight in checkpoint.weights.items() if ".experts." in name]


def gpt_oss(directory: Path) -> Checkpoint:
    """As it is published: MXFP4 by rows, gate's and up's in turns, biases beside."""
    model = tiny.make(directory / "model", "gpt_oss", torch_dtype="bfloat16")
    layout = LAYOUTS["mxfp4 gpt-oss"]
    quantise(model, replace(layout, encode=lambda matrices: layout.encode(matrices.mT)))
    return Checkpoint(model)


GROUPS_OF_MX, NO_GROUPS = torch.arange(32, 64), torch.arange(1, 33)


@pytest.mark.parametrize(
    ("neurons", "names"),
    [
        (GROUPS_OF_MX, ("gate_up_proj_blocks", "down_proj_scales")),
        (NO_GROUPS, ("0.gate_proj_blocks", "7.down_proj.weight")),
    ],
    ids=["in groups", "in no groups"],
)
def test_gpt_oss_as_it_is_published(
    neurons: torch.Tensor, names: tuple[str, str], tmp_path: Path
) -> None:
    """Experts of one width stay stacked where all of their matrices stay as they are."""
    checkpoint = gpt_oss(tmp_path)
    plan = plan_for(checkpoint, cycled(checkpoint, (32,)))
    assert plan.retained is not None
    plan = replace(plan, retained=dict.fromkeys(plan.retained, neurons.int()))
    source = ModelSource(checkpoint, plan)
    write_checkpoint(source, tmp_path / "pruned", dtype="source")
    written = Checkpoint(tmp_path / "pruned")
    assert {f"model.layers.0.mlp.experts.{name}" for name in names} <= written.tensors.keys()
    again = ModelSource(written)
    assert all(torch.equal(again.read(name), source.read(name)) for name in source.tensors)


def test_whole_gpt_oss_is_what_it_was(tmp_path: Path) -> None:
    checkpoint = gpt_oss(tmp_path)
    write_checkpoint(
        ModelSource(checkpoint, whole_plan(checkpoint)), tmp_path / "pruned", dtype="source"
    )
    before, after = (
        load_file(path / "model.safetensors") for path in (checkpoint.path, tmp_path / "pruned")
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_method_that_is_named_alone(tmp_path: Path) -> None:
    """config.json may say quantization_config in a word."""
    model, whole = gpt_oss(tmp_path).path, {"quant_method": "mxfp4", "modules_to_not_convert": []}
    edit(model / "config.json", lambda raw: raw.update(quantization_config="mxfp4"))
    checkpoint = Checkpoint(model)
    write_checkpoint(
        ModelSource(checkpoint, whole_plan(checkpoint)), tmp_path / "pruned", dtype="source"
    )
    written = json.loads((tmp_path / "pruned" / "config.json").read_text())
    assert written["quantization_config"] == whole


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_a_checkpoint_in_floats_is_in_its_own_dtype(kind: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint(tiny.make(tmp_path / "model", "qwen3_moe", torch_dtype=kind))
    source = ModelSource(checkpoint, ragged_plan(checkpoint))
    for dtype in ("decoded", "source"):
        write_checkpoint(source, tmp_path / dtype, dtype=dtype)
    one, other = (tmp_path / dtype for dtype in ("decoded", "source"))
    for file in one.iterdir():
        assert file.read_bytes() == (other / file.name).read_bytes()


def test_repaired_weights_are_numbers(original: Path, tmp_path: Path) -> None:
    stored_in("int8 channels", original, tmp_path / "model")
    checkpoint = Checkpoint(tmp_path / "model")
    plan = ragged_plan(checkpoint)
    name = checkpoint.config.expert_tensor(0, 0, 2)
    repaired = ModelSource(checkpoint, plan).read(name) * 2
    source = ModelSource(checkpoint, plan, LayerChanges({name: repaired}))
    write_checkpoint(source, tmp_path / "pruned", dtype="source")
    pruned = Checkpoint(tmp_path / "pruned")
    assert torch.equal(pruned.read(name), repaired)
    plain = [weight.name for weight in experts_of(pruned) if weight.is_plain]
    assert plain == [name]


def test_a_scale_that_is_no_number_is_refused(original: Path, tmp_path: Path) -> None:
    stored_in("int4", original, tmp_path / "model")
    name = "model.layers.0.self_attn.q_proj.weight_scale"
    edit_tensors(tmp_path / "model", lambda tensors: tensors[name][0].fill_(float("nan")))
    checkpoint = Checkpoint(tmp_path / "model")
    source = ModelSource(checkpoint, ragged_plan(checkpoint))
    assert refusal(lambda: write_checkpoint(source, tmp_path / "out", dtype="source")) == (
        f"{name} holds 2 values that are not finite (NaN or infinity)",
        "a sound copy of the checkpoint",
    )


def test_compress(original: Path, tmp_path: Path) -> None:
    """By the command, which continues, and tells one form from the other."""
    stored_in("int4", original, tmp_path / "model")
    fast = ("--samples", 1, "--seq-len", 32, "--no-validate", "--keep", 0.6)
    command = ("compress", tmp_path / "model", *fast, "-o", tmp_path / "out")
    done = run(*command, "--checkpoint-dtype", "source")
    assert done.returncode == 0, done.stderr
    assert "checkpoint: Quantised as in the source: " in done.stderr
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    file = tmp_path / "out" / "checkpoint" / "model.safetensors"
    assert plan["files"]["checkpoint/model.safetensors"] == file.stat().st_size
    assert load_pruned(tmp_path / "out").generate(TOKENS, max_new_tokens=2).shape[1] > 40
    again = run(*command, "--checkpoint-dtype", "source")
    assert "nothing to do" in again.stderr
    other = run(*command)
    assert "holds a finished run with other settings" in other.stderr


def test_a_form_that_there_is_not(original: Path, tmp_path: Path) -> None:
    command = ("compress", original, "--keep", 0.6, "--checkpoint-dtype", "fp8")
    wrong = run(*command, "-o", tmp_path / "out")
    assert wrong.returncode == 2 and not (tmp_path / "out").exists()
    assert wrong.stderr == (
        "error: --checkpoint-dtype fp8 is not known\ntry:   --checkpoint-dtype decoded|source\n"
    )
