"""Distributions of third parties, put on the path as pip would put them."""

from __future__ import annotations

from pathlib import Path

import pytest


def install_exporter(
    directory: Path, monkeypatch: pytest.MonkeyPatch, name: str, entry: str
) -> None:
    """One that declares the format ``name`` at the entry point ``entry`` ("module:OBJECT")."""
    info = directory / f"{name}_format-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-format\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[tenp_edge.exporters]\n{name} = {entry}\n")
    monkeypatch.syspath_prepend(str(directory))
