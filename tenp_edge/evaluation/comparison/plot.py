"""The comparison as a picture, where matplotlib is installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tenp_edge.evaluation.comparison.table import Line, lines

SHOWN = 12  # methods with a line of their own; more cannot be told apart


MISSING = "compare.png is left out: matplotlib is not installed (pip install matplotlib)"


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def draw(result: Mapping[str, Any], file: Path) -> None:
    """Mean KL over the keep ratio, overall and by domain; bars are the spread of the seeds."""
    import matplotlib

    matplotlib.use("Agg")  # a file, whatever display there is
    from matplotlib import pyplot

    all_lines = lines(result)
    domains = list(result["dense"]["text"])
    figure, axes = pyplot.subplots(
        1, 1 + len(domains), figsize=(5 + 3.4 * len(domains), 5), sharey=True, layout="constrained"
    )
    methods = shown(all_lines)
    for number, axis in enumerate(axes):
        name = None if number == 0 else domains[number - 1]
        for method in methods:
            _curve(axis, [line for line in all_lines if line.method == method], name)
        axis.set_title(name or "all domains")
        axis.set_xlabel("routed-expert parameters kept")
        axis.set_yscale("log")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("mean KL to the dense model, nats per token")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8)
    temporary = file.with_name(f".{file.name}.partial.png")
    figure.savefig(temporary, dpi=130)
    pyplot.close(figure)
    temporary.replace(file)


def shown(found: Sequence[Line]) -> list[str]:
    """The methods with the least KL on average over the ratios, best first."""
    by_method: dict[str, list[float]] = {}
    for line in found:
        by_method.setdefault(line.method, []).append(line.kl.mean)
    order = sorted(by_method, key=lambda name: sum(by_method[name]) / len(by_method[name]))
    named = [name for name in order if name in ("tenp", "enp", "random", "wanda-rows")]
    return [name for name in order if name in named or name in order[: SHOWN - len(named)]]


def _curve(axis: Any, found: Sequence[Line], domain: str | None) -> None:
    ordered = sorted(found, key=lambda line: line.kept)
    spreads = [line.kl if domain is None else line.kl_by_domain[domain] for line in ordered]
    means = [max(spread.mean, 1e-7) for spread in spreads]
    below = [max(mean - spread.low, 0) for mean, spread in zip(means, spreads, strict=True)]
    above = [spread.high - mean for mean, spread in zip(means, spreads, strict=True)]
    axis.errorbar(
        [line.kept for line in ordered],
        means,
        yerr=[below, [max(value, 0) for value in above]],
        label=ordered[0].method,
        marker=".",
        capsize=2,
        linewidth=1,
    )
