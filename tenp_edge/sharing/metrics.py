"""A validation report in the Hub's form (``model-index``) and as a table."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # pulls httpx: loaded where a card is written
    from huggingface_hub import EvalResult

_TASK = "text-generation"
# Key of a report's row, the metric's type on the hub, and its name.
_METRICS = (
    ("mean_kl", "kl_divergence", "Mean KL divergence from the original, nats per token"),
    ("kl_99", "kl_divergence_p99", "KL divergence that 99 % of tokens stay below, nats"),
    ("same_top", "same_top_token", "Share of tokens where both put the same token first"),
    ("candidate_perplexity", "perplexity", "Perplexity"),
    ("reference_perplexity", "perplexity_original", "Perplexity of the original"),
)
_DIGITS = 6


def eval_results(report: Mapping[str, Any]) -> list[EvalResult]:
    """Of every domain of ``report`` (a validation's JSON), and of all together."""
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type=_TASK,
            task_name="Text generation",
            dataset_type=slug(row["domain"]),
            dataset_name=f"held-out text: {row['domain']} ({row['tokens']} tokens)",
            metric_type=kind,
            metric_name=name,
            metric_value=round(row[key], _DIGITS),
        )
        for row in _rows(report)
        for key, kind, name in _METRICS
    ]


def metrics_table(report: Mapping[str, Any]) -> str:
    """Markdown: a row a domain, and all together."""
    lines = [
        "| text | tokens | mean KL (nats) | 99 % of tokens below | largest | same first token "
        "| perplexity, original | perplexity, this model |",
        "|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join(lines + [_line(row) for row in _rows(report)])


def _line(row: Mapping[str, Any]) -> str:
    cells = [
        str(row["domain"]),
        f"{row['tokens']:,}",
        f"{row['mean_kl']:.4f}",
        f"{row['kl_99']:.4f}",
        f"{row['max_kl']:.4f}",
        f"{row['same_top']:.1%}",
        f"{row['reference_perplexity']:.2f}",
        f"{row['candidate_perplexity']:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def _rows(report: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield from report["domains"]
    if len(report["domains"]) > 1:
        yield {**report["overall"], "domain": "all"}


def slug(name: str) -> str:
    """``name`` in letters that a data set's or a model's name may have."""
    return re.sub(r"[^\w.-]+", "-", name) or "text"
