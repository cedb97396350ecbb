"""What was lost: by domain and by stage, in the routing, and where the two models disagree most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from tenp_edge.pages import plot
from tenp_edge.pages.document import Section, figure, folded, missing, paragraph, table
from tenp_edge.pages.markup import Child, joined, tag
from tenp_edge.pages.run_files import RunFiles
from tenp_edge.pages.svg import bar
from tenp_edge.units import nats

_STEPS = {
    "pruning": "after the cut",
    "quantisation": "after rounding",
    "runtime": "as it runs",
    "export": "as it runs",
}
_OPEN = 3  # examples that are not folded
# A 95 % interval of a mean is about two standard errors to both sides.
_SPREAD = 2.0


def losses(run: RunFiles) -> Section:
    """Mean KL of every domain after every stage, with its spread."""
    title, checked = "Loss by domain and by stage", run.validation
    if checked is None:
        return Section("losses", title, "", _missing(run))
    about = (
        "KL divergence of the next-token predictions from the whole model's, in nats per token: 0 "
        "is equal. Whiskers: where the mean lies with 95 % confidence, from sequence to sequence."
    )
    parts = [_bars(checked), folded("All numbers", _domains(checked))]
    if checked.get("losses_note"):
        parts.append(paragraph(f"{checked['losses_note']}.", kind="about"))
    return Section("losses", title, about, joined(parts))


def _missing(run: RunFiles, why: str = "") -> Markup:
    """``why`` a part of the validation is not there, or why there is none."""
    text = why if run.validation else f"Nothing was measured: {run.not_measured}."
    return missing(text)


def _bars(checked: Mapping[str, Any]) -> Markup:
    stages = checked["losses"] or [
        {"stage": "", "domains": checked["domains"], "overall": checked["overall"]}
    ]
    names = [row["domain"] for row in checked["domains"]]
    rows: list[Sequence[Child]] = []
    marked = []
    most = max(
        row["mean_kl"] + _SPREAD * (row.get("kl_error") or 0.0)
        for stage in stages
        for row in (*stage["domains"], stage["overall"])
    )
    for place, name in enumerate([*names, "all domains"]):
        for number, stage in enumerate(stages):
            row = stage["overall"] if place == len(names) else stage["domains"][place]
            error = row.get("kl_error")
            step = _STEPS.get(stage["stage"], stage["stage"])
            if number == len(stages) - 1:
                marked.append(len(rows))
            rows.append(
                (
                    "" if number else name,
                    step,
                    bar(row["mean_kl"], most, f"t{number}", _interval(row["mean_kl"], error)),
                    _with_error(row["mean_kl"], error),
                )
            )
    columns = ("domain", "stage", "", "mean KL, nats")
    return table("Mean KL by domain and stage", columns, rows, words=(1,), bars=(2,), marked=marked)


def _interval(mean: float, error: float | None) -> tuple[float, float] | None:
    return None if error is None else (mean - _SPREAD * error, mean + _SPREAD * error)


def _with_error(mean: float, error: float | None) -> Child:
    if error is None:
        return nats(mean)
    return nats(mean), tag("span", f" ± {_SPREAD * error:.2g}", class_="extra")


def _domains(checked: Mapping[str, Any]) -> Markup:
    """Every number of every domain, of the file as it runs."""
    rows = [
        (
            row["domain"],
            f"{row['tokens']:,}",
            nats(row["mean_kl"]),
            nats(row["kl_99"]),
            nats(row["max_kl"]),
            f"{100 * row['same_top']:.1f} %",
            f"{row['reference_perplexity']:.2f}",
            f"{row['candidate_perplexity']:.2f}",
            f"{100 * row['rms_delta_p']:.2f} %",
        )
        for row in (*checked["domains"], checked["overall"])
    ]
    columns = (
        *("domain", "tokens", "mean KL", "99 of 100 below", "largest", "same first token"),
        *("perplexity, whole", "perplexity, this", "change of the true token (RMS)"),
    )
    return table("The file as it runs, by domain", columns, rows)


# -- routing ---------------------------------------------------------------------------------------


def routing(run: RunFiles) -> Section:
    """How many of a token's experts are still the same, layer by layer."""
    title = "Routing before and after"
    found = (run.validation or {}).get("routing")
    if not found:
        text = (
            "The routing was not compared: validation ran without the stages between the two "
            "models, or the experts of one are not those of the other."
        )
        return Section("routing", title, "", _missing(run, text))
    shares = {int(layer): share for layer, share in found["layers"].items()}
    about = (
        f"Of the experts that the whole model chooses for a token, the share that this one "
        f"chooses too; {found['tokens']:,} tokens. The router is unchanged: what differs is "
        "what reaches it."
    )
    series = plot.Series("same experts", [_routed(*item) for item in sorted(shares.items())])
    drawn = plot.Plot(
        "Share of a token's experts that stay the same, by layer",
        f"From {100 * min(shares.values()):.1f} % to {100 * max(shares.values()):.1f} %.",
        _layer_axis(sorted(shares)),
        plot.linear_axis("same experts, %", [100.0, *(100 * value for value in shares.values())]),
        [series],
    )
    rows = [(layer, f"{100 * share:.2f} %") for layer, share in sorted(shares.items())]
    numbers = table("Same experts by layer", ("layer", "same experts"), rows)
    mean = sum(shares.values()) / len(shares)
    caption = f"{100 * mean:.1f} % over all layers."
    return Section("routing", title, about, figure(drawn.render(), caption, numbers))


def _routed(layer: int, share: float) -> plot.Point:
    return plot.Point(layer, 100 * share, title=f"layer {layer}: {100 * share:.2f} %")


def _layer_axis(layers: Sequence[int]) -> plot.Axis:
    every = max(1, round(len(layers) / 12))
    ticks = [(float(layer), str(layer)) for layer in layers[::every]]
    return plot.Axis("layer", layers[0] - 0.5, layers[-1] + 0.5, ticks)


# -- examples --------------------------------------------------------------------------------------


def examples(run: RunFiles) -> Section:
    """Places in the text where the predictions differ most."""
    title = "Where the two disagree most"
    found = (run.validation or {}).get("examples")
    if not found:
        text = "No places of the text were kept: validation stored none."
        return Section("examples", title, "", _missing(run, text))
    about = (
        "The worst places of the validation text, at most two of a sequence: what each model "
        "expected to come next, and what came, marked. Most places look nothing like these. They "
        "are pieces of the text that was validated on: read them before you share this page."
    )
    first, rest = (tag("ol", map(_example, part), class_="examples") for part in _parted(found))
    more = folded(f"{len(found) - _OPEN} more", rest) if len(found) > _OPEN else None
    return Section("examples", title, about, joined((first, more)))


def _parted(found: Sequence[Mapping[str, Any]]) -> Sequence[Sequence[Mapping[str, Any]]]:
    return found[:_OPEN], found[_OPEN:]


def _example(one: Mapping[str, Any]) -> Markup:
    text = tag(
        "blockquote",
        tag("span", _visible(one["before"]), class_="before"),
        tag("mark", _visible(one["next"])),
        tag("span", _visible(one["after"]), class_="after"),
    )
    tops = (
        _guesses("whole model", one["reference"], one["next"]),
        _guesses("this model", one["candidate"], one["next"]),
    )
    label = f"{one['domain']}, KL {nats(one['kl'])}"
    return tag("li", tag("h3", label), text, tag("div", tops, class_="tops"))


def _guesses(whose: str, guesses: Sequence[Mapping[str, Any]], right: str) -> Markup:
    def row(guess: Mapping[str, Any]) -> Sequence[Child]:
        is_right = guess["token"] == right
        token = tag("code", _visible(guess["token"]).replace("\n", ""))
        share = guess["probability"]
        kind = "p2" if is_right else "p0"
        return (
            (token, tag("small", " came") if is_right else None),
            bar(share, 1.0, kind),
            f"{100 * share:.1f} %",
        )

    return table(whose, ("token", "", "probability"), map(row, guesses), bars=(1,))


_SHOWN = str.maketrans({"\n": "↵\n", "\t": "→\t", "\r": "␍"})


def _visible(text: str) -> str:
    """Blanks of a single token can be seen; other control characters have no picture."""
    text = text.translate(_SHOWN)
    blank = not text.strip(" ") and text
    return "␣" * len(text) if blank else "".join(map(_plain, text))


def _plain(letter: str) -> str:
    return letter if letter in "\n\t" or letter.isprintable() else "�"
