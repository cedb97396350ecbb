"""The paper's own tasks through EleutherAI's lm-eval, for whoever has it and the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.evaluation.comparison.candidates import Candidate
from tenp_edge.evaluation.lm_eval_scores import Scores, model_scores, require_lm_eval
from tenp_edge.forward.transformers_model import model_of

__all__ = ["require_lm_eval", "task_scores"]


def task_scores(
    checkpoint: Checkpoint,
    candidate: Candidate,
    tokenizer: Any,
    tasks: Sequence[str],
    limit: int | None,
    dtype: torch.dtype,
) -> Scores:
    """Task -> metric -> value of one candidate, its whole model in memory.

    Raises UserError for a task that lm-eval does not have.
    """
    require_lm_eval()
    model = model_of(candidate.source(checkpoint), dtype)
    for index, layer in enumerate(model.model.layers):
        candidate.adapt(index, layer, checkpoint)
    return model_scores(model, tokenizer, tasks, limit)
