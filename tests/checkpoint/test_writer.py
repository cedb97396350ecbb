"""The pruned checkpoint: exact slices, exact bytes, everything else untouched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import tiny
from support.plans import cycled, plan_for, ragged_plan, removal_plan, whole_plan
from support.references import reference_model
from support.stored_layouts import per_expert
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tenp_edge import load_pruned
from tenp_edge.checkpoint.files import Checkpoint, plan_shards
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.checkpoint.writer import checkpoint_files, write_checkpoint
from tenp_edge.disk import read_json
from tenp_edge.errors import UserError
from tenp_edge.models import expected_tensors

CheckpointOf = Callable[[str], Path]
ROUTER = "router"


def contents(directory: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(directory)): file.read_bytes()
        for file in sorted(directory.rglob("*"))
        if file.is_file()
    }


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_whole_plan_changes_no_bit(
    family: str, checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    checkpoint = Checkpoint(checkpoint_of(family))
    write_checkpoint(ModelSource(checkpoint, whole_plan(checkpoint)), tmp_path / "out")
    before, after = per_expert(checkpoint.path), per_expert(tmp_path / "out")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype and torch.equal(tensor, after[name]), name


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_expert_is_its_slice_and_the_rest_is_untouched(
    family: str, checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    checkpoint = Checkpoint(checkpoint_of(family))
    plan = ragged_plan(checkpoint)
    source = ModelSource(checkpoint, plan)
    write_checkpoint(source, tmp_path / "out")
    predicted = checkpoint_files(source)
    assert predicted == {
        file.name: file.stat().st_size for file in (tmp_path / "out").glob("*.safetensors")
    }
    before = per_expert(checkpoint.path)
    after = per_expert(tmp_path / "out")
    for layer in checkpoint.config.moe_layers:
        for expert in range(checkpoint.config.num_experts):
            kept, names = (
                plan.neurons(layer, expert),
                checkpoint.config.expert_tensors(layer, expert),
            )
            for part, name in zip(checkpoint.config.expert_parts, names, strict=True):
                if part == "down":
                    assert torch.equal(after.pop(name), before.pop(name)[:, kept])
                elif part != "down_bias":
                    assert torch.equal(after.pop(name), before.pop(name)[kept])
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_written_checkpoint_reads_back_with_its_widths(
    family: str, checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    checkpoint = Checkpoint(checkpoint_of(family))
    plan = ragged_plan(checkpoint)
    write_checkpoint(ModelSource(checkpoint, plan), tmp_path / "out")
    pruned = Checkpoint(tmp_path / "out")
    assert pruned.config.expert_widths == plan.widths
    assert pruned.config.raw["tenp"]["keep_ratio"] == plan.keep_ratio
    assert pruned.config.raw["tenp"]["digest"] == plan.digest
    written = {file.name for file in (tmp_path / "out").iterdir()}
    assert written == {
        "config.json",
        "model.safetensors",
        "README.md",
        "tokenizer.json",
        "tokenizer_config.json",
    }


@pytest.mark.parametrize("widths", [(32, 64, 96), (64,)])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_plain_transformers_says_how_to_load_narrower_experts(
    family: str, widths: tuple[int, ...], checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    """At once, in words of ours that it repeats; config and tokenizer are as ever."""
    checkpoint, out = Checkpoint(checkpoint_of(family)), tmp_path / "out"
    write_checkpoint(ModelSource(checkpoint, plan_for(checkpoint, cycled(checkpoint, widths))), out)
    own = checkpoint.config.raw["model_type"]  # of a wrapped model, the language model's
    assert AutoConfig.from_pretrained(out).model_type == own
    AutoTokenizer.from_pretrained(out)
    with pytest.raises(ValueError) as caught:
        AutoModelForCausalLM.from_pretrained(out)
    assert str(caught.value).startswith(
        'Specified `experts_implementation="narrower experts; '
        'tenp_edge.load_pruned(PATH) loads them"` is not supported.'
    )
    assert load_pruned(out).config.model_type == own


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_removed_experts_leave_the_router_and_the_counts(
    family: str, checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    checkpoint = Checkpoint(checkpoint_of(family))
    keep = checkpoint.config.num_experts - 2 if family == "deepseek_v3" else 3
    write_checkpoint(ModelSource(checkpoint, removal_plan(checkpoint, keep)), tmp_path / "out")
    pruned = Checkpoint(tmp_path / "out")
    config = pruned.config
    assert config.num_experts == keep and config.raw[config.family.experts_key] == keep
    kept = list(range(checkpoint.config.num_experts - keep, checkpoint.config.num_experts))
    layer = config.moe_layers[-1]
    assert config.raw["tenp"]["kept_experts"][str(layer)] == kept
    rows = [spec for spec in expected_tensors(config) if (spec.layer, spec.part) == (layer, ROUTER)]
    assert rows
    for spec in rows:
        whole, left = checkpoint.read(spec.name), pruned.read(spec.name)
        assert torch.equal(left, whole[..., kept] if len(whole) == 1 else whole[kept])
    assert torch.equal(pruned.expert(layer, 0).down, checkpoint.expert(layer, kept[0]).down)


def test_a_wrapped_language_model_is_written_alone(
    checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    """transformers loads it as the language model that it is; we still know where it comes from."""
    checkpoint = Checkpoint(checkpoint_of("qwen3_vl_moe"))
    write_checkpoint(ModelSource(checkpoint, whole_plan(checkpoint)), tmp_path / "out")
    raw, written = read_json(tmp_path / "out" / "config.json"), Checkpoint(tmp_path / "out")
    assert (raw["model_type"], raw["wrapped_by"]) == ("qwen3_moe", "qwen3_vl_moe")
    assert raw["rope_scaling"] == {"rope_type": "default"} and "vision_config" not in raw
    assert written.config.family == checkpoint.config.family
    assert written.config.vision == checkpoint.config.vision
    tokens = torch.arange(40)[None]
    alone = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        assert torch.equal(alone(tokens).logits, reference_model(checkpoint.path)(tokens).logits)


def test_groups_must_still_divide(checkpoint_of: CheckpointOf) -> None:
    checkpoint = Checkpoint(checkpoint_of("deepseek_v3"))
    with pytest.raises(UserError) as caught:
        ModelSource(checkpoint, removal_plan(checkpoint, 5))
    assert caught.value.message == (
        "the plan leaves 5 experts per layer, which do not divide into the router's 2 groups"
    )


def test_fused_source_is_written_per_expert(tmp_path: Path, checkpoint_of: CheckpointOf) -> None:
    fused = Checkpoint(tiny.make(tmp_path / "fused", "qwen3_moe", fused=True))
    plain = Checkpoint(checkpoint_of("qwen3_moe"))
    write_checkpoint(ModelSource(fused, ragged_plan(fused)), tmp_path / "a")
    write_checkpoint(ModelSource(plain, ragged_plan(plain)), tmp_path / "b")
    one, two = (load_file(tmp_path / x / "model.safetensors") for x in "ab")
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_bf16_stays_bf16_and_the_selection_bias_stays_f32(tmp_path: Path) -> None:
    path = tiny.make(tmp_path / "model", "deepseek_v3", torch_dtype="bfloat16")
    checkpoint = Checkpoint(path)
    write_checkpoint(ModelSource(checkpoint, ragged_plan(checkpoint)), tmp_path / "out")
    dtypes = {k: t.dtype for k, t in Checkpoint(tmp_path / "out").tensors.items()}
    biases = {name for name in dtypes if name.endswith("e_score_correction_bias")}
    assert biases and all(dtypes[name] == "F32" for name in biases)
    assert {dtype for name, dtype in dtypes.items() if name not in biases} == {"BF16"}


def test_mtp_layers_are_dropped_and_no_longer_announced(tmp_path: Path) -> None:
    path = tiny.make(tmp_path / "model", "deepseek_v3", num_nextn_predict_layers=1)
    tensors = load_file(path / "model.safetensors")
    tensors["model.layers.3.eh_proj.weight"] = torch.zeros(64, 128)
    save_file(tensors, path / "model.safetensors")
    checkpoint = Checkpoint(path)
    assert checkpoint.left_out == ("model.layers.3.eh_proj.weight",)
    write_checkpoint(ModelSource(checkpoint, whole_plan(checkpoint)), tmp_path / "out")
    assert Checkpoint(tmp_path / "out").left_out == ()
    assert read_json(tmp_path / "out" / "config.json")["num_nextn_predict_layers"] == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| left out | 1 tensor of multi-token prediction layers |" in card


def test_licence_templates_and_card(tmp_path: Path) -> None:
    path = tiny.make(tmp_path / "model", "olmoe", _name_or_path="allenai/OLMoE-1B-7B-0924")
    (path / "LICENSE").write_text("the licence")
    (path / "NOTICE.txt").write_text("the notice")
    (path / "chat_template.jinja").write_text("{{ messages }}")
    (path / "generation_config.json").write_text("{}")
    (path / "README.md").write_text("---\nlicense: apache-2.0\ntags: [x]\n---\n# Base\n")
    (path / "modeling_olmoe.py").write_text("raise SystemExit")
    checkpoint = Checkpoint(path)
    write_checkpoint(ModelSource(checkpoint, ragged_plan(checkpoint)), tmp_path / "out")
    for name in ("LICENSE", "NOTICE.txt", "chat_template.jinja", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (path / name).read_bytes()
    assert not (tmp_path / "out" / "modeling_olmoe.py").exists()
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nbase_model: allenai/OLMoE-1B-7B-0924\nlicense: apache-2.0\n")
    assert "| expert width | 32 to 96 of 96 |" in card
    assert "tenp_edge.load_pruned" in card and str(tmp_path) not in card


def test_pruning_twice_is_refused(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    checkpoint = Checkpoint(checkpoint_of("olmoe"))
    write_checkpoint(ModelSource(checkpoint, ragged_plan(checkpoint)), tmp_path / "out")
    pruned = Checkpoint(tmp_path / "out")
    with pytest.raises(UserError) as caught:
        ModelSource(pruned, plan_for(pruned, pruned.config.expert_widths | {}))
    assert caught.value.message == (
        "the checkpoint is already pruned (its config.json has a tenp section)"
    )


def test_another_model_in_the_directory_is_not_overwritten(
    checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    checkpoint = Checkpoint(checkpoint_of("olmoe"))
    write_checkpoint(ModelSource(checkpoint, ragged_plan(checkpoint)), tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(UserError) as caught:
        write_checkpoint(ModelSource(checkpoint, ragged_plan(checkpoint, 1)), tmp_path / "out")
    assert caught.value.message == f"{tmp_path / 'out'} already holds another model"
    assert contents(tmp_path / "out") == before


def test_foreign_weights_are_not_overwritten(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    checkpoint = Checkpoint(checkpoint_of("olmoe"))
    (tmp_path / "model.safetensors").write_bytes(b"someone's")
    with pytest.raises(UserError) as caught:
        write_checkpoint(ModelSource(checkpoint, ragged_plan(checkpoint)), tmp_path)
    assert caught.value.message == (
        f"{tmp_path} holds model.safetensors, which this run did not write"
    )
    assert contents(tmp_path) == {"model.safetensors": b"someone's"}


def test_shards_of_an_interrupted_other_plan_are_not_kept(
    checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    """Two plans of equal widths have shards of equal sizes: size alone must not decide."""
    checkpoint = Checkpoint(checkpoint_of("olmoe"))
    other, mine = ragged_plan(checkpoint, 0), ragged_plan(checkpoint, 1)
    write_checkpoint(ModelSource(checkpoint, other), tmp_path / "out")
    (tmp_path / "out" / "config.json").unlink()
    (tmp_path / "out" / "tenp-unfinished.json").write_text(f'{{"digest": "{other.digest}"}}')
    write_checkpoint(ModelSource(checkpoint, mine), tmp_path / "out")
    write_checkpoint(ModelSource(checkpoint, mine), tmp_path / "undisturbed")
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


SHARD_BYTES = 60_000
_WRITER = """
import sys, time
sys.path[:0] = [{tests!r}, {root!r}]
from pathlib import Path
from support.plans import ragged_plan
import tenp_edge.checkpoint.writer as compress
from tenp_edge.checkpoint.files import Checkpoint, plan_shards
from tenp_edge.checkpoint.source import ModelSource
compress.plan_shards = lambda entries: plan_shards(entries, {shard_bytes})
blocks = ModelSource.blocks
ModelSource.blocks = lambda s, n: (time.sleep(0.02), blocks(s, n))[1]
checkpoint = Checkpoint({model!r})
compress.write_checkpoint(ModelSource(checkpoint, ragged_plan(checkpoint)), Path({out!r}))
"""


def slow_writer(model: Path, out: Path) -> subprocess.Popen[bytes]:
    """A process that writes the ragged plan in small shards, slowly enough to be hit."""
    here = Path(__file__).parents[1]
    paths = {"tests": str(here), "root": str(here.parent), "model": str(model), "out": str(out)}
    code = _WRITER.format(**paths, shard_bytes=SHARD_BYTES)
    return subprocess.Popen([sys.executable, "-c", code])


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_kill_in_the_middle_then_the_same_call(
    checkpoint_of: CheckpointOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = checkpoint_of("qwen3_moe")
    victim = slow_writer(model, tmp_path / "killed")
    deadline = time.monotonic() + 60
    while not len(list((tmp_path / "killed").glob("*.safetensors"))) >= 2:
        assert victim.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait()
    assert not (tmp_path / "killed" / "config.json").exists()
    small = partial(plan_shards, shard_bytes=SHARD_BYTES)
    monkeypatch.setattr("tenp_edge.checkpoint.writer.plan_shards", small)
    source = ModelSource(Checkpoint(model), ragged_plan(Checkpoint(model)))
    for name in ("killed", "undisturbed"):
        write_checkpoint(source, tmp_path / name)
    assert contents(tmp_path / "killed") == contents(tmp_path / "undisturbed")
    assert len(list((tmp_path / "killed").glob("*.safetensors"))) > 3
