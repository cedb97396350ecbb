"""quantization_config: what is known is read, everything else is refused by its name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny
from support.command import run
from support.edits import edit, edit_tensors, refusal
from support.quantised import LAYOUTS, Quantised, quantise, write_config
from support.stored_layouts import stack_experts

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.models import FAMILIES, read_config
from tenp_edge.models.inspection import inspect_model
from tenp_edge.models.quantization import with_unquantised

KNOWN = (
    "the bf16, f16 or f32 checkpoint of the same model, or one quantised as awq, "
    "compressed-tensors, fp8, gptq, modelopt, mxfp4"
)
ORIGINAL = "the bf16, f16 or f32 checkpoint of the same model"
BELONGS = "the config.json that belongs to the checkpoint"
GROUPS = {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int"}}}


def compressed(**changes: Any) -> dict[str, Any]:
    """A compressed-tensors config with ``changes``."""
    whole = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
    return whole | {"config_groups": GROUPS} | changes


def grouped(**weights: Any) -> dict[str, Any]:
    """A compressed-tensors config whose one group has ``weights``."""
    return compressed(config_groups={"group_0": {"targets": ["Linear"], "weights": weights}})


REFUSED: list[tuple[Any, str, str]] = [
    ("hqq", "the checkpoint is quantised (hqq): this layout is not known", KNOWN),
    ({"bits": 4}, "the checkpoint is quantised (unknown): this layout is not known", KNOWN),
    (
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        "the checkpoint is quantised (bitsandbytes): its blocks run over rows and its tables are "
        "nested, which is not read",
        KNOWN,
    ),
    (
        {"quant_method": "gptq", "bits": 3},
        "the checkpoint is quantised (gptq, bits = 3): known are 2, 4, 8",
        KNOWN,
    ),
    (
        {"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"},
        "the checkpoint is quantised (gptq, checkpoint_format = 'marlin'): known are gptq, gptq_v2",
        KNOWN,
    ),
    (
        {"quant_method": "gptq", "bits": 4, "group_size": 0},
        "config.json: quantization_config.group_size is 0, not a number above zero",
        BELONGS,
    ),
    (
        {"quant_method": "awq", "bits": 4, "version": "gemv"},
        "the checkpoint is quantised (awq, version = 'gemv'): known are gemm, GEMM",
        KNOWN,
    ),
    (
        {"quant_method": "fp8", "weight_block_size": 128},
        "config.json: quantization_config's size of blocks is 128, not two numbers above zero",
        BELONGS,
    ),
    (
        {"quant_method": "fp8", "weight_block_size": "128 by 128"},
        "config.json: quantization_config's size of blocks is '128 by 128', not two numbers above "
        "zero",
        BELONGS,
    ),
    (
        {"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"},
        "the checkpoint is quantised (modelopt, quant_algo = 'W4A8_AWQ'): known are NVFP4, "
        "W4A16_NVFP4, FP8, FP8_PER_CHANNEL_PER_TOKEN, FP8_PB_WO, MIXED_PRECISION",
        KNOWN,
    ),
    (
        compressed(format="marlin-24"),
        "the checkpoint is quantised (compressed-tensors, marlin-24): this format is not known",
        KNOWN,
    ),
    (
        compressed(config_groups=None),
        "config.json: quantization_config.config_groups is {}, not the groups of modules",
        BELONGS,
    ),
    (
        compressed(config_groups={"group_0": [1]}),
        "config.json: quantization_config: group_0 is [1], not an object",
        BELONGS,
    ),
    (
        {"quant_method": ["fp8"]},
        "the checkpoint is quantised (['fp8']): this layout is not known",
        KNOWN,
    ),
    (
        compressed(sparsity_config={"format": "sparse-24-bitmask"}),
        "the checkpoint is quantised (compressed-tensors, sparse-24-bitmask): the zeros that it "
        "left out are not read",
        KNOWN,
    ),
    (
        compressed(transform_config={"config_groups": {"R1": {}}}),
        "the checkpoint is quantised (compressed-tensors, transform_config): rotated weights are "
        "not read",
        KNOWN,
    ),
    (
        grouped(num_bits=3, type="int", strategy="group", group_size=32),
        "the checkpoint is quantised (compressed-tensors, num_bits = 3): known are 4, 8",
        KNOWN,
    ),
    (
        grouped(num_bits=4, type="int", strategy="tensor"),
        "the checkpoint is quantised (compressed-tensors, strategy = 'tensor'): known are group, "
        "channel",
        KNOWN,
    ),
]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bf16 model of one layer and three experts."""
    few = {"num_hidden_layers": 1, "num_experts": 3}
    path = tmp_path_factory.mktemp("bf16")
    return tiny.make(path, "qwen3_moe", torch_dtype="bfloat16", **few)


@pytest.fixture
def model(plain: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return Path(shutil.copytree(plain, tmp_path / "model"))


@pytest.mark.parametrize(("config", "message", "hint"), REFUSED)
def test_refused(config: Mapping[str, Any] | str, message: str, hint: str, model: Path) -> None:
    write_config(model, config)
    assert refusal(lambda: inspect_model(model)) == (message, hint)


def test_weights_that_were_left_as_they_are(model: Path, plain: Path) -> None:
    """No list of modules is asked: a bf16 tensor in a quantised checkpoint is a bf16 weight."""
    name = "model.layers.0.self_attn.k_proj.weight"
    quantise(model, LAYOUTS["fp8 blocks"])

    def restore(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[f"{name}_scale_inv"]
        tensors[name] = Checkpoint(plain).read(name)

    edit_tensors(model, restore)
    assert torch.equal(Checkpoint(model).read(name), Checkpoint(plain).read(name))


def test_the_older_spelling_of_blocks(model: Path) -> None:
    """As compressed-tensors still reads it: "32x48" for [32, 48]."""
    quantise(model, LAYOUTS["fp8 compressed blocks"])
    name = "model.layers.0.self_attn.q_proj.weight"
    expected = Checkpoint(model).read(name)
    config = json.loads((model / "config.json").read_text())["quantization_config"]
    config["config_groups"]["group_0"]["weights"]["block_structure"] = "32x48"
    write_config(model, config)
    assert torch.equal(Checkpoint(model).read(name), expected)


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        (
            {"quant_method": "fp8", "modules_to_not_convert": "lm_head"},
            "quantization_config.modules_to_not_convert is 'lm_head', not a list of modules",
        ),
        (
            {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": [1]},
            "quantization_config.ignore is [1], not a list of modules",
        ),
        (
            {"quant_method": "gptq", "bits": 4, "dynamic": ["-:lm_head"]},
            "quantization_config: dynamic is ['-:lm_head'], not an object",
        ),
    ],
    ids=["a word", "no names", "no rules"],
)
def test_what_is_not_quantised_is_not_understood(stated: Any, message: str) -> None:
    config = read_config(tiny.CONFIGS["qwen3_moe"] | {"quantization_config": stated}, FAMILIES)
    assert refusal(lambda: with_unquantised(config, ())) == (f"config.json: {message}", BELONGS)


Change = Callable[[dict[str, torch.Tensor]], object]
Q = "model.layers.0.self_attn.q_proj"
DAMAGED: list[tuple[str, Change, str, str]] = [
    (
        "fp8 blocks",
        lambda tensors: tensors.pop(f"{Q}.weight_scale_inv"),
        f"{Q}.weight is stored as F8_E4M3; quantization_config and the tensors beside it do not "
        "say how to read it",
        ORIGINAL,
    ),
    (
        "fp8 blocks",
        lambda tensors: tensors.update({f"{Q}.weight_scale_inv": torch.ones(3, 3)}),
        f"{Q}.weight_scale_inv has shape [3, 3], config.json implies [4, 2]",
        "check that config.json belongs to this checkpoint",
    ),
    (
        "fp8 blocks",
        lambda tensors: tensors.update({f"{Q}.pre_quant_scale": torch.ones(64)}),
        f"{Q}.pre_quant_scale lies beside a quantised weight, and what it does to it is not known",
        ORIGINAL,
    ),
    (
        "gptq",
        lambda tensors: tensors.update({f"{Q}.bias": torch.ones(128)}),
        f"{Q}.bias lies beside a quantised weight, and what it does to it is not known",
        ORIGINAL,
    ),
    (
        "int4",
        lambda tensors: tensors.update({f"{Q}.weight_zero_point": torch.ones(16, 2).int()}),
        f"{Q}.weight_zero_point lies beside a quantised weight, and what it does to it is not "
        "known",
        ORIGINAL,
    ),
    (
        "gptq",
        lambda tensors: tensors.pop(f"{Q}.qzeros"),
        f"config.json implies 56 tensors, 1 of them are not in the checkpoint; the first is "
        f"{Q}.weight",
        "check that every shard is there and that config.json belongs to them",
    ),
]


@pytest.mark.parametrize(("layout", "change", "message", "hint"), DAMAGED)
def test_damaged(layout: str, change: Change, message: str, hint: str, model: Path) -> None:
    quantise(model, LAYOUTS[layout])
    edit_tensors(model, change)
    assert refusal(lambda: inspect_model(model)) == (message, hint)


def test_a_group_that_is_not_there(model: Path) -> None:
    """What a weight's own numbers say wrongly is found when it is read."""
    quantise(model, LAYOUTS["gptq"])
    edit_tensors(model, lambda tensors: tensors[f"{Q}.g_idx"].fill_(7))
    assert refusal(lambda: Checkpoint(model).read(f"{Q}.weight")) == (
        "a quantised weight's g_idx goes from 7 to 7, the weight has 2 groups",
        "download the checkpoint again",
    )


def test_biases_of_zeros_are_none(model: Path) -> None:
    """GPTQ's tools write one for every layer, whether it has a bias or not."""
    quantise(model, LAYOUTS["gptq"])
    edit_tensors(model, lambda tensors: tensors.update({f"{Q}.bias": torch.zeros(128)}))
    summary = inspect_model(model)
    assert (summary.needless, summary.left_out) == (1, ())


def test_modelopt_says_it_in_a_file_of_its_own(model: Path) -> None:
    expected = quantise(model, LAYOUTS["nvfp4 modelopt"])
    raw = json.loads((model / "config.json").read_text())
    stated = raw.pop("quantization_config")
    (model / "config.json").write_text(json.dumps(raw))
    (model / "hf_quant_config.json").write_text(
        json.dumps({"producer": {"name": "modelopt"}, "quantization": stated})
    )
    assert torch.equal(Checkpoint(model).read(f"{Q}.weight"), expected[f"{Q}.weight"])


def test_two_groups_of_modules(model: Path) -> None:
    """Each weight is of the group whose shapes it has, attention here in eight bits."""
    four, eight = LAYOUTS["int4"], LAYOUTS["int8 words"]

    def encode(matrix: torch.Tensor) -> dict[str, torch.Tensor]:
        return (four if 96 in matrix.shape else eight).encode(matrix)

    def decode(parts: dict[str, torch.Tensor]) -> torch.Tensor:
        grouped = parts[".weight_scale"].shape[1] > 1
        return (four if grouped else eight).decode(parts)

    groups = {str(n): one.config["config_groups"]["group_0"] for n, one in enumerate((eight, four))}
    mixed = Quantised({**four.config, "config_groups": groups}, encode, decode, "")
    for name, reference in quantise(model, mixed).items():
        assert torch.equal(Checkpoint(model).read(name), reference), name
    assert set(inspect_model(model).quantised) == {four.title, eight.title}


@pytest.mark.parametrize("transposed", [False, True], ids=["rows", "columns"])
def test_stacked_experts_in_fp8(transposed: bool, model: Path) -> None:
    """As transformers 5 names them: gate_up_proj and gate_up_proj_scale_inv."""
    single = LAYOUTS["fp8 blocks"]

    def encode(matrices: torch.Tensor) -> dict[str, torch.Tensor]:
        own = [single.encode(matrix) for matrix in matrices]
        names = {"": ".weight", "_scale_inv": ".weight_scale_inv"}
        return {new: torch.stack([parts[old] for parts in own]) for new, old in names.items()}

    def decode(parts: dict[str, torch.Tensor]) -> torch.Tensor:
        pairs = zip(*parts.values(), strict=True)
        own = [single.decode(dict(zip(("a", "b"), pair, strict=True))) for pair in pairs]
        return torch.stack(own)

    stack_experts(model, transposed=transposed)
    expected = quantise(model, Quantised(single.config, encode, decode, "", stacked=True))
    both, down = (
        expected[f"model.layers.0.mlp.experts.{name}"] for name in ("gate_up_proj", "down_proj")
    )
    both, down = (both.mT, down.mT) if transposed else (both, down)
    checkpoint = Checkpoint(model)
    for expert in range(3):
        found = checkpoint.expert(0, expert)
        gate, up = both[expert].chunk(2)
        assert torch.equal(found.gate, gate) and torch.equal(found.up, up)
        assert torch.equal(found.down, down[expert])


ONE_LINE: list[tuple[str, dict[str, Any], str, str]] = [
    (
        "qwen3_moe",
        {"quantization_config": {"quant_method": "hqq"}},
        "the checkpoint is quantised (hqq): this layout is not known",
        KNOWN,
    ),
    (
        "qwen3_moe",
        {"hidden_act": "gelu"},
        "config.json: hidden_act = 'gelu' is not supported",
        "supported: silu",
    ),
    (
        "qwen3_vl_moe",
        {"text_config": None},
        "config.json has no text_config: qwen3_vl_moe wraps a language model, and this one has "
        "none",
        "the config.json and the weights of the whole model",
    ),
]


@pytest.mark.parametrize("command", ["inspect", "calibrate"])
@pytest.mark.parametrize(("family", "changes", "message", "hint"), ONE_LINE)
def test_what_cannot_be_read_is_said_in_one_line(
    command: str, family: str, changes: dict[str, Any], message: str, hint: str, tmp_path: Path
) -> None:
    """By every command alike: a layout, a value and a wrapper that are not understood."""
    model = tiny.make(tmp_path / "model", family)
    edit(model / "config.json", lambda raw: raw.update(changes))
    more = ("-o", tmp_path / "work") if command == "calibrate" else ()
    done = run(command, model, *more)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {message}\ntry:   {hint}\n"
    assert not (tmp_path / "work").exists()
