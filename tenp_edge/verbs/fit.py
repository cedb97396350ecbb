"""`fit`: what of a model fits here, from its headers alone, before anything is downloaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tenp_edge import machine
from tenp_edge.checkpoint.compression_plan import Widths
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.models.inspection import ModelSummary, inspect_model
from tenp_edge.planning.budget.search import make_space, sufficient, whole_widths
from tenp_edge.planning.memory.pricing import Priced, Pricer
from tenp_edge.planning.memory.table import decode_tokens_per_second
from tenp_edge.planning.options.devices import AUTO, DeviceProfile
from tenp_edge.planning.options.settings import check
from tenp_edge.planning.options.spec import PlanOptions
from tenp_edge.planning.options.target import resolve
from tenp_edge.runtime.memory.bandwidth import read_bandwidth
from tenp_edge.runtime.memory.footprint import RunMemory
from tenp_edge.verbs.fit_options import FitOptions
from tenp_edge.verbs.hub_headers import fetch_headers
from tenp_edge.verbs.sizes import choose_profile

# From the most precise to the smallest that people still use.
TYPES = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS", "Q3_K_M", "Q2_K")
# The rule of `plan` without a calibration: the most precise type that keeps this share.
_WANTED = 0.65


@dataclass(frozen=True)
class Fit:
    """What fits in one type. ``kept``: share of the experts' neurons, 0 where nothing fits;
    ``whole_peak_bytes``: what the whole model would take; ``step``: the share of an expert by which
    its width may change."""

    quant: str
    kept: float
    file_bytes: int
    peak_bytes: int
    tokens_per_second: float
    whole_peak_bytes: int
    step: float


@dataclass(frozen=True)
class Fitting:
    """``stored_bytes``: to be downloaded; ``read_bytes``: that were, None for a model that is
    here; ``bandwidth``: bytes of memory a second, ``measured`` here or as the profile says."""

    model: str
    summary: ModelSummary
    stored_bytes: int
    read_bytes: int | None
    budget_bytes: int
    device: str
    context: int
    bandwidth: float
    measured: bool
    fits: tuple[Fit, ...]

    @property
    def best(self) -> Fit | None:
        """The most precise type that keeps 65 % of the neurons; else what keeps most."""
        kept = [fit for fit in self.fits if fit.kept > 0]
        enough = [fit for fit in kept if fit.kept >= _WANTED]
        return enough[0] if enough else max(kept, key=lambda fit: fit.kept, default=None)

    @property
    def needed(self) -> str:
        """A --ram that the whole model in the smallest type would take: "12.31GiB"."""
        return sufficient(min(fit.whole_peak_bytes for fit in self.fits))

    def to_json(self) -> dict[str, Any]:
        best = self.best
        return {
            "model": self.model,
            "family": self.summary.family,
            "parameters": self.summary.parameters,
            "active_parameters": self.summary.active_parameters,
            "stored_bytes": self.stored_bytes,
            "read_bytes": self.read_bytes,
            "budget_bytes": self.budget_bytes,
            "device": self.device,
            "context": self.context,
            "bandwidth_bytes_per_second": self.bandwidth,
            "bandwidth_measured": self.measured,
            "best": None if best is None else best.quant,
            "fits": [asdict(fit) for fit in self.fits],
        }


def run_fit(
    model: str, options: FitOptions, file: str | None = None, revision: str | None = None
) -> Fitting:
    """What of ``model`` fits: a directory, a GGUF, or OWNER/NAME on the hub (``file``: one of its
    GGUFs; at ``revision``), of which headers are read.

    Raises UserError for a model that cannot be planned, and where a hub id cannot be looked up.
    """
    check(options)
    path = Path(model)
    if path.exists():
        return _fitting(model, path, options, None)
    with TemporaryDirectory(prefix="tenp-edge-fit-") as directory:
        place = Path(directory) / model.rpartition("/")[2]  # which files are named after
        place.mkdir()
        fetched = fetch_headers(model, place, file, revision)
        return _fitting(model, fetched.path, options, fetched.read_bytes)


def _fitting(model: str, path: Path, options: FitOptions, read: int | None) -> Fitting:
    plan = PlanOptions(profile=options.profile, context=options.context, kv_type=options.kv_type)
    profile = choose_profile(plan)
    is_here = (options.profile or AUTO).lower() == AUTO
    if is_here:
        bandwidth = round(read_bandwidth(machine.physical_cores()))
        profile = replace(profile, memory_bandwidth_bytes_per_second=bandwidth)
    budget = options.budget_bytes or profile.budget_bytes
    plan = replace(plan, budget_bytes=budget)
    checkpoint, summary = Checkpoint(path), inspect_model(path)
    fits = tuple(_fits(checkpoint, profile, plan))
    return Fitting(
        model=model,
        summary=summary,
        stored_bytes=summary.bytes,
        read_bytes=read,
        budget_bytes=budget,
        device=profile.name,
        context=resolve(plan, profile, summary.context).target.run.context,
        bandwidth=profile.memory_bandwidth_bytes_per_second,
        measured=is_here,
        fits=fits,
    )


def _fits(checkpoint: Checkpoint, profile: DeviceProfile, plan: PlanOptions) -> Iterator[Fit]:
    positions = checkpoint.config.max_position_embeddings
    known = resolve(plan, profile, positions).target
    answer: RunMemory | None = None
    types = TYPES if known.exporter.format == "gguf" else known.exporter.quants
    for quant in (quant for quant in types if quant in profile.tensor_types):
        target = resolve(replace(plan, quant=quant), profile, positions).target
        space = make_space(checkpoint.config, target.width_multiple)
        pricer = Pricer(checkpoint, target, answer)
        # The runtime is asked once: what a run takes beside its weights hardly depends on them.
        whole = (pricer if answer else pricer.confirm)(whole_widths(space))
        answer = pricer.answer
        found = _largest(pricer, whole, target.width_multiple)
        shown = found or whole
        speed = decode_tokens_per_second(shown.config, shown.manifest, profile, target.run)
        yield Fit(
            quant,
            0.0 if found is None else found.keep_ratio,
            shown.manifest.file_bytes,
            shown.memory.total_bytes,
            round(speed, 2),
            whole.memory.total_bytes,
            target.width_multiple / whole.full_width,
        )


def _largest(pricer: Pricer, whole: Priced, multiple: int) -> Priced | None:
    """The widest experts, all of one width, whose run is within the budget: bytes are nearly
    linear in the width, so two prices give a guess and a few more confirm it."""
    if whole.memory.headroom_bytes >= 0:
        return whole
    full = whole.full_width
    narrowest = pricer(_uniform(whole.widths, multiple))
    if narrowest.memory.headroom_bytes < 0:
        return None
    span = whole.memory.total_bytes - narrowest.memory.total_bytes
    part = narrowest.memory.headroom_bytes / max(span, 1)
    width = multiple + int(part * (full - multiple)) // multiple * multiple
    while width > multiple:
        priced = pricer(_uniform(whole.widths, width))
        if priced.memory.headroom_bytes >= 0:
            return priced
        width -= multiple
    return narrowest


def _uniform(widths: Widths, width: int) -> Widths:
    return {layer: (width,) * len(row) for layer, row in widths.items()}
