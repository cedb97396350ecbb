"""The verbs that only look: inspect and profiles."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from tenp_edge.cli.flags import declared as flags
from tenp_edge.cli.output.screen import Screen
from tenp_edge.cli.report import model_tables
from tenp_edge.units import format_count, format_size


@flags.expanded()
def inspect(model: flags.Model, *, screen: Screen) -> None:
    """Family, layers, experts, parameters and bytes by part, from headers alone.

    Examples:

        tenp-edge inspect ~/models/Qwen1.5-MoE-A2.7B

        tenp-edge inspect ~/models/DeepSeek-V2-Lite --json
    """
    from tenp_edge.models.inspection import inspect_model

    summary = inspect_model(model)
    line = f"{model}: {summary.family}, {format_count(summary.parameters)} parameters"
    screen.show(summary.to_json(), model_tables.summary(summary), line=line)


@flags.expanded()
def profiles(
    name: Annotated[str | None, typer.Argument(help="One profile, in full.")] = None,
    profile_file: flags.ProfileFile = None,
    *,
    screen: Screen,
) -> None:
    """The device profiles, or one of them in full.

    Examples:

        tenp-edge profiles

        tenp-edge profiles laptop-8gb

        tenp-edge profiles --profile-file my-board.toml
    """
    from tenp_edge.planning.options.devices import load_profile, load_profile_file, profile_names

    if name or profile_file:
        profile = load_profile_file(profile_file) if profile_file else load_profile(name or "")
        memory = f"{profile.name}: {format_size(profile.budget_bytes)} for the model"
        screen.show(asdict(profile), model_tables.one_profile(profile), line=memory)
        return
    rows = [asdict(load_profile(known)) for known in profile_names()]
    names = " ".join(row["name"] for row in rows)
    screen.show(rows, model_tables.device_profiles(rows), line=names)
