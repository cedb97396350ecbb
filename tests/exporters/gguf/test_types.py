"""Every type holds the weights that it says it holds, and refuses others by name."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from support.command import refused, run
from support.edits import edit_tensors

from tenp_edge.errors import UserError
from tenp_edge.exporters.gguf.sampling import rounded
from tenp_edge.exporters.gguf.types import TYPES, TensorType
from tenp_edge.exporters.mixing import SampledRows
from tenp_edge.runtime.opening import RunOptions, open_model

_SIGNS = (1.0, -1.0)
# What a type may lose of the largest weight of a block: NVFP4 and MXFP4 have four bits of float.
_MOST_LOST = 0.34


def _extreme_rows(kind: TensorType, seed: int) -> torch.Tensor:
    """Of noise, of noise on one side of zero, of weights that are large, too, each with the largest
    weight, of either sign."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(4, 512, generator=generator)
    rows = []
    for sign in _SIGNS:
        for own in (noise, sign * noise.abs(), noise * kind.largest / 8):
            own = own.clamp(-kind.largest, kind.largest)
            own[torch.arange(4), torch.randint(512, (4,), generator=generator)] = (
                sign * kind.largest
            )
            rows.append(own)
    return torch.cat(rows)


@pytest.mark.parametrize("name", TYPES)
def test_holds_its_largest_weight(name: str) -> None:
    """Without importance, and with some that hardly sees most columns."""
    kind = TYPES[name]
    for seed, importance in enumerate((None, torch.rand(512) ** 8 + 1e-3)):
        rows = _extreme_rows(kind, seed)
        assert kind.can_hold(rows)
        found = kind.decode(bytearray(kind.encode(rows, importance)), tuple(rows.shape))
        assert torch.isfinite(found).all()
        if importance is None:
            largest = rows.abs().argmax(1, keepdim=True)
            wanted, got = rows.gather(1, largest), found.gather(1, largest)
            assert ((got - wanted) / wanted).abs().max() < _MOST_LOST


@pytest.mark.parametrize("name", [name for name in TYPES if name not in ("F32", "MXFP4")])
def test_refuses_what_it_cannot_hold(name: str) -> None:
    kind = TYPES[name]
    rows = torch.zeros(2, 512)
    rows[1, 300] = -math.nextafter(float(torch.tensor(kind.largest)), math.inf) * 1.001
    with pytest.raises(UserError) as caught:
        kind.encode(rows, None, "blk.0.ffn_up.weight")
    larger = float(rows[1, 300].abs())
    others = "F32" if name == "BF16" else "BF16 or F32"
    assert str(caught.value) == (
        f"blk.0.ffn_up.weight has a weight of {larger:.4g}, {name} holds {kind.largest:.4g} at "
        f"most\ntry: --quant {others}"
    )
    assert not rounded(SampledRows(rows, None), name).any()
    rows[1, 300] = math.nan
    with pytest.raises(UserError, match=f"has a weight of nan, {name} holds"):
        kind.encode(rows)


def test_an_export_names_the_tensor(checkpoint_of: Callable[[str], Path], tmp_path: Path) -> None:
    """Where the types of --quant do not hold a weight; those of the `try:` do."""
    model = Path(shutil.copytree(checkpoint_of("qwen3_moe"), tmp_path / "model"))
    name = "model.layers.1.mlp.experts.3.up_proj.weight"
    edit_tensors(model, lambda tensors: tensors[name][2, 5].fill_(4e14))
    file = tmp_path / "model.gguf"
    for quant, kind, largest in (("Q4_K_M", "Q5_0", "5.24e+05"), ("F16", "F16", "6.55e+04")):
        assert refused("export", model, "--quant", quant, "-o", file) == (
            "error: blk.1.ffn_up_exps.weight has a weight of 4e+14, "
            f"{kind} holds {largest} at most\n"
            "try:   --quant BF16 or F32\n"
        )
        assert not list(tmp_path.glob("*.gguf*"))
    assert run("export", model, "--quant", "BF16", "-o", file).returncode == 0
    with open_model(file, RunOptions(context=32)) as session:
        assert np.isfinite(session.logits([1, 2, 3])).all()
