"""Where the loss comes from: every stage is the model it says, in every family and layout."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from support import tiny
from support.gguf_cases import export, random_plan
from support.plans import cycled, plan_for, removal_plan
from support.validating import domains_of

from tenp_edge.checkpoint.compression_plan import CompressionPlan
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.provenance import PrunedBy
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.checkpoint.writer import write_checkpoint
from tenp_edge.errors import UserError
from tenp_edge.evaluation.validation import ValidationReport, validate
from tenp_edge.exporters.base import ExportOptions
from tenp_edge.exporters.gguf import EXPORTER
from tenp_edge.exporters.gguf.types import FILE_TYPES
from tenp_edge.exporters.gguf.types import TYPES as TENSOR_TYPES
from tenp_edge.forward.sweep import streaming_logits

CheckpointOf = Callable[[str], Path]
TYPES = tuple(quant for quant in EXPORTER.quants if quant != "F32")
WEIGHED_ONLY = tuple(
    name for name, row in FILE_TYPES.items() if TENSOR_TYPES[row.default].needs_importance
)
CPU = torch.device("cpu")


def legal_plan(checkpoint: Checkpoint) -> CompressionPlan:
    """Widths that are multiples of 32, one expert after the other."""
    full = checkpoint.config.moe_intermediate_size
    return plan_for(checkpoint, cycled(checkpoint, (32, 64, full)))


def judged(reference: Path, file: Path, **options: Any) -> ValidationReport:
    domains = domains_of(reference)[:1]
    return validate(reference, file, domains, device="cpu", dtype="float32", threads=1, **options)


# -- reading back ----------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", EXPORTER.layouts)
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_an_f32_file_gives_back_every_tensor(
    family: str, layout: str, checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    """Padded shared experts, interleaved queries and split latents included, bit for bit; but for
    Mamba's decays."""
    checkpoint = Checkpoint(checkpoint_of(family))
    plan = random_plan(checkpoint, "uniform" if layout == "merged" else "ragged")
    source = ModelSource(checkpoint, plan)
    export(source, tmp_path / "model.gguf", "F32", layout)
    found = EXPORTER.read_back(tmp_path / "model.gguf", checkpoint.config)
    assert found.plan_digest == plan.digest
    assert found.config.expert_widths == source.config.expert_widths
    for name, spec in source.tensors.items():
        wanted = source.read(name).float()
        tolerance = 1e-6 if spec.role == "ssm_a" else 0.0  # stored as its exponential
        assert torch.allclose(found.read(name), wanted, rtol=0, atol=tolerance), name
        if spec.part == "embeddings":
            assert torch.equal(found.read_rows(name, 5, 9), wanted[5:9])
            assert torch.equal(found.held(name)(3, 300), wanted[3:300])
    tokens = torch.tensor([[5, 9, 200, 31, 7, 7]])
    both = [
        next(streaming_logits(model, tokens, device=CPU, dtype=torch.float32))
        for model in (source, found)
    ]
    assert torch.equal(*both)


def test_removed_experts_are_known_from_the_file(
    checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    checkpoint = Checkpoint(checkpoint_of("qwen3_moe"))
    source = ModelSource(checkpoint, removal_plan(checkpoint, 5))
    export(source, tmp_path / "model.gguf", "F32")
    found = EXPORTER.read_back(tmp_path / "model.gguf", checkpoint.config)
    assert (
        found.config.num_experts == 5 and found.config.expert_widths == source.config.expert_widths
    )
    name = checkpoint.config.expert_tensor(1, 4, 2)
    assert torch.equal(found.read(name), source.read(name))


@pytest.mark.parametrize("quant", TYPES)
def test_decoded_weights_are_ggufs(quant: str, tmp_path: Path) -> None:
    """ggml's decoders against those of the gguf package, over every type of every mix."""
    changes = {"hidden_size": 256, "head_dim": 64, "moe_intermediate_size": 256}
    model = tiny.make(tmp_path / "model", "qwen3_moe", **changes, num_hidden_layers=2)
    checkpoint = Checkpoint(model)
    source = ModelSource(checkpoint, plan_for(checkpoint, cycled(checkpoint, (96, 256))))
    # A rule of its own for the types that no mix may have without an importance matrix.
    rules = (f"ffn_gate_exps={FILE_TYPES[quant].default}",) if quant in WEIGHED_ONLY else ()
    mix = "Q4_0" if rules else quant
    EXPORTER.write(source, ExportOptions(mix, tensor_types=rules), tmp_path / "model.gguf")
    found = EXPORTER.read_back(tmp_path / "model.gguf", checkpoint.config)
    stored = {t.name: t for t in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    pairs = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.layers.1.self_attn.v_proj.weight": "blk.1.attn_v.weight",
        "model.layers.0.mlp.experts.0.down_proj.weight": "blk.0.ffn_down.0.weight",
        "model.layers.0.mlp.experts.1.down_proj.weight": "blk.0.ffn_down.1.weight",
        "model.layers.1.mlp.experts.3.gate_proj.weight": "blk.1.ffn_gate.3.weight",
    }
    for name, own in pairs.items():
        wanted = gguf.dequantize(stored[own].data, stored[own].tensor_type)
        assert np.array_equal(found.read(name).numpy(), wanted), own


# -- the split -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_stages_add_up(family: str, checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    """F32 loses by pruning alone; Q4_0 by its weights too, as the decoded weights alone show."""
    model = checkpoint_of(family)
    checkpoint = Checkpoint(model)
    plan = legal_plan(checkpoint)
    source = ModelSource(checkpoint, plan)
    plan.save(tmp_path / "plan.json")
    write_checkpoint(source, tmp_path / "pruned")
    pruned = judged(model, tmp_path / "pruned")
    assert [loss.stage for loss in pruned.losses] == ["pruning"]
    for quant in ("F32", "Q4_0"):
        file = tmp_path / f"{quant}.gguf"
        export(source, file, quant, "per-expert")
        report = judged(model, file)
        assert [loss.stage for loss in report.losses] == ["pruning", "quantisation", "runtime"]
        assert report.losses_note is None
        cut, decoded, runs = report.losses
        assert cut.overall == pruned.overall
        assert (runs.overall, runs.domains) == (report.overall, report.domains)
        assert sum(loss.added_kl for loss in report.losses) == pytest.approx(runs.overall.mean_kl)
        assert cut.added_kl == cut.overall.mean_kl > 1e-4
        if quant == "F32":
            assert decoded.added_kl == 0
            assert abs(runs.added_kl) < 1e-5 * max(1, cut.overall.mean_kl)
        else:
            assert decoded.overall.mean_kl != cut.overall.mean_kl
            # The runtime rounds activations to 8 bits on top: little beside 4-bit weights.
            assert abs(runs.added_kl) < 0.2 * decoded.overall.mean_kl
    assert ValidationReport.from_json(report.to_json() | _lists(report)) == report


def _lists(report: ValidationReport) -> dict[str, Any]:
    """As JSON gives tuples back."""
    raw = report.to_json()
    return {"losses": list(raw["losses"]), "domains": list(raw["domains"])}


def test_quantisation_alone(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    """Nothing was cut: the pruned model is the reference, whatever lies beside the file."""
    model = checkpoint_of("olmoe")
    export(ModelSource(Checkpoint(model)), tmp_path / "model.gguf", "Q4_0")
    cut, decoded, runs = judged(model, tmp_path / "model.gguf").losses
    assert (cut.through, cut.overall.mean_kl) == ("nothing was cut", 0.0)
    assert 1e-5 < decoded.overall.mean_kl == decoded.added_kl
    assert runs.overall.mean_kl == pytest.approx(decoded.overall.mean_kl, rel=0.3)


def test_where_the_pruned_model_is_found(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    """Beside the file, checkpoint or plan; named by flags; else two steps are one."""
    model = checkpoint_of("qwen3_moe")
    checkpoint = Checkpoint(model)
    plan = legal_plan(checkpoint)
    source = ModelSource(checkpoint, plan)
    file = tmp_path / "out" / "model.gguf"
    export(source, file, "Q8_0")
    names = [["pruning, quantisation", "runtime"], ["pruning", "quantisation", "runtime"]]

    alone = judged(model, file)
    assert [loss.stage for loss in alone.losses] == names[0]
    assert alone.losses_note == (
        "pruning and quantisation are not told apart: no plan.json or checkpoint of plan "
        f"{plan.digest[:12]} lies beside the file (--plan PLAN.JSON or --checkpoint DIR names it)"
    )
    (file.parent / "plan.json").write_text("{}")  # another tool's
    assert judged(model, file).losses == alone.losses

    whole = tmp_path / "whole"
    write_checkpoint(source, whole / "checkpoint")
    plan.save(whole / "plan.json")
    wanted = judged(model, file, pruned_by=PrunedBy(checkpoint=whole / "checkpoint"))
    assert [loss.stage for loss in wanted.losses] == names[1]
    assert wanted.overall == alone.overall
    assert judged(model, file, pruned_by=PrunedBy(plan=whole / "plan.json")) == wanted
    for name in ("checkpoint", "plan.json"):
        place = tmp_path / f"beside {name}"
        copy = shutil.copytree if name == "checkpoint" else shutil.copy
        place.mkdir()
        copy(whole / name, place / name)
        if name == "plan.json":
            shutil.copy(whole / "plan.safetensors", place)
        shutil.copy(file, place)
        assert judged(model, place / "model.gguf").losses == wanted.losses
    # The pruned checkpoint as the reference: what is left is quantisation.
    cut = judged(whole / "checkpoint", file).losses[0]
    assert (cut.through, cut.overall.mean_kl) == ("nothing was cut", 0.0)
    assert judged(model, file, split=False).losses == ()


def test_another_plan_is_refused(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    model = checkpoint_of("qwen3_moe")
    checkpoint = Checkpoint(model)
    plan, other = legal_plan(checkpoint), random_plan(checkpoint, "ragged")
    export(ModelSource(checkpoint, plan), tmp_path / "model.gguf", "Q8_0")
    other.save(tmp_path / "plan.json")
    write_checkpoint(ModelSource(checkpoint, other), tmp_path / "pruned")
    for name, given in (
        ("plan.json", PrunedBy(plan=tmp_path / "plan.json")),
        ("pruned", PrunedBy(checkpoint=tmp_path / "pruned")),
    ):
        with pytest.raises(UserError) as caught:
            judged(model, tmp_path / "model.gguf", pruned_by=given)
        assert (caught.value.message, caught.value.hint) == (
            f"{tmp_path / name} is of another plan than the file "
            f"({other.digest[:12]}, not {plan.digest[:12]})",
            "the plan.json or checkpoint of the run that wrote the file",
        )
    with pytest.raises(UserError) as caught:
        judged(model, tmp_path / "model.gguf", pruned_by=PrunedBy(checkpoint=model))
    assert caught.value.message == (
        f"{model} is not a pruned checkpoint (its config.json has no tenp section)"
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "model.gguf",
        "plan.json",
        "plan.safetensors",
        "pruned",
    ]


def test_files_that_cannot_be_read_back(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    checkpoint = Checkpoint(checkpoint_of("qwen3_moe"))
    export(ModelSource(checkpoint), tmp_path / "model.gguf", "F32", "merged")
    config = replace(checkpoint.config, vocab_size=500)
    with pytest.raises(UserError) as caught:
        EXPORTER.read_back(tmp_path / "model.gguf", config)
    assert caught.value.message == (
        "model.gguf: token_embd.weight is (384, 64), (500, 64) or more was expected"
    )
    with pytest.raises(UserError) as caught:
        EXPORTER.read_back(tmp_path / "model.gguf", replace(checkpoint.config, qkv_bias=True))
    assert caught.value.message == "model.gguf has no tensor blk.0.attn_q.bias"
