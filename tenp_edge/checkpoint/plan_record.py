"""What a plan remembers: how it was made and what it predicts. Typed; JSON in plan.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from tenp_edge.errors import UserError

# Left out of the JSON where there is none.
_OPTIONAL = (
    "trapezoid",
    "active_ratio",
    "predicted_loss",
    "predicted_kl",
    "predicted_kl_range",
    "type_kl",
    "type_choice",
    "type_shares",
    "chosen_by",
    "refined",
    "way",
)


@dataclass(frozen=True)
class TrapezoidRecord:
    """alpha (``whole_share``), beta and the shape, as they really are in the widths; ``pinned``:
    what the user said of them."""

    whole_share: float
    whole_experts: tuple[int, ...]
    narrow_width: int
    beta: float
    shallow: float
    deep: float
    middle: float
    slope: float
    pinned: tuple[str, ...]


@dataclass(frozen=True)
class PlanRecord:
    """``method`` as asked for, ``allocation`` the form of the widths; ``keep_ratio_target`` what
    was asked for where a share was; ``budget_bytes`` None where only a share was.

    ``format`` to ``targets`` are the file's, as in `base.ExportOptions`. ``layer_retention`` is
    the share of the neurons that stays in each layer, ``model_retention`` of all parameters,
    ``active_ratio`` of the routed width of a token. Nats per token: ``predicted_kl`` by pruning,
    ``predicted_kl_range`` where it lies in nine cases of ten, ``type_kl`` by the type.
    ``unreached``: (layer, expert) that no calibration token chose. ``type_shares``:
    share of the experts' bytes by type, where the plan names types itself. ``type_choice``,
    ``frontier``, ``way`` and ``refined`` are what was weighed, as JSON values.
    """

    method: str = ""
    allocation: str = ""
    keep_ratio_target: float = 1.0
    keep_ratio: float = 1.0
    fits_whole: bool = False
    budget_bytes: int | None = None
    width_multiple: int = 1
    format: str = ""
    layout: str = ""
    quant: str = ""
    imatrix: bool = False
    tensor_types: tuple[str, ...] = ()
    shard_bytes: int | None = None
    latent_cache: bool = False
    lengths: Mapping[str, int] | None = None
    targets: tuple[str, ...] = ()
    expert_score: str | None = None
    neuron_score: str | None = None
    seed: int = 0
    layer_retention: Mapping[str, float] | None = None
    model_retention: float = 1.0
    trapezoid: TrapezoidRecord | None = None
    active_ratio: float | None = None
    predicted_loss: float | None = None
    unreached: tuple[tuple[int, int], ...] = ()
    notes: tuple[str, ...] = ()
    predicted_kl: float | None = None
    predicted_kl_range: tuple[float, ...] | None = None
    type_kl: float | None = None
    frontier: tuple[Mapping[str, Any], ...] = ()
    type_choice: Mapping[str, Any] | None = None
    way: Mapping[str, Any] | None = None
    chosen_by: str | None = None
    refined: Mapping[str, Any] | None = None
    type_shares: Mapping[str, float] | None = None

    @property
    def file(self) -> str:
        """What is written: "gguf, per-expert, Q8_0"."""
        return written_file(self.format, self.layout, self.quant)

    def to_json(self) -> dict[str, Any]:
        return {
            name: value
            for name, value in asdict(self).items()
            if value is not None or name not in _OPTIONAL
        }


def written_file(format: str, layout: str, quant: str) -> str:
    """Kind of a file, to be shown and compared."""
    return f"{format}, {layout}, {quant}"


def record_of(raw: Mapping[str, Any]) -> PlanRecord:
    """The record in a plan.json. Raises UserError naming a field that is not one's value."""
    known = _typed(PlanRecord, raw)
    trapezoid = known.pop("trapezoid", None)
    if trapezoid is not None:
        known["trapezoid"] = TrapezoidRecord(**_typed(TrapezoidRecord, trapezoid))
    return PlanRecord(**known)


def _typed(declared: type, raw: Mapping[str, Any]) -> dict[str, Any]:
    hints, values = get_type_hints(declared), {}
    for field in fields(declared):
        if field.name in raw:
            kinds, many = _kinds(hints[field.name])
            value = raw[field.name]
            if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
                raise UserError(f"the plan's record: '{field.name}' is malformed", "plan again")
            values[field.name] = _deep(value) if many else value
    return values


def _deep(value: Any) -> Any:
    """Lists of numbers, text or such lists as tuples."""
    return tuple(map(_deep, value)) if isinstance(value, list) else value


def _kinds(hint: Any) -> tuple[tuple[type, ...], bool]:
    """What JSON has for a field of this type, and whether it is a list."""
    options = get_args(hint) if get_origin(hint) is UnionType else (hint,)
    kinds: list[type] = []
    for option in options:
        origin = get_origin(option) or option
        if origin is tuple:
            return (list,), True
        if origin is float:
            kinds += [float, int]
        elif origin in (int, str, bool, NoneType):
            kinds.append(origin)
        else:
            kinds.append(dict)
    return tuple(kinds), False
