"""What is installed is what is in the repository."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLACES = {
    "tenp_edge": ROOT / "tenp_edge",
    "tenp_edge.exporters": ROOT / "exporters",
    "tenp_edge.profiles": ROOT / "profiles",
}


def test_every_package_is_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = project["tool"]["setuptools"]["packages"]
    found = {
        ".".join((name, *file.parent.relative_to(place).parts))
        for name, place in PLACES.items()
        for file in place.rglob("__init__.py")
    }
    assert found - set(listed) == set() and len(listed) == len(set(listed))
