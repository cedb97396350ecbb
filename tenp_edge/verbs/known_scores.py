"""Statistics that there are already: a directory of `calibrate`, or a score file of `pack`."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

from tenp_edge.calibration.storage import Statistics, load_statistics
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.errors import UserError
from tenp_edge.planning.scores.pack import extract_measured, load_pack


def known_statistics(path: Path, checkpoint: Checkpoint | None = None) -> Statistics:
    """Those at ``path``. Raises UserError where they are of another model than ``checkpoint``."""
    if path.is_file():
        if checkpoint is None:
            return load_pack(path)
        return load_pack(path, checkpoint.fingerprint, checkpoint.config)
    if path.suffix == ".zip" and not path.exists():
        raise UserError(f"{path} does not exist", "the scores.zip that tenp-edge pack OUT writes")
    if checkpoint is None:
        return load_statistics(path)
    return load_statistics(path, checkpoint.fingerprint, checkpoint.config)


def measured_beside(path: Path) -> Path:
    """The directory with what was measured of the model: ``path``, or what its file holds."""
    return _extracted(path.resolve(), path.stat().st_mtime_ns) if path.is_file() else path


@cache
def _extracted(file: Path, changed: int) -> Path:
    del changed  # part of the key only
    directory = Path(tempfile.mkdtemp(prefix="tenp-edge-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    extract_measured(file, directory)
    return directory
