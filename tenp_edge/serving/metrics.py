"""What the server did, in Prometheus' text format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from tenp_edge.serving.worker import Status


@dataclass(frozen=True)
class Load:
    """What the server does now: requests that are answered and that wait; the context."""

    running: int
    waiting: int
    context: int


@dataclass
class Metrics:
    """Counts requests, on the event loop alone; the worker's `Status` has counted the rest."""

    requests: Counter[tuple[str, int]] = field(default_factory=Counter)

    def requested(self, route: str, status: int) -> None:
        self.requests[route, status] += 1

    def text(self, status: Status, load: Load) -> str:
        """Everything, under the names that llama-server's dashboards know; what it has no name for
        begins with tenp_edge."""
        lines = [
            *_lines("counter", _counters(status)),
            *_lines("counter", _own_counters(status), "tenp_edge"),
            *_lines("gauge", _gauges(status, load)),
            "# HELP tenp_edge:requests_total Requests, by route and status.",
            "# TYPE tenp_edge:requests_total counter",
        ]
        for (route, code), count in sorted(self.requests.items()):
            lines.append(f'tenp_edge:requests_total{{route="{route}",status="{code}"}} {count}')
        return "\n".join(lines) + "\n"


# Name (without its prefix), what it is, value.
_Rows = tuple[tuple[str, str, float], ...]


def _counters(status: Status) -> _Rows:
    totals = status.totals
    return (
        (
            "prompt_tokens_total",
            "Tokens of prompts that were evaluated: those in the cache are not.",
            totals.prompt_tokens,
        ),
        (
            "prompt_seconds_total",
            "Seconds of answers from their slot to their first token.",
            totals.prompt_seconds,
        ),
        ("tokens_predicted_total", "Generated tokens.", totals.generated_tokens),
        (
            "tokens_predicted_seconds_total",
            "Seconds of answers after their first token.",
            totals.generation_seconds,
        ),
        ("n_decode_total", "Steps of the model.", totals.steps),
    )


def _own_counters(status: Status) -> _Rows:
    cached = status.totals.cached_tokens
    return (
        ("prompt_tokens_cached_total", "Tokens of prompts that were found in the cache.", cached),
    )


def _gauges(status: Status, load: Load) -> _Rows:
    totals = status.totals
    held = sum(slot.tokens for slot in status.slots)
    return (
        (
            "prompt_tokens_seconds",
            "Tokens of prompts per second, on average.",
            _ratio(totals.prompt_tokens, totals.prompt_seconds),
        ),
        (
            "predicted_tokens_seconds",
            "Generated tokens per second, on average.",
            _ratio(totals.generated_tokens, totals.generation_seconds),
        ),
        ("requests_processing", "Requests that are being answered.", load.running),
        ("requests_deferred", "Requests that wait.", load.waiting),
        (
            "n_busy_slots_per_decode",
            "Answers in a step, on average.",
            _ratio(totals.parts, totals.steps),
        ),
        ("kv_cache_tokens", "Tokens in the KV cache.", held),
        ("kv_cache_usage_ratio", "Share of the KV cache that holds tokens.", held / load.context),
    )


def _ratio(count: float, of: float) -> float:
    return count / of if of else 0.0


def _lines(kind: str, rows: _Rows, prefix: str = "llamacpp") -> Iterator[str]:
    for name, text, value in rows:
        yield f"# HELP {prefix}:{name} {text}"
        yield f"# TYPE {prefix}:{name} {kind}"
        yield f"{prefix}:{name} {value:.6g}"
