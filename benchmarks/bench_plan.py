"""Planning a 30-billion-parameter model from stored statistics: wall time and peak RSS.

    python benchmarks/bench_plan.py      # Qwen3-30B-A3B's shape, --ram 16GiB, then 12GiB

The checkpoint is headers over holes (planning reads no weights), the statistics are random numbers
in the real format, joint orders included, and so is what rounding does: widths and types of all
tensors are chosen together. Both plans start from the same files: another RAM number needs no
second calibration. Above 60 seconds or 1 GiB the benchmark fails.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from bench_scale import Stage, stage, stage_table
from random_checkpoint import SHAPES, write_holes
from random_tokenizer import write_full_tokenizer
from records import add_record_flag, write_record

from tenp_edge.calibration.elimination import Elimination
from tenp_edge.calibration.held_out import SLICE_FILE, stored_slice
from tenp_edge.calibration.order_priors import ORDER_PRIORS
from tenp_edge.calibration.statistics import MEANS, ROUNDING, WEIGHT_NORMS, make_empty
from tenp_edge.calibration.storage import DIGEST, VERSION, layer_tensors
from tenp_edge.calibration.text.domains import save_domains
from tenp_edge.checkpoint.digests import file_digest
from tenp_edge.checkpoint.files import Checkpoint, Shard, TensorEntry, write_shards
from tenp_edge.exporters.base import ExportOptions, exporter
from tenp_edge.exporters.mixing import Mixer
from tenp_edge.forward.text_batch import Domain
from tenp_edge.models import ModelConfig
from tenp_edge.planning.measured.rounding_errors import GroupCost, RoundingErrors
from tenp_edge.planning.measured.type_costs import Conditions
from tenp_edge.units import format_size

LIMIT_SECONDS, LIMIT_BYTES = 60, 2**30
DOMAINS = ("code", "prose")
SHAPE = "qwen3-30b-a3b"


def random_layer(config: ModelConfig, layer: int) -> dict[str, torch.Tensor]:
    """One layer's stored tensors, of random size."""
    generator = torch.Generator().manual_seed(layer)
    experts, width = config.num_experts, config.moe_intermediate_size

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    domains = {}
    for domain in DOMAINS:
        domains[domain] = make_empty(experts, width, config.hidden_size)
        for value in domains[domain].sums.values():
            value += draw(*value.shape)
        domains[domain]["tokens"].mul_(900).add_(100).floor_()
    eliminations = {}
    for score in ORDER_PRIORS:
        losses = torch.nn.functional.pad(draw(experts, width).flip(1).cumsum(1).flip(1), (0, 1))
        eliminations[score] = Elimination(draw(experts, width).argsort(dim=1), losses)
    norms = {name: draw(experts, width) + 0.5 for name in WEIGHT_NORMS}
    rounding = {name: draw(experts, width) for name in ROUNDING}
    means = dict(zip(MEANS, (draw(experts, width), 0.1 * draw(experts)), strict=True))
    return layer_tensors(layer, domains, norms, eliminations, rounding=rounding, means=means)


def write_statistics(model: Path, directory: Path) -> None:
    """Statistics in the real format, written a layer at a time."""
    directory.mkdir()
    checkpoint = Checkpoint(model)
    config = checkpoint.config
    entries, made = [], {}
    for name, tensor in random_layer(config, 0).items():
        kind = "F64" if tensor.dtype == torch.float64 else "F32"
        made[name] = TensorEntry(name, kind, tuple(tensor.shape))
    for layer in config.moe_layers:
        entries += [
            TensorEntry(name.replace("layers.0.", f"layers.{layer}."), entry.dtype, entry.shape)
            for name, entry in made.items()
        ]
    known: dict[int, dict[str, torch.Tensor]] = {}

    def read(name: str) -> torch.Tensor:
        layer = int(name.split("layers.")[1].split(".")[0])
        if layer not in known:
            known.clear()
            known[layer] = random_layer(config, layer)
        return known[layer][name]

    for _ in write_shards(directory, [Shard("statistics.safetensors", tuple(entries))], read):
        pass
    info = {
        "format": "tenp-edge statistics",
        "version": VERSION,
        "fingerprint": checkpoint.fingerprint,
        "layers": list(config.moe_layers),
        "experts": config.num_experts,
        "width": config.moe_intermediate_size,
        "hidden": config.hidden_size,
        "seq_len": 512,
        "domains": {domain: {"samples": 32, "tokens": 16384} for domain in DOMAINS},
        DIGEST: file_digest(directory / "statistics.safetensors"),
    }
    (directory / "statistics.json").write_text(json.dumps(info))


def write_rounding(model: Path, directory: Path) -> None:
    """What types do, in the real format: errors that fall by 6 dB a bit, groups that cost alike."""
    checkpoint, mixer = Checkpoint(model), exporter("gguf")
    assert isinstance(mixer, Mixer)
    save_domains(
        directory / SLICE_FILE, [Domain("code", torch.zeros(1, 8).long(), torch.full((1,), 8))]
    )
    options = ExportOptions("Q8_0", "per-expert", imatrix=True)
    matrices = mixer.typed_matrices(checkpoint.config, options)
    errors = {kind: 4 ** -(mixer.tensor_bytes(256, 256, kind) / 8192) for kind in mixer.mixed_types}
    layers = checkpoint.config.moe_layers
    roles = dict.fromkeys(matrix.role for matrix in matrices)
    found = RoundingErrors(
        Conditions(checkpoint.fingerprint, str(stored_slice(directory)), "gguf", True),
        {layer: dict.fromkeys(("gate", "up", "down"), errors) for layer in layers[::4]},
        {matrix.key: errors for matrix in matrices},
        {name: GroupCost("Q3_K", 0.01, 0.5, layers) for name in ("gate_up", "down", *roles)},
    )
    found.save(directory)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ram", nargs="+", default=["16GiB", "12GiB"])
    parser.add_argument("--dir", type=Path, default=Path.cwd(), help="where 3 GB may lie")
    add_record_flag(parser)
    arguments = parser.parse_args()
    stages: list[Stage] = []
    arguments.dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.dir, prefix="bench-plan-") as directory:
        model, work = Path(directory) / "model", Path(directory) / "work"
        model.mkdir()
        write_holes(model, SHAPES[SHAPE])
        write_full_tokenizer(model, SHAPES[SHAPE]["vocab_size"])
        write_statistics(model, work)
        write_rounding(model, work)
        for ram in arguments.ram:
            plan = ["plan", str(model), "--ram", ram, "--calibration", str(work)]
            done = stage([*plan, "-o", str(Path(directory) / f"plan-{ram}.json")])
            stages.append(replace(done, name=ram))
    table = stage_table(stages, "`--ram`")
    print(f"\n{table}")
    write_record(arguments.record, budgets=table)
    if any(s.seconds > LIMIT_SECONDS or s.peak_bytes > LIMIT_BYTES for s in stages):
        sys.exit(f"above {LIMIT_SECONDS} s or {format_size(LIMIT_BYTES)}")


if __name__ == "__main__":
    main()
