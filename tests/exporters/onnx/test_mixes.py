"""Types of a plan's own in ONNX: what is written, what it takes, and that the graph computes so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support import tiny
from support.onnx_cases import (
    Floats,
    assert_equal_runs,
    different_widths,
    written,
)
from support.onnx_quant_cases import (
    ONNX,
    ROUNDED,
    ROUNDED_AND_NORMED,
    assert_close,
    float_activations,
    mix,
    written_logits,
)
from support.plans import cycled, plan_for

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.checkpoint.tensor_types import TensorTypes
from tenp_edge.errors import UserError
from tenp_edge.exporters.base import ExportOptions
from tenp_edge.exporters.mixing import SampledRows
from tenp_edge.exporters.onnx.linear.quantise import dequantise_blocks, quantise_blocks
from tenp_edge.exporters.onnx.linear.weighted import weighted_blocks

Make = Callable[[str], Path]


def options(types: TensorTypes | None, mode: str = "portable") -> ExportOptions:
    return ExportOptions("auto", mode, types=types)


@pytest.mark.parametrize("family", tiny.ONNX_FAMILIES)
def test_portable_computes_with_the_written_weights(
    family: str, checkpoint_of: Make, tmp_path: Path
) -> None:
    checkpoint = Checkpoint(checkpoint_of(family))
    source, out = ModelSource(checkpoint, different_widths(checkpoint)), tmp_path / "out"
    manifest = ONNX.write(source, options(mix(source.config)), out)
    assert written(out) == dict(manifest.files)
    wanted = written_logits(source, out)
    assert_close(out, wanted, ROUNDED_AND_NORMED)
    float_activations(out)
    assert_equal_runs(out, wanted)


@pytest.mark.parametrize("family", tiny.CPU_FAMILIES)
def test_ort_cpu_computes_with_the_written_weights(
    family: str, checkpoint_of: Make, tmp_path: Path
) -> None:
    """Which are those that were foreseen, read back from the directory too."""
    checkpoint = Checkpoint(checkpoint_of(family))
    full = checkpoint.config.moe_intermediate_size
    source = ModelSource(checkpoint, plan_for(checkpoint, cycled(checkpoint, (32, 64, full))))
    given, out = options(mix(source.config, alike=True), "ort-cpu"), tmp_path / "out"
    manifest = ONNX.write(source, given, out)
    assert written(out) == dict(manifest.files)
    float_activations(out)  # which QMoE of 8 bits rounds all the same
    assert_close(out, written_logits(source, out), ROUNDED)
    foreseen, back = ONNX.requantised(source, given), ONNX.read_back(out, checkpoint.config)
    for name in foreseen.tensors:
        assert torch.equal(foreseen.read(name).float(), back.read(name)), name
    table = checkpoint.config.embedding_name
    assert torch.equal(foreseen.held(table)(3, 9), back.held(table)(3, 9))


def test_bytes_of_a_matrix_are_those_in_the_file(checkpoint_of: Make) -> None:
    """Of what has a choice; all else is the same whatever the types."""
    checkpoint = Checkpoint(checkpoint_of("qwen2_moe"))
    config = ModelSource(checkpoint, different_widths(checkpoint)).config
    hidden, besides = config.hidden_size, set()
    for types in (mix(config), *(ONNX.types_of(config, ExportOptions(q)) for q in ONNX.quants)):
        manifest = ONNX.manifest(checkpoint, config, options(types))
        chosen = sum(
            ONNX.tensor_bytes(m.shape[0], m.shape[1], types.others[m.key])
            for m in ONNX.typed_matrices(config, options(types))
        )
        for layer, widths in config.expert_widths.items():
            for expert, width in enumerate(widths):
                gate_up, down = types.gate_up[layer][expert], types.down[layer][expert]
                chosen += 2 * ONNX.tensor_bytes(width, hidden, gate_up)
                chosen += ONNX.tensor_bytes(hidden, width, down)
        besides.add(manifest.weight_bytes - chosen)
    assert len(besides) == 1
    names = {tensor.type for tensor in manifest.tensors if tensor.part == "routed experts"}
    assert names == {"int4"}


def test_codes_lose_least_where_columns_count() -> None:
    draw = np.random.default_rng(0)
    matrix = draw.standard_normal((64, 75), np.float32)
    columns = draw.exponential(size=75).astype(np.float32) ** 2

    def loss(blocks: tuple[object, Floats], weights: Floats) -> float:
        codes, scales = blocks
        error = dequantise_blocks(codes, scales, 4, 75) - matrix  # type: ignore[arg-type]
        return float((error**2 @ weights).sum())

    alike = np.ones(75, np.float32)
    plain, even = quantise_blocks(matrix, 4), weighted_blocks(matrix, 4, None)
    weighed = weighted_blocks(matrix, 4, columns)
    assert loss(even, alike) < 0.95 * loss(plain, alike)
    assert loss(weighed, columns) < 0.8 * loss(plain, columns)
    assert weighed[0].shape == plain[0].shape and weighed[0].dtype == plain[0].dtype
    nothing = weighted_blocks(np.zeros((2, 32), np.float32), 4, None)
    assert not dequantise_blocks(*nothing, 4, 32).any()
    rows = SampledRows(torch.from_numpy(matrix), torch.from_numpy(columns))
    assert np.array_equal(ONNX.rounded(rows, "int4").numpy(), dequantise_blocks(*weighed, 4, 75))


def test_what_cannot_be_written(checkpoint_of: Make) -> None:
    checkpoint = Checkpoint(checkpoint_of("qwen3_moe"))
    config = checkpoint.config
    types = mix(config)
    some = {key: kind for key, kind in types.others.items() if key != "0.q"}
    cases = {
        "--quant auto writes the types that a plan chose, and there is no plan with types": (
            None,
            "portable",
        ),
        "the plan's types name 'Q4_K', which ONNX has not": (
            replace(types, others={**types.others, "0.q": "Q4_K"}),
            "portable",
        ),
        "the plan's types do not have the experts of this model": (
            replace(types, down={}),
            "portable",
        ),
        "the plan's types do not have the matrices of this model": (
            replace(types, others=some),
            "portable",
        ),
        "--mode ort-cpu has one type for the matrices of an expert: the plan gives expert 0 of "
        "layer 0 float32 and int8": (types, "ort-cpu"),
        "ONNX mode static has no quantisation 'auto'": (types, "static"),
    }
    for message, given in cases.items():
        with pytest.raises(UserError) as error:
            ONNX.check(config, options(*given))
        assert error.value.message == message and error.value.hint
