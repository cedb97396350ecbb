"""The command line's flags, each declared once and shared by the verbs that take it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tenp_edge.footprint import MOST_THREADS
from tenp_edge.hub import local_model

QUANTS = (
    "GGUF: F32, F16, BF16, Q8_0, Q6_K, Q5_K_M, Q5_K_S, Q4_K_M, Q4_K_S, IQ4_NL, IQ4_XS, Q4_0, "
    "Q3_K_M or Q2_K. ONNX: none, int8 or int4."
)
_CALIBRATION, _SIZE, _PLAN = "Calibration", "Size (one of)", "Plan"
_EXPORT, _VALIDATION, _COMPUTE = "Export", "Validation", "Compute"


def _flag(*names: str, help: str, panel: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(*names, help=help, rich_help_panel=panel)
    return option


Model = Annotated[
    Path,
    typer.Argument(
        help="Model directory: config.json and safetensors (or a hub id, with network; "
        "demo: the bundled model).",
        callback=local_model,
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite another run's output.")]

Data = Annotated[
    list[str] | None,
    _flag(
        "--data",
        help="A calibration domain, NAME=FILE (.txt, .md, .json, .jsonl or .parquet) or "
        "NAME=hf:OWNER/DATASET[:SPLIT]; stdlib: Python's standard library; repeat for more. "
        "Default: builtin, the text in the package; your own prompts are better.",
        panel=_CALIBRATION,
    ),
]
Samples = Annotated[
    int, _flag("--samples", help="Calibration chunks per domain.", panel=_CALIBRATION)
]
SeqLen = Annotated[int, _flag("--seq-len", help="Tokens per chunk.", panel=_CALIBRATION)]
Seed = Annotated[int, _flag("--seed", help="Seed of every random choice.", panel=_CALIBRATION)]
Calibration = Annotated[
    Path | None,
    _flag("--calibration", help="Directory of finished statistics.", panel=_CALIBRATION),
]

Types = Annotated[
    bool,
    _flag(
        "--types",
        help="Measure what each GGUF tensor type costs this model, for plan and compress to "
        "choose by.",
        panel=_CALIBRATION,
    ),
]

Device = Annotated[
    str, _flag("--device", help="auto, cpu, cuda or mps; one layer at a time.", panel=_COMPUTE)
]
Dtype = Annotated[
    str,
    _flag(
        "--dtype",
        help="auto, float32, bfloat16 or float16; validation takes float32 for auto.",
        panel=_COMPUTE,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        help="CPU threads of the exported file's run.",
        rich_help_panel=_COMPUTE,
        min=1,
        max=MOST_THREADS,
    ),
]

Ram = Annotated[
    str | None,
    _flag(
        "--ram",
        help="Peak resident memory of the run: weights, KV cache, compute, runtime. "
        "8GiB, 7.5GB; a bare G is GiB.",
        panel=_SIZE,
    ),
]
Keep = Annotated[
    float | None,
    _flag("--keep", help="Share of the routed-expert parameters to keep, 0..1.", panel=_SIZE),
]
Profile = Annotated[
    str | None,
    _flag("--profile", help="Device profile (tenp-edge profiles lists them).", panel=_SIZE),
]
ProfileFile = Annotated[
    Path | None, _flag("--profile-file", help="Your own profile (TOML).", panel=_SIZE)
]

Method = Annotated[
    str,
    _flag(
        "--method",
        help="adaptive (own width per expert, by predicted loss), tenp (trapezoid, as published), "
        "enp (one width for all), free (own widths by neuron scores), drop (whole experts "
        "removed).",
        panel=_PLAN,
    ),
]
ExpertScore = Annotated[
    str,
    _flag(
        "--expert-score",
        help="tenp, frequency, gate, ean, reap, man, msan, easy-ep, gated-norm, tenp-residual, "
        "magnitude or random.",
        panel=_PLAN,
    ),
]
Ranking = Annotated[
    str | None,
    _flag(
        "--ranking",
        help="Budgets of own widths: global, layer (even), trapezoid (--shallow, --deep) or "
        "coverage (shares of each layer's own total).",
        panel=_PLAN,
    ),
]
Tilt = Annotated[
    float | None,
    _flag("--tilt", help="Own widths: above 0 favours deep layers, by exp(tilt).", panel=_PLAN),
]
Unit = Annotated[
    float | None,
    _flag(
        "--unit",
        help="Own widths: losses of a layer count in this power of its residual stream's size: 0 "
        "as shares of the stream, 2 as energies. Default: what measured best.",
        panel=_PLAN,
    ),
]
Guards = Annotated[
    list[str] | None,
    _flag(
        "--guard",
        help="Own widths: super (experts with massive activations stay whole), tail (experts "
        "under 32 tokens keep the even width); repeat for both.",
        panel=_PLAN,
    ),
]
Protect = Annotated[
    str | None,
    _flag(
        "--protect",
        help="For adaptive: how much to keep for text unlike the calibration's: none (the "
        "default), little or much. Much helps other text and costs text of the calibrated kinds.",
        panel=_PLAN,
    ),
]
Successive = Annotated[
    bool,
    _flag(
        "--successive",
        help="Plan twice: calibrate later layers again on what the first plan's cuts leave them.",
        panel=_PLAN,
    ),
]
Refine = Annotated[
    bool,
    _flag(
        "--refine",
        help="Choose slope, alpha or tilt by KL measured on held-out calibration text.",
        panel=_PLAN,
    ),
]
_MENDING = "Mending: changes weights that stay"
Repair = Annotated[
    bool | None,
    _flag(
        "--repair/--no-repair",
        help="Refit the down projections of cut experts in closed form, so that the neurons that "
        "stay take over what the cut ones wrote. Default: yes for method adaptive, else no.",
        panel=_MENDING,
    ),
]
RepairRidge = Annotated[
    float | None,
    _flag(
        "--repair-ridge",
        help="For --repair: the pull towards the original weights, above 0. Default 0.1.",
        panel=_MENDING,
    ),
]
Heal = Annotated[
    str | None,
    _flag(
        "--heal",
        help="A short training of each layer against the original's: routers, or norms (routers "
        "and the layer's norms).",
        panel=_MENDING,
    ),
]
NeuronScore = Annotated[
    str | None,
    _flag(
        "--neuron-score",
        help="enp, enp-abs, enp-sum, energy, relative, camera-p, flap, wanda, magnitude, random; "
        "after calibrate --gradients also heapr, heapr-sum, taylor. "
        "Default: enp; energy for --method free, relative for adaptive.",
        panel=_PLAN,
    ),
]
WholeShare = Annotated[
    float | None,
    _flag("--whole-share", help="alpha: share of experts kept whole.", panel=_PLAN),
]
Shallow = Annotated[
    float | None,
    _flag("--shallow", help="Weight of whole experts in the first MoE layer.", panel=_PLAN),
]
Deep = Annotated[
    float | None,
    _flag("--deep", help="The same in the last MoE layer.", panel=_PLAN),
]
Middle = Annotated[
    float | None,
    _flag("--middle", help="Factor at mid-depth: below 1 makes a U.", panel=_PLAN),
]
WidthMultiple = Annotated[
    int | None,
    _flag("--width-multiple", help="Cut widths are multiples of this.", panel=_PLAN),
]
Context = Annotated[
    int | None, _flag("--context", help="Context to hold in the KV cache, tokens.", panel=_PLAN)
]
Ubatch = Annotated[
    int | None, _flag("--ubatch", help="Tokens per prefill step, for its buffers.", panel=_PLAN)
]
KvType = Annotated[str | None, _flag("--kv-type", help="F16, F32 or Q8_0.", panel=_PLAN)]

Format = Annotated[str | None, _flag("--format", help="gguf or onnx.", panel=_EXPORT)]
Layout = Annotated[
    str | None,
    _flag(
        "--layout",
        "--mode",
        help="GGUF: per-expert, merged (stock llama.cpp) or padded. ONNX: portable (any "
        "onnxruntime), static (NPU compilers) or ort-cpu.",
        panel=_EXPORT,
    ),
]
Quant = Annotated[
    str | None,
    _flag(
        "--quant",
        help=f"{QUANTS} Default: chosen to fit the memory; with --keep the profile's.",
        panel=_EXPORT,
    ),
]
ExportQuant = Annotated[
    str | None,
    _flag("--quant", help=f"{QUANTS} Default: Q8_0, none.", panel=_EXPORT),
]
NoImatrix = Annotated[
    bool,
    _flag(
        "--no-imatrix",
        help="Quantise without the importance matrix that calibration gives.",
        panel=_EXPORT,
    ),
]
TensorTypes = Annotated[
    list[str] | None,
    _flag(
        "--tensor-type",
        help="REGEX=TYPE: the type of the tensors whose names match, such as attn_v=Q8_0; "
        "repeat for more, the first that matches counts.",
        panel=_EXPORT,
    ),
]

LatentCache = Annotated[
    bool,
    _flag(
        "--latent-cache",
        help="ONNX of DeepSeek: the KV cache holds the latent, several times smaller and slower to "
        "use; onnxruntime-genai and optimum cannot.",
        panel=_EXPORT,
    ),
]
ShardSize = Annotated[
    str | None,
    _flag("--shard-size", help="ONNX: cut the weights into files of this size.", panel=_EXPORT),
]
_STATIC = "ONNX --mode static"
Batch = Annotated[
    int | None, _flag("--batch", help="Sequences at once. Default: 1.", panel=_STATIC)
]
Length = Annotated[
    int | None, _flag("--length", help="Prompt tokens at once. Default: 128.", panel=_STATIC)
]
Past = Annotated[
    int | None,
    _flag("--past", help="Places of the KV cache: context - 1. Default: 1023.", panel=_STATIC),
]
Targets = Annotated[
    list[str] | None,
    _flag(
        "--target",
        help="A compiler that must take every operator: nnapi, coreml, qnn or openvino; may be "
        "repeated.",
        panel=_STATIC,
    ),
]

EvalData = Annotated[
    list[str] | None,
    _flag(
        "--eval-data",
        help="A validation domain, as in --data; repeat for more. Default: held-out chunks of "
        "--data in compress, otherwise of the text in the package.",
        panel=_VALIDATION,
    ),
]
EvalSamples = Annotated[
    int, _flag("--eval-samples", help="Validation chunks per domain.", panel=_VALIDATION)
]
EvalSeqLen = Annotated[
    int,
    _flag(
        "--eval-seq-len",
        help="Tokens per chunk; the second half of each is scored.",
        panel=_VALIDATION,
    ),
]
MeasuredContext = Annotated[
    int | None,
    typer.Option(
        "--context",
        help="Tokens of the KV cache when a GGUF's peak memory is measured. "
        "Default: 4096, or the model's.",
    ),
]
MeasuredKvType = Annotated[
    str, typer.Option("--kv-type", help="Type of that cache: F16, F32 or Q8_0.")
]
MeasuredUbatch = Annotated[
    int, typer.Option("--ubatch", help="Prompt tokens evaluated at once in that measurement.")
]
NoSplit = Annotated[
    bool,
    typer.Option(
        "--no-split",
        help="Run only the file, not the stages before it: faster, one sum of all losses.",
    ),
]
Twin = Annotated[
    bool,
    typer.Option(
        "--twin",
        help="Judge a per-expert file by unmodified llama.cpp, through its padded twin.",
        rich_help_panel=_VALIDATION,
    ),
]
