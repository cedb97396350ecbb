"""What people see of models and devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tenp_edge.models.wrapper import kinds_text, left_out_kinds
from tenp_edge.units import counted, format_count, format_size, percent

if TYPE_CHECKING:  # torch takes a second to load, and some verbs never need it
    from tenp_edge.models.inspection import ModelSummary, PartSize
    from tenp_edge.planning.options.devices import DeviceProfile
from tenp_edge.cli.report.entries import Entries
from tenp_edge.cli.report.rich_tables import table


def summary(inspected: ModelSummary) -> RenderableType:
    """``tenp-edge inspect``: a few lines of facts and the bytes by part."""
    narrow, wide = inspected.width_min, inspected.width_max
    widths = f"{narrow}..{wide} of {inspected.width}" if narrow < wide else wide
    lines = [
        f"{inspected.family}: {inspected.layers} layers, {inspected.moe_layers} of them with "
        f"{inspected.experts} experts (top-{inspected.experts_per_token}), "
        f"expert width {widths}, "
        f"hidden {inspected.hidden_size}, context {inspected.context}",
        f"{format_count(inspected.parameters)} parameters, "
        f"{format_count(inspected.active_parameters)} active per token, "
        f"{', '.join(inspected.dtypes)} in {inspected.files} file(s)",
    ]
    if inspected.quantised:
        kinds = [f"{kind} ({format_size(size)})" for kind, size in inspected.quantised.items()]
        lines.append(f"quantised: {', '.join(kinds)}; read decoded, a matrix at a time")
    if inspected.pruned:
        lines.append(
            f"pruned ({inspected.method}): keeps {percent(inspected.keep_ratio)} "
            "of the routed-expert neurons"
        )
    if inspected.left_out:
        lines.append(
            f"left out of every output: {kinds_text(left_out_kinds(inspected.left_out))} "
            f"({format_size(inspected.left_out_bytes)})"
        )
    rows = [
        (part, format_count(size.parameters), format_size(size.bytes), _share(size, inspected))
        for part, size in inspected.parts.items()
        if size.parameters
    ]
    total = (format_count(inspected.parameters), format_size(inspected.bytes), "")
    columns = ("part", "parameters", "bytes", "share")
    return Group(Text("\n".join(lines)), table("", columns, [*rows, ("total", *total)]))


def _share(size: PartSize, inspected: ModelSummary) -> str:
    return percent(size.bytes / max(inspected.bytes, 1))


def device_profiles(rows: Sequence[Mapping[str, Any]]) -> Table:
    """``tenp-edge profiles``."""
    columns = ("profile", "memory", "for the model", "runtime", "type", "context", "bandwidth")
    return table(
        "Device profiles",
        columns,
        [
            (
                row["name"],
                format_size(row["memory_bytes"]),
                format_size(row["memory_bytes"] - row["system_bytes"]),
                row["runtime"],
                row["default_tensor_type"],
                row["context"],
                f"{row['memory_bandwidth_bytes_per_second'] / 1e9:.0f} GB/s",
            )
            for row in rows
        ],
    )


def one_profile(profile: DeviceProfile) -> Entries:
    """``tenp-edge profiles NAME``."""
    process = profile.runtime_overhead_bytes
    lines = [
        ("device", f"{profile.name}: {profile.description}"),
        (
            "memory",
            f"{format_size(profile.memory_bytes)}, of which the system keeps "
            f"{format_size(profile.system_bytes)}: {format_size(profile.budget_bytes)} for the run",
        ),
        ("", "the process itself: " + ("measured here" if not process else format_size(process))),
        ("runtime", f"{profile.runtime}, {profile.format} files, layout {profile.layout}"),
        (
            "types",
            f"{profile.default_tensor_type} by default; {', '.join(profile.tensor_types)}",
        ),
        ("widths", f"multiples of {profile.width_multiple} neurons"),
        ("context", f"{profile.context} tokens, KV cache {profile.kv_type}"),
        ("prompt", f"{profile.ubatch} tokens at once"),
        (
            "speed",
            f"{profile.memory_bandwidth_bytes_per_second / 1e9:.0f} GB/s of memory, "
            f"{counted(profile.threads, 'threads')}",
        ),
    ]
    if profile.targets:
        lines.append(("targets", ", ".join(profile.targets)))
    return Entries(lines, (("plan for it", f"tenp-edge plan MODEL --profile {profile.name}"),))
