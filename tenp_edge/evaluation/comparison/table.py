"""The comparison's rows over the seeds: means and spreads, for the terminal and the picture."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tenp_edge.units import nats

_TASKS = ("cloze", "arithmetic")


@dataclass(frozen=True)
class Spread:
    """Over the calibration seeds: mean, lowest and highest."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        listed = list(values)
        return cls(sum(listed) / len(listed), min(listed), max(listed))

    def __str__(self) -> str:
        if self.low == self.high:
            return nats(self.mean)
        return f"{nats(self.mean)} ±{nats((self.high - self.low) / 2)}"


@dataclass(frozen=True)
class Line:
    """One method at one ratio, over the seeds. ``kl_by_domain``: domain -> mean KL, nats."""

    method: str
    keep: float
    kept: float
    expert_bytes: int
    active_ratio: float | None
    kl: Spread
    perplexity_ratio: Spread
    same_top: Spread
    kl_by_domain: Mapping[str, Spread]
    tasks: Mapping[str, Spread]


def lines(result: Mapping[str, Any]) -> list[Line]:
    """Every method at every ratio: ratios as they were measured, methods by their mean KL."""
    groups: dict[tuple[float, str], list[Mapping[str, Any]]] = {}
    for row in result["rows"]:
        groups.setdefault((row["keep"], row["method"]), []).append(row)
    ratios = list(dict.fromkeys(row["keep"] for row in result["rows"]))
    able = {name for name, value in result["dense"]["overall"].items() if value}
    made = [_line(rows, able) for rows in groups.values()]
    return sorted(made, key=lambda line: (ratios.index(line.keep), line.kl.mean))


def _line(rows: Sequence[Mapping[str, Any]], able: Container[str]) -> Line:
    """``able``: what the dense model can do at all; other tasks say nothing and are left out."""
    first = rows[0]

    def overall(name: str) -> Spread:
        return Spread.of(row["overall"][name] for row in rows)

    active = [row["active_ratio"] for row in rows if row["active_ratio"] is not None]
    tasks = [name for name in first["overall"] if name.startswith(_TASKS) and name in able]
    return Line(
        method=first["method"],
        keep=first["keep"],
        kept=first["kept"],
        expert_bytes=first["expert_bytes"],
        active_ratio=sum(active) / len(active) if active else None,
        kl=overall("mean_kl"),
        perplexity_ratio=overall("perplexity_ratio"),
        same_top=overall("same_top"),
        kl_by_domain={
            domain: Spread.of(row["text"][domain]["mean_kl"] for row in rows)
            for domain in first["text"]
        },
        tasks={name: overall(name) for name in tasks},
    )


@dataclass(frozen=True)
class Prediction:
    """How well predicted losses rank measured plans. ``keep``: None for all ratios together;
    ``plans`` counts plans with a prediction, every calibration's own."""

    keep: float | None
    plans: int
    rank_correlation: float


def predictions(result: Mapping[str, Any]) -> list[Prediction]:
    """Spearman's rank correlation of predicted loss and measured KL, by ratio and over all."""
    rows = [row for row in result["rows"] if row["predicted_loss"]]
    ratios = list(dict.fromkeys(row["keep"] for row in rows))
    correlations = []
    for keep in (*ratios, None):
        chosen = [row for row in rows if keep in (None, row["keep"])]
        losses = torch.tensor([row["predicted_loss"] for row in chosen])
        measured = torch.tensor([row["overall"]["mean_kl"] for row in chosen])
        if len(chosen) > 2:
            correlations.append(Prediction(keep, len(chosen), rank_correlation(losses, measured)))
    return correlations


def rank_correlation(left: torch.Tensor, right: torch.Tensor) -> float:
    """Spearman's, of two [n]; ties in the order they come."""
    ranks = [values.argsort(stable=True).argsort().double() for values in (left, right)]
    centred = [rank - rank.mean() for rank in ranks]
    scale = centred[0].norm() * centred[1].norm()
    return float(centred[0] @ centred[1] / scale.clamp_min(1e-12))


def markdown(result: Mapping[str, Any]) -> str:
    """The tables as a page: one a keep ratio, KL in nats (mean over the seeds ± half the range)."""
    all_lines, parts = lines(result), []
    for keep in dict.fromkeys(line.keep for line in all_lines):
        chosen = [line for line in all_lines if line.keep == keep]
        domains, tasks = list(chosen[0].kl_by_domain), list(chosen[0].tasks)
        head = ["method", "expert bytes", "R_active", "KL", "ppl ratio", "same top"]
        head += [f"{domain} KL" for domain in domains] + [task.split("_")[0] for task in tasks]
        rows = [_cells(line, domains, tasks) for line in chosen]
        parts += [f"## keep {keep:g} ({chosen[0].kept:.3f} of the routed-expert parameters)", ""]
        parts += [_row(head), "|" + "---|" * len(head), *map(_row, rows), ""]
    predicted = [
        ["all" if p.keep is None else f"{p.keep:g}", str(p.plans), f"{p.rank_correlation:.3f}"]
        for p in predictions(result)
    ]
    if predicted:
        head = ["keep", "plans", "rank correlation"]
        parts += ["## predicted loss against measured KL", ""]
        parts += [_row(head), "|" + "---|" * len(head), *map(_row, predicted), ""]
    return "\n".join(parts)


def _cells(line: Line, domains: Sequence[str], tasks: Sequence[str]) -> list[str]:
    active = "" if line.active_ratio is None else f"{100 * line.active_ratio:.1f} %"
    return [
        line.method,
        f"{line.expert_bytes / 2**20:.2f} MiB",
        active,
        str(line.kl),
        f"{line.perplexity_ratio.mean:.3f}",
        f"{100 * line.same_top.mean:.1f} %",
        *(str(line.kl_by_domain[domain]) for domain in domains),
        *(f"{100 * line.tasks[task].mean:.1f} %" for task in tasks),
    ]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
