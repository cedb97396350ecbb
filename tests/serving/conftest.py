"""The served model, and one server that most tests of its routes share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.serving_cases import Server, make_files, serving


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """See `make_files`; do not change them."""
    return make_files(tmp_path_factory.mktemp("serving"))


@pytest.fixture(scope="session")
def shared(files: dict[str, Path]) -> Iterator[Server]:
    """A server with a key, aliases and an origin; leave nothing running in it."""
    flags = ("--alias", "gpt-4o", "--api-key", "none", "--cors", "https://chat.example")
    with serving(files["per-expert"], "--context", 2048, *flags) as running:
        running.http.headers["authorization"] = "Bearer none"
        yield running
