"""lm-eval on a checkpoint and on the served file of the same model: the same scores."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from support.command import refused, run
from support.serving_cases import make_files, serving

from tenp_edge.errors import UserError
from tenp_edge.verbs.options import LmEvalOptions

ITEMS = [
    {"question": f"{i} and", "choices": [f" {i + 1}", " x", " and more of it"], "gold": i % 3}
    for i in range(6)
]


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """A task whose data lies beside it: no network."""
    items = tmp_path / "items.jsonl"
    items.write_text("".join(f"{json.dumps(item)}\n" for item in ITEMS))
    file = tmp_path / "local_task.yaml"
    file.write_text(
        "task: local_task\n"
        "dataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {items}}}}}\n"
        "test_split: test\n"
        "output_type: multiple_choice\n"
        "doc_to_text: '{{question}}'\n"
        "doc_to_choice: '{{choices}}'\n"
        "doc_to_target: '{{gold}}'\n"
        "metric_list:\n"
        "  - {metric: acc, aggregation: mean, higher_is_better: true}\n"
        "  - {metric: acc_norm, aggregation: mean, higher_is_better: true}\n"
        "  - {metric: brier_score, aggregation: brier_score, higher_is_better: false}\n"
    )
    return file


@pytest.mark.skipif(find_spec("lm_eval") is not None, reason="lm-eval is installed")
def test_without_lm_eval_the_error_says_how_to_get_it(tmp_path: Path) -> None:
    assert refused("validate", tmp_path, "--lm-eval", "arc_easy") == (
        "error: lm-eval is not installed: --lm-eval runs its tasks\n"
        "try:   pip install 'tenp-edge[lm-eval]', or leave --lm-eval out\n"
    )


@pytest.mark.parametrize("given", [{"url": "http://x"}, {"lm_eval_limit": 2}])
def test_what_is_for_tasks_alone_is_refused_without_one(given: dict[str, Any]) -> None:
    with pytest.raises(UserError) as error:
        LmEvalOptions(**given)
    name = next(iter(given)).replace("_", "-")
    assert error.value.message == f"--{name} is for tasks of lm-eval, and none is named"
    assert error.value.hint == f"--lm-eval TASK too, or leave --{name} out"


def test_the_checkpoint_and_the_served_file_score_the_same(task: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    files = make_files(tmp_path / "served", positions=512)
    model = tmp_path / "served" / "model"
    done = run("validate", model, model, "--lm-eval", task, "--json")
    assert done.returncode == 0, done.stderr
    scores = json.loads(done.stdout)["scores"]
    assert scores["reference"] == scores["candidate"]
    with serving(files["per-expert"], "--context", 256) as server:
        done = run("validate", model, "--lm-eval", task, "--url", server.url, "--json")
    assert done.returncode == 0, done.stderr
    served = json.loads(done.stdout)["scores"]["served"]["local_task"]
    assert served == pytest.approx(scores["reference"]["local_task"], abs=1e-4)
    assert {"acc,none", "acc_norm,none", "brier_score,none"} <= set(served)


def test_what_is_refused(task: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    files = make_files(tmp_path / "served", positions=512)
    model, file = tmp_path / "served" / "model", files["merged"]
    assert refused("validate", model, file, "--lm-eval", task) == (
        f"error: {file} does not run in torch, which lm-eval needs\n"
        f"try:   tenp-edge serve {file}, and --url with the address that it prints\n"
    )
    said = refused("validate", model, "--lm-eval", task, "--url", "http://127.0.0.1:9")
    assert said == (
        "error: no server answers at http://127.0.0.1:9\n"
        "try:   tenp-edge serve OUT, and --url with the address that it prints\n"
    )
