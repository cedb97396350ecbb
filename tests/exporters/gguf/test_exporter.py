"""A GGUF file is the manifest that announced it, and computes what the model computes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from support import tiny
from support.gguf_cases import (
    assert_close,
    export,
    llama_logits,
    random_plan,
    torch_logits,
    write_dropped,
)

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.exporters.base import ExportOptions
from tenp_edge.exporters.gguf import EXPORTER
from tenp_edge.exporters.gguf.types import TYPES

Make = Callable[[str], Path]
QUANTS = ("F32", "F16", "BF16", "Q8_0", "Q4_K_M")  # test_quantisation.py has them all


def opened(file: Path) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}


def plan_for(layout: str) -> str:
    return "uniform" if layout == "merged" else "ragged"


# -- bytes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", EXPORTER.layouts)
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_manifest_is_what_is_written(
    family: str, layout: str, checkpoint_of: Make, tmp_path: Path
) -> None:
    checkpoint = Checkpoint(checkpoint_of(family))
    source = ModelSource(checkpoint, random_plan(checkpoint, plan_for(layout)))
    for quant in QUANTS:
        options = ExportOptions(quant, layout)
        manifest = EXPORTER.manifest(checkpoint, source.config, options)
        file = tmp_path / f"{quant}.gguf"
        assert EXPORTER.write(source, options, file) == manifest
        assert file.stat().st_size == manifest.file_bytes
        written = opened(file)
        assert list(written) == [tensor.name for tensor in manifest.tensors]
        for tensor in manifest.tensors:
            stored = written[tensor.name]
            assert tuple(reversed(stored.shape.tolist())) == tensor.shape
            assert stored.tensor_type.name == tensor.type and stored.n_bytes == tensor.nbytes
    assert not list(tmp_path.glob("*.partial"))


def test_parts_and_notes(checkpoint_of: Make) -> None:
    checkpoint = Checkpoint(checkpoint_of("qwen3_moe"))
    config = ModelSource(checkpoint, random_plan(checkpoint, "ragged")).config
    manifest = EXPORTER.manifest(checkpoint, config, ExportOptions("Q8_0"))
    routed = [t for t in manifest.tensors if t.part == "routed experts"]
    assert {t.part for t in manifest.tensors} == {"routed experts", "other"}
    assert len(routed) == 3 * 3 * 8 and all(".ffn_" in t.name for t in routed)
    narrow = sum(width == 40 for row in config.expert_widths.values() for width in row)
    assert narrow > 1
    assert manifest.notes == (
        f"{narrow} tensors (expert_down, rows of 40) take F16: Q8_0 needs a multiple of 32",
    )


def test_killed_write_leaves_nothing_under_the_name(
    checkpoint_of: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = ModelSource(Checkpoint(checkpoint_of("olmoe")))
    file = tmp_path / "model.gguf"

    def fail(layer: int, expert: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(source, "expert", fail)
    with pytest.raises(KeyboardInterrupt):
        export(source, file)
    assert list(tmp_path.iterdir()) == []


# -- values ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_dense_model_in_llama_cpp(family: str, checkpoint_of: Make, tmp_path: Path) -> None:
    source = ModelSource(Checkpoint(checkpoint_of(family)))
    manifest = export(source, tmp_path / "model.gguf")
    assert manifest.layout == "merged"
    assert_close(
        llama_logits(tmp_path / "model.gguf"), torch_logits(source.checkpoint.path), family
    )


@pytest.mark.parametrize("layout", ["merged", "padded"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_pruned_model_in_llama_cpp(
    family: str, layout: str, checkpoint_of: Make, tmp_path: Path
) -> None:
    checkpoint = Checkpoint(checkpoint_of(family))
    plan = random_plan(checkpoint, plan_for(layout))
    export(ModelSource(checkpoint, plan), tmp_path / "model.gguf", layout=layout)
    wanted = torch_logits(checkpoint.path, plan)
    assert_close(llama_logits(tmp_path / "model.gguf"), wanted, family)
    assert np.abs(torch_logits(checkpoint.path) - wanted).max() > 0.01


@pytest.mark.parametrize("family", ["qwen2_moe", "mixtral", "deepseek_v2"])
def test_removed_experts_in_llama_cpp(family: str, checkpoint_of: Make, tmp_path: Path) -> None:
    checkpoint = Checkpoint(checkpoint_of(family))
    source = ModelSource(checkpoint, random_plan(checkpoint, "drop"))
    export(source, tmp_path / "model.gguf")
    smaller = write_dropped(source, tmp_path / "smaller")
    assert_close(llama_logits(tmp_path / "model.gguf"), torch_logits(smaller), family)


def test_shared_expert_is_padded_to_a_multiple(checkpoint_of: Make, tmp_path: Path) -> None:
    """deepseek2 takes the shared width as a multiple of the routed one: 192 becomes 5 x 40."""
    checkpoint = Checkpoint(checkpoint_of("deepseek_v2"))
    plan = random_plan(checkpoint, "uniform")
    widths = {layer: (40,) * len(row) for layer, row in plan.widths.items()}
    retained = {key: kept[:40] for key, kept in (plan.retained or {}).items()}
    narrow = type(plan)(plan.model_type, plan.fingerprint, plan.full_width, widths, retained)
    export(ModelSource(checkpoint, narrow), tmp_path / "model.gguf")
    tensors = opened(tmp_path / "model.gguf")
    assert tensors["blk.1.ffn_up_shexp.weight"].shape.tolist() == [64, 200]
    assert_close(llama_logits(tmp_path / "model.gguf"), torch_logits(checkpoint.path, narrow))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_per_expert_file_holds_the_slices(family: str, dtype: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint(tiny.make(tmp_path / "model", family, torch_dtype=dtype))
    source = ModelSource(checkpoint, random_plan(checkpoint, "ragged"))
    quants = ("F32", "BF16") if dtype == "bfloat16" else ("F32",)
    for quant in quants:
        export(source, tmp_path / "model.gguf", quant)
        stored = opened(tmp_path / "model.gguf")
        for layer, widths in source.config.expert_widths.items():
            for expert in range(len(widths)):
                weights = source.expert(layer, expert)
                for projection in source.config.family.matrices:
                    tensor = stored[f"blk.{layer}.ffn_{projection}.{expert}.weight"]
                    found = gguf.dequantize(tensor.data, tensor.tensor_type)
                    assert np.array_equal(found, getattr(weights, projection).float().numpy())
                    bias = getattr(weights, f"{projection}_bias")
                    if bias is not None:
                        found = stored[f"blk.{layer}.ffn_{projection}.{expert}.bias"].data
                        assert np.array_equal(found, bias.float().numpy())
            name = f"{source.config.moe_prefix(layer)}{source.config.family.router}.weight"
            router = source.read(name).float().numpy()
            assert np.array_equal(stored[f"blk.{layer}.ffn_gate_inp.weight"].data, router)


def test_plan_that_cuts_nothing_changes_nothing(checkpoint_of: Make, tmp_path: Path) -> None:
    for family in tiny.FAMILIES:
        checkpoint = Checkpoint(checkpoint_of(family))
        for layout in EXPORTER.layouts:
            export(ModelSource(checkpoint), tmp_path / "dense.gguf", layout=layout)
            whole = ModelSource(checkpoint, random_plan(checkpoint, "whole"))
            export(whole, tmp_path / "whole.gguf", layout=layout)
            dense, again = opened(tmp_path / "dense.gguf"), opened(tmp_path / "whole.gguf")
            assert list(dense) == list(again)
            assert all(np.array_equal(dense[n].data, again[n].data) for n in dense)


@pytest.mark.parametrize("quant", ["F16", "BF16", "Q8_0"])
def test_small_types_run_and_stay_near(quant: str, checkpoint_of: Make, tmp_path: Path) -> None:
    checkpoint = Checkpoint(checkpoint_of("qwen2_moe"))
    export(ModelSource(checkpoint), tmp_path / "model.gguf", quant)
    wanted = torch_logits(checkpoint.path)
    error = llama_logits(tmp_path / "model.gguf") - wanted
    # Q8_0 keeps about 0.4 % per weight; a routing flip of this tiny model costs more.
    assert 0 < np.sqrt((error**2).mean()) / wanted.std() < 0.1


def test_example_of_the_specification_runs(checkpoint_of: Make, tmp_path: Path) -> None:
    page = Path(__file__).resolve().parents[3] / "docs" / "formats" / "gguf-per-expert.md"
    code = page.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    checkpoint = Checkpoint(checkpoint_of("deepseek_v2"))
    export(ModelSource(checkpoint, random_plan(checkpoint, "ragged")), tmp_path / "model.gguf")
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_tenp_fields_describe_the_file(checkpoint_of: Make, tmp_path: Path) -> None:
    checkpoint = Checkpoint(checkpoint_of("deepseek_v2"))
    plan = random_plan(checkpoint, "ragged")
    source = ModelSource(checkpoint, plan)
    export(source, tmp_path / "model.gguf")
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    value = {key: field.contents() for key, field in fields.items() if key.startswith("tenp.")}
    assert value == {
        "tenp.version": 1,
        "tenp.layout": "per-expert",
        "tenp.full_width": 96,
        "tenp.moe_layers": [1, 2],
        "tenp.expert_widths": [w for layer in (1, 2) for w in plan.widths[layer]],
        "tenp.keep_ratio": pytest.approx(plan.keep_ratio),
        "tenp.method": "ragged          ",
        "tenp.plan_digest": plan.digest,
        "tenp.run.context": 0,  # this plan was made for no run
        "tenp.run.ubatch": 0,
        "tenp.run.kv_type": " " * 4,
        "tenp.run.ram_budget": 0,
        "tenp.run.device": " " * 24,
    }
    assert fields["tenp-deepseek2.expert_feed_forward_length"].contents() == 96


# -- types -----------------------------------------------------------------------------------------


def test_types_equal_ggufs_own_encoders() -> None:
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(64, 96, generator=generator) * torch.logspace(-6, 3, 64)[:, None]
    rows[5] = 0
    for name in ("F16", "BF16", "Q8_0"):
        wanted = gguf.quantize(rows.numpy(), gguf.GGMLQuantizationType[name])
        assert bytes(TYPES[name].encode(rows)) == wanted.tobytes()
        assert TYPES[name].nbytes(tuple(rows.shape)) == wanted.nbytes
        assert TYPES[name].ggml_id == gguf.GGMLQuantizationType[name]


def test_q8_0_equals_llama_cpps_quantiser(checkpoint_of: Make, tmp_path: Path) -> None:
    from llama_cpp import llama_cpp as native

    source = ModelSource(Checkpoint(checkpoint_of("qwen2_moe")))
    export(source, tmp_path / "f32.gguf", "F32")
    export(source, tmp_path / "ours.gguf", "Q8_0")
    params = native.llama_model_quantize_default_params()
    params.ftype, params.nthread = 7, 1
    theirs = tmp_path / "theirs.gguf"
    status = native.llama_model_quantize(
        str(tmp_path / "f32.gguf").encode(), str(theirs).encode(), params
    )
    assert status == 0
    ours, wanted = opened(tmp_path / "ours.gguf"), opened(theirs)
    assert ours.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert ours[name].tensor_type == tensor.tensor_type, name
        assert np.array_equal(ours[name].data.reshape(tensor.data.shape), tensor.data), name
