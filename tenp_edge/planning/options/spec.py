"""What may be asked of a plan: every option, declared once (`settings`). Light: no torch here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tenp_edge.planning.options.devices import GGUF_TYPES, known_profiles, spare_bytes
from tenp_edge.planning.options.devices import LAYOUTS as PROFILE_LAYOUTS
from tenp_edge.planning.options.methods import METHODS
from tenp_edge.planning.options.settings import Flag, listed
from tenp_edge.runtime.memory.footprint import KV_NAMES, KV_TYPES
from tenp_edge.scoring.expert_scores import EXPERT_SCORES
from tenp_edge.scoring.neuron_scores import NEURON_SCORES
from tenp_edge.scoring.score import names

DEFAULT_METHOD = "adaptive"
DEFAULT_PROTECTION = "none"
GRADIENT_SCORES = names(NEURON_SCORES, gradients=True)
PROTECTIONS = ("none", "little", "much")
RANKINGS = ("global", "layer", "trapezoid", "coverage")
GUARDS = ("super", "tail")
QUANTS = (
    "GGUF: F32, F16, BF16, Q8_0, Q6_K, Q5_K_M, Q5_K_S, Q4_K_M, Q4_K_S, IQ4_NL, IQ4_XS, Q4_0, "
    "MXFP4, Q3_K_M, IQ3_M, IQ3_S, IQ3_XXS, Q2_K, IQ2_M, IQ2_S, IQ2_XS, IQ2_XXS, IQ1_M, "
    "IQ1_S, TQ2_0 or TQ1_0; keep, of a model that is a GGUF, is every tensor's own. "
    "ONNX: none, int8 or int4."
)
# llama-quantize takes the short names too.
QUANT_WORDS = {name.lower(): name for name in GGUF_TYPES} | {
    "q3_k": "Q3_K_M",
    "q4_k": "Q4_K_M",
    "q5_k": "Q5_K_M",
    **{name: name for name in ("auto", "keep", "none", "int8", "int4")},
}
QUANT_NAMES = ("auto", *GGUF_TYPES, "keep", "none", "int8", "int4")
FORMATS = tuple(PROFILE_LAYOUTS)
LAYOUT_NAMES = tuple(name for names in PROFILE_LAYOUTS.values() for name in names)
REQUANTISE, BLOCKS = "requantise", "blocks"
LAYOUTS = (
    "GGUF: per-expert, merged (stock llama.cpp) or padded. ONNX: portable (any onnxruntime), "
    "static (NPU compilers) or ort-cpu."
)
SIZE, PLAN, EXPORT = "Size (one of)", "Plan", "Export"
STATIC = "ONNX --mode static"


@dataclass(frozen=True, kw_only=True)
class FileKnobs:
    """What may be asked of a file beside its type, when it is planned and when it is written.

    ``tensor_types``: as in `base.ExportOptions`; ``batch`` and ``targets`` are for layouts of fixed
    shapes.
    """

    tensor_types: Annotated[
        tuple[str, ...],
        Flag(
            "tensor-type",
            "REGEX=TYPE: the type of the tensors whose names match, such as attn_v=Q8_0; repeat "
            "for more, the first that matches counts.",
            EXPORT,
            knob=True,
            example="attn_v=Q8_0",
        ),
    ] = ()
    latent_cache: Annotated[
        bool,
        Flag(
            "latent-cache",
            "ONNX of DeepSeek: the KV cache holds the latent, several times smaller and slower to "
            "use; onnxruntime-genai and optimum cannot.",
            EXPORT,
            knob=True,
        ),
    ] = False
    shard_bytes: Annotated[
        int | None,
        Flag(
            "shard-size",
            "ONNX: cut the weights into files of this size.",
            EXPORT,
            knob=True,
            size=True,
            above=0,
            example="2GB",
        ),
    ] = None
    batch: Annotated[
        int | None,
        Flag(
            "batch",
            "ONNX --mode static: sequences at once. Default: 1.",
            STATIC,
            knob=True,
            example="1",
        ),
    ] = None
    targets: Annotated[
        tuple[str, ...],
        Flag(
            "target",
            "ONNX --mode static: a compiler that must take every operator: nnapi, coreml, qnn or "
            "openvino; may be repeated.",
            STATIC,
            knob=True,
            example="qnn",
        ),
    ] = ()


@dataclass(frozen=True, kw_only=True)
class Knobs:
    """What can be told to a method (`methods.Method`); None leaves the choice to it.

    ``whole_share`` is alpha; ``shallow``, ``deep`` and ``middle`` shape the trapezoid
    (`allocation.Shape`); ``ranking``, ``unit``, ``tilt`` and ``guards`` are for own widths
    (`allocators.FreeRules`), ``protect`` (`regularisation.PROTECTION`) for adaptive.
    """

    protect: Annotated[
        str | None,
        Flag(
            "protect",
            "For adaptive: how much to keep for text unlike the calibration's: none (the default), "
            "little or much. Much helps other text and costs text of the calibrated kinds.",
            PLAN,
            choices=PROTECTIONS,
        ),
    ] = None
    expert_score: Annotated[
        str,
        Flag(
            "expert-score",
            f"Order of the experts, for tenp and drop: {listed(EXPERT_SCORES)}.",
            knob=True,
        ),
    ] = "tenp"
    neuron_score: Annotated[
        str | None,
        Flag(
            "neuron-score",
            f"Order of the neurons: {listed(names(NEURON_SCORES))}; after calibrate --gradients "
            f"also {listed(GRADIENT_SCORES, 'and')}. Default: enp; energy for --method free, joint "
            "for adaptive (relative where the statistics were merged).",
            knob=True,
        ),
    ] = None
    ranking: Annotated[
        str | None,
        Flag(
            "ranking",
            "Budgets of own widths: global, layer (even), trapezoid (shallow, deep) or coverage "
            "(shares of each layer's own total). Default: what measured best, else global.",
            knob=True,
            choices=RANKINGS,
        ),
    ] = None
    unit: Annotated[
        float | None,
        Flag(
            "unit",
            "Own widths: losses of a layer count in this power of its residual stream's size: 0 as "
            "shares of the stream, 2 as energies. Default: what measured best, else 0.",
            knob=True,
        ),
    ] = None
    tilt: Annotated[
        float | None,
        Flag("tilt", "Own widths: above 0 favours deep layers, by exp(tilt).", knob=True),
    ] = None
    guards: Annotated[
        tuple[str, ...],
        Flag(
            "guard",
            "Own widths: super (experts with massive activations stay whole), tail (experts under "
            "32 tokens keep the even width); repeat for both.",
            knob=True,
            choices=GUARDS,
        ),
    ] = ()
    whole_share: Annotated[
        float | None,
        Flag(
            "whole-share",
            "tenp: alpha, the share of experts kept whole. Default: by predicted loss.",
            knob=True,
            least=0,
            most=1,
            example="0.3",
        ),
    ] = None
    shallow: Annotated[
        float | None,
        Flag(
            "shallow",
            "tenp: weight of whole experts in the first MoE layer. Default: by predicted loss.",
            knob=True,
            least=0,
            example="1",
        ),
    ] = None
    middle: Annotated[
        float | None,
        Flag(
            "middle",
            "tenp: weight of whole experts at mid-depth: below 1 makes a U.",
            knob=True,
            least=0,
            example="1",
        ),
    ] = None
    deep: Annotated[
        float | None,
        Flag(
            "deep",
            "tenp: weight of whole experts in the last MoE layer.",
            knob=True,
            least=0,
            example="2",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class PlanOptions(FileKnobs, Knobs):
    """The size (``budget_bytes``, a profile or ``keep``) and every choice that can be pinned; None
    leaves it to the profile or the planner.

    ``budget_bytes`` is the peak resident memory that the run may reach; ``keep`` (rho) pins the
    size instead. ``imatrix`` is whether the file will be quantised with the importance of its
    columns. ``frontier`` adds the method's plans at other sizes to the record.
    """

    budget_bytes: Annotated[
        int | None,
        Flag(
            "ram",
            "Peak resident memory of the run: weights, KV cache, compute, runtime. 8GiB, 7.5GB; a "
            "bare G is GiB; auto is what this machine can spare.",
            SIZE,
            size=True,
            auto=spare_bytes,
            above=0,
            example="8GiB",
            instead_of="keep",
        ),
    ] = None
    keep: Annotated[
        float | None,
        Flag(
            "keep",
            "Share of the routed-expert parameters to keep: 0.6, or 60%.",
            SIZE,
            above=0,
            most=1,
            example="0.6",
            instead_of="ram",
        ),
    ] = None
    profile: Annotated[
        str | None,
        Flag(
            "profile",
            "Device profile (tenp-edge profiles lists them); auto: this machine.",
            SIZE,
            offered=known_profiles,
        ),
    ] = None
    profile_file: Annotated[Path | None, Flag("profile-file", "Your own profile (TOML).", SIZE)] = (
        None
    )
    method: Annotated[
        str,
        Flag(
            "method",
            ", ".join(f"{method.name} ({method.about})" for method in METHODS.values()) + ".",
            PLAN,
            offered=tuple(METHODS),
        ),
    ] = DEFAULT_METHOD
    refine: Annotated[
        bool,
        Flag(
            "refine",
            "Try several plans on held-out calibration text and take the best; takes longer.",
            PLAN,
        ),
    ] = False
    context: Annotated[
        int | None,
        Flag(
            "context",
            "Context to hold in the KV cache, tokens.",
            PLAN,
            above=0,
            example="4096",
        ),
    ] = None
    kv_type: Annotated[
        str | None, Flag("kv-type", f"{KV_NAMES}.", PLAN, choices=tuple(KV_TYPES))
    ] = None
    format: Annotated[str | None, Flag("format", "gguf or onnx.", EXPORT, offered=FORMATS)] = None
    layout: Annotated[
        str | None,
        Flag(
            "layout",
            LAYOUTS,
            EXPORT,
            also=("--mode",),
            example="per-expert",
            offered=LAYOUT_NAMES,
        ),
    ] = None
    quant: Annotated[
        str | None,
        Flag(
            "quant",
            f"auto, or one mix for all. {QUANTS} Default: auto, types of every tensor chosen "
            "together with the widths to fit the memory; with --keep the profile's.",
            EXPORT,
            words=QUANT_WORDS,
            offered=QUANT_NAMES,
        ),
    ] = None
    width_multiple: Annotated[
        int | None,
        Flag(
            "width-multiple",
            "Cut widths are multiples of this. Default: the least that device and format take.",
            knob=True,
            above=0,
            example="32",
        ),
    ] = None
    down: Annotated[
        str,
        Flag(
            "down",
            "--quant keep: how the columns of down are cut: requantise (any neurons, in the same "
            "type again) or blocks (the source's bytes: neurons are kept in whole blocks of them).",
            knob=True,
            choices=(REQUANTISE, BLOCKS),
        ),
    ] = REQUANTISE
    ubatch: Annotated[
        int | None,
        Flag(
            "ubatch",
            "Tokens per prefill step, for its buffers. Default: the profile's.",
            knob=True,
            above=0,
            example="512",
        ),
    ] = None
    imatrix: Annotated[
        bool,
        Flag(
            "imatrix",
            "Quantise with the importance matrix that calibration gives: yes or no.",
            knob=True,
        ),
    ] = True
    seed: int = 0
    frontier: bool = False
