"""One small run, compressed and validated once for all pages."""

from __future__ import annotations

import shutil
from pathlib import Path

import crashing
import pytest

from tenp_edge.verbs import options as take
from tenp_edge.verbs.compress import run_compress


@pytest.fixture(scope="session")
def small_run(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `compress` leaves of the model of `crashing`, in two domains; do not change it."""
    out = tmp_path_factory.mktemp("small-run") / "out"
    text = small_model / "text.txt"
    data = tuple(f"{name}={text}" for name in ("code", "prose"))
    compute = {"samples": 2, "seq_len": 32, "device": "cpu"}
    options = take.CompressOptions(
        calibration=take.CalibrationOptions(data=data, **compute),
        plan=take.PlanOptions(keep=0.5, profile="pi5-8gb", quant="Q8_0"),
        validation=take.ValidationOptions(data=data, samples=2, seq_len=32, threads=1),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crashing.gguf, "known_peak", crashing.not_asked)
        run_compress(small_model, out, options)
    return out


@pytest.fixture
def run(small_run: Path, tmp_path: Path) -> Path:
    """A copy of the small run, to be changed."""
    return Path(shutil.copytree(small_run, tmp_path / "out"))
