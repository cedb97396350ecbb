"""EleutherAI's lm-eval on a checkpoint, and on what a running server serves; for whoever has it.

A checkpoint is a transformers model, whole in memory. A server is asked by lm-eval's own client for
OpenAI's completions (``local-completions``): prompts as token ids, echoed with their log
probabilities. Its tokenizer is that of the model it was made from.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import torch

from tenp_edge.calibration.text.domains import load_tokenizer
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.errors import UserError
from tenp_edge.forward.transformers_model import model_of

Scores = dict[str, dict[str, float]]  # task -> metric -> value
_BATCH = 8
_SECONDS = 10


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


def checkpoint_scores(
    path: Path, tasks: Sequence[str], limit: int | None, dtype: torch.dtype | None = None
) -> Scores:
    """Of the checkpoint in ``path``, pruned or not."""
    require_lm_eval()
    checkpoint = Checkpoint(path)
    model = model_of(ModelSource(checkpoint), dtype or checkpoint.dtype)
    return model_scores(model, load_tokenizer(checkpoint.path), tasks, limit)


def model_scores(model: Any, tokenizer: Any, tasks: Sequence[str], limit: int | None) -> Scores:
    """Of a transformers ``model``."""
    from lm_eval.models.huggingface import HFLM

    return scores_of(HFLM(pretrained=model, tokenizer=tokenizer, batch_size=_BATCH), tasks, limit)


def server_scores(
    url: str, tokenizer: Path, tasks: Sequence[str], limit: int | None, max_length: int
) -> Scores:
    """Of the model behind ``url`` (http://host:port), whose prompts are cut to ``max_length``
    tokens. An API key is taken from OPENAI_API_KEY. Raises UserError when nobody answers there."""
    require_lm_eval()
    base = url.rstrip("/").removesuffix("/v1")
    _require_server(base)
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    client = LocalCompletionsAPI(
        base_url=f"{base}/v1/completions",
        model="served",
        tokenizer=str(tokenizer),
        tokenizer_backend="huggingface",
        tokenized_requests=True,
        max_length=max_length,
        batch_size=1,
    )
    return scores_of(client, tasks, limit)


def scores_of(model: Any, tasks: Sequence[str], limit: int | None) -> Scores:
    """Of anything that lm-eval takes for a model. Raises UserError for tasks it does not have."""
    lm_eval = require_lm_eval()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = _manager(all(map(_is_file, tasks)))
    missing = [task for task in tasks if task not in manager.all_tasks and not _is_file(task)]
    if missing:
        raise UserError(f"lm-eval has no task {', '.join(missing)}", "lm-eval ls tasks")
    report = lm_eval.simple_evaluate(
        model=model, tasks=list(tasks), limit=limit, task_manager=manager, bootstrap_iters=0
    )
    return {
        task: {name: float(value) for name, value in row.items() if isinstance(value, float)}
        for task, row in report["results"].items()
    }


def _is_file(task: str) -> bool:
    return task.endswith((".yaml", ".yml"))


@cache
def _manager(files_only: bool) -> Any:
    """lm-eval's index of tasks, which takes it most of a minute: not for files of one's own."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=not files_only)


def _require_server(base: str) -> None:
    try:
        with urlopen(Request(f"{base}/health"), timeout=_SECONDS):
            pass
    except (URLError, OSError, ValueError) as error:
        raise UserError(
            f"no server answers at {base}",
            "tenp-edge serve OUT, and --url with the address that it prints",
        ) from error
