"""Validation: equal models agree, every judge of one pruned model says the same, nothing stays."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from support import tiny
from support.plans import cycled, plan_for, ragged_plan
from support.validating import domains_of

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.checkpoint.writer import write_checkpoint
from tenp_edge.errors import UserError
from tenp_edge.evaluation.attribution import TRANSFORMERS
from tenp_edge.evaluation.validation import ValidationReport, load_report, validate
from tenp_edge.exporters.base import ExportOptions, exporter
from tenp_edge.forward.text_batch import Domain
from tenp_edge.runtime.ggml.model import PerExpertModel
from tenp_edge.runtime.gguf.padded_twin import TWIN, GgufFile, write_padded_twin
from tenp_edge.runtime.llamacpp.model import LlamaCppModel
from tenp_edge.runtime.memory.footprint import MemoryRun, PlannedRun
from tenp_edge.verbs.options import MeasureOptions

CheckpointOf = Callable[[str], Path]
RUNTIMES = (LlamaCppModel.runtime, PerExpertModel.runtime)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def export(source: ModelSource, target: Path, layout: str, quant: str = "F32") -> Path:
    exporter("gguf").write(source, ExportOptions(quant, layout), target)
    return target


def strict(
    reference: Path, candidate: Path, domains: list[Domain], twin: bool = False
) -> ValidationReport:
    return validate(
        reference, candidate, domains, device="cpu", dtype="float32", threads=1, twin=twin
    )


def test_a_model_against_itself(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    model = checkpoint_of("qwen3_moe")
    report = validate(model, model, domains_of(model), work=tmp_path, device="cpu")
    assert [row.domain for row in report.domains] == ["code", "prose"]
    for row in (*report.domains, report.overall):
        assert (row.mean_kl, row.max_kl, row.same_top) == (0.0, 0.0, 1.0)
        assert row.perplexity_ratio == 1.0
    assert report.judged_through == TRANSFORMERS
    assert report.overall.tokens == sum(row.tokens for row in report.domains)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_judge_says_the_same(
    family: str, checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    """Torch, the padded file, the per-expert file through its twin and in its runtime, in F32."""
    model = checkpoint_of(family)
    checkpoint, domains = Checkpoint(model), domains_of(model)
    source = ModelSource(checkpoint, ragged_plan(checkpoint))
    write_checkpoint(source, tmp_path / "pruned")
    padded = export(source, tmp_path / "padded.gguf", "padded")
    ragged = export(source, tmp_path / "ragged.gguf", "per-expert")
    before = sorted(tmp_path.iterdir())
    (tmp_path / ".ragged.gguf.validation").mkdir()  # as a killed run leaves it
    (tmp_path / ".ragged.gguf.validation" / "twin.gguf.partial").write_bytes(b"half")
    reports = [strict(model, file, domains) for file in (tmp_path / "pruned", padded, ragged)]
    reports.append(strict(model, ragged, domains, twin=True))
    assert [r.judged_through for r in reports] == [TRANSFORMERS, *RUNTIMES, TWIN]
    assert [r.tokenizer_agrees for r in reports] == [None, True, True, True]
    torch_row, padded_row, own_row, twin_row = (r.overall for r in reports)
    assert torch_row.mean_kl > 1e-4 and torch_row.perplexity_ratio != 1.0
    assert padded_row.mean_kl == pytest.approx(torch_row.mean_kl, rel=1e-3)
    assert padded_row.candidate_perplexity == pytest.approx(
        torch_row.candidate_perplexity, rel=1e-4
    )
    assert twin_row == padded_row
    assert own_row.mean_kl == pytest.approx(torch_row.mean_kl, rel=1e-3)
    assert own_row.candidate_perplexity == pytest.approx(twin_row.candidate_perplexity, rel=1e-4)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_unpruned_file_agrees_with_the_reference(
    family: str, checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    model = checkpoint_of(family)
    file = export(ModelSource(Checkpoint(model)), tmp_path / "model.gguf", "merged")
    row = strict(model, file, domains_of(model)).overall
    # A table of float16 numbers is up to 5e-4 of a neuron from GELU itself.
    bar = 1e-5 if tiny.is_looked_up(family) else 1e-8
    assert row.max_kl < bar and row.same_top == 1.0


@pytest.mark.parametrize("quant", ["F32", "F16", "Q8_0"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_twin_is_the_padded_file(
    family: str, quant: str, checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    """Copying stored blocks and zeros gives the very tensors that exporting padded gives."""
    checkpoint = Checkpoint(checkpoint_of(family))
    full = checkpoint.config.moe_intermediate_size
    source = ModelSource(checkpoint, plan_for(checkpoint, cycled(checkpoint, (32, 64, full))))
    ragged = export(source, tmp_path / "ragged.gguf", "per-expert", quant)
    write_padded_twin(GgufFile(ragged), tmp_path / "twin.gguf")
    twin = GGUFReader(tmp_path / "twin.gguf")
    padded = GGUFReader(export(source, tmp_path / "padded.gguf", "padded", quant))
    assert {k: f.contents() for k, f in twin.fields.items() if not k.startswith("GGUF.")} == {
        k: f.contents() for k, f in padded.fields.items() if not k.startswith("GGUF.")
    }
    ours, theirs = ({t.name: t for t in reader.tensors} for reader in (twin, padded))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.tensor_type == theirs[name].tensor_type, name
        assert np.array_equal(tensor.shape, theirs[name].shape), name
        assert np.array_equal(tensor.data, theirs[name].data), name


def test_twin_of_experts_with_different_types(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    """A width of 40 cannot be Q8_0: that down projection is F16, and the merged one float32."""
    model = checkpoint_of("qwen3_moe")
    checkpoint = Checkpoint(model)
    source = ModelSource(checkpoint, plan_for(checkpoint, cycled(checkpoint, (40, 64, 96))))
    ragged = export(source, tmp_path / "ragged.gguf", "per-expert", "Q8_0")
    write_padded_twin(GgufFile(ragged), tmp_path / "twin.gguf")
    twin = {t.name: t for t in GGUFReader(tmp_path / "twin.gguf").tensors}
    merged = twin["blk.0.ffn_down_exps.weight"]
    assert merged.tensor_type.name == "F32"
    assert twin["blk.0.ffn_gate_exps.weight"].tensor_type.name == "Q8_0"
    own = {t.name: t for t in GGUFReader(ragged).tensors}
    for expert, width in enumerate((40, 64, 96)):
        stored = own[f"blk.0.ffn_down.{expert}.weight"]
        assert stored.tensor_type.name == ("F16" if width == 40 else "Q8_0")
        decoded = dequantize(stored.data, stored.tensor_type)
        assert np.array_equal(merged.data[expert][:, :width], decoded)
        assert not merged.data[expert][:, width:].any()


@pytest.mark.parametrize(("twin", "judge"), [(False, RUNTIMES[1]), (True, TWIN)])
def test_peak_rss_is_of_the_run_that_is_named(
    twin: bool, judge: str, checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    model = checkpoint_of("qwen3_moe")
    source = ModelSource(Checkpoint(model), ragged_plan(Checkpoint(model)))
    ragged = export(source, tmp_path / "ragged.gguf", "per-expert")
    run = MemoryRun(context=256, ubatch=64, kv_type="F16", threads=1)
    report = validate(
        model,
        ragged,
        domains_of(model),
        memory_run=run,
        twin=twin,
        device="cpu",
    )
    assert report.measured_as == judge
    assert report.measured_peak_rss is not None and report.predicted_peak_rss is not None
    assert 20 * 2**20 < report.measured_peak_rss <= report.predicted_peak_rss < 400 * 2**20


def test_the_measured_run() -> None:
    """What the flags say; the model's own length bounds the default and what may be asked."""
    assert MeasureOptions().run(8192, 2) == MemoryRun(4096, 512, "F16", 2)
    assert MeasureOptions().run(1024, 2).context == 1024
    assert MeasureOptions(700, "Q8_0", 64).run(1024, 1) == MemoryRun(700, 64, "Q8_0", 1)
    planned = PlannedRun(256, 32, "Q8_0")
    assert MeasureOptions().run(1024, 2, planned) == MemoryRun(256, 32, "Q8_0", 2)
    assert MeasureOptions(kv_type="F16").run(1024, 2, planned) == MemoryRun(256, 32, "F16", 2)
    for options, message in (
        (
            MeasureOptions(kv_type="Q4_9"),
            "no KV cache type 'Q4_9'\ntry: --kv-type F32|F16|BF16|Q8_0|Q5_1|Q5_0|Q4_1|Q4_0",
        ),
        (MeasureOptions(ubatch=0), "--ubatch is 0\ntry: --ubatch of 1 or more"),
        (
            MeasureOptions(2000),
            "--context 2000 is more than the 1024 tokens of the model\ntry: --context 1024",
        ),
    ):
        with pytest.raises(UserError) as caught:
            options.run(1024, 1)
        assert str(caught.value) == message


def test_report_reads_back(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    model = checkpoint_of("olmoe")
    report = validate(model, model, domains_of(model), work=tmp_path, device="cpu")
    (tmp_path / "validation.json").write_text(json.dumps(report.to_json()))
    assert load_report(tmp_path / "validation.json") == report
    (tmp_path / "validation.json").write_text('{"reference": "x"}')
    with pytest.raises(UserError) as caught:
        load_report(tmp_path / "validation.json")
    assert caught.value.message == "not a tenp-edge validation report ('candidate')"


def test_gguf_of_another_model(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    model = checkpoint_of("qwen3_moe")
    other = tiny.make(tmp_path / "other", "qwen3_moe", num_hidden_layers=2)
    file = export(ModelSource(Checkpoint(other)), tmp_path / "other.gguf", "merged")
    with pytest.raises(UserError) as caught:
        strict(model, file, domains_of(model))
    assert caught.value.message == (
        f"{file} is another model: its block_count is 2, the reference has 3"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "other.gguf"]


def test_gguf_of_another_vocabulary(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    model = checkpoint_of("qwen3_moe")
    other = tiny.make(tmp_path / "other", "qwen3_moe", vocab_size=400)
    file = export(ModelSource(Checkpoint(other)), tmp_path / "other.gguf", "merged")
    with pytest.raises(UserError) as caught:
        strict(model, file, domains_of(model))
    assert caught.value.message == (
        f"{file} is another model: its vocab_size is 400, the reference has 384"
    )


def test_checkpoint_of_another_family(checkpoint_of: CheckpointOf) -> None:
    model, other = checkpoint_of("qwen3_moe"), checkpoint_of("olmoe")
    with pytest.raises(UserError) as caught:
        strict(model, other, domains_of(model))
    assert caught.value.message == f"{other} is another model: olmoe, the reference is qwen3_moe"


def test_broken_candidates(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    model = checkpoint_of("qwen3_moe")
    domains = domains_of(model)
    (tmp_path / "text.gguf").write_text("not a model")
    file = export(ModelSource(Checkpoint(model)), tmp_path / "whole.gguf", "merged")
    (tmp_path / "cut.gguf").write_bytes(file.read_bytes()[:-4096])
    for name, size in (("text.gguf", 11), ("cut.gguf", file.stat().st_size - 4096)):
        with pytest.raises(UserError) as caught:
            strict(model, tmp_path / name, domains)
        assert caught.value.message == (f"{name} is not a GGUF file or is cut short ({size} bytes)")
    with pytest.raises(UserError) as caught:
        strict(model, tmp_path / "absent.gguf", domains)
    assert caught.value.message == f"{tmp_path / 'absent.gguf'} does not exist"


def test_domain_without_a_token_to_score(checkpoint_of: CheckpointOf) -> None:
    model = checkpoint_of("qwen3_moe")
    short = Domain("short", torch.tensor([[5, 6]]), torch.tensor([2]))
    with pytest.raises(UserError) as caught:
        strict(model, model, [short])
    assert caught.value.message == "domain 'short' has no sequence of at least 3 tokens"
