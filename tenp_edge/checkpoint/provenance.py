"""The pruned, unquantised model behind an exported file.

A file names the plan that it was pruned by (its digest), not the neurons: those are in the pruned
checkpoint, or follow from the original, plan.json and, where weights were mended, mended/.
`compress` leaves all of them beside the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenp_edge.checkpoint.compression_plan import load_plan
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.overlay import DIRECTORY, found_mended
from tenp_edge.checkpoint.source import ModelSource, StoredModel
from tenp_edge.disk import read_json
from tenp_edge.errors import UserError


@dataclass(frozen=True)
class PrunedBy:
    """What the user says about it: a pruned checkpoint's directory, or a plan.json."""

    checkpoint: Path | None = None
    plan: Path | None = None


def find_pruned(
    reference: ModelSource, stored: StoredModel, file: Path, given: PrunedBy
) -> ModelSource | None:
    """The pruned model of ``file``, whose weights ``stored`` are; None when nobody knows it.

    It is ``reference`` itself where nothing was cut. Raises UserError when what is ``given``
    belongs to another plan than the file's.
    """
    digest = stored.plan_digest
    if given.checkpoint is not None:
        return _of_checkpoint(given.checkpoint, digest)
    if given.plan is not None:
        return _of_plan(reference, given.plan, digest)
    whole = reference.config
    if digest == _digest_of(whole.raw) or stored.config.expert_widths == whole.expert_widths:
        return reference
    if digest is None:
        return None
    directory = file.resolve().parent
    checkpoint, plan = directory / "checkpoint", directory / "plan.json"
    if _digest_of(_peek(checkpoint / "config.json")) == digest:
        return _of_checkpoint(checkpoint, digest)
    raw = _peek(plan)
    if raw.get("model", {}).get("fingerprint") != reference.checkpoint.fingerprint:
        return None
    plan_digest = str(raw.get("digest"))
    known = (
        plan_digest == digest
        or found_mended(directory / DIRECTORY, plan_digest, digest) is not None
    )
    return _of_plan(reference, plan, digest) if known else None


def _of_checkpoint(directory: Path, digest: str | None) -> ModelSource:
    checkpoint = Checkpoint(directory)
    plan_digest = _digest_of(checkpoint.config.raw)
    if plan_digest is None:
        raise UserError(
            f"{directory} is not a pruned checkpoint (its config.json has no tenp section)",
            "--checkpoint with the checkpoint that compress wrote, or --plan",
        )
    _require_same(str(directory), plan_digest, digest)
    return ModelSource(checkpoint)


def _of_plan(reference: ModelSource, file: Path, digest: str | None) -> ModelSource:
    plan, mended = load_plan(file), None
    if digest is not None and plan.digest != digest:
        mended = found_mended(file.resolve().parent / DIRECTORY, plan.digest, digest)
    if mended is None:
        _require_same(str(file), plan.digest, digest)
    return ModelSource(reference.checkpoint, plan, mended=mended)


def _require_same(what: str, own: str, digest: str | None) -> None:
    if digest is not None and own != digest:
        raise UserError(
            f"{what} is of another plan than the file ({own[:12]}, not {digest[:12]})",
            "the plan.json or checkpoint of the run that wrote the file",
        )


def _digest_of(raw: Mapping[str, Any]) -> str | None:
    """Of the plan that a checkpoint with this config.json was pruned by."""
    digest = (raw.get("tenp") or {}).get("digest")
    return None if digest is None else str(digest)


def _peek(file: Path) -> Mapping[str, Any]:
    """What is in ``file``, if anything: what lies beside the model need not be ours."""
    with suppress(UserError):
        return read_json(file)
    return {}
