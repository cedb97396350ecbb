"""The last words of compress, and the verdict among them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.gguf_cases import export
from support.plans import ragged_plan

from tenp_edge.checkpoint.compression_plan import CompressionPlan
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.plan_record import PlanRecord
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.cli.report.closing import closing
from tenp_edge.evaluation.verdict import judge

CheckpointOf = Callable[[str], Path]
MIB = 2**20


def row(mean_kl: float, same_top: float, domain: str = "all") -> dict[str, Any]:
    return {"domain": domain, "mean_kl": mean_kl, "same_top": same_top, "tokens": 2032}


@pytest.mark.parametrize(
    ("mean_kl", "same_top", "word"),
    [
        (0.0, 1.0, "almost no"),
        (0.01, 0.95, "almost no"),
        (0.01, 0.949, "small"),
        (0.0101, 0.99, "small"),
        (0.05, 0.9, "small"),
        (0.05, 0.899, "noticeable"),
        (0.15, 0.83, "noticeable"),
        (0.151, 0.99, "large"),
        (0.001, 0.5, "large"),
        (float("nan"), 1.0, "large"),
    ],
)
def test_the_worse_of_the_two_numbers_decides(mean_kl: float, same_top: float, word: str) -> None:
    assert judge(row(mean_kl, same_top)).difference == word


def test_the_verdict_is_a_sentence_with_its_numbers() -> None:
    domains = [row(0.004, 0.97, "prose"), row(0.03, 0.92, "code"), row(0.2, 0.7, "maths")]
    assert str(judge(row(0.0073, 0.953), domains)) == (
        "almost no difference to the whole model: both put the same token first in 95.3 % of "
        "places (KL 0.0073 over 2,032 tokens; an 8 B model changes about as much by "
        "Q8_0 or Q6_K); small on code, large on maths"
    )
    assert str(judge(row(0.03, 0.92))).startswith("a small difference to the whole model: ")
    few = judge(row(0.03, 0.92) | {"tokens": 62})
    assert str(few).endswith("Q5_K_M to Q4_K_S); a rough figure, of few tokens")


@pytest.fixture
def out(checkpoint_of: CheckpointOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What compress writes, as far as the last words see, under a name that folds no line."""
    checkpoint = Checkpoint(checkpoint_of("qwen3_moe"))
    monkeypatch.chdir(tmp_path)
    written = Path("out")
    written.mkdir()
    export(ModelSource(checkpoint, ragged_plan(checkpoint)), written / "model.gguf")
    return written


def planned(checkpoint: Path, **record: Any) -> CompressionPlan:
    return replace(
        ragged_plan(Checkpoint(checkpoint)),
        record=PlanRecord(
            **{"format": "gguf", "layout": "per-expert", "budget_bytes": 80 * MIB}
            | {"keep_ratio_target": 0.625}
            | record
        ),
        memory={"total_bytes": 79 * MIB, "context": 512, "device": "this-machine"},
        files={"model.gguf": 5 * MIB, "checkpoint/model.safetensors": 9 * MIB},
    )


def checked(measured: int, judge: str = "tenp-edge (per-expert)") -> dict[str, Any]:
    return {
        "overall": row(0.03, 0.92),
        "domains": [row(0.03, 0.92, "code")],
        "measured_peak_rss": measured,
        "measured_as": judge,
    }


def test_everything_is_said(out: Path, checkpoint_of: CheckpointOf) -> None:
    model = checkpoint_of("qwen3_moe")
    said = closing(model, out, planned(model), checked(78 * MIB))
    assert (
        str(said)
        == f"""\
memory    fits into 80.00 MiB: 79.00 MiB predicted, 78.00 MiB measured, context 512
quality   a small difference to the whole model: both put the same token first in 92.0 % of
          places (KL 0.0300 over 2,032 tokens; an 8 B model changes about as much by Q5_K_M to
          Q4_K_S)
          KL: how far the two models' predictions of the next token are apart, 0 is not at all.
          Q8_0 to Q2_K: types of llama.cpp, from 8 bits a number down to 2
keeps     62.5 % of the experts' neurons
file      {out}/model.gguf, 5.00 MiB
runs in   tenp-edge, on a CPU. Nowhere else: for llama.cpp, Ollama or LM Studio compress with
          --layout merged and another -o
more      the same command with --verbose: widths, types, every measurement
next      continue a text:     tenp-edge run {out} -p "Once upon a time"
          serve OpenAI's API:  tenp-edge serve {out}
          compare again:       tenp-edge validate {model} {out}"""
    )
    found = said.to_json()
    assert found["fits"] is True and found["measured_peak_rss"] == 78 * MIB
    assert found["quality"]["difference"] == "small"
    assert found["next"][1] == f"tenp-edge serve {out}"
    assert found["runs_in"].startswith("tenp-edge, on a CPU.")


@pytest.mark.parametrize(
    ("report", "device", "budget", "memory"),
    [
        (81, "this-machine", 80, "DOES NOT FIT into 80.00 MiB: 79.00 MiB predicted, 81.00 MiB"),
        (81, "pi5-8gb", 80, "fits into 80.00 MiB: 79.00 MiB predicted on pi5-8gb, 81.00 MiB"),
        (78, "this-machine", None, "79.00 MiB predicted, 78.00 MiB measured, context 512"),
        (None, "this-machine", 80, "fits into 80.00 MiB: 79.00 MiB predicted, context 512"),
    ],
)
def test_what_is_said_of_the_memory(
    report: int | None,
    device: str,
    budget: int | None,
    memory: str,
    out: Path,
    checkpoint_of: CheckpointOf,
) -> None:
    model = checkpoint_of("qwen3_moe")
    plan = planned(model, budget_bytes=None if budget is None else budget * MIB)
    plan = replace(plan, memory={**plan.memory, "device": device})
    said = closing(model, out, plan, None if report is None else checked(report * MIB))
    assert str(said).splitlines()[0].startswith(f"memory    {memory}")
    assert said.fits is (None if budget is None else "DOES NOT" not in memory)
    if report is None:
        assert "quality   not measured\n" in str(said)


def test_the_peak_of_the_twin_is_not_the_files(out: Path, checkpoint_of: CheckpointOf) -> None:
    model = checkpoint_of("qwen3_moe")
    twin = checked(200 * MIB, "padded twin in unmodified llama.cpp")
    assert closing(model, out, planned(model), twin).measured_bytes is None


def test_merged_files_run_in_llama_cpp(out: Path, checkpoint_of: CheckpointOf) -> None:
    model = checkpoint_of("qwen3_moe")
    choice = {"note": "the type was chosen by a rule"}
    plan = planned(model, layout="merged", keep_ratio_target=0.7, type_choice=choice)
    said = closing(model, out, plan, None)
    assert "note      the type was chosen by a rule" in str(said)
    assert "asked for 70.0 %: widths are multiples of " in str(said)
    assert said.runs_in == ("tenp-edge, and llama.cpp and what is built on it (Ollama, LM Studio)")


def test_a_chat_template_makes_it_a_conversation(
    checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    source = tmp_path / "my model"
    source.mkdir()
    for file in checkpoint_of("qwen3_moe").iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    (source / "chat_template.jinja").write_text("{{ messages }}")
    (tmp_path / "out").mkdir()
    plan = planned(source)
    export(ModelSource(Checkpoint(source), plan), tmp_path / "out" / "model.gguf")
    said = closing(source, tmp_path / "out", plan, None).to_json()
    assert said["next"] == [
        f"tenp-edge run {tmp_path / 'out'}",
        f"tenp-edge serve {tmp_path / 'out'}",
        f"tenp-edge validate '{source}' {tmp_path / 'out'}",
    ]
