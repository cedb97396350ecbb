"""The verbs that give a model to others: push and pack."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from tenp_edge.cli import flags
from tenp_edge.cli.console import progress, show
from tenp_edge.errors import UserError

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def push(
    output: Annotated[
        Path, typer.Argument(help="What compress wrote (OUT), a GGUF file, or OUT/checkpoint.")
    ],
    repository: Annotated[str, typer.Argument(help="OWNER/NAME on the Hugging Face Hub.")],
    private: Annotated[
        bool, typer.Option("--private", help="Only you see the repository, if it is new.")
    ] = False,
    revision: Annotated[
        str | None, typer.Option("--revision", help="A branch; it is made where there is none.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list what would go; needs no network.")
    ] = False,
    json_output: flags.Json = False,
) -> None:
    """Upload a model to the Hugging Face Hub: the file, its card, licence, Modelfile and plan.

    Nothing of the text that was calibrated or measured on goes, and no path of this machine:
    calibration/, validation.json, recipe.toml and report.html stay here. The same command continues
    after a break. What `tenp-edge pack` wrote in OUT goes too.

    Examples:

        tenp-edge push OUT OWNER/NAME --dry-run

        tenp-edge push OUT OWNER/NAME --private

        tenp-edge push OUT/checkpoint OWNER/NAME-checkpoint
    """
    from tenp_edge.cli.report.sharing_tables import uploaded
    from tenp_edge.sharing.uploading import chosen_files
    from tenp_edge.sharing.uploading import push as upload_to

    if not _REPOSITORY.fullmatch(repository):
        raise UserError(f"{repository} is not a repository of the hub", "OWNER/NAME")
    upload, address = chosen_files(output), None
    if not dry_run:
        address = upload_to(
            upload, repository, private=private or None, revision=revision, progress=progress
        )
    listed = {"repository": repository, "files": upload.files, "total_bytes": upload.total_bytes}
    show(uploaded(upload, repository, address), {**listed, "address": address}, json_output)
