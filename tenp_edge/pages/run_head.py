"""The top of a run's report: the verdict in words, and the four numbers behind it."""

from __future__ import annotations

from collections.abc import Iterator

from markupsafe import Markup

from tenp_edge.evaluation.hosts import runs_in
from tenp_edge.evaluation.verdict import LEVELS, Verdict, judge
from tenp_edge.pages.document import paragraph
from tenp_edge.pages.markup import Child, joined, tag
from tenp_edge.pages.run_files import RunFiles
from tenp_edge.units import format_size, nats


def head(run: RunFiles) -> Markup:
    """Name, verdict, figures."""
    verdict = quality(run)
    mood = "bad" if run.fits is False else None
    return joined(
        (
            paragraph(tag("b", "tenp-edge"), " report", kind="eyebrow"),
            tag("h1", _headline(run, verdict), class_=mood),
            paragraph(*_lead(run, verdict), kind="lead"),
            tag("dl", _figures(run, verdict), class_="figures"),
            _meter(verdict) if verdict else None,
        )
    )


def quality(run: RunFiles) -> Verdict | None:
    """None where nothing was measured."""
    checked = run.validation
    return None if checked is None else judge(checked["overall"], checked["domains"])


def _headline(run: RunFiles, verdict: Verdict | None) -> str:
    name = run.model
    budget, peak = map(_unbroken, (run.record.get("budget_bytes") or 0, run.memory["total_bytes"]))
    if run.fits is None:
        size = f"{name} in {peak} of memory"
    elif run.fits:
        size = f"{name} fits into {budget}"
    else:
        size = f"{name} does not fit into {budget}"
    if verdict is None:
        return size
    article = "" if verdict.difference == "almost no" else "a "
    but = ", but with" if run.fits is False else " with"
    return f"{size}{but} {article}{verdict.difference} difference to the whole model"


def _unbroken(nbytes: int) -> str:
    """A size whose unit stays on its line."""
    return format_size(nbytes).replace(" ", "\N{NO-BREAK SPACE}")


def _lead(run: RunFiles, verdict: Verdict | None) -> Iterator[Child]:
    keep = run.plan["keep_ratio"]
    some = f"{100 * keep:.1f} % of the experts' neurons stay"
    kept = "Every neuron of the experts stays" if keep == 1 else some
    yield f"{kept}, in {types_text(run)}. "
    if verdict is None:
        yield f"Its quality was not measured: {run.not_measured}. "
    else:
        yield from _measured(verdict)
    yield f"It runs in {runs_in(run.record.get('format'), run.record.get('layout'))}."


def _measured(verdict: Verdict) -> Iterator[str]:
    yield (
        f"On {verdict.tokens:,} tokens that calibration did not see, both models put the same "
        f"token first in {100 * verdict.same_top:.1f} % of places. "
    )
    if verdict.is_rough:
        yield "That is a rough figure, of few tokens. "
    if verdict.worse:
        worse = ", ".join(f"{word} on {name}" for name, word in verdict.worse.items())
        yield f"The difference is larger in some domains: {worse}. "


def types_text(run: RunFiles) -> str:
    """The types of the experts' matrices; vectors beside them are F32 and do not count."""
    shares = run.record.get("type_shares")
    if not shares:
        return str(run.record.get("quant") or "the model's own type")
    names = [name for name, share in shares.items() if name != "F32" or share > 0.5]
    return names[0] if len(names) == 1 else f"{len(names)} types, mostly {names[0]}"


def _figures(run: RunFiles, verdict: Verdict | None) -> Iterator[Markup]:
    memory, measured = run.memory, run.measured_bytes
    budget = run.record.get("budget_bytes")
    note = f"of {format_size(budget)} allowed" if budget else "no limit was set"
    if measured:
        yield _entry("peak memory, measured", format_size(measured), note)
    else:
        yield _entry("peak memory, predicted", format_size(memory["total_bytes"]), note)
    if verdict is not None:
        same = f"{100 * verdict.same_top:.1f} %"
        yield _entry("same first token", same, "as the whole model")
        yield _entry("mean KL divergence", nats(verdict.mean_kl), "nats per token; 0 is equal")
    written = file_bytes(run)
    if written:
        yield _entry("file", format_size(written), _made_of(run))
    if verdict is None and memory.get("context"):
        yield _entry("context", f"{memory['context']:,}", f"tokens, KV cache {memory['kv_type']}")


def _made_of(run: RunFiles) -> str:
    """The size of the original; format and layout where the run did not record it."""
    original = (run.environment or {}).get("model_bytes")
    if original:
        return f"the original: {format_size(original)}"
    return f"{str(run.record['format']).upper()}, {run.record['layout']}"


def file_bytes(run: RunFiles) -> int:
    """Of the exported model: what the plan says, which is what was written."""
    sizes = run.plan.get("files", {}).items()
    return sum(size for name, size in sizes if not name.startswith("checkpoint/"))


def _entry(name: str, value: str, note: str) -> Markup:
    return tag("div", tag("dt", name), tag("dd", value, tag("small", note)))


def _meter(verdict: Verdict) -> Markup:
    """The levels of difference, this one marked in words too."""

    def level(word: str, like: str) -> Markup:
        here = word == verdict.difference
        text = (tag("b", f"{word} difference"), tag("small", f"like {like}"))
        mark = tag("span", "this model", class_="here") if here else None
        return tag("li", text, mark, aria_current="true" if here else None)

    entries = (level(one.word, one.like) for one in LEVELS)
    label = "Levels of difference to the whole model, from the least to the most"
    about = (
        "How far it is from the whole model, on the scale of what llama.cpp's types, from 8 bits a "
        "weight (Q8_0) down to 2 (Q2_K), do to an 8 B model:"
    )
    levels = tag("ol", entries, class_="meter", aria_label=label)
    return joined((paragraph(about, kind="scale"), levels))
