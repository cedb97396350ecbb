"""A GGUF opened as a model to start from is the checkpoint that it was made of."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from support import tiny
from support.gguf_cases import TOKENS, export, random_plan
from support.gguf_sources import dequantised, rewritten, tensors_of, write_gguf
from support.plans import cycled, plan_for

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.errors import UserError
from tenp_edge.exporters.gguf.transforms import to_file
from tenp_edge.forward.sweep import streaming_logits
from tenp_edge.models import expected_tensors

Make = Callable[..., Path]
# GLM-4.7-Flash is in every file what DeepSeek-V3 is: the same arithmetic under another name.
OTHER_NAME = {"glm4_moe_lite": "deepseek_v3"}
# What is a logarithm in a checkpoint and its exponential in a file: to the last places of float32.
DECAYS = ("delta_decay", "ssm_a")
NOT_COMPARED = {"raw", "family", "stored_prefix", "dtype"}


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_config_and_every_weight_come_back(
    family: str, checkpoint_of: Make, gguf_of: Make
) -> None:
    """Of the float32 file: bit for bit. Norms that the file has as 1 + w: what the file has of
    them."""
    original, found = Checkpoint(checkpoint_of(family)), Checkpoint(gguf_of(family, "F32"))
    model_type = original.config.family.model_type
    assert found.config.family.model_type == OTHER_NAME.get(model_type, model_type)
    for field in {field.name for field in fields(original.config)} - NOT_COMPARED:
        assert getattr(found.config, field) == getattr(original.config, field), field
    for spec in expected_tensors(original.config, without_experts=original.config.moe_layers):
        theirs, ours = original.read(spec.name), found.read(spec.name)
        if spec.role in original.config.family.zero_centred_roles:
            theirs, ours = (to_file(original.config, spec.role, one) for one in (theirs, ours))
        tolerance = 1e-6 if spec.role in DECAYS else 0.0
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance, msg=spec.name)
    for layer in original.config.moe_layers:
        for expert in range(original.config.num_experts):
            theirs, ours = original.expert(layer, expert), found.expert(layer, expert)
            for part in original.config.expert_parts:
                assert torch.equal(getattr(ours, part), getattr(theirs, part)), part


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_what_is_made_of_it_is_what_is_made_of_its_values(
    family: str, checkpoint_of: Make, gguf_of: Make, tmp_path: Path
) -> None:
    """A merged file of a Q8_0 one, tensor by tensor, and the forward that decides the plan."""
    source = gguf_of(family)
    values = dequantised(source, checkpoint_of(family), tmp_path / "values")
    made, logits = [], []
    for path in (source, values):
        checkpoint = Checkpoint(path)
        pruned = ModelSource(checkpoint, random_plan(checkpoint, "uniform"))
        export(pruned, tmp_path / "made.gguf", "Q8_0", "merged")
        made.append(tensors_of(tmp_path / "made.gguf"))
        tokens = torch.tensor([TOKENS[:24]])
        cpu = torch.device("cpu")
        logits += streaming_logits(ModelSource(checkpoint), tokens, device=cpu, dtype=torch.float32)
    assert made[0] == made[1]
    # How many tokens transformers' Mamba2 takes at a time is in no GGUF: sums in another order.
    chunked = checkpoint.config.family.layer_kinds.get("mamba") is not None
    torch.testing.assert_close(logits[0], logits[1], rtol=0.0, atol=1e-5 if chunked else 0.0)


def test_a_few_rows_are_read_alone(gguf_of: Make) -> None:
    checkpoint = Checkpoint(gguf_of("mixtral"))
    for name in ("model.embed_tokens.weight", "model.layers.1.self_attn.q_proj.weight"):
        whole = checkpoint.read(name)
        assert whole.dtype == torch.float32
        assert torch.equal(checkpoint.read_rows(name, 5, 9), whole[5:9])


@pytest.mark.parametrize("layout", ["padded", "per-expert"])
def test_a_file_that_was_pruned_says_so(
    layout: str, checkpoint_of: Make, tmp_path: Path, refuse: Callable[..., str]
) -> None:
    original = Checkpoint(checkpoint_of("deepseek_v2"))
    plan = random_plan(original, "ragged")
    export(ModelSource(original, plan), tmp_path / "made.gguf", "F32", layout)
    found = Checkpoint(tmp_path / "made.gguf")
    assert found.config.expert_widths == plan.widths
    expected = ModelSource(original, plan).expert(1, 2)
    assert torch.equal(found.expert(1, 2).down, expected.down)
    command = ("plan", tmp_path / "made.gguf", "--keep", "0.5")
    assert refuse(*command) == (
        f"error: {tmp_path / 'made.gguf'} is pruned already\n"
        "try:   the original checkpoint, to plan again from"
    )


# -- what others publish ---------------------------------------------------------------------------


def test_gate_and_up_may_lie_in_one_tensor(gguf_of: Make, tmp_path: Path) -> None:
    import gguf
    import numpy as np

    source = gguf_of("gemma4_text")
    reader = gguf.GGUFReader(source)
    named = {tensor.name: tensor for tensor in reader.tensors}
    writer = gguf.GGUFWriter(tmp_path / "fused.gguf", "gemma4")
    for key, field in reader.fields.items():
        if not key.startswith(("GGUF.", "general.architecture")):
            inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), field.types[0], sub_type=inner)
    for name, tensor in named.items():
        data = np.array(tensor.data)
        if "ffn_up_exps" in name:
            continue
        if "ffn_gate_exps" in name:
            up = np.array(named[name.replace("gate", "up")].data)
            data, name = np.concatenate([data, up], axis=1), name.replace("gate", "gate_up")
        writer.add_tensor(name, data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    apart, fused = Checkpoint(source), Checkpoint(tmp_path / "fused.gguf")
    for part in ("gate", "up", "down"):
        theirs = getattr(apart.expert(2, 7), part)
        assert torch.equal(getattr(fused.expert(2, 7), part), theirs)


@pytest.mark.parametrize(
    ("family", "name"), [("glm4_moe", "glm4moe"), ("qwen3_5_moe", "qwen35moe")]
)
def test_layers_that_predict_further_tokens_are_left_out(
    family: str, name: str, gguf_of: Make, tmp_path: Path
) -> None:
    """Files of GLM-4.5 and Qwen3.5 count such a layer among the others."""
    file = Path(shutil.copy(gguf_of(family), tmp_path))
    rewritten(file, add={f"{name}.block_count": 3, f"{name}.nextn_predict_layers": 1})
    checkpoint = Checkpoint(file)
    assert checkpoint.config.num_hidden_layers == 2
    assert all(name.startswith("blk.2.") for name in checkpoint.left_out)
    assert checkpoint.left_out_text.endswith("of multi-token prediction layers")


def test_older_files_of_a_delta_net(gguf_of: Make, tmp_path: Path) -> None:
    """Qwen3-Next's q, k, v and z by key head, as llama.cpp had them before it split them, and no
    list of the layers that carry a state."""
    file = Path(shutil.copy(gguf_of("qwen3_next", "F32"), tmp_path))
    newer = Checkpoint(file)
    kinds = newer.config.raw["layer_types"]
    states = [x for x, kind in enumerate(kinds) if kind == "linear_attention"]
    block = "model.layers.{}.linear_attn.in_proj_qkvz.weight"
    whole = {f"blk.{x}.ssm_in.weight": newer.read(block.format(x)) for x in states}
    split = [f"blk.{x}.attn_{part}.weight" for x in states for part in ("qkv", "gate")]
    extra = {name: (0, tensor.numpy()) for name, tensor in whole.items()}
    drop = ("qwen3next.attention.recurrent_layers",)
    rewritten(file, drop=drop, without_tensors=split, extra=extra, target=tmp_path / "older.gguf")
    older = Checkpoint(tmp_path / "older.gguf")
    assert older.config.raw == newer.config.raw
    for x in states:
        assert torch.equal(older.read(block.format(x)), newer.read(block.format(x)))


# -- what is refused -------------------------------------------------------------------------------


def test_an_unknown_architecture(gguf_of: Make, tmp_path: Path, refuse: Callable[..., str]) -> None:
    file = Path(shutil.copy(gguf_of("qwen3_moe"), tmp_path / "model.gguf"))
    rewritten(file, add={"general.architecture": "grok"})
    assert refuse("inspect", file) == (
        "error: model.gguf: a model of the architecture 'grok' is not read as the model\n"
        "try:   a Mixture-of-Experts model of one of: deepseek2, ernie4_5-moe, gemma4, glm4moe, "
        "gpt-oss, granitehybrid, lfm2moe, llama, nemotron_h_moe, olmoe, qwen2moe, qwen35moe, "
        "qwen3moe, qwen3next, qwen3vlmoe"
    )


def test_a_dense_model(gguf_of: Make, tmp_path: Path) -> None:
    file = Path(shutil.copy(gguf_of("mixtral"), tmp_path / "model.gguf"))
    rewritten(file, drop=("llama.expert_",))
    with pytest.raises(UserError, match="'llama' is dense: it has no routed experts to prune"):
        Checkpoint(file)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "qwen3moe.attention.something",
            2.0,
            "qwen3moe.attention.something is 2.0, which a model of qwen3_moe is not known to have",
        ),
        (
            "qwen3moe.rope.scaling.type",
            "longrope",
            "is not a usable model: rope scaling 'longrope' is not known",
        ),
        (
            "qwen3moe.attention.value_length",
            16,
            "qwen3moe.attention.value_length is 16, which a model of qwen3_moe is not known",
        ),
        (
            "qwen3moe.expert_count",
            4,
            "blk.0.ffn_gate_inp.weight is 8 x 64, its metadata implies 4 x 64",
        ),
    ],
)
def test_metadata_that_is_not_understood(
    key: str, value: object, message: str, gguf_of: Make, tmp_path: Path
) -> None:
    file = Path(shutil.copy(gguf_of("qwen3_moe"), tmp_path / "model.gguf"))
    rewritten(file, add={key: value})
    with pytest.raises(UserError) as refused:
        Checkpoint(file)
    assert message in refused.value.message


def test_tensors_that_are_not_understood_or_missing(gguf_of: Make, tmp_path: Path) -> None:
    file = Path(shutil.copy(gguf_of("qwen3_moe"), tmp_path / "model.gguf"))
    rewritten(file, rename={"blk.1.attn_q_norm.weight": "blk.1.attn_sinks.weight"})
    with pytest.raises(UserError, match=r"is not a usable model: it has no tensor blk.1.attn_q_n"):
        Checkpoint(file)
    file = Path(shutil.copy(gguf_of("olmoe"), tmp_path / "other.gguf"))
    rewritten(file, rename={"output.weight": "blk.1.attn_gate.weight"})
    with pytest.raises(UserError, match=r"a model of olmoe has no blk.1.attn_gate.weight, and wha"):
        Checkpoint(file)


def test_a_state_of_an_unknown_kind(
    gguf_of: Make, tmp_path: Path, refuse: Callable[..., str]
) -> None:
    file = Path(shutil.copy(gguf_of("lfm2_moe"), tmp_path / "model.gguf"))
    parts = ("conv", "in_proj", "out_proj")
    rename = {f"blk.0.shortconv.{x}.weight": f"blk.0.time_mix.{x}.weight" for x in parts}
    rewritten(file, rename=rename)
    assert refuse("inspect", file) == (
        "error: model.gguf is not a usable model: layer 0 mixes tokens by what is not known: "
        "blk.0.time_mix.conv.weight\n"
        "try:   a sound copy of it"
    )


def test_a_file_that_is_no_gguf(tmp_path: Path, refuse: Callable[..., str]) -> None:
    (tmp_path / "weights.bin").write_bytes(b"PK\3\4 something")
    assert refuse("inspect", tmp_path / "weights.bin") == (
        f"error: {tmp_path / 'weights.bin'} is not a model directory or a GGUF file\n"
        "try:   the path of a downloaded checkpoint"
    )


def test_a_whole_model_that_we_wrote(checkpoint_of: Make, tmp_path: Path) -> None:
    """With our own fields, which say that nothing was cut."""
    original = Checkpoint(checkpoint_of("ernie4_5_moe"))
    export(ModelSource(original), tmp_path / "ours.gguf", "Q8_0", "merged")
    found = Checkpoint(tmp_path / "ours.gguf").config
    assert found.is_uniform and "tenp" not in found.raw
    write_gguf(checkpoint_of("ernie4_5_moe"), tmp_path / "theirs.gguf")
    assert found.raw == Checkpoint(tmp_path / "theirs.gguf").config.raw


@pytest.mark.parametrize("layout", ["per-expert", "padded"])
def test_a_pruned_file_with_biases_comes_back(
    layout: str, checkpoint_of: Make, tmp_path: Path
) -> None:
    """Biases that are padded are cut, and what only our files say of YaRN is known."""
    checkpoint = Checkpoint(checkpoint_of("gpt_oss"))
    pruned = ModelSource(checkpoint, random_plan(checkpoint, "ragged"))
    export(pruned, tmp_path / "pruned.gguf", "F32", layout)
    found = Checkpoint(tmp_path / "pruned.gguf")
    assert found.config.expert_widths == pruned.config.expert_widths
    for layer, row in found.config.expert_widths.items():
        for expert in range(len(row)):
            theirs, ours = pruned.expert(layer, expert), found.expert(layer, expert)
            for part in found.config.expert_parts:
                assert torch.equal(getattr(ours, part), getattr(theirs, part)), part


@pytest.mark.parametrize("layout", ["per-expert", "padded"])
@pytest.mark.parametrize("verb", ["inspect", "plan"])
def test_experts_without_neurons_are_refused(
    verb: str, layout: str, checkpoint_of: Make, tmp_path: Path, refuse: Callable[..., str]
) -> None:
    checkpoint = Checkpoint(checkpoint_of("qwen3_moe"))
    full = checkpoint.config.moe_intermediate_size
    plan = replace(plan_for(checkpoint, cycled(checkpoint, (0, 32, full))), keeps_places=True)
    export(ModelSource(checkpoint, plan), tmp_path / "pruned.gguf", "F32", layout)
    assert refuse(verb, tmp_path / "pruned.gguf") == (
        "error: pruned.gguf has experts without neurons, and is not read as the model\n"
        "try:   the checkpoint that the file was made from"
    )
