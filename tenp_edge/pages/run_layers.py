"""What is left of every layer: widths by expert, types by role, and what repair mended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from statistics import median
from typing import Any

from markupsafe import Markup

from tenp_edge.checkpoint.tensor_types import TensorTypes, types_of_json
from tenp_edge.errors import UserError
from tenp_edge.pages.document import Section, folded, missing, paragraph, table
from tenp_edge.pages.heat import heat_map
from tenp_edge.pages.markup import Child, joined
from tenp_edge.pages.run_files import RunFiles
from tenp_edge.pages.svg import Piece, bar, stacked, swatch
from tenp_edge.units import nats

# From the most bits to the fewest; a type of neither name comes last.
_COLOURS = 7  # the last one


def widths(run: RunFiles) -> Section:
    """The heat map, and a row of numbers a layer."""
    rows = widths_of(run)
    full = run.plan["moe_intermediate_size"]
    keep = run.plan["keep_ratio"]
    if keep == 1:
        text = f"Nothing was cut: every expert keeps its {full} neurons."
        return Section("widths", "Widths by layer and expert", "", missing(text))
    about = (
        f"Every expert had {full} neurons; {100 * keep:.1f} % of them all stay. Rows are layers, "
        "columns are experts; the stronger the colour, the wider. Experts that your text needs "
        "little are cut most."
    )
    body = joined((heat_map(rows, full), folded("The numbers", _width_table(run, rows, full))))
    return Section("widths", "Widths by layer and expert", about, body)


def widths_of(run: RunFiles) -> dict[int, list[int]]:
    """Layer -> kept width of each expert."""
    return {int(layer): list(row) for layer, row in sorted(run.plan["widths"].items(), key=_number)}


def _number(item: tuple[str, Any]) -> int:
    return int(item[0])


def _width_table(run: RunFiles, rows: Mapping[int, Sequence[int]], full: int) -> Markup:
    mended = (run.mended or {}).get("layers", {})
    columns: list[Child] = ["layer", "", "kept", "whole", "narrowest", "median", "widest", "none"]
    columns += ["loss of the cut", "after repair"] if mended else []
    made: list[Sequence[Child]] = []
    for layer, row in rows.items():
        share = sum(row) / (full * len(row))
        cells: list[Child] = [
            layer,
            bar(share, 1.0),
            f"{100 * share:.1f} %",
            sum(width == full for width in row),
            min(row),
            f"{median(row):g}",
            max(row),
            sum(width == 0 for width in row),
        ]
        if mended:
            repaired = mended.get(str(layer), {})
            cells += [_loss(repaired, "loss_cut"), _loss(repaired, "loss")]
        made.append(cells)
    return joined((table("Widths by layer", columns, made, bars=(1,)), _repair_note(run)))


def _loss(layer: Mapping[str, Any], name: str) -> str:
    return nats(layer[name]) if name in layer else ""


def _repair_note(run: RunFiles) -> Markup | None:
    if run.mended is None:
        return None
    count = sum(layer.get("repaired", 0) for layer in run.mended["layers"].values())
    text = (
        f"After the cut the output matrices of {count} experts were fitted anew to what the whole "
        "experts give. The losses are those of a layer's output, relative to the stream it joins."
    )
    return paragraph(text, kind="about")


# -- types -----------------------------------------------------------------------------------------


def types(run: RunFiles) -> Section:
    """The type of every expert's matrices and of every other matrix, by layer and role."""
    title = "Types by layer and role"
    chosen = _types_of(run)
    if chosen is None:
        quant = run.record.get("quant") or "the model's own type"
        text = (
            f"All matrices take {quant}; those whose rows its blocks do not fill take the "
            "nearest type that fits. The plan chose no types of its own."
        )
        return Section("types", title, "", missing(text))
    shown = _TypeTable(chosen, run)
    about = (
        "A type says how many bits a weight takes. Each expert has one for gate and up and one for "
        "down. Types with more bits went where rounding would hurt most."
    )
    return Section("types", title, about, joined((shown.shares(), shown.render())))


def _types_of(run: RunFiles) -> TensorTypes | None:
    raw = run.plan.get("types")
    if not isinstance(raw, dict):
        return None
    try:
        return types_of_json(raw, {layer: len(row) for layer, row in widths_of(run).items()})
    except UserError:
        return None


class _TypeTable:
    """Rows are layers; the last row is what lies outside all layers."""

    def __init__(self, types: TensorTypes, run: RunFiles) -> None:
        self.types, self.run = types, run
        self.rows = widths_of(run)
        self.keeps_places = run.plan.get("keeps_places") is True

    @cached_property
    def names(self) -> list[str]:
        return sorted(self.types.names, key=lambda name: _by_bits((name, 0)))

    def kind(self, name: str) -> str:
        """The colour of a type: neighbours in bits have neighbouring colours; what no matrix has
        is the last one's."""
        place = self.names.index(name) if name in self.names else _COLOURS
        return f"q{min(place, _COLOURS)}"

    def _said(self, name: str) -> str:
        return name if name in self.names else f"{name}: biases and scales"

    @cached_property
    def by_layer(self) -> dict[int, dict[str, str]]:
        """Layer -> role -> type, of matrices outside the experts."""
        found: dict[int, dict[str, str]] = {}
        for key, name in self.types.others.items():
            layer, dot, role = key.partition(".")
            if dot and layer.isdecimal():
                found.setdefault(int(layer), {})[role] = name
        return dict(sorted(found.items()))

    def shares(self) -> Markup:
        """All the experts' bytes by type, in one bar."""
        shares = self.run.record.get("type_shares") or {}
        pieces = [
            Piece(share, self.kind(name), f"{name}: {100 * share:.1f} %")
            for name, share in sorted(shares.items(), key=_by_bits)
        ]
        written = {name: f"{100 * share:.1f} %" for name, share in shares.items()}
        names = sorted({*self.names, *shares}, key=lambda name: _by_bits((name, 0)))
        rows = [((swatch(self.kind(n)), self._said(n)), written.get(n, "-")) for n in names]
        numbers = table("Share of the experts' bytes by type", ("type", "of the experts"), rows)
        return joined((stacked(pieces, sum(piece.size for piece in pieces)), numbers))

    def render(self) -> Markup:
        roles = list(dict.fromkeys(role for row in self.by_layer.values() for role in row))
        columns = ["layer", "experts: gate, up", "experts: down", *map(_role, roles)]
        layers = sorted({*self.rows, *self.by_layer})
        rows = [self._row(layer, roles) for layer in layers]
        outside = {key: name for key, name in self.types.others.items() if "." not in key}
        listed = ", ".join(f"{_role(key)} {name}" for key, name in outside.items())
        note = paragraph(f"Outside the layers: {listed}.", kind="about") if outside else None
        words = range(1, len(columns))
        made = table("Types by layer and role", columns, rows, words=words)
        return joined((folded("Every layer", (made, note)),))

    def _row(self, layer: int, roles: Sequence[str]) -> Sequence[Child]:
        others = self.by_layer.get(layer, {})
        experts = [self._experts(layer, part) for part in ("gate", "down")]
        return [layer, *experts, *(self._one(others.get(role)) for role in roles)]

    def _experts(self, layer: int, part: str) -> Child:
        if layer not in self.rows:
            return "-"
        named = self.types.row(layer, part)
        kept = (
            name
            for name, width in zip(named, self.rows[layer], strict=True)
            if width or self.keeps_places
        )
        counts = sorted(Counter(kept).items(), key=_by_bits)
        pieces = [Piece(count, self.kind(name)) for name, count in counts]
        text = ", ".join(f"{count} {name}" for name, count in counts)
        return joined((stacked(pieces, sum(count for _, count in counts)), text))

    def _one(self, name: str | None) -> Child:
        return "-" if name is None else joined((swatch(self.kind(name)), name))


def _role(role: str) -> str:
    return role.replace("_", " ")


def _by_bits(item: tuple[str, float]) -> tuple[float, str]:
    """From the most bits to the fewest, then by name."""
    return -_bits(item[0]), item[0]


def _bits(name: str) -> float:
    """About how many bits a weight of the type takes, by its name: for the order alone."""
    digits = next(_digits(name), "99")
    return float(digits) + (0.5 if name.startswith("Q") and name.endswith("1") else 0.0)


def _digits(name: str) -> Iterator[str]:
    run = ""
    for letter in f"{name} ":
        if letter.isdigit():
            run += letter
        elif run:
            yield run
            run = ""
