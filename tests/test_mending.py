"""Repair and healing: the closed form, what changes and what does not, and the whole road."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import plans
import pytest
import tiny
import torch
from test_cli import refused, run

from tenp_edge.checkpoint import Checkpoint, read_json
from tenp_edge.compare.methods import Case, Cut, mended
from tenp_edge.compress import write_checkpoint
from tenp_edge.errors import UserError
from tenp_edge.experts import neurons
from tenp_edge.forward import StreamingModel
from tenp_edge.healing import LayerText, heal_layer, held_out
from tenp_edge.loading import load_pruned
from tenp_edge.mended import Mended
from tenp_edge.mending import MendRules, mend
from tenp_edge.plan import CompressionPlan
from tenp_edge.registry import ExportOptions, exporter
from tenp_edge.ridge import Moments, repaired_down
from tenp_edge.runtime.opening import RunOptions, open_model
from tenp_edge.source import ModelSource
from tenp_edge.states import MemoryStates
from tenp_edge.sweep import streaming_logits
from tenp_edge.text_batch import Domain
from tenp_edge.variants import Planned

CPU, F32 = torch.device("cpu"), torch.float32
Make = Callable[[str], Path]


def texts(count: int = 6, seq_len: int = 48) -> list[Domain]:
    """Two domains of random tokens; the last sequence of each is shorter."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for name in ("code", "prose"):
        tokens = torch.randint(0, tiny.VOCAB, (count, seq_len), generator=generator)
        lengths = torch.full((count,), seq_len)
        tokens[-1, 20:], lengths[-1] = 0, 20
        found.append(Domain(name, tokens, lengths))
    return found


def mend_in(directory: Path, path: Path, rules: MendRules, **options: Any) -> Mended:
    checkpoint = Checkpoint(path)
    plan = options.pop("plan", None) or plans.ragged_plan(checkpoint)
    return mend(checkpoint, plan, texts(), directory, rules, device="cpu", **options)


def tensors_of(found: Mended) -> dict[str, torch.Tensor]:
    return {name: found.read(name) for name in found._stored}


# -- the closed form -------------------------------------------------------------------------------


@pytest.fixture
def problem() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """W_down (hidden 5, width 8), m [40, 8], the weights [40], the kept neurons."""
    generator = torch.Generator().manual_seed(1)
    down = torch.randn(5, 8, generator=generator)
    # Neurons that resemble each other, or there is nothing to take over.
    m = torch.randn(40, 4, generator=generator) @ torch.randn(4, 8, generator=generator)
    m = m.double() + 0.3 * torch.randn(40, 8, generator=generator)
    return down, m, torch.rand(40, generator=generator).double() + 0.1, torch.tensor([0, 2, 3, 7])


def moments_of(m: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """In two chunks, as they come."""
    moments = Moments(m.shape[1])
    moments.add(m[:25], weight[:25])
    moments.add(m[25:], weight[25:])
    return moments.total


def test_without_ridge_it_is_the_least_squares_solution(problem: Any) -> None:
    down, m, weight, kept = problem
    found = repaired_down(down, kept, moments_of(m, weight), ridge=1e-12)
    target = (m @ down.double().T) * weight[:, None]
    expected = torch.linalg.lstsq(m[:, kept] * weight[:, None], target).solution.T
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


def test_with_all_ridge_nothing_changes(problem: Any) -> None:
    down, m, weight, kept = problem
    found = repaired_down(down, kept, moments_of(m, weight), ridge=1e12)
    torch.testing.assert_close(found.float(), down[:, kept], rtol=1e-6, atol=1e-6)


def test_between_them_it_is_the_minimum(problem: Any) -> None:
    """The gradient of the written loss is zero there."""
    down, m, weight, kept = problem
    moments = moments_of(m, weight)
    w = repaired_down(down, kept, moments, ridge=0.1).requires_grad_(True)
    damping = 0.1 * moments[kept][:, kept].diagonal().mean()
    error = (m[:, kept] @ w.T - m @ down.double().T) * weight[:, None]
    loss = error.square().sum() + damping * (w - down[:, kept].double()).square().sum()
    (gradient,) = torch.autograd.grad(loss, w)
    assert float(gradient.abs().max()) < 1e-9


@pytest.mark.parametrize("why", ["nothing cut", "no token"])
def test_what_stays_bit_for_bit(why: str, problem: Any) -> None:
    down, m, weight, kept = problem
    kept = torch.arange(8) if why == "nothing cut" else kept
    moments = moments_of(m, weight) * (why == "nothing cut")
    assert torch.equal(repaired_down(down, kept, moments).float(), down[:, kept])


def test_an_expert_of_few_tokens_keeps_what_they_do_not_use(problem: Any) -> None:
    """One token fixes one direction; across it the weights are the original's."""
    down, m, weight, kept = problem
    found = repaired_down(down, kept, moments_of(m[:1], weight[:1]), ridge=1e-3)
    change, along = found - down[:, kept].double(), m[0, kept] / m[0, kept].norm()
    assert float(change.norm()) > 0
    across = change - (change @ along)[:, None] * along
    assert float(across.abs().max()) < 1e-9 * float(change.abs().max()) + 1e-12


def test_a_ridge_below_the_arithmetic_is_refused() -> None:
    moments = torch.ones(3, 3, dtype=torch.float64)
    moments[0, 0] = 1 - 1e-9
    with pytest.raises(UserError) as caught:
        repaired_down(torch.ones(2, 3), torch.tensor([0, 1]), moments, ridge=1e-15)
    assert caught.value.message == (
        "--set repair-ridge=1e-15 is too small: an expert's moments are singular"
    )


# -- the walk over the layers ----------------------------------------------------------------------


def test_repair_lowers_what_every_layer_loses(checkpoint_of: Make, tmp_path: Path) -> None:
    found = mend_in(tmp_path, checkpoint_of("qwen3_moe"), MendRules())
    for facts in found.info["layers"].values():
        assert 0 < facts["loss"] < facts["loss_cut"]
    assert found.info["seconds"] > 0 and found.info["repair_ridge"] == 0.1


def test_the_moments_are_those_of_the_routed_tokens(checkpoint_of: Make, tmp_path: Path) -> None:
    """One expert of the first layer, by hand from the whole model's own block."""
    path = checkpoint_of("qwen3_moe")
    checkpoint = Checkpoint(path)
    plan = plans.ragged_plan(checkpoint)
    found = mend_in(tmp_path, path, MendRules(), plan=plan)
    model = StreamingModel(ModelSource(checkpoint), CPU, F32)
    layer = model.layer(0)
    seen: list[tuple[torch.Tensor, ...]] = []
    layer.get_submodule("mlp.experts").register_forward_pre_hook(lambda _, args: seen.append(args))
    expert = next(e for e, w in enumerate(plan.widths[0]) if w < plan.full_width)
    weights = checkpoint.expert(0, expert)
    moments = Moments(plan.full_width)
    for domain in texts():
        for tokens, length in zip(domain.tokens, domain.lengths.tolist(), strict=True):
            output = model.run(layer, model.embed(tokens[None, :length]))[0]
            x, chosen, g = seen.pop()
            rows, slots = (chosen == expert).nonzero(as_tuple=True)
            if len(rows):
                moments.add(neurons(weights, x[rows]), g[rows, slots] / output[rows].norm(dim=-1))
    expected = repaired_down(weights.down, plan.neurons(0, expert), moments.total)
    name = checkpoint.config.expert_tensor(0, expert, 2)
    torch.testing.assert_close(found.read(name), expected.float(), rtol=1e-4, atol=1e-6)


def test_inputs_in_a_file_are_the_inputs_in_memory(
    checkpoint_of: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = checkpoint_of("qwen3_moe")
    inside = mend_in(tmp_path / "memory", path, MendRules())
    monkeypatch.setattr("tenp_edge.mending.SPILL_BYTES", 0)
    spilled = mend_in(tmp_path / "file", path, MendRules())
    assert spilled.digest == inside.digest
    assert {file.name for file in (tmp_path / "file").iterdir()} == {
        "mended.json",
        *(f"layer-{index}.safetensors" for index in range(3)),
    }


def test_repair_alone_changes_down_projections_of_cut_experts(
    checkpoint_of: Make, tmp_path: Path
) -> None:
    """Routers, norms and whole experts are the cut model's, element for element."""
    checkpoint = Checkpoint(checkpoint_of("deepseek_v3"))
    plan = plans.ragged_plan(checkpoint)
    found = mend_in(tmp_path, checkpoint.path, MendRules(), plan=plan)
    cut, whole = ModelSource(checkpoint, plan), ModelSource(checkpoint, plan, mended=found)
    changed = {n for n in cut.tensors if not torch.equal(cut.read(n), whole.read(n))}
    assert changed == set(tensors_of(found))
    for name in changed:
        spec = cut.tensors[name]
        assert spec.role == "expert_down" and spec.layer is not None and spec.expert is not None
        assert plan.widths[spec.layer][spec.expert] < plan.full_width


HEALED = {"routers": {"router"}, "norms": {"router", "input_norm", "post_attention_norm"}}


@pytest.mark.parametrize("what", HEALED)
@pytest.mark.parametrize("family", ["qwen2_moe", "deepseek_v3"])
def test_healing_changes_what_it_says_and_never_for_worse(
    what: str, family: str, checkpoint_of: Make, tmp_path: Path
) -> None:
    rules = MendRules(repair=False, heal=what)
    found = mend_in(tmp_path, checkpoint_of(family), rules)
    specs = ModelSource(Checkpoint(checkpoint_of(family))).tensors
    assert {specs[name].role for name in tensors_of(found)} <= HEALED[what]
    pairs = [facts["held_out"] for facts in found.info["layers"].values()]
    assert all(after <= before for before, after in pairs)
    assert any(after < before for before, after in pairs)
    assert found.info["seconds"] > 0


def test_healing_undoes_a_disturbed_router(checkpoint_of: Make) -> None:
    """Against the layer as it was, training brings a wrong router nearer to it."""
    checkpoint = Checkpoint(checkpoint_of("mixtral"))
    source = ModelSource(checkpoint)
    model = StreamingModel(source, CPU, F32)
    inputs = torch.randn(20, 24, 64, generator=torch.Generator().manual_seed(0))
    targets = model.run(model.layer(1), inputs)
    router = f"{checkpoint.config.moe_prefix(1)}gate.weight"

    class Disturbed:
        digest = ""
        wrong = source.read(router) * 0.8

        def __contains__(self, name: object) -> bool:
            return name == router

        def read(self, name: str) -> torch.Tensor:
            return self.wrong

    disturbed = ModelSource(checkpoint, mended=Disturbed())
    active = torch.ones(20, 24, dtype=torch.bool)
    text = LayerText(MemoryStates(inputs), MemoryStates(targets), active, held_out([20]))
    healed = heal_layer(model.with_source(disturbed), disturbed, 1, "routers", text)
    assert healed.after < healed.before and set(healed.tensors) == {router}
    far, near = (w - source.read(router) for w in (Disturbed.wrong, healed.tensors[router]))
    assert float(near.norm()) < float(far.norm())


def test_held_out_rows_are_a_fifth_of_every_domain() -> None:
    assert held_out([10, 3, 1]) == [4, 9, 12, 13]


class Killer:
    """Progress that kills its own process (-9) at the n-th step."""

    def __init__(self, kill_at: int) -> None:
        self.left = kill_at

    def note(self, text: str) -> None:
        pass

    @contextmanager
    def task(self, title: str, total: float, unit: str) -> Any:
        yield self

    def advance(self, amount: float = 1) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_run_ends_with_the_same_bytes(checkpoint_of: Make, tmp_path: Path) -> None:
    path, rules = checkpoint_of("qwen3_moe"), MendRules(heal="routers")
    whole = mend_in(tmp_path / "whole", path, rules)
    code = (
        "import sys, torch; torch.set_num_threads(1); from pathlib import Path\n"
        "from test_mending import Killer, MendRules, mend_in\n"
        "rules, killer = MendRules(heal='routers'), Killer(3)\n"
        "mend_in(Path(sys.argv[1]), Path(sys.argv[2]), rules, progress=killer)"
    )
    out = tmp_path / "killed"
    command = [sys.executable, "-c", code, str(out), str(path)]
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=paths)
    assert done.returncode == -9, done.stderr
    assert not (out / "mended.json").exists()
    assert len(list((out / "mending.partial").glob("layer-*.json"))) == 2
    again = mend_in(out, path, rules)
    assert again.digest == whole.digest
    assert not (out / "mending.partial").exists()
    before = (out / "mended.json").read_bytes()
    assert mend_in(out, path, rules).digest == whole.digest
    assert (out / "mended.json").read_bytes() == before  # finished work is returned at once


def test_other_rules_begin_anew(checkpoint_of: Make, tmp_path: Path) -> None:
    path = checkpoint_of("qwen3_moe")
    first = mend_in(tmp_path, path, MendRules())
    second = mend_in(tmp_path, path, MendRules(repair_ridge=1.0))
    assert first.digest != second.digest
    assert Mended(tmp_path).info["repair_ridge"] == 1.0


def test_one_chunk_is_too_little_to_heal_on(checkpoint_of: Make, tmp_path: Path) -> None:
    checkpoint = Checkpoint(checkpoint_of("qwen3_moe"))
    short = [Domain(d.name, d.tokens[:1], d.lengths[:1]) for d in texts()]
    plan = plans.ragged_plan(checkpoint)
    with pytest.raises(UserError) as caught:
        mend(checkpoint, plan, short, tmp_path, MendRules(heal="routers"))
    assert caught.value.message == "heal holds text out, and no domain has 2 chunks"
    assert caught.value.hint == "--samples 8 and more text"


# -- the mended model everywhere -------------------------------------------------------------------


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_checkpoint_file_and_runtime_are_the_mended_model(
    family: str, checkpoint_of: Make, tmp_path: Path
) -> None:
    """Written as a checkpoint, exported, read back and run: the same logits everywhere."""
    checkpoint = Checkpoint(checkpoint_of(family))
    plan = plans.ragged_plan(checkpoint)
    rules = MendRules(heal="norms")
    found = mend_in(tmp_path / "mended", checkpoint.path, rules, plan=plan)
    source = ModelSource(checkpoint, plan, mended=found)
    write_checkpoint(source, tmp_path / "checkpoint")
    tokens = texts()[0].tokens[:1, :32]
    expected = torch.cat(list(streaming_logits(source, tokens, device=CPU, dtype=F32)))
    plain = ModelSource(checkpoint, plan)
    cut = torch.cat(list(streaming_logits(plain, tokens, device=CPU, dtype=F32)))
    assert float((expected - cut).abs().max()) > 1e-3

    written = ModelSource(Checkpoint(tmp_path / "checkpoint"))
    assert written.digest == source.digest != plan.digest
    assert all(torch.equal(written.read(name), source.read(name)) for name in source.tensors)
    logits = load_pruned(tmp_path / "checkpoint")(tokens).logits[0]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)

    file, gguf = tmp_path / "model.gguf", exporter("gguf")
    gguf.write(source, ExportOptions("F32"), file)
    stored = gguf.read_back(file, checkpoint.config)
    assert stored.plan_digest == source.digest
    for name in tensors_of(found):
        assert torch.equal(stored.read(name), source.read(name).float()), name
    options = RunOptions(context=32, kv_type="F32", flash_attention=False)
    with open_model(file, options) as model:
        ran = torch.from_numpy(model.logits(tokens[0].tolist(), 0))
    assert float((ran - expected).abs().max()) < 1e-4 * max(1.0, float(expected.std()))


def test_a_mended_checkpoint_says_so_and_is_not_the_cut_one(
    checkpoint_of: Make, tmp_path: Path
) -> None:
    checkpoint = Checkpoint(checkpoint_of("qwen3_moe"))
    plan = plans.ragged_plan(checkpoint)
    found = mend_in(tmp_path / "mended", checkpoint.path, MendRules(heal="routers"), plan=plan)
    source = ModelSource(checkpoint, plan, mended=found)
    write_checkpoint(source, tmp_path / "out")
    section = read_json(tmp_path / "out" / "config.json")["tenp"]
    assert section["mended"] == {
        "repair": True,
        "repair_ridge": 0.1,
        "heal": "routers",
        "plan_digest": plan.digest,
    }
    card = (tmp_path / "out" / "README.md").read_text()
    assert "refitted by ridge least squares (0.1)" in card and "bit for" not in card
    with pytest.raises(UserError) as caught:
        write_checkpoint(ModelSource(checkpoint, plan), tmp_path / "out")
    assert caught.value.message == f"{tmp_path / 'out'} already holds another model"


# -- the command -----------------------------------------------------------------------------------

QUICK = ("--samples", "6", "--seq-len", "64", "--set", "eval-samples=2", "--set", "eval-seq-len=64")


@pytest.mark.parametrize("stored", ["checkpoint", "mended"])
def test_compress_repairs_heals_and_validates(
    stored: str, checkpoint_of: Make, tmp_path: Path
) -> None:
    """The stage "pruning" of the loss is the mended model's, found beside the file: as a
    checkpoint, or as plan.json with mended/."""
    model, out = checkpoint_of("qwen3_moe"), tmp_path / "out"
    more = ("--skip-checkpoint",) if stored == "mended" else ()
    call = (
        "compress",
        model,
        "--keep",
        "0.5",
        "--quant",
        "F32",
        "--repair",
        "--set",
        "heal=routers",
    )
    done = run(*call, *QUICK, *more, "-o", out, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["mended"]["repair"] is True and result["mended"]["heal"] == "routers"
    assert "mean loss of a layer" in done.stderr
    losses = result["validation"]["losses"]
    assert [loss["stage"] for loss in losses] == ["pruning", "quantisation", "runtime"]
    # F32: the file holds the mended model itself, so nothing is added after the pruning.
    assert abs(losses[1]["added_kl"]) < 1e-9
    assert losses[0]["overall"]["mean_kl"] > 0
    before = hashlib.sha256((out / "model.gguf").read_bytes()).hexdigest()
    again = run(*call, *QUICK, *more, "-o", out)
    assert again.returncode == 0, again.stderr
    assert hashlib.sha256((out / "model.gguf").read_bytes()).hexdigest() == before
    assert refused("compress", model, "--keep", "0.5", *QUICK, "-o", out) == (
        f"error: {out} holds a finished run with other settings\n"
        f"try:   another -o with --calibration {out / 'calibration'} (it is not made again), "
        "or --force to overwrite it\n"
    )


def test_nothing_cut_is_nothing_to_mend(checkpoint_of: Make, tmp_path: Path) -> None:
    out = tmp_path / "out"
    call = ("compress", checkpoint_of("olmoe"), *QUICK, "--no-validate", "--repair")
    done = run(*call, "--keep", "1", "-o", out)
    assert done.returncode == 0, done.stderr
    assert "nothing was cut: there is nothing to repair or to heal" in done.stderr
    assert not (out / "mended").exists()
    done = run(*call, "--keep", "0.5", "--method", "drop", "-o", tmp_path / "drop")
    assert done.returncode == 0, done.stderr
    assert "every expert is whole or removed: there is nothing to repair" in done.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--no-repair", "--set", "repair-ridge=0.3"),
            "error: repair-ridge says how to repair, and nothing is repaired\ntry:   --repair\n",
        ),
        (
            ("--repair", "--set", "repair-ridge=0"),
            "error: --set repair-ridge=0 is not above 0\ntry:   --set repair-ridge=0.1\n",
        ),
        (
            ("--set", "heal=everything"),
            "error: --set heal=everything is not known\ntry:   --set heal=routers|norms\n",
        ),
    ],
)
def test_refusals(
    flags: tuple[str, ...], message: str, checkpoint_of: Make, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    call = ("compress", checkpoint_of("olmoe"), "--keep", "0.6", *flags, "-o", out)
    assert refused(*call) == message
    assert not out.exists()


# -- the comparison's rows -------------------------------------------------------------------------


def test_a_mended_row_is_its_base_with_other_weights(checkpoint_of: Make, tmp_path: Path) -> None:
    checkpoint = Checkpoint(checkpoint_of("qwen3_moe"))
    plan = plans.ragged_plan(checkpoint)
    asked: list[MendRules] = []

    def build(given: CompressionPlan, rules: MendRules) -> Mended:
        assert given is plan
        asked.append(rules)
        return mend_in(tmp_path / "m", checkpoint.path, rules, plan=given)

    base = Cut(Planned(plan), kept=0.5, stored=0.5, active_ratio=0.6)
    case = replace_case(build)
    cut = mended(lambda _case, _neurons: base, MendRules())(case, 0)
    assert asked == [MendRules()]
    assert replace(cut, candidate=base.candidate) == base
    source = cut.candidate.source(checkpoint)
    name = next(iter(tensors_of(Mended(tmp_path / "m"))))
    assert not torch.equal(source.read(name), base.candidate.source(checkpoint).read(name))


def replace_case(build: Any) -> Case:
    case = Case.__new__(Case)
    case.mend = build
    return case
