"""The paper's own tasks through EleutherAI's lm-eval, for whoever has it and the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.errors import UserError
from tenp_edge.evaluation.comparison.candidates import Candidate
from tenp_edge.forward.transformers_model import model_of


def require_lm_eval() -> Any:
    """The lm_eval module. Raises UserError when it is not installed."""
    try:
        import lm_eval
    except ImportError:
        raise UserError(
            "lm-eval is not installed: --lm-eval runs its tasks",
            "pip install 'tenp-edge[lm-eval]', or leave --lm-eval out",
        ) from None
    return lm_eval


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
    lm_eval = require_lm_eval()
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    manager = TaskManager()
    missing = [task for task in tasks if task not in manager.all_tasks and ".yaml" not in task]
    if missing:
        raise UserError(f"lm-eval has no task {', '.join(missing)}", "lm-eval ls tasks")
    model = model_of(candidate.source(checkpoint), dtype)
    for index, layer in enumerate(model.model.layers):
        candidate.adapt(index, layer, checkpoint)
    wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8)
    report = lm_eval.simple_evaluate(
        model=wrapped, tasks=list(tasks), limit=limit, task_manager=manager, bootstrap_iters=0
    )
    return {
        task: {name: value for name, value in row.items() if isinstance(value, float)}
        for task, row in report["results"].items()
    }
