"""The verbs that give a model to others: pack and push."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from tenp_edge.cli.flags import declared as flags
from tenp_edge.cli.output.screen import Screen
from tenp_edge.errors import UserError

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


@flags.expanded()
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
    *,
    screen: Screen,
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
            upload, repository, private=private or None, revision=revision, progress=screen.progress
        )
    listed = {"repository": repository, "files": upload.files, "total_bytes": upload.total_bytes}
    shown = uploaded(upload, repository, address)
    screen.show({**listed, "address": address}, *shown, line=address or repository)


@flags.expanded()
def pack(
    output: Annotated[Path, typer.Argument(help="What compress wrote (OUT).")],
    directory: Annotated[
        Path | None, typer.Option("-o", "--output", help="Where to; default: OUT/pack.")
    ] = None,
    *,
    screen: Screen,
) -> None:
    """Write the recipe and the scores of a run, so that others cut the same model at any size.

    scores.zip has no weights and no text: the order of each expert's neurons, what every width
    costs, and the importance matrix. Whoever has the original model needs no calibration. A plan
    from the file is the plan from the statistics, bit for bit; scores of another model are refused.
    Repair and validation still read text: --data, or the text in the package.

    Examples:

        tenp-edge pack OUT

        tenp-edge compress MODEL --scores OUT/pack/scores.zip --ram 6GiB -o OUT2
    """
    from tenp_edge.cli.report.sharing_tables import packed
    from tenp_edge.verbs.pack import run_pack

    made = run_pack(output, directory or output / "pack")
    screen.show(made.to_json(), packed(made), line=str(made.scores))
