"""The paper's own tasks through EleutherAI's lm-eval, for whoever has it and the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.evaluation.comparison.candidates import Candidate
from tenp_edge.evaluation.lm_eval_scores import require_lm_eval, scores_of
from tenp_edge.forward.transformers_model import model_of

__all__ = ["require_lm_eval", "task_scores"]


def task_scores(
    checkpoint: Checkpoint,
    candidate: Candidate,
    tokenizer: Any,
    tasks: Sequence[str],
    limit: int | None,
    dtype: torch.dtype,
) -> dict[str, dict[str, float]]:
    """Task -> metric -> value of one candidate, its whole model in memory.

    Raises UserError for a task that lm-eval does not have.
    """
    require_lm_eval()
    from lm_eval.models.huggingface import HFLM

    model = model_of(candidate.source(checkpoint), dtype)
    for index, layer in enumerate(model.model.layers):
        candidate.adapt(index, layer, checkpoint)
    return scores_of(HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8), tasks, limit)
