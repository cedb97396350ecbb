"""What is asked, resolved once: the options merged with a device profile into a plan's spec."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import lcm

from tenp_edge.checkpoint.tensor_types import AUTO
from tenp_edge.errors import UserError
from tenp_edge.exporters.base import (
    KEEP,
    Exporter,
    ExportOptions,
    FixedLengths,
    WidthLimits,
    exporter,
)
from tenp_edge.exporters.mixing import Mixer
from tenp_edge.models.other_formats import SourceFormat
from tenp_edge.planning.options.devices import DeviceProfile
from tenp_edge.planning.options.methods import METHODS, Method, method_named
from tenp_edge.planning.options.settings import check
from tenp_edge.planning.options.spec import BLOCKS, PlanOptions
from tenp_edge.runtime.memory.footprint import MemoryRun


@dataclass(frozen=True)
class Target:
    """Options and profile merged: the file to be written and the run it is for."""

    profile: DeviceProfile
    exporter: Exporter
    options: ExportOptions
    width_multiple: int
    most_widths: int | None
    run: MemoryRun
    budget_bytes: int


@dataclass(frozen=True)
class PlanSpec:
    """All that is decided before widths are looked for.

    ``method``: as asked for; ``allocated``: the one that shares out the widths, another where the
    layout holds one width only. ``positions``: how many tokens the model knows. ``in_blocks``: no
    expert keeps a width that is no multiple of the target's, not even the full one.
    """

    options: PlanOptions
    method: Method
    allocated: Method
    target: Target
    positions: int
    in_blocks: bool = False

    def whole_blocks(self, full_width: int) -> PlanSpec | None:
        """The same with widths that are whole blocks of the tensor type (``in_blocks``), of experts
        of ``full_width`` neurons; None where they are so anyway, where not one fits, and where the
        user pinned widths or the size."""
        target = self.target
        block = target.exporter.width_limits(target.options).block
        multiple = lcm(target.width_multiple, block)
        pinned = self.options.width_multiple is not None or self.options.keep is not None
        if pinned or multiple == target.width_multiple or multiple > full_width:
            return None
        return replace(self, target=replace(target, width_multiple=multiple), in_blocks=True)

    def with_type(self, quant: str) -> PlanSpec:
        """The same with another tensor type."""
        options = replace(self.options, quant=quant)
        target = make_target(self.target.profile, options, self.positions)
        return replace(self, target=target, in_blocks=False)

    @property
    def sized(self) -> bool:
        """Whether the user pinned the type or the size: there is nothing to choose."""
        return self.options.quant is not None or self.options.keep is not None

    def choosable(self, types: Sequence[str]) -> tuple[str, ...]:
        """Those of ``types``, the most precise first, that may be chosen: what the device runs,
        from its default down. None where the user pinned the type or the size."""
        target, default = self.target, self.target.options.quant
        if self.sized or default not in types:
            return ()
        own_format = target.exporter.format == target.profile.format
        runs = target.profile.tensor_types if own_format else types
        wanted = (quant for quant in types[types.index(default) :] if quant in runs)
        return tuple(quant for quant in wanted if self.has(quant))

    def has(self, quant: str) -> bool:
        """Whether the format, the layout and the device have that type."""
        try:
            make_target(self.target.profile, replace(self.options, quant=quant), self.positions)
        except UserError:
            return False
        return True


def resolve(options: PlanOptions, profile: DeviceProfile, positions: int) -> PlanSpec:
    """The spec of ``options`` on ``profile``, for a model that knows ``positions`` tokens.

    Raises UserError for a value that no model could be planned with, or not this one.
    """
    check_options(options)
    options = without_auto(options)
    method, target = method_named(options.method), make_target(profile, options, positions)
    merged = target.options.layout == "merged" and method.one_width
    allocated = METHODS[method.one_width] if merged and method.one_width else method
    return PlanSpec(options, method, allocated, target, positions)


def without_auto(options: PlanOptions) -> PlanOptions:
    """``options`` with no type where they say auto. Raises UserError where a size is pinned."""
    if options.quant != AUTO:
        return options
    if options.keep is not None:
        raise UserError(
            "--quant auto chooses types for a number of bytes; --keep names none",
            "--ram 8GiB instead of --keep, or leave --quant out",
        )
    return replace(options, quant=None)


def check_options(options: PlanOptions) -> None:
    """Raise UserError for a value that no model could be planned with."""
    method_named(options.method).check(options)
    check(options)
    if options.down == BLOCKS and options.quant != KEEP:
        raise UserError(
            "--set down=blocks keeps the bytes of down, which another type would not have",
            "--quant keep",
        )
    alpha, keep = options.whole_share, options.keep
    if alpha is not None and keep is not None and alpha > keep:
        raise UserError(
            f"--set whole-share={alpha:g} is more than --keep {keep:g}: the whole experts alone "
            "would not fit",
            f"--set whole-share={keep / 2:g}",
        )
    if options.shallow == 0 and options.deep == 0:
        raise UserError("shallow and deep are both 0", "--set shallow=1 --set deep=2")


def make_target(profile: DeviceProfile, options: PlanOptions, positions: int) -> Target:
    """What the options pin, and the profile's choice for everything else.

    ``positions``: how many tokens the model knows. The profile's context ends there; raises
    UserError where the one asked for does not.
    """
    writer = exporter(options.format or profile.format)
    own_format = writer.format == profile.format
    layout = options.layout or (profile.layout if own_format else writer.layouts[0])
    quant = options.quant or (profile.default_tensor_type if own_format else writer.default_quant)
    if layout not in writer.layouts:
        raise UserError(
            f"format {writer.format} has no layout '{layout}'",
            f"--layout {'|'.join(writer.layouts)}",
        )
    own = (AUTO,) if isinstance(writer, Mixer) else ()
    own = (*own, KEEP) if isinstance(writer, SourceFormat) else own
    if quant not in (*writer.quants, *own):
        raise UserError(
            f"format {writer.format} cannot write {quant}", f"--quant {'|'.join(writer.quants)}"
        )
    if own_format and quant not in (*profile.tensor_types, *own):
        raise UserError(
            f"{profile.name} cannot run {quant}", f"--quant {'|'.join(profile.tensor_types)}"
        )
    imatrix = options.imatrix and quant in writer.weighted_quants
    limits = writer.width_limits(ExportOptions(quant, layout))
    run = MemoryRun(
        context=_context(profile, options, positions),
        ubatch=options.ubatch or profile.ubatch,
        kv_type=_kv_type(writer, profile, options),
        threads=profile.threads,
    )
    fixed = layout in writer.fixed_layouts
    if fixed:
        run = replace(run, ubatch=min(run.ubatch, run.context))
    elif options.batch is not None or options.targets:
        flag = "--set batch" if options.batch is not None else "--set target"
        raise UserError(
            f"{flag} is for fixed shapes; layout {layout} of format {writer.format} has none",
            "--format onnx --mode static",
        )
    return Target(
        profile=profile,
        exporter=writer,
        options=ExportOptions(
            quant,
            layout,
            imatrix,
            options.tensor_types,
            shard_bytes=options.shard_bytes,
            latent_cache=options.latent_cache,
            lengths=_fixed_lengths(run, options) if fixed else None,
            targets=options.targets or (profile.targets if fixed and own_format else ()),
        ),
        width_multiple=_width_multiple(limits, profile, options),
        most_widths=limits.most,
        run=run,
        budget_bytes=options.budget_bytes or profile.budget_bytes,
    )


def _context(profile: DeviceProfile, options: PlanOptions, positions: int) -> int:
    if options.context is None:
        return min(profile.context, positions)
    if options.context > positions:
        raise UserError(
            f"--context {options.context} is more than the {positions} tokens that the model knows",
            f"--context {positions}",
        )
    return options.context


def _fixed_lengths(run: MemoryRun, options: PlanOptions) -> FixedLengths:
    """The last token of the context need not be stored."""
    batch = 1 if options.batch is None else options.batch
    return FixedLengths(batch, run.ubatch, run.context - 1)


def _width_multiple(limits: WidthLimits, profile: DeviceProfile, options: PlanOptions) -> int:
    """The requested multiple, or the smallest one that is legal for profile and format."""
    multiple = options.width_multiple
    if multiple is not None and multiple % limits.multiple:
        raise UserError(
            f"--set width-multiple={multiple}: the format takes multiples of {limits.multiple}",
            f"--set width-multiple={limits.multiple}",
        )
    return multiple or lcm(profile.width_multiple, limits.multiple)


def _kv_type(writer: Exporter, profile: DeviceProfile, options: PlanOptions) -> str:
    """The requested type, or the profile's where the format can have it."""
    allowed = writer.kv_types
    if options.kv_type is not None and allowed and options.kv_type not in allowed:
        raise UserError(
            f"the KV cache of format {writer.format} is {allowed[0]}, not {options.kv_type}",
            f"--kv-type {'|'.join(allowed)}",
        )
    kv_type = options.kv_type or profile.kv_type
    return kv_type if not allowed or kv_type in allowed else allowed[0]
