"""The verbs that only look: inspect and profiles."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from tenp_edge.cli import flags
from tenp_edge.cli.console import show
from tenp_edge.cli.report import model_tables, rich_tables


def inspect(model: flags.Model, json_output: flags.Json = False) -> None:
    """Family, layers, experts, parameters and bytes by part, from headers alone.

    Examples:

        tenp-edge inspect ~/models/Qwen1.5-MoE-A2.7B

        tenp-edge inspect ~/models/DeepSeek-V2-Lite --json
    """
    from tenp_edge.models.inspection import inspect_model

    summary = inspect_model(model)
    show(model_tables.summary(summary), summary.to_json(), json_output)


def profiles(
    name: Annotated[str | None, typer.Argument(help="One profile, in full.")] = None,
    profile_file: flags.ProfileFile = None,
    json_output: flags.Json = False,
) -> None:
    """The device profiles, or one of them in full.

    Examples:

        tenp-edge profiles

        tenp-edge profiles laptop-8gb

        tenp-edge profiles --profile-file my-board.toml
    """
    from tenp_edge.planning.devices import load_profile, load_profile_file, profile_names

    if name or profile_file:
        profile = load_profile_file(profile_file) if profile_file else load_profile(name or "")
        fields = asdict(profile)
        show(rich_tables.facts(profile.name, fields.items()), fields, json_output)
        return
    rows = [asdict(load_profile(known)) for known in profile_names()]
    show(model_tables.device_profiles(rows), rows, json_output)
