"""Counts of what the server did, for Prometheus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from tenp_edge.serving.answers.choice import Usage

# Names that llama-server's dashboards know; the other ones begin with tenp_edge.
_COUNTERS = {
    "llamacpp:prompt_tokens_total": "Tokens of prompts.",
    "llamacpp:prompt_seconds_total": "Seconds from the beginning of a prompt to its first token.",
    "llamacpp:tokens_predicted_total": "Generated tokens.",
    "llamacpp:tokens_predicted_seconds_total": "Seconds of generation, after the first token.",
}
_GAUGES = {
    "llamacpp:prompt_tokens_seconds": "Tokens of prompts per second, on average.",
    "llamacpp:predicted_tokens_seconds": "Generated tokens per second, on average.",
    "llamacpp:requests_processing": "Requests that are being answered.",
    "llamacpp:requests_deferred": "Requests that wait.",
    "llamacpp:kv_cache_tokens": "Tokens in the KV cache.",
    "llamacpp:kv_cache_usage_ratio": "Share of the KV cache that holds tokens.",
}


@dataclass
class Metrics:
    """Counted on the event loop alone."""

    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    tokens: int = 0
    seconds: float = 0.0
    requests: Counter[tuple[str, int]] = field(default_factory=Counter)

    def answered(self, usage: Usage) -> None:
        """Count an answer that is complete."""
        self.prompt_tokens += usage.prompt_tokens
        self.prompt_seconds += usage.prompt_seconds
        self.tokens += usage.tokens
        self.seconds += usage.seconds

    def requested(self, route: str, status: int) -> None:
        self.requests[route, status] += 1

    def text(self, running: int, waiting: int, held: int, context: int) -> str:
        """In Prometheus' text format. ``held``: tokens in the cache, of ``context``."""
        counts = dict(
            zip(
                _COUNTERS,
                (self.prompt_tokens, self.prompt_seconds, self.tokens, self.seconds),
                strict=True,
            )
        )
        now = (
            self.prompt_tokens / self.prompt_seconds if self.prompt_seconds else 0.0,
            self.tokens / self.seconds if self.seconds else 0.0,
            running,
            waiting,
            held,
            held / context,
        )
        lines = [
            *_lines("counter", _COUNTERS, counts),
            *_lines("gauge", _GAUGES, dict(zip(_GAUGES, now, strict=True))),
            "# HELP tenp_edge:requests_total Requests, by route and status.",
            "# TYPE tenp_edge:requests_total counter",
        ]
        for (route, status), count in sorted(self.requests.items()):
            lines.append(f'tenp_edge:requests_total{{route="{route}",status="{status}"}} {count}')
        return "\n".join(lines) + "\n"


def _lines(kind: str, helps: Mapping[str, str], values: Mapping[str, float]) -> Iterator[str]:
    for name, text in helps.items():
        yield f"# HELP {name} {text}"
        yield f"# TYPE {name} {kind}"
        yield f"{name} {values[name]:.6g}"
