"""What is asked of the planner, checked, and merged with a device profile into a target."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import lcm

from tenp_edge.devices import DeviceProfile
from tenp_edge.errors import UserError
from tenp_edge.footprint import MemoryRun, known_kv_type
from tenp_edge.insurance import NO_INSURANCE, PROTECTION, Insurance
from tenp_edge.registry import (
    Exporter,
    ExportOptions,
    FixedLengths,
    WidthLimits,
    exporter,
)
from tenp_edge.saliency import EXPERT_SCORES, JOINT, NEURON_SCORES, ORDERS, RELATIVE
from tenp_edge.units import parse_size

METHODS = ("tenp", "enp", "drop", "free", "adaptive")
DEFAULT_METHOD = "adaptive"  # of the verbs; `PlanRequest` itself starts from the paper
FREE_METHODS = ("free", "adaptive")  # every expert its own width
RANKINGS = ("global", "layer", "trapezoid", "coverage")
DEFAULT_PROTECTION = "none"
GUARDS = ("super", "tail")


@dataclass(frozen=True)
class PlanRequest:
    """What the user asks for; None leaves the choice to the profile or the planner.

    ``budget_bytes`` is the peak resident memory that the run may reach; ``keep`` (rho) pins the
    size instead. ``whole_share`` is alpha; ``shallow``, ``deep`` and ``middle`` shape the
    trapezoid (`allocation.Shape`); ``ranking``, ``unit``, ``tilt`` and ``guards`` are for the
    methods of free widths (`search.FreeRules`), ``protect`` (`insurance.PROTECTION`) for
    adaptive. ``imatrix`` is whether the file
    will be quantised with the importance of its columns, ``tensor_types`` as in
    `registry.ExportOptions`. ``frontier`` adds the method's plans at other sizes to the recipe.
    ``batch`` and ``targets`` are for layouts of fixed shapes.
    """

    budget_bytes: int | None = None
    keep: float | None = None
    method: str = "tenp"
    expert_score: str = "tenp"
    neuron_score: str | None = None
    whole_share: float | None = None
    shallow: float | None = None
    deep: float | None = None
    middle: float | None = None
    ranking: str | None = None
    unit: float | None = None
    tilt: float | None = None
    guards: tuple[str, ...] = ()
    protect: str | None = None
    width_multiple: int | None = None
    quant: str | None = None
    layout: str | None = None
    format: str | None = None
    context: int | None = None
    kv_type: str | None = None
    ubatch: int | None = None
    imatrix: bool = True
    tensor_types: tuple[str, ...] = ()
    latent_cache: bool = False
    shard_size: str | None = None
    batch: int | None = None
    targets: tuple[str, ...] = ()
    seed: int = 0
    frontier: bool = False


@dataclass(frozen=True)
class Target:
    """Request and profile merged: the file to be written and the run it is for."""

    profile: DeviceProfile
    exporter: Exporter
    options: ExportOptions
    width_multiple: int
    most_widths: int | None
    run: MemoryRun
    budget_bytes: int


def check_request(request: PlanRequest) -> None:
    """Raise UserError for a value that no model could be planned with."""
    if request.method not in METHODS:
        raise UserError(f"--method {request.method} is not known", f"--method {'|'.join(METHODS)}")
    if request.ranking is not None and request.ranking not in RANKINGS:
        raise UserError(f"no ranking '{request.ranking}'", "|".join(RANKINGS))
    if request.protect is not None and request.protect not in PROTECTION:
        raise UserError(
            f"--protect {request.protect} is not known", f"--protect {'|'.join(PROTECTION)}"
        )
    for guard in request.guards:
        if guard not in GUARDS:
            raise UserError(f"--guard {guard} is not known", f"--guard {'|'.join(GUARDS)}")
    for flag, name, table in (
        ("--expert-score", request.expert_score, EXPERT_SCORES),
        ("--neuron-score", request.neuron_score, NEURON_SCORES),
    ):
        if name is not None and name not in table:
            raise UserError(f"{flag} {name} is not known", f"{flag} {'|'.join(table)}")
    if request.method == "free" and request.neuron_score in ORDERS:
        raise UserError(
            f"--neuron-score {request.neuron_score} orders the neurons of an expert; --method free "
            "compares those of all experts",
            f"--method adaptive --neuron-score {request.neuron_score}",
        )
    if request.keep is not None and not 0 < request.keep <= 1:
        raise UserError(f"--keep {request.keep:g} is not a share of the experts", "--keep 0.6")
    if request.kv_type is not None:
        known_kv_type(request.kv_type)
    _check_shape_flags(request)
    for flag, value in (
        ("--width-multiple", request.width_multiple),
        ("--context", request.context),
        ("--ubatch", request.ubatch),
        ("--ram", request.budget_bytes),
    ):
        if value is not None and value < 1:
            raise UserError(f"{flag} {value} is not above zero", f"{flag} with a number above zero")


def _check_shape_flags(request: PlanRequest) -> None:
    alpha, keep = request.whole_share, request.keep
    if alpha is not None and not 0 <= alpha <= 1:
        raise UserError(f"--whole-share {alpha:g} is not a share", "--whole-share 0.3")
    if alpha is not None and keep is not None and alpha > keep:
        raise UserError(
            f"--whole-share {alpha:g} is more than --keep {keep:g}: the whole experts alone "
            "would not fit",
            f"--whole-share {keep / 2:g}",
        )
    for flag, value in (
        ("--shallow", request.shallow),
        ("--deep", request.deep),
        ("--middle", request.middle),
    ):
        if value is not None and value < 0:
            raise UserError(f"{flag} {value:g} is negative", f"{flag} with a weight from 0 up")
    if request.shallow == 0 and request.deep == 0:
        raise UserError("--shallow and --deep are both 0", "--shallow 1 --deep 2")


def make_target(profile: DeviceProfile, request: PlanRequest, positions: int) -> Target:
    """What the request pins, and the profile's choice for everything else.

    ``positions``: how many tokens the model knows. The profile's context ends there; raises
    UserError where the request's does not.
    """
    found = exporter(request.format or profile.format)
    own_format = found.format == profile.format
    layout = request.layout or (profile.layout if own_format else found.layouts[0])
    quant = request.quant or (profile.default_tensor_type if own_format else found.default_quant)
    if layout not in found.layouts:
        raise UserError(
            f"format {found.format} has no layout '{layout}'", f"--layout {'|'.join(found.layouts)}"
        )
    if quant not in found.quants:
        raise UserError(
            f"format {found.format} cannot write {quant}", f"--quant {'|'.join(found.quants)}"
        )
    if own_format and quant not in profile.tensor_types:
        raise UserError(
            f"{profile.name} cannot run {quant}", f"--quant {'|'.join(profile.tensor_types)}"
        )
    imatrix = request.imatrix and quant in found.weighted_quants
    limits = found.width_limits(ExportOptions(quant, layout))
    run = MemoryRun(
        context=_context(profile, request, positions),
        ubatch=request.ubatch or profile.ubatch,
        kv_type=_kv_type(found, profile, request),
        threads=profile.threads,
    )
    fixed = layout in found.fixed_layouts
    if fixed:
        run = replace(run, ubatch=min(run.ubatch, run.context))
    elif request.batch is not None or request.targets:
        flag = "--batch" if request.batch is not None else "--target"
        raise UserError(
            f"{flag} is for fixed shapes; layout {layout} of format {found.format} has none",
            "--format onnx --mode static",
        )
    return Target(
        profile=profile,
        exporter=found,
        options=ExportOptions(
            quant,
            layout,
            imatrix,
            request.tensor_types,
            shard_bytes=None if request.shard_size is None else parse_size(request.shard_size),
            latent_cache=request.latent_cache,
            lengths=_fixed_lengths(run, request) if fixed else None,
            targets=request.targets or (profile.targets if fixed and own_format else ()),
        ),
        width_multiple=_width_multiple(limits, profile, request),
        most_widths=limits.most,
        run=run,
        budget_bytes=request.budget_bytes or profile.budget_bytes,
    )


def _context(profile: DeviceProfile, request: PlanRequest, positions: int) -> int:
    if request.context is None:
        return min(profile.context, positions)
    if request.context > positions:
        raise UserError(
            f"--context {request.context} is more than the {positions} tokens that the model knows",
            f"--context {positions}",
        )
    return request.context


def _fixed_lengths(run: MemoryRun, request: PlanRequest) -> FixedLengths:
    """The last token of the context need not be stored."""
    batch = 1 if request.batch is None else request.batch
    return FixedLengths(batch, run.ubatch, run.context - 1)


def _width_multiple(limits: WidthLimits, profile: DeviceProfile, request: PlanRequest) -> int:
    """The requested multiple, or the smallest one that is legal for profile and format."""
    wanted = request.width_multiple
    if wanted is not None and wanted % limits.multiple:
        raise UserError(
            f"--width-multiple {wanted}: the format takes multiples of {limits.multiple}",
            f"--width-multiple {limits.multiple}",
        )
    return wanted or lcm(profile.width_multiple, limits.multiple)


def _kv_type(found: Exporter, profile: DeviceProfile, request: PlanRequest) -> str:
    """The requested type, or the profile's where the format can have it."""
    allowed = found.kv_types
    if request.kv_type is not None and allowed and request.kv_type not in allowed:
        raise UserError(
            f"the KV cache of format {found.format} is {allowed[0]}, not {request.kv_type}",
            f"--kv-type {'|'.join(allowed)}",
        )
    wanted = request.kv_type or profile.kv_type
    return wanted if not allowed or wanted in allowed else allowed[0]


def neuron_score(request: PlanRequest, joint: bool = True) -> str:
    """The requested score; one that compares neurons of all experts for free widths, else ENP.

    ``joint``: whether the statistics know what neurons cost together.
    """
    own = {"free": "energy", "adaptive": JOINT if joint else RELATIVE}
    return request.neuron_score or own.get(request.method, "enp")


def insurance(request: PlanRequest) -> Insurance:
    """What the requested protection adds to the losses; only adaptive has one."""
    if request.method != "adaptive":
        return NO_INSURANCE
    return PROTECTION[request.protect or DEFAULT_PROTECTION]


def method_of(request: PlanRequest, target: Target) -> str:
    """The allocation that is used: a merged file holds one width, so it takes the uniform one."""
    if target.options.layout == "merged" and request.method in ("tenp", *FREE_METHODS):
        return "enp"
    return request.method
