"""The report of a run: its numbers are those of the files, whatever is missing or hostile."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from support import command
from support.edits import refusal

from tenp_edge.checkpoint.model_origin import bundled
from tenp_edge.pages.environment import environment_of
from tenp_edge.pages.report import write_report
from tenp_edge.units import format_size, nats

MOST_BYTES = 3 * 10**6


def text(run: Path) -> str:
    return unescape(write_report(run).read_text(encoding="utf-8"))


def edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    raw = json.loads(file.read_text(encoding="utf-8"))
    change(raw)
    file.write_text(json.dumps(raw), encoding="utf-8")


def test_compress_writes_it_and_the_numbers_are_those_of_the_files(small_run: Path) -> None:
    page = unescape((small_run / "report.html").read_text(encoding="utf-8"))
    plan, checked, known = (
        json.loads((small_run / f"{name}.json").read_text())
        for name in ("plan", "validation", "environment")
    )
    for part in ("experts", "other_weights", "kv", "compute", "overhead", "total"):
        assert f">{format_size(plan['memory'][f'{part}_bytes'])}<" in page, part
    for loss in checked["losses"]:
        for row in (*loss["domains"], loss["overall"]):
            assert f"{nats(row['mean_kl'])}<span" in page and row["kl_error"] > 0
    for layer, share in checked["routing"]["layers"].items():
        assert f'<th scope="row">{layer}</th><td class="number">{100 * share:.2f} %</td>' in page
    assert format_size(checked["measured_peak_rss"]) in page
    for example in checked["examples"]:
        assert f"{example['domain']}, KL {nats(example['kl'])}" in page
    assert f"the original: {format_size(known['model_bytes'])}" in page
    assert "It runs in tenp-edge, on a CPU." in page
    assert plan["digest"] in page and known["versions"]["torch"] in page
    assert all(f">{width}<" in page for row in plan["widths"].values() for width in row)
    assert (small_run / "recipe.toml").read_text(encoding="utf-8") in page


def test_what_a_run_did_not_produce_is_said(run: Path) -> None:
    for name in ("validation.json", "manifest.json", "environment.json", "recipe.toml"):
        (run / name).unlink()
    page = text(run)
    assert page.count("there is no validation.json") == 4  # the lead, losses, routing, examples
    assert "The run left no recipe.toml." in page
    assert "did not record its environment" in page and "not measured" in page


def test_why_nothing_was_measured(run: Path) -> None:
    (run / "validation.json").unlink()
    edit(run / "manifest.json", lambda raw: raw.update(complete=False))
    assert text(run).count("the run ended before its validation. The same compress command") == 4
    recipe = run / "recipe.toml"
    recipe.write_text("no-validate = true\n", encoding="utf-8")
    assert text(run).count("the run was made with --no-validate") == 4
    recipe.write_text("not a recipe", encoding="utf-8")
    assert "the run ended before its validation" in text(run)


def test_a_report_of_an_earlier_version_says_what_it_lacks(run: Path) -> None:
    def earlier(raw: dict[str, Any]) -> None:
        del raw["routing"], raw["examples"]
        for row in (*raw["domains"], raw["overall"]):
            del row["kl_error"]

    edit(run / "validation.json", earlier)
    page = text(run)
    assert "The routing was not compared" in page and "validation stored none" in page


@pytest.mark.parametrize(
    ("budget", "said"), [(2**30, "fits into 1.00 GiB"), (2**20, "does not fit into 1.00 MiB, but")]
)
def test_the_verdict_is_the_first_thing(run: Path, budget: int, said: str) -> None:
    def budgeted(raw: dict[str, Any]) -> None:
        raw["record"]["budget_bytes"] = budget

    edit(run / "plan.json", budgeted)
    headline = text(run).partition("<h1")[2].partition("</h1>")[0]
    assert said in headline.replace("\N{NO-BREAK SPACE}", " ")


def test_names_and_texts_cannot_leave_their_place(run: Path) -> None:
    evil = "</script><script>alert(1)</script>"
    edit(run / "environment.json", lambda raw: raw.update(model=evil))
    edit(run / "validation.json", lambda raw: raw["examples"][0].update(before=evil, next=evil))
    page = write_report(run).read_text(encoding="utf-8")
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page


def test_the_predicted_kl_is_that_of_cuts_and_types_together(run: Path) -> None:
    """As the measured one beside it is."""
    said = {"predicted_kl": 0.004, "predicted_kl_range": [0.002, 0.015], "type_kl": 0.001}
    edit(run / "plan.json", lambda raw: raw["record"].update(said, type_choice=None))
    assert '>0.00464<span class="extra"> (0.00271 to 0.0155)<' in text(run)


def test_a_plan_with_types_and_other_sizes(run: Path) -> None:
    def typed(raw: dict[str, Any]) -> None:
        one = {"total_bytes": 10**8, "predicted_kl": 0.01, "bits_per_weight": 4.5}
        points = [{**one, "keep_ratio": 0.5, "chosen": True}, {**one, "keep_ratio": 1.0}]
        choice = {"wholes": [{**one, "quant": "IQ4_XS"}, {**one, "quant": "IQ4_NL"}], "kl": 0.01}
        raw["record"] |= {"frontier": points, "type_choice": choice}
        raw["record"]["type_shares"] = {"Q4_K": 0.75, "Q6_K": 0.24, "F32": 0.01}
        layers = {"0": "Q4_K*4", "1": "Q6_K Q4_K*3"}
        raw["types"] = {
            "gate_up": layers,
            "down": layers,
            "others": {"0.q": "Q8_0", "embed": "Q6_K"},
        }
        raw["version"] = 3

    edit(run / "plan.json", typed)
    page = text(run)
    assert "IQ4_XS, IQ4_NL" in page and ">IQ4_XS +1<" in page and ">chosen<" in page
    assert "1 Q6_K, 3 Q4_K" in page and "Outside the layers: embed Q6_K." in page
    assert ">75.0 %<" in page and "in 2 types, mostly Q4_K" in page
    assert ">F32: biases and scales<" in page


def test_a_model_of_half_a_hundred_thousand_experts(run: Path) -> None:
    draw = random.Random(0)
    types = ("IQ2_XXS", "IQ3_S", "IQ4_XS", "Q5_K")

    def grown(raw: dict[str, Any]) -> None:
        raw["moe_intermediate_size"] = 1024
        layers = {str(n): [32 * draw.randint(0, 32) for _ in range(512)] for n in range(94)}
        names = {layer: " ".join(draw.choice(types) for _ in row) for layer, row in layers.items()}
        raw["widths"] = layers
        raw["types"] = {"gate_up": names, "down": names, "others": {}}

    edit(run / "plan.json", grown)
    assert write_report(run).stat().st_size < MOST_BYTES


def test_the_environment_names_the_model_and_nobody(small_model: Path) -> None:
    known = environment_of(small_model)
    assert known["model"] == small_model.name
    assert str(small_model.parent) not in json.dumps(known)
    assert {"tenp-edge", "Python", "torch"} < set(known["versions"])


def test_a_model_of_the_hub_is_called_by_its_id(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--me--my-model" / "snapshots" / "0f3a"
    snapshot.mkdir(parents=True)
    known = environment_of(snapshot)
    assert known["model"] == known["model_argument"] == "me/my-model"


def test_the_bundled_model_has_its_name_and_a_command(run: Path) -> None:
    known = environment_of(bundled())
    assert (known["model"], known["model_argument"]) == ("tenp-edge demo model", "demo")
    edit(run / "environment.json", lambda raw: raw.update(known))
    page = text(run)
    assert "tenp-edge demo model" in page
    assert "tenp-edge compress demo --recipe recipe.toml -o OUT" in page


def test_a_model_of_this_machine_has_no_command_of_its_name(run: Path) -> None:
    assert "tenp-edge compress MODEL --recipe recipe.toml -o OUT" in text(run)


def test_the_command_writes_it_again(run: Path) -> None:
    (run / "report.html").unlink()
    done = command.run("report", run)
    assert (done.returncode, done.stdout.split()) == (0, ["page", f"{run / 'report.html'}"])
    assert (run / "report.html").is_file()


def test_a_directory_without_a_run_is_refused(tmp_path: Path) -> None:
    assert refusal(lambda: write_report(tmp_path)) == (
        f"{tmp_path} holds no run: there is no plan.json in it",
        "the directory that compress wrote (-o)",
    )
    (tmp_path / "plan.json").write_text("{}")
    assert refusal(lambda: write_report(tmp_path)) == (
        f"{tmp_path / 'plan.json'} is not a tenp-edge plan",
        "compress again",
    )
