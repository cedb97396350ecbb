"""int8 and int4 of ONNX: the bytes stand for the weights, and the graph computes with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from support.onnx_cases import assert_equal_runs, different_widths, export, relative_rms, written
from support.onnx_quant_cases import (
    ROUNDED,
    ROUNDED_AND_NORMED,
    assert_close,
    float_activations,
    stored_arrays,
    written_logits,
)
from support.plans import ragged_plan

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.exporters.onnx.linear.quantise import (
    dequantise_blocks,
    quantise_blocks,
    quantise_rows,
)

Make = Callable[[str], Path]


@pytest.mark.parametrize("bits", [4, 8])
def test_blocks_lose_half_a_step_at_most(bits: int) -> None:
    matrix = np.random.default_rng(0).standard_normal((7, 75), np.float32)
    matrix[3, 32:64] = 0
    codes, scales = quantise_blocks(matrix, bits)
    assert codes.shape == (7, 3, 4 * bits) and scales.shape == (7, 3)
    found = dequantise_blocks(codes, scales, bits, 75)
    steps = np.abs(scales).repeat(32, axis=1)[:, :75]
    # The largest code is one short of the smallest: numbers near -max are cut by up to a step.
    assert (np.abs(found - matrix) <= steps * 1.0001).all()
    assert relative_rms(found, matrix) < {4: 0.1, 8: 0.006}[bits]
    assert not found[3, 32:64].any()


def test_the_furthest_number_of_a_block_is_kept() -> None:
    matrix = np.float32([[0.1] * 31 + [-3.0], [0.2] * 31 + [5.0]])
    codes, scales = quantise_blocks(matrix, 4)
    np.testing.assert_allclose(dequantise_blocks(codes, scales, 4, 32)[:, 31], [-3.0, 5.0])


def test_rows_of_int8() -> None:
    matrix = np.float32([[1.0, -2.54, 0.01], [0.0, 0.0, 0.0]])
    codes, scales = quantise_rows(matrix)
    assert codes.dtype == np.int8 and codes.tolist() == [[50, -127, 0], [0, 0, 0]]
    np.testing.assert_allclose(scales, [0.02, 0.0])


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "deepseek_v3", "gemma4_text"])
def test_int4_computes_with_the_written_weights(
    family: str, checkpoint_of: Make, tmp_path: Path
) -> None:
    checkpoint = Checkpoint(checkpoint_of(family))
    source = ModelSource(checkpoint, different_widths(checkpoint))
    manifest = export(source, tmp_path / "out", quant="int4")
    assert written(tmp_path / "out") == dict(manifest.files)
    wanted = written_logits(source, tmp_path / "out")
    normed = checkpoint.config.family.norms_after
    assert_close(tmp_path / "out", wanted, ROUNDED_AND_NORMED if normed else ROUNDED)
    float_activations(tmp_path / "out")
    assert_equal_runs(tmp_path / "out", wanted)


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral", "deepseek_v3"])
def test_int8_computes_with_the_written_weights(
    family: str, checkpoint_of: Make, tmp_path: Path
) -> None:
    checkpoint = Checkpoint(checkpoint_of(family))
    source = ModelSource(checkpoint, different_widths(checkpoint))
    manifest = export(source, tmp_path / "out", quant="int8")
    assert written(tmp_path / "out") == dict(manifest.files)
    assert_close(tmp_path / "out", written_logits(source, tmp_path / "out"), 0.15)


@pytest.mark.parametrize("quant", ["int8", "int4"])
def test_routers_and_embeddings_stay_float(quant: str, checkpoint_of: Make, tmp_path: Path) -> None:
    checkpoint = Checkpoint(checkpoint_of("qwen2_moe"))
    export(ModelSource(checkpoint, ragged_plan(checkpoint)), tmp_path / "out", quant=quant)
    arrays = stored_arrays(tmp_path / "out")
    floats = {name for name in arrays if arrays[name].ndim == 2 and "scales" not in name}
    floats = {name for name in floats if arrays[name].dtype == np.float32}
    kinds = {name.split(".")[-2 if name.endswith("weight") else -3] for name in floats}
    assert kinds == {"embed_tokens", "gate", "shared_expert_gate"}
    model = onnx.load_model(tmp_path / "out" / "model.onnx", load_external_data=False)
    domains = {opset.domain for opset in model.opset_import}
    assert domains == ({""} if quant == "int8" else {"", "com.microsoft"})
    onnx.checker.check_model(str(tmp_path / "out" / "model.onnx"), full_check=quant == "int8")


def test_sizes(checkpoint_of: Make, tmp_path: Path) -> None:
    checkpoint = Checkpoint(checkpoint_of("olmoe"))
    source = ModelSource(checkpoint)
    routed = {
        quant: sum(
            tensor.nbytes
            for tensor in export(source, tmp_path / quant, quant=quant).tensors
            if tensor.part == "routed experts"
        )
        for quant in ("none", "int8", "int4")
    }
    weights = routed["none"] // 4
    # A byte each and 4 per row; half a byte each and 4 per block of 32.
    rows = 3 * 8 * (2 * 96 + 64)
    assert routed["int8"] == weights + 4 * rows
    assert routed["int4"] == weights // 2 + weights // 8
