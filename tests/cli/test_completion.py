"""What the shell completes."""

from __future__ import annotations

import pytest

from tenp_edge.cli.main import app


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
def test_lists_of_values_are_completed(
    words: str,
    offered: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What bash is offered for the last of ``words``."""
    monkeypatch.setattr("sys.argv", ["tenp-edge"])
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split(" ")) - 1))
    monkeypatch.setenv("_TENP_EDGE_COMPLETE", "complete_bash")
    with pytest.raises(SystemExit):
        app(prog_name="tenp-edge")
    printed = capsys.readouterr()
    assert printed.out.split() == offered and not printed.err
