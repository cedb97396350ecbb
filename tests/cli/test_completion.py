"""What the shell completes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

_START = "import sys; sys.argv = ['tenp-edge']; from tenp_edge.cli.main import app; "
_RUN = _START + "app(prog_name='tenp-edge')"


def completed(words: str) -> list[str]:
    """What bash is offered for the last of ``words``."""
    environment = os.environ | {
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
        "_TENP_EDGE_COMPLETE": "complete_bash",
    }
    done = subprocess.run(
        [sys.executable, "-c", _RUN], capture_output=True, text=True, env=environment, check=False
    )
    assert not done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("tenp-edge co", ["compress", "compare"]),
        ("tenp-edge compress MODEL --quant Q4", ["Q4_K_M", "Q4_K_S", "Q4_0"]),
        ("tenp-edge compress MODEL --quant q4_k", ["q4_k_m", "q4_k_s"]),
        ("tenp-edge plan MODEL --profile pi", ["pi5-16gb", "pi5-8gb"]),
        ("tenp-edge export MODEL --layout p", ["per-expert", "padded", "portable"]),
    ],
)
def test_lists_of_values_are_completed(words: str, offered: list[str]) -> None:
    assert completed(words) == offered
