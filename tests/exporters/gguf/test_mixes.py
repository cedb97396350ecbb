"""Files whose tensors take the types that a plan names one by one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import torch
from support import tiny
from support.command import refused, run
from support.edits import refusal
from support.mixes import GGUF, mix, wide_model
from support.plans import cycled, plan_for

from tenp_edge.calibration.collect import calibrate
from tenp_edge.calibration.imatrix import Importance
from tenp_edge.calibration.storage import Statistics
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.checkpoint.tensor_types import TensorTypes
from tenp_edge.exporters.base import ExportData, ExportOptions
from tenp_edge.exporters.gguf.types import TYPES
from tenp_edge.forward.text_batch import Domain
from tenp_edge.planning.memory.pricing import draft
from tenp_edge.runtime.gguf.header import TensorInfo, read_header

EVERY = tuple(name for name in TYPES if name not in ("F32", "F16", "BF16"))
# Without those whose encoders take seconds to begin: their bytes are test_quantisation's.
QUICK = tuple(name for name in EVERY if not name.startswith(("IQ1", "IQ2", "IQ3")))
WIDTHS = (512, 256, 96, 40)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return wide_model(tmp_path_factory.mktemp("mixes"))


@pytest.fixture(scope="module")
def statistics(model: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Statistics:
    tokens = torch.randint(0, 370, (1, 12), generator=torch.Generator().manual_seed(3))
    domains = [Domain("text", tokens, torch.tensor([12]))]
    return calibrate(model, domains, tmp_path_factory.mktemp("work"), dtype="float32")


def stored(file: Path) -> dict[str, TensorInfo]:
    return read_header(file).tensors


def test_types_beside_each_other(model: Checkpoint, statistics: Statistics, tmp_path: Path) -> None:
    """Each expert in its own types at its own width, with its importance; bytes as predicted, and
    those of the expert's own matrix encoded alone."""
    widths = cycled(model, WIDTHS)
    config = model.config
    for start in range(0, len(QUICK), 8):
        names = QUICK[start:] + QUICK[:start]
        types = mix(config, names, names[::-1], "Q4_K_M")
        plan = replace(plan_for(model, widths), types=types)
        options = ExportOptions("Q8_0", "per-expert", imatrix=True).typed(plan.file_types)
        source, matrix = ModelSource(model, plan), Importance(statistics, plan)
        manifest = GGUF.write(source, options, tmp_path / "model.gguf", ExportData(matrix))
        assert manifest.quant == "auto"
        assert manifest.file_bytes == (tmp_path / "model.gguf").stat().st_size
        found, reader = stored(tmp_path / "model.gguf"), gguf.GGUFReader(tmp_path / "model.gguf")
        data = {tensor.name: tensor.data for tensor in reader.tensors}
        for layer, row in widths.items():
            for expert in range(len(row)):
                weights = source.expert(layer, expert)
                for part in ("gate", "up", "down"):
                    name, rows = f"blk.{layer}.ffn_{part}.{expert}.weight", getattr(weights, part)
                    wanted = types.expert(layer, expert, part)
                    kind = TYPES[GGUF.legal_type(wanted, rows.shape[1])]
                    assert found[name].type_name == kind.name
                    columns = matrix.expert(layer, expert, part).weights()
                    own = kind.encode(rows, columns if kind.weighs_columns else None)
                    assert bytes(own) == data[name].tobytes(), name
        others = {name: info.type_name for name, info in found.items() if "attn_" in name}
        assert others["blk.1.attn_v.weight"] == types.others["1.v"]


def test_a_mix_of_llama_cpps_is_the_same_file(model: Checkpoint, tmp_path: Path) -> None:
    """`types_of` names what a recipe gives: the file is the same byte for byte."""
    plan = plan_for(model, cycled(model, WIDTHS))
    source = ModelSource(model, plan)
    for layout in ("per-expert", "padded"):
        options = ExportOptions("Q4_K_M", layout)
        types = GGUF.types_of(source.config, options)
        assert set(types.others) == {m.key for m in GGUF.typed_matrices(source.config, options)}
        GGUF.write(source, options, tmp_path / "recipe.gguf")
        GGUF.write(source, options.typed(types), tmp_path / "typed.gguf")
        recipe, typed = ((tmp_path / f"{n}.gguf").read_bytes() for n in ("recipe", "typed"))
        assert recipe == typed


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_matrix_of_every_family_has_a_key(
    family: str, checkpoint_of: Callable[[str], Path]
) -> None:
    checkpoint = Checkpoint(checkpoint_of(family))
    options = ExportOptions("Q4_K_M", "per-expert")
    types = GGUF.types_of(checkpoint.config, options)
    keys = [matrix.key for matrix in GGUF.typed_matrices(checkpoint.config, options)]
    assert len(set(keys)) == len(keys) and set(keys) == set(types.others)
    manifests = [
        GGUF.manifest(checkpoint, checkpoint.config, chosen)
        for chosen in (options, options.typed(types))
    ]
    assert manifests[0].tensors == manifests[1].tensors
    assert manifests[0].files == manifests[1].files


def test_combinations_are_priced_without_a_manifest(model: Checkpoint) -> None:
    """Another type of one matrix moves the file by the difference of `tensor_bytes`, fallback and
    alignment included."""
    config = ModelSource(model, draft(model, cycled(model, WIDTHS))).config
    types = mix(config, ("Q4_K",), ("Q4_K",))
    options = ExportOptions("Q8_0", "per-expert", imatrix=True)

    def nbytes(chosen: TensorTypes) -> int:
        return GGUF.manifest(model, config, options.typed(chosen)).file_bytes

    hidden, width = config.hidden_size, config.expert_widths[0][2]
    for name in EVERY:
        row = (*types.gate_up[0][:2], name, *types.gate_up[0][3:])
        gates = GGUF.tensor_bytes(width, hidden, name) - GGUF.tensor_bytes(width, hidden, "Q4_K")
        changed = replace(types, gate_up={**types.gate_up, 0: row})
        assert nbytes(changed) - nbytes(types) == 2 * gates
        downs = GGUF.tensor_bytes(hidden, width, name) - GGUF.tensor_bytes(hidden, width, "Q4_K")
        changed = replace(types, down={**types.down, 0: row})
        assert nbytes(changed) - nbytes(types) == downs
    [head] = [m for m in GGUF.typed_matrices(config, options) if m.key == "embed"]
    changed = replace(types, others={**types.others, "embed": "Q2_K"})
    less = GGUF.tensor_bytes(*head.shape, "Q8_0") - GGUF.tensor_bytes(*head.shape, "Q2_K")
    assert nbytes(types) - nbytes(changed) == less


def test_rules_of_the_user_go_first(model: Checkpoint) -> None:
    types = mix(model.config, ("Q4_0", "Q5_0"), ("Q8_0",))
    rules = (r"ffn_up\.1\.=Q6_K", "ffn_down_exps=IQ4_NL")
    options = ExportOptions("Q8_0", "per-expert", tensor_types=rules).typed(types)
    found = {t.name: t.type for t in GGUF.manifest(model, model.config, options).tensors}
    assert [found[f"blk.0.ffn_up.{e}.weight"] for e in (0, 1, 2)] == ["Q4_0", "Q6_K", "Q4_0"]
    assert {found[f"blk.1.ffn_down.{e}.weight"] for e in range(4)} == {"IQ4_NL"}


@pytest.mark.parametrize(
    ("name", "number"), [("Q4_K", 15), ("IQ2_S", 28), ("Q5_1", 9), ("MXFP4", 38)]
)
def test_a_mix_is_called_by_its_commonest_type(
    name: str, number: int, model: Checkpoint, tmp_path: Path
) -> None:
    types = mix(model.config, (name,), (name, "Q8_0", name))
    options = ExportOptions("Q8_0", "per-expert", imatrix=True).typed(types)
    GGUF.write_outline(model, model.config, options, tmp_path / "outline.gguf")
    assert read_header(tmp_path / "outline.gguf").fields["general.file_type"] == number
    shares = GGUF.manifest(model, model.config, options).type_shares
    assert next(iter(shares)) == name and abs(sum(shares.values()) - 1) < 1e-9


def test_types_that_cannot_be_written_are_refused(model: Checkpoint) -> None:
    config = model.config
    types = mix(config, ("Q4_0", "Q8_0"), ("Q8_0",))

    def why(chosen: TensorTypes, layout: str = "per-expert") -> tuple[str, str | None]:
        options = ExportOptions("Q8_0", layout).typed(chosen)
        return refusal(lambda: GGUF.manifest(model, config, options))

    assert why(replace(types, others={**types.others, "0.q": "Q9"})) == (
        "the plan's types name 'Q9', which GGUF has not",
        "--quant Q8_0, or plan again with --format gguf",
    )
    assert why(replace(types, down={0: types.down[0]})) == (
        "the plan's types do not have the experts of this model",
        "plan again",
    )
    assert why(replace(types, others={})) == ("the plan's types do not name 'embed'", "plan again")
    assert why(mix(config, ("Q8_0",), ("IQ2_S",))) == (
        "the plan's types need an importance matrix (for IQ2_S)",
        "--calibration WORK (tenp-edge calibrate MODEL -o WORK) "
        "without --no-imatrix, or --quant Q4_K_M",
    )
    assert why(types, "padded") == (
        "experts that lie in one tensor have one type: the plan gives those of layer 0 Q4_0, Q8_0",
        "--layout per-expert, or plan again with this layout",
    )
    assert refusal(lambda: GGUF.manifest(model, config, ExportOptions("auto"))) == (
        "--quant auto writes the types that a plan chose, and there is no plan with types",
        "--plan PLAN (tenp-edge calibrate MODEL --types -o WORK; tenp-edge plan MODEL --ram SIZE "
        "--calibration WORK -o PLAN), or --quant Q4_K_M",
    )


@pytest.mark.parametrize("kind", [name for name in EVERY if name[:3] in ("IQ1", "IQ2", "IQ3")])
@pytest.mark.parametrize(
    ("largest", "weight", "said"),
    [
        (1e5, 1e30, "a weight of 1e+05, in columns that weigh up to 1e+30,"),
        (1.0, float("inf"), "a weight of 1, in columns that weigh up to inf,"),
        (1.0, float("nan"), "a weight of 1, in columns that weigh up to nan,"),
    ],
)
def test_what_ggml_would_end_the_process_for_is_refused(
    kind: str, largest: float, weight: float, said: str
) -> None:
    rows, columns = torch.full((1, 256), largest), torch.full((256,), weight)
    assert refusal(lambda: TYPES[kind].encode(rows, columns)) == (
        f"{said} is too large for {kind}",
        "--quant Q4_K_M, or --no-imatrix",
    )
    if kind.startswith("IQ3"):  # The others' tables take seconds.
        assert TYPES[kind].encode(rows / largest, torch.zeros(256))


def test_export_follows_the_plan(model: Checkpoint, tmp_path: Path) -> None:
    """Without --quant; --quant NAME is llama.cpp's mix of that name all the same."""
    types = mix(model.config, ("Q4_0", "Q5_0"), ("Q8_0", "IQ4_NL"))
    plan = replace(plan_for(model, cycled(model, WIDTHS)), types=types)
    plan.save(tmp_path / "plan.json")
    command = ("export", model.path, "--plan", tmp_path / "plan.json", "--json")
    done = run(*command, "-o", tmp_path / "auto.gguf")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["quant"] == "auto"
    options = ExportOptions("Q8_0", "per-expert").typed(plan.file_types)
    GGUF.write(ModelSource(model, plan), options, tmp_path / "direct.gguf")
    assert (tmp_path / "auto.gguf").read_bytes() == (tmp_path / "direct.gguf").read_bytes()
    done = run(*command, "--quant", "Q8_0", "-o", tmp_path / "named.gguf")
    assert done.returncode == 0, done.stderr
    found = {info.type_name for info in stored(tmp_path / "named.gguf").values()}
    assert found == {"F32", "Q8_0", "F16"}  # rows of 40


def test_auto_without_a_plan_is_refused(model: Checkpoint, tmp_path: Path) -> None:
    assert refused("export", model.path, "--quant", "auto", "-o", tmp_path / "out.gguf") == (
        "error: --quant auto writes the types that a plan chose, and there is no plan with types\n"
        f"try:   --plan PLAN (tenp-edge calibrate {model.path} --types -o WORK; "
        f"tenp-edge plan {model.path} "
        "--ram SIZE --calibration WORK -o PLAN), or --quant Q4_K_M\n"
    )
