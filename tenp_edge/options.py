"""What the verbs take, as frozen dataclasses, and what it means: the device and the plan's size."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path

from tenp_edge.devices import DeviceProfile, load_profile, load_profile_file, this_machine
from tenp_edge.errors import UserError
from tenp_edge.footprint import MemoryRun, known_kv_type
from tenp_edge.mending import MendRules
from tenp_edge.request import DEFAULT_METHOD, PlanRequest
from tenp_edge.units import parse_size


@dataclass(frozen=True)
class CalibrationOptions:
    """``data``: "name=path" of each domain, or a set that ships; empty means the bundled text."""

    data: tuple[str, ...] = ()
    samples: int = 32
    seq_len: int = 512
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"


@dataclass(frozen=True)
class PlanOptions:
    """The size (``ram``, ``profile`` or ``keep``) and every choice that can be pinned."""

    ram: str | None = None
    profile: str | None = None
    profile_file: Path | None = None
    keep: float | None = None
    method: str = DEFAULT_METHOD
    ranking: str | None = None
    unit: float | None = None
    tilt: float | None = None
    guards: tuple[str, ...] = ()
    protect: str | None = None
    expert_score: str = "tenp"
    neuron_score: str | None = None
    whole_share: float | None = None
    shallow: float | None = None
    middle: float | None = None
    deep: float | None = None
    width_multiple: int | None = None
    format: str | None = None
    layout: str | None = None
    quant: str | None = None
    context: int | None = None
    kv_type: str | None = None
    ubatch: int | None = None
    no_imatrix: bool = False
    tensor_types: tuple[str, ...] = ()
    latent_cache: bool = False
    shard_size: str | None = None
    batch: int | None = None
    targets: tuple[str, ...] = ()
    refine: bool = False


@dataclass(frozen=True)
class ValidationOptions:
    """``samples`` chunks of ``seq_len`` tokens per domain; scored on the second half of each.

    ``split``: tell pruning, quantisation and the runtime apart.
    """

    data: tuple[str, ...] = ()
    samples: int = 8
    seq_len: int = 512
    threads: int | None = None
    twin: bool = False
    split: bool = True


@dataclass(frozen=True)
class MeasureOptions:
    """The run whose peak memory `validate` measures; ``context`` None: 4096 tokens, or as many as
    the model has."""

    context: int | None = None
    kv_type: str = MemoryRun.kv_type
    ubatch: int = MemoryRun.ubatch

    def run(self, limit: int, threads: int) -> MemoryRun:
        """Of a model of ``limit`` tokens. Raises UserError for what no runtime can run."""
        known_kv_type(self.kv_type)
        for name, value in (("context", self.context), ("ubatch", self.ubatch)):
            if value is not None and value < 1:
                raise UserError(f"--{name} is {value}", f"--{name} of 1 or more")
        if self.context is not None and self.context > limit:
            raise UserError(
                f"--context {self.context} is more than the {limit} tokens of the model",
                f"--context {limit}",
            )
        context = self.context or min(MemoryRun.context, limit)
        return MemoryRun(context, self.ubatch, self.kv_type, threads)


@dataclass(frozen=True)
class CompressOptions:
    """``repair``, ``repair_ridge`` and ``heal`` change weights that stay (`mending`); where
    ``repair`` is None, the default method's are repaired."""

    calibration: CalibrationOptions = field(default_factory=CalibrationOptions)
    plan: PlanOptions = field(default_factory=PlanOptions)
    validation: ValidationOptions = field(default_factory=ValidationOptions)
    statistics: Path | None = None
    successive: bool = False
    repair: bool | None = None
    repair_ridge: float | None = None
    heal: str | None = None
    skip_checkpoint: bool = False
    no_validate: bool = False
    force: bool = False


@dataclass(frozen=True)
class CompareOptions:
    """``calibration.seed`` is the first of ``seeds`` calibrations; ``questions`` of each kind and
    domain; ``lm_eval`` task names, ``lm_eval_limit`` items of each (None: all)."""

    calibration: CalibrationOptions = field(default_factory=CalibrationOptions)
    validation: ValidationOptions = field(default_factory=ValidationOptions)
    ratios: tuple[float, ...] = (0.9, 0.75, 0.6, 0.45, 0.3)
    methods: tuple[str, ...] = ("table",)
    seeds: int = 3
    width_multiple: int = 1
    questions: int = 16
    lm_eval: tuple[str, ...] = ()
    lm_eval_limit: int | None = None


def choose_profile(options: PlanOptions) -> DeviceProfile:
    """The device: named, from a file, or this machine."""
    if options.profile and options.profile_file:
        raise UserError("--profile and --profile-file name two devices", "one of them")
    if options.profile_file:
        return load_profile_file(options.profile_file)
    return load_profile(options.profile) if options.profile else this_machine()


def plan_request(options: PlanOptions, profile: DeviceProfile, seed: int) -> PlanRequest:
    """The planner's input: --ram is the whole budget, a profile subtracts what its system keeps."""
    sized = [options.ram is not None, options.keep is not None]
    has_profile = bool(options.profile or options.profile_file)
    if all(sized) or not (any(sized) or has_profile):
        raise UserError(
            "one size is needed: --ram, --keep or --profile", "--ram 8GiB, or --keep 0.6"
        )
    # None: the profile's, which the planner knows.
    budget = None if options.ram is None else parse_size(options.ram)
    shared = {f.name for f in fields(PlanRequest)} & {f.name for f in fields(PlanOptions)}
    choices = {name: getattr(options, name) for name in shared}
    imatrix = not options.no_imatrix
    return PlanRequest(budget_bytes=budget, imatrix=imatrix, seed=seed, frontier=True, **choices)


def mend_rules(options: CompressOptions) -> MendRules | None:
    """What --repair and --heal ask for; None where no weight is to change."""
    by_default = options.plan.method == DEFAULT_METHOD
    repair = by_default if options.repair is None else options.repair
    if options.repair_ridge is not None and not repair:
        raise UserError("--repair-ridge says how to repair, and nothing is repaired", "--repair")
    if not repair and options.heal is None:
        return None
    ridge = {} if options.repair_ridge is None else {"repair_ridge": options.repair_ridge}
    rules = MendRules(repair=repair, heal=options.heal, **ridge)
    rules.check()
    return rules
