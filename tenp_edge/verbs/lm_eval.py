"""`validate --lm-eval`: tasks of lm-eval on checkpoints or on a running server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.errors import UserError
from tenp_edge.evaluation.lm_eval_scores import checkpoint_scores, require_lm_eval, server_scores
from tenp_edge.forward.device import choose_dtype
from tenp_edge.runtime.locating import locate
from tenp_edge.verbs.measure_types import exactly
from tenp_edge.verbs.options import ComputeOptions, LmEvalOptions

FORMAT = "tenp-edge lm-eval"


def run_lm_eval(
    reference: Path, candidate: Path | None, options: LmEvalOptions, compute: ComputeOptions
) -> dict[str, Any]:
    """Scores by model and task, as JSON. Raises UserError where what is to be judged does not run
    in torch and is not served."""
    require_lm_eval()
    given = options.lm_eval, options.lm_eval_limit
    if options.url is not None:
        checkpoint = Checkpoint(reference)
        longest = checkpoint.config.max_position_embeddings
        found = {"served": server_scores(options.url, checkpoint.path, *given, longest)}
        return {"format": FORMAT, "url": options.url, "scores": found}
    models = {"reference": reference}
    if candidate is not None:
        models["candidate"] = _checkpoint(candidate)
    dtypes = {name: _dtype(path, compute) for name, path in models.items()}
    scores = {name: checkpoint_scores(path, *given, dtypes[name]) for name, path in models.items()}
    return {"format": FORMAT, "scores": scores}


def _dtype(path: Path, compute: ComputeOptions) -> Any:
    checkpoint = Checkpoint(path)
    device, _ = exactly(checkpoint, compute)
    return choose_dtype(compute.dtype, device, checkpoint.dtype)


def _checkpoint(candidate: Path) -> Path:
    """The pruned checkpoint at or in ``candidate``."""
    if (candidate / "checkpoint" / "config.json").is_file():
        return candidate / "checkpoint"
    if locate(candidate).kind != "checkpoint":
        raise UserError(
            f"{candidate} does not run in torch, which lm-eval needs",
            f"tenp-edge serve {candidate}, and --url with the address that it prints",
        )
    return candidate
