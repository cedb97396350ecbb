"""The picture and lm-eval: optional packages, and what is said where they are missing."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from support import plans

from tenp_edge.calibration.text.domains import load_tokenizer
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.errors import UserError
from tenp_edge.evaluation.comparison import lm_eval_tasks, plot
from tenp_edge.evaluation.variants import Planned


def result() -> dict[str, Any]:
    rows = [
        {
            "method": method,
            "keep": keep,
            "seed": seed,
            "kept": keep,
            "expert_bytes": 1000,
            "active_ratio": None,
            "overall": {"mean_kl": kl * (1 - keep), "same_top": 0.9, "perplexity_ratio": 1.1},
            "text": {"code": {"mean_kl": kl}, "prose": {"mean_kl": kl / 2}},
        }
        for method, kl in (("tenp", 0.1), ("enp", 0.4))
        for keep in (0.75, 0.5)
        for seed in (0, 1)
    ]
    return {"rows": rows, "dense": {"text": {"code": {}, "prose": {}}, "overall": {}}}


def test_the_picture_is_a_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot.draw(result(), tmp_path / "compare.png")
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert [file.name for file in tmp_path.iterdir()] == ["compare.png"]


@pytest.mark.skipif(find_spec("lm_eval") is not None, reason="lm-eval is installed")
def test_without_lm_eval_the_error_says_how_to_get_it() -> None:
    with pytest.raises(UserError) as caught:
        lm_eval_tasks.require_lm_eval()
    assert caught.value.message == "lm-eval is not installed: --lm-eval runs its tasks"
    assert caught.value.hint == "pip install 'tenp-edge[lm-eval]', or leave --lm-eval out"


def test_lm_eval_runs_a_task_on_a_pruned_model(
    checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    pytest.importorskip("lm_eval")
    (tmp_path / "items.jsonl").write_text(
        "".join(f'{{"question": "{i} and", "choices": ["{i}", "x"]}}\n' for i in range(6))
    )
    task = tmp_path / "local_task.yaml"
    task.write_text(
        "task: local_task\n"
        "dataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path / 'items.jsonl'}}}}}\n"
        "test_split: test\n"
        "output_type: multiple_choice\n"
        "doc_to_text: '{{question}}'\n"
        "doc_to_choice: '{{choices}}'\n"
        "doc_to_target: 0\n"
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )
    path = checkpoint_of("qwen3_moe")
    checkpoint = Checkpoint(path)
    candidate = Planned(plans.ragged_plan(checkpoint))
    tokenizer = load_tokenizer(path)
    found = lm_eval_tasks.task_scores(
        checkpoint, candidate, tokenizer, [str(task)], None, torch.float32
    )
    ((name, scores),) = found.items()
    assert name == "local_task" and 0 <= scores["acc,none"] <= 1
    with pytest.raises(UserError) as caught:
        lm_eval_tasks.task_scores(
            checkpoint, candidate, tokenizer, ["nonesuch"], None, torch.float32
        )
    assert caught.value.message == "lm-eval has no task nonesuch"
