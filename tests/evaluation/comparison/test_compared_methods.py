"""Many models in one pass are each the model that its plan makes; methods spend equal bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import plans

from tenp_edge.calibration.collect import calibrate
from tenp_edge.calibration.gradients import collect_gradients
from tenp_edge.calibration.storage import Statistics
from tenp_edge.calibration.text.domains import load_tokenizer
from tenp_edge.checkpoint.compression_plan import CompressionPlan
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.overlay import Mended
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.errors import UserError
from tenp_edge.evaluation.comparison.baseline_scores import aimer_scores, mone_scores
from tenp_edge.evaluation.comparison.candidates import (
    Compensated,
    Masked,
    masked_rows,
    mean_activations,
)
from tenp_edge.evaluation.comparison.compared_methods import METHODS, Case, choose_methods
from tenp_edge.evaluation.comparison.grid import Comparison, budget, compare, measure
from tenp_edge.evaluation.comparison.measures import Arithmetic, Cloze, TextMeasure
from tenp_edge.evaluation.comparison.table import lines, predictions
from tenp_edge.evaluation.divergence import score_tokens
from tenp_edge.evaluation.evaluator import Evaluator, LayerCache, RowScores
from tenp_edge.evaluation.variants import Planned
from tenp_edge.forward.experts import RaggedExperts
from tenp_edge.forward.sweep import streaming_logits
from tenp_edge.forward.text_batch import Domain
from tenp_edge.forward.transformers_model import model_of
from tenp_edge.recovery.recover import MendRules, mend

CPU, F32 = torch.device("cpu"), torch.float32
Make = Callable[[str], Path]


def domain(name: str, count: int = 3, seq_len: int = 32, seed: int = 0) -> Domain:
    """Random tokens; the last sequence is shorter."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 384, (count, seq_len), generator=generator)
    lengths = torch.full((count,), seq_len)
    tokens[-1, 20:], lengths[-1] = 0, 20
    return Domain(name, tokens, lengths)


def evaluator(path: Path, work: Path, **options: Any) -> Evaluator:
    return Evaluator(LayerCache(path), device=CPU, dtype=F32, work=work, **options)


def alone(source: ModelSource, part: TextMeasure) -> list[torch.Tensor]:
    """Logits of the block's scored positions, by the forward that knows one model only."""
    first = streaming_logits(source, part.block.tokens, device=CPU, dtype=F32)
    return [x[s.start : s.stop] for x, s in zip(first, part.block.spans, strict=True)]


@pytest.mark.parametrize(
    ("family", "spill_bytes"),
    [("qwen3_moe", 0), ("qwen2_moe", 2**30), ("deepseek_v2", 2**30), ("deepseek_v3", 0)],
)
def test_each_candidate_is_its_plan(
    family: str, spill_bytes: int, checkpoint_of: Make, tmp_path: Path
) -> None:
    path = checkpoint_of(family)
    checkpoint = Checkpoint(path)
    chosen = [plans.ragged_plan(checkpoint), plans.removal_plan(checkpoint, 4)]
    parts = [TextMeasure.of(domain("a")), TextMeasure.of(domain("b", seq_len=24, seed=1))]
    (tmp_path / "variants.partial").mkdir()
    (tmp_path / "variants.partial" / "1-2").write_bytes(b"what a killed run left")
    run = evaluator(path, tmp_path, spill_bytes=spill_bytes)
    found = list(run.measure([Planned(plan) for plan in chosen], [part.block for part in parts]))
    for part, (block, rows) in zip(parts, found, strict=True):
        assert block is part.block
        dense = alone(ModelSource(checkpoint), part)
        for plan, own in zip(chosen, rows, strict=True):
            logits = alone(ModelSource(checkpoint, plan), part)
            for row, (p, q) in enumerate(zip(dense, logits, strict=True)):
                span = block.spans[row]
                targets = block.tokens[row, span.start + 1 : span.stop + 1]
                expected = score_tokens(p, q, targets)
                torch.testing.assert_close(own[row].scores.kl, expected.kl, rtol=0, atol=1e-6)
                assert own[row].hits.tolist() == (q.argmax(-1) == targets).tolist()
    assert list(tmp_path.iterdir()) == []


def test_the_dense_model_and_equal_plans(checkpoint_of: Make, tmp_path: Path) -> None:
    path = checkpoint_of("qwen3_moe")
    plan = plans.ragged_plan(Checkpoint(path))
    again = plans.ragged_plan(Checkpoint(path))
    texts = {"text": [TextMeasure.of(domain("a"))]}
    dense, first, second = measure(
        evaluator(path, tmp_path), [Planned(plan), Planned(again)], texts
    )
    assert dense["overall"] == {"mean_kl": 0.0, "same_top": 1.0, "perplexity_ratio": 1.0}
    assert first["overall"]["mean_kl"] > 0
    assert first == second


# -- methods ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def case(checkpoint_of: Make, tmp_path_factory: pytest.TempPathFactory) -> Case:
    checkpoint = Checkpoint(checkpoint_of("qwen3_moe"))
    work = tmp_path_factory.mktemp("statistics")
    texts = [domain("code", 8), domain("prose", 8, seed=1)]
    plain = calibrate(checkpoint, texts, work, device="cpu", dtype="float32")
    statistics = collect_gradients(checkpoint, texts, plain, work, device="cpu", dtype="float32")

    def mended(plan: CompressionPlan, rules: MendRules) -> Mended:
        directory = work / f"{plan.digest}-{rules.heal}"
        return mend(checkpoint, plan, texts, directory, rules, device="cpu")

    return Case(checkpoint, statistics, width_multiple=1, seed=0, mend=mended)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_spends_the_budget(name: str, case: Case) -> None:
    """Up to one neuron an expert, which a narrow width is rounded by."""
    space = case.space
    for keep in (0.75, 0.5):
        neurons = budget(case, keep)
        assert neurons == keep * space.total_neurons
        cut = METHODS[name].build(case, neurons)
        slack = space.total_experts / space.total_neurons
        assert keep - slack < cut.kept <= keep
        assert cut.stored >= cut.kept
        assert cut.active_ratio is None or 0 < cut.active_ratio <= 1


def test_only_what_no_format_stores_costs_more_than_it_keeps(case: Case) -> None:
    cuts = {name: method.build(case, budget(case, 0.5)) for name, method in METHODS.items()}
    dearer = {name for name, cut in cuts.items() if cut.stored > cut.kept}
    assert dearer == {"wanda-rows", "mone", "layer-flap-bias"}
    assert cuts["wanda-rows"].stored == 1.0


def test_methods_by_name_pattern_and_set() -> None:
    assert [m.name for m in choose_methods(["enp", "tenp"])] == ["tenp", "enp"]
    assert {m.name for m in choose_methods(["drop-*"])} == {n for n in METHODS if n[:5] == "drop-"}
    assert len(choose_methods(["all"])) == len(METHODS)
    names = [m.name for m in choose_methods(["short", "claims"])]
    assert len(names) == len(set(names)) and "tenp-slope-1" in names
    with pytest.raises(UserError) as caught:
        choose_methods(["tenpp"])
    assert caught.value.message == "--method tenpp is not known"
    assert caught.value.hint is not None
    assert caught.value.hint.startswith(
        "a set: short, table, claims, uniform, mended, all; or a method such as tenp, "
    )


def test_unstructured_masks_keep_the_best_of_each_row() -> None:
    matrix = torch.tensor([[1.0, -2.0, 3.0, 4.0], [4.0, 3.0, -2.0, 1.0]])
    norms = torch.tensor([10.0, 1.0, 1.0, 1.0])
    expected = torch.tensor([[1.0, 0.0, 0.0, 4.0], [4.0, 3.0, 0.0, 0.0]])
    assert masked_rows(matrix, norms, 0.5).tolist() == expected.tolist()


def test_the_masked_model_has_as_many_parameters(case: Case) -> None:
    source = Masked(0.5, case.statistics).source(case.checkpoint)
    weights = source.expert(case.space.layers[0], 1)
    for matrix in (weights.gate, weights.up, weights.down):
        assert int((matrix != 0).sum()) == matrix.numel() // 2


def test_offsets_add_the_mean_output_of_what_was_cut(case: Case) -> None:
    """An expert without neurons answers every token with W_down mean(m)."""
    index = case.space.layers[0]
    retained = {
        (layer, expert): torch.arange(0 if expert == 2 else case.space.full)
        for layer in case.space.layers
        for expert in range(case.space.experts)
    }
    candidate = Compensated(retained, case.statistics)
    model = model_of(candidate.source(case.checkpoint), F32)
    experts = model.model.layers[index].mlp.experts
    candidate.adapt(index, model.model.layers[index], case.checkpoint)
    assert isinstance(experts, RaggedExperts) and set(experts.offsets) == {2}
    down = case.checkpoint.expert(index, 2).down.double()
    expected = (down @ mean_activations(case.statistics, index)[2]).float()
    x = torch.randn(5, down.shape[0], generator=torch.Generator().manual_seed(0))
    output = experts(x, torch.full((5, 1), 2), torch.full((5, 1), 0.5))
    torch.testing.assert_close(output, 0.5 * expected.expand(5, -1), rtol=1e-5, atol=1e-7)


def test_aimer_and_mone_are_their_equations(case: Case) -> None:
    layer, checkpoint, statistics = case.space.layers[1], case.checkpoint, case.statistics
    w = checkpoint.expert(layer, 3)
    flat = torch.cat([w.gate.flatten(), w.up.flatten(), w.down.flatten()]).double()
    expected = -flat.abs().mean() / flat.square().mean().sqrt()
    assert float(aimer_scores(checkpoint, layer)[3]) == pytest.approx(float(expected), rel=1e-6)

    # Collected here by an observer: y and g of every token that expert 3 saw.
    groups: list[tuple[torch.Tensor, torch.Tensor]] = []

    class Notes:
        def expert(self, group: Any) -> None:
            if group.expert == 3:
                groups.append((group.y.double(), group.g.double()))

        def routed(self, chosen: torch.Tensor, output: torch.Tensor) -> None:
            pass

    model = model_of(ModelSource(checkpoint), F32)
    model.model.layers[layer].mlp.experts.observer = Notes()
    for part in (domain("code", 8), domain("prose", 8, seed=1)):
        for tokens, length in zip(part.tokens, part.lengths.tolist(), strict=True):
            model(input_ids=tokens[None, :length])
    y, g = (torch.cat(column) for column in zip(*groups, strict=True))
    fluctuation = (y - y.mean(0)).square().sum(1).mean()
    found = float(mone_scores(checkpoint, statistics, layer)[3])
    assert found == pytest.approx(float(fluctuation * g.mean()), rel=1e-4)


# -- questions -------------------------------------------------------------------------------------


def rows_of(losses: list[float]) -> list[RowScores]:
    logits = torch.zeros(1, 3)
    scores = score_tokens(logits, logits, torch.zeros(1, dtype=torch.int64))
    return [
        RowScores(
            type(scores)(scores.kl, scores.kl, torch.tensor([loss]), scores.kl, scores.same_top),
            torch.tensor([loss < 1]),
        )
        for loss in losses
    ]


def test_a_cloze_answer_is_right_when_the_true_passage_is_likeliest(checkpoint_of: Make) -> None:
    tokenizer = load_tokenizer(checkpoint_of("qwen3_moe"))
    texts = [" ".join(f"word{i * j % 97}" for i in range(400)) for j in range(1, 9)]
    asked = Cloze.of("prose", texts, tokenizer, 4, seed=0)
    assert asked is not None and asked.block.tokens.shape == (16, 48)
    questions = asked.block.tokens.reshape(4, 4, 48)
    assert (questions[:, :, :40] == questions[:, :1, :40]).all()  # one context a question
    assert questions[0, 1, 40:].tolist() == questions[3, 0, 40:].tolist()  # another's answer
    right, wrong, tie = [1.0, 2.0, 3.0, 4.0], [2.0, 1.0, 3.0, 4.0], [1.0, 1.5, 1.0, 2.0]
    assert asked.result(rows_of([*right, *wrong, *tie, *right])) == {
        "questions": 4,
        "accuracy": 0.75,
    }
    assert Cloze.of("prose", ["too short"], tokenizer, 4, seed=0) is None


def test_a_sum_is_right_when_greedy_decoding_would_write_it(checkpoint_of: Make) -> None:
    tokenizer = load_tokenizer(checkpoint_of("qwen3_moe"))
    text = "Question: how many?\nAnswer: 22+13 = 35 and 35/5=7 of them\n#### 7\nmore"
    solved = Arithmetic.of("math", ["no sums here", text], tokenizer, 4, longest=128)
    assert solved is not None
    (span,), (places,) = solved.block.spans, solved.places
    ids = solved.block.tokens[0]
    targets = ids[span.start + 1 : span.stop + 1]
    said = [tokenizer.decode(targets[p.start : p.stop].tolist()).strip() for p in places]
    assert said == ["35", "7", "7"]
    hits = torch.ones(len(targets), dtype=torch.bool)
    hits[places[0].start] = False
    row = RowScores(rows_of([0.0])[0].scores, hits)
    expected = {"answers": 1, "exact_answers": 1.0, "steps": 2, "exact_steps": 0.5}
    assert solved.result([row]) == expected
    assert Arithmetic.of("math", [text], tokenizer, 4, longest=8) is None


# -- the whole comparison --------------------------------------------------------------------------


def comparison(
    checkpoint: Checkpoint, statistics: dict[int, Statistics], ratios: list[float]
) -> Comparison:
    return Comparison(
        checkpoint=checkpoint,
        methods=choose_methods(["tenp", "enp", "drop-frequency"]),
        ratios=ratios,
        statistics=statistics,
        measures={"text": [TextMeasure.of(domain("code")), TextMeasure.of(domain("prose"))]},
        width_multiple=1,
        about={},
    )


def test_tasks_that_the_dense_model_cannot_do_are_not_shown() -> None:
    overall = {"mean_kl": 0.1, "same_top": 0.9, "perplexity_ratio": 1.2}
    row = {
        "method": "tenp",
        "keep": 0.5,
        "kept": 0.5,
        "expert_bytes": 8,
        "active_ratio": 0.6,
        "overall": {**overall, "cloze_accuracy": 0.5, "arithmetic_exact_answers": 0.25},
        "text": {"code": {"mean_kl": 0.1}},
    }
    dense = {"overall": {**overall, "cloze_accuracy": 0.9, "arithmetic_exact_answers": 0.0}}
    (line,) = lines({"rows": [row], "dense": dense})
    assert list(line.tasks) == ["cloze_accuracy"]


def test_predicted_losses_are_ranked_against_measured_kl() -> None:
    def row(keep: float, loss: float | None, kl: float) -> dict[str, Any]:
        return {"keep": keep, "predicted_loss": loss, "overall": {"mean_kl": kl}}

    same = [row(0.6, loss, loss**2) for loss in (0.1, 0.3, 0.2)]
    turned = [row(0.3, loss, -loss) for loss in (1.0, 3.0, 2.0)]
    found = predictions({"rows": [*same, row(0.6, None, 9.0), *turned]})
    assert [(p.keep, p.plans) for p in found] == [(0.6, 3), (0.3, 3), (None, 6)]
    assert [p.rank_correlation for p in found[:2]] == pytest.approx([1.0, -1.0])


def test_it_continues_after_a_kill(case: Case, tmp_path: Path) -> None:
    file, seeds = tmp_path / "compare.json", {0: case.statistics, 1: case.statistics}
    first = compare(comparison(case.checkpoint, seeds, [0.75]), file, device=CPU, dtype=F32)
    assert len(first["rows"]) == 6
    marked = {**first, "rows": [{**row, "kept": 7.0} for row in first["rows"]]}
    file.write_text(json.dumps(marked))  # what is there is not measured again
    both = compare(comparison(case.checkpoint, seeds, [0.75, 0.5]), file, device=CPU, dtype=F32)
    assert [row["kept"] == 7.0 for row in both["rows"]] == [True] * 6 + [False] * 6
    other = compare(
        comparison(case.checkpoint, {0: case.statistics}, [0.5]), file, device=CPU, dtype=F32
    )
    assert len(other["rows"]) == 3  # another comparison begins anew
    found = lines(both)
    assert [line.keep for line in found] == [0.75] * 3 + [0.5] * 3
    assert [line.kl.mean for line in found[:3]] == sorted(line.kl.mean for line in found[:3])
    assert all(line.kl.low == line.kl.high for line in found if line.method != "random")


def test_the_verb(checkpoint_of: Make, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from tenp_edge.cli.main import app

    files = []
    for name in ("code", "math"):
        for split in ("cal", "eval"):
            file = tmp_path / f"{name}-{split}.jsonl"
            text = f"{name} {split}: 1+1 = 2 and so on. " * 60 + "\n#### 2"
            file.write_text("".join(json.dumps({"text": f"{i} {text}"}) + "\n" for i in range(6)))
        files += ["--data", f"{name}={tmp_path}/{name}-cal.jsonl"]
        files += ["--eval-data", f"{name}={tmp_path}/{name}-eval.jsonl"]
    sizes = "--samples 4 --seq-len 64 --eval-samples 2 --eval-seq-len 64 --seeds 2".split()
    chosen = "--method tenp --method global-heapr --keep 0.5 --questions 4 --dtype float32".split()
    call = ["compare", str(checkpoint_of("qwen3_moe")), "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*call, *files, *sizes, *chosen, "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found == json.loads((tmp_path / "out" / "compare.json").read_text())
    assert [(r["method"], r["seed"]) for r in found["rows"]] == [
        ("tenp", 0),
        ("tenp", 1),
        ("global-heapr", 0),
        ("global-heapr", 1),
    ]
    assert set(found["rows"][0]["text"]) == set(found["rows"][0]["cloze"]) == {"code", "math"}
    shown = CliRunner().invoke(app, [*call, *files, *sizes, *chosen]).stdout
    assert "keep 0.5: 50.0 % of the experts' parameters stay" in shown
    assert "global-heapr: neurons compared across all layers, by the score heapr" in shown
    page = (tmp_path / "out" / "compare.md").read_text()
    assert page.startswith("## keep 0.5 (0.500 of the routed-expert parameters)\n\n| method |")
    assert page.count("| global-heapr |") == 1
    assert "## predicted loss against measured KL" in page and "| all | 4 |" in page


@pytest.mark.parametrize(
    ("flags", "message", "hint"),
    [
        (["--keep", "1.5"], "--keep 1.5 is not a share of the experts", "--keep 0.6"),
        (["--seeds", "0"], "--seeds 0 is not above zero", "--seeds 1"),
    ],
)
def test_refusals(
    flags: list[str], message: str, hint: str, checkpoint_of: Make, tmp_path: Path
) -> None:
    from typer.testing import CliRunner

    from tenp_edge.cli.main import app

    call = ["compare", str(checkpoint_of("qwen3_moe")), "-o", str(tmp_path / "out"), *flags]
    result = CliRunner().invoke(app, call)
    assert isinstance(result.exception, UserError)
    assert (result.exception.message, result.exception.hint) == (message, hint)
    assert not (tmp_path / "out").exists()
