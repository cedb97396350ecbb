"""What of an output goes to the hub, and taking it there.

Only what is named here goes: the exported model (or the pruned checkpoint), its card, licences,
Modelfile, the plan, and what `pack` wrote. Calibration statistics, validation.json, recipe.toml
(which have this machine's paths) and report.html (which quotes the text that was measured on) stay.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tenp_edge.checkpoint.model_origin import CARD, COPIED, LICENCES
from tenp_edge.errors import UserError
from tenp_edge.models.headers import INDEX_NAME
from tenp_edge.progress import QUIET, Progress
from tenp_edge.runtime.locating import locate

if TYPE_CHECKING:  # it is loaded where something is sent
    from huggingface_hub import HfApi

MODELFILE, PACK = "Modelfile", "pack"
_BESIDE = (CARD, MODELFILE, *LICENCES, "plan.json", "plan.safetensors", f"{PACK}/*")
_CHECKPOINT = (CARD, "config.json", INDEX_NAME, "*.safetensors", *COPIED)
_MAIN = "main"
_LOGIN = "hf auth login, or HF_TOKEN=... before the command"
_ONLINE = "HF_HUB_OFFLINE=0 before the command"


@dataclass(frozen=True)
class Upload:
    """``files``: name in the repository -> bytes, all below ``folder``."""

    folder: Path
    files: dict[str, int]

    @property
    def total_bytes(self) -> int:
        return sum(self.files.values())


def chosen_files(output: Path) -> Upload:
    """What of ``output`` (a directory of `compress`, a GGUF file, an ONNX directory, a pruned
    checkpoint) others are given. Raises UserError where there is no model."""
    located = locate(output)
    if located.kind == "checkpoint":
        return _upload(located.path, _matching(located.path, _CHECKPOINT))
    folder = output if output.is_dir() and output != located.path else located.path.parent
    whole = located.path.rglob("*") if located.path.is_dir() else [located.path]
    model = (file for file in whole if file.is_file())
    return _upload(folder, [*model, *_matching(folder, _BESIDE)])


def _matching(folder: Path, patterns: tuple[str, ...]) -> Iterator[Path]:
    for pattern in patterns:
        yield from (file for file in folder.glob(pattern) if file.is_file())


def _upload(folder: Path, files: list[Path] | Iterator[Path]) -> Upload:
    names = {file.relative_to(folder).as_posix(): file.stat().st_size for file in files}
    return Upload(folder, dict(sorted(names.items())))


def push(
    upload: Upload,
    repository: str,
    *,
    private: bool | None,
    revision: str | None,
    progress: Progress,
) -> str:
    """Make ``repository`` where there is none, send the files that it lacks in one commit, and
    return its address. Again after a break: what arrived whole is not sent again.

    Raises UserError when the hub cannot be reached or refuses.
    """
    import huggingface_hub as hub
    from huggingface_hub.utils.tqdm import disable_progress_bars

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    if not sys.stderr.isatty():
        disable_progress_bars()
    if hub.get_token() is None:
        raise UserError("the hub wants a token, and there is none", _LOGIN)
    api = hub.HfApi()
    try:
        made = api.create_repo(repository, private=private, exist_ok=True)
        if revision not in (None, _MAIN):
            api.create_branch(repository, branch=str(revision), exist_ok=True)
        progress.note(f"sending {len(upload.files)} files to {made.repo_id}")
        # On a terminal the hub's client draws how far each file is itself.
        drawn = QUIET if sys.stderr.isatty() else progress
        _send(api, upload, repository, revision, drawn)
    except Exception as error:  # the hub client's errors share no base class
        raise _refusal(error, repository) from error
    branch = f"/tree/{revision}" if revision not in (None, _MAIN) else ""
    return f"{made}{branch}"


def _send(
    api: HfApi, upload: Upload, repository: str, revision: str | None, progress: Progress
) -> None:
    """One file after the other, so that it can be said how far that is; then one commit of all.
    What is on the hub already, or arrived before a break, is not sent again."""
    from huggingface_hub import CommitOperationAdd

    files = {
        name: CommitOperationAdd(path_in_repo=name, path_or_fileobj=upload.folder / name)
        for name in sorted(upload.files, key=upload.files.__getitem__)
    }
    with progress.task("sending", upload.total_bytes, "bytes") as task:
        for name, operation in files.items():
            # Small files go with the commit itself: there is nothing to do for them here.
            api.preupload_lfs_files(repository, [operation], revision=revision, free_memory=False)
            task.advance(upload.files[name])
        api.create_commit(
            repository, list(files.values()), commit_message="tenp-edge push", revision=revision
        )


def _refusal(error: Exception, repository: str) -> UserError:
    """In a line of our own; the client's message runs over several."""
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return UserError("HF_HUB_OFFLINE keeps the hub's client offline", _ONLINE)
    response: Any = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if status == 401:
        return UserError("the hub refuses the token (401)", _LOGIN)
    if status == 403:
        return UserError(
            f"the token may not write to {repository} (403)",
            "a token with write access, or a repository of your own",
        )
    if status is not None:
        return UserError(
            f"the hub refuses the upload to {repository} ({status})",
            "the same command again: what arrived is not sent again",
        )
    if isinstance(error, HFValidationError):
        return UserError(f"{repository} cannot be the name of a repository", "OWNER/NAME")
    return UserError(
        f"the upload to {repository} broke off ({type(error).__name__})",
        "the same command again: what arrived is not sent again",
    )
