"""What the verbs take: frozen dataclasses whose fields are the flags (`settings`). No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tenp_edge.errors import UserError
from tenp_edge.planning.options.settings import Flag
from tenp_edge.planning.options.spec import (
    EXPORT,
    FORMATS,
    LAYOUT_NAMES,
    LAYOUTS,
    QUANT_NAMES,
    QUANT_WORDS,
    QUANTS,
    STATIC,
    FileKnobs,
    PlanOptions,
)
from tenp_edge.runtime.memory import footprint
from tenp_edge.runtime.memory.footprint import (
    KV_NAMES,
    MOST_THREADS,
    MemoryRun,
    PlannedRun,
    known_kv_type,
)

CALIBRATION, VALIDATION, COMPUTE = "Calibration", "Validation", "Compute"
TASKS = "Tasks of lm-eval"
MENDING = "Mending: changes weights that stay"


@dataclass(frozen=True)
class TextOptions:
    """``data``: "name=path" of each domain, or a set that ships; empty means the bundled text."""

    data: Annotated[
        tuple[str, ...],
        Flag(
            "data",
            "A calibration domain, NAME=FILE (.txt, .md, .json, .jsonl or .parquet) or "
            "NAME=hf:OWNER/DATASET[:SPLIT]; stdlib: Python's standard library; repeat for more. "
            "Default: builtin, the text in the package; your own prompts are better.",
            CALIBRATION,
        ),
    ] = ()
    samples: Annotated[int, Flag("samples", "Calibration chunks per domain.", CALIBRATION)] = 32
    seq_len: Annotated[int, Flag("seq-len", "Tokens per chunk.", CALIBRATION)] = 512


@dataclass(frozen=True)
class ComputeOptions:
    """Where this machine computes, in which type; and the seed."""

    seed: Annotated[int, Flag("seed", "Seed of every random choice.", CALIBRATION, least=0)] = 0
    device: Annotated[
        str,
        Flag(
            "device",
            "auto, cpu, cuda or mps; one layer at a time.",
            COMPUTE,
            offered=("auto", "cpu", "cuda", "mps"),
        ),
    ] = "auto"
    dtype: Annotated[
        str,
        Flag(
            "dtype",
            "auto, float32, bfloat16 or float16; validation takes float32 for auto.",
            COMPUTE,
            offered=("auto", "float32", "bfloat16", "float16"),
        ),
    ] = "auto"


@dataclass(frozen=True)
class CalibrationOptions(ComputeOptions, TextOptions):
    """The text that is calibrated on, and how."""


@dataclass(frozen=True)
class HeldOutOptions:
    """``samples`` chunks of ``seq_len`` tokens per domain; scored on the second half of each."""

    data: Annotated[
        tuple[str, ...],
        Flag(
            "eval-data",
            "A validation domain, as in --data; repeat for more. Default: held-out chunks of "
            "--data in compress, otherwise of the text in the package.",
            VALIDATION,
        ),
    ] = ()
    samples: Annotated[
        int, Flag("eval-samples", "Validation chunks per domain.", VALIDATION, knob=True)
    ] = 8
    seq_len: Annotated[
        int,
        Flag(
            "eval-seq-len",
            "Tokens per validation chunk; the second half of each is scored.",
            VALIDATION,
            knob=True,
        ),
    ] = 512


@dataclass(frozen=True)
class ValidationOptions(HeldOutOptions):
    """``split``: tell pruning, quantisation and the runtime apart."""

    threads: Annotated[
        int | None,
        Flag(
            "threads",
            "CPU threads of the exported file's run. Default: all cores, or a container's quota.",
            COMPUTE,
            knob=True,
            least=1,
            most=MOST_THREADS,
        ),
    ] = None
    twin: Annotated[
        bool,
        Flag(
            "twin",
            "Judge a per-expert file by unmodified llama.cpp, through its padded twin.",
            VALIDATION,
            knob=True,
        ),
    ] = False
    split: Annotated[
        bool,
        Flag(
            "split",
            "Tell what pruning, quantisation and the runtime lose; no: faster, one sum.",
            VALIDATION,
            knob=True,
        ),
    ] = True


@dataclass(frozen=True)
class ValidateOptions(ValidationOptions):
    """Those of `validate`, which has no other text than the one it measures on."""

    data: Annotated[
        tuple[str, ...],
        Flag(
            "data",
            "A domain, as in compress; repeat for more. Default: held-out text of the package.",
            VALIDATION,
        ),
    ] = ()
    samples: Annotated[int, Flag("samples", "Chunks per domain.", VALIDATION)] = 8
    seq_len: Annotated[
        int,
        Flag("seq-len", "Tokens per chunk; the second half of each is scored.", VALIDATION),
    ] = 512


@dataclass(frozen=True)
class MeasureOptions:
    """The run whose peak memory `validate` measures. None: what the file was planned for; of a file
    without a plan 4096 tokens, or as many as the model has, in F16, 512 at a time."""

    context: Annotated[
        int | None,
        Flag(
            "context",
            "Tokens of the KV cache when a GGUF's peak memory is measured. "
            "Default: what the file was planned for, else 4096 or the model's.",
        ),
    ] = None
    kv_type: Annotated[
        str | None,
        Flag(
            "kv-type",
            f"Type of that cache: {KV_NAMES}. Default: the file's plan's, else F16.",
            offered=tuple(footprint.KV_TYPES),
        ),
    ] = None
    ubatch: Annotated[
        int | None,
        Flag(
            "ubatch",
            "Prompt tokens evaluated at once in that measurement. Default: the file's plan's, "
            "else 512.",
        ),
    ] = None

    def run(self, limit: int, threads: int, planned: PlannedRun | None = None) -> MemoryRun:
        """Of a model of ``limit`` tokens whose file was ``planned`` for a run. Raises UserError for
        what no runtime can run."""
        if self.kv_type is not None:
            known_kv_type(self.kv_type)
        for name, value in (("context", self.context), ("ubatch", self.ubatch)):
            if value is not None and value < 1:
                raise UserError(f"--{name} is {value}", f"--{name} of 1 or more")
        if self.context is not None and self.context > limit:
            raise UserError(
                f"--context {self.context} is more than the {limit} tokens of the model",
                f"--context {limit}",
            )
        usual = planned or PlannedRun(
            min(MemoryRun.context, limit), MemoryRun.ubatch, MemoryRun.kv_type
        )
        kv_type = self.kv_type or usual.kv_type
        return MemoryRun(
            self.context or usual.context,
            self.ubatch or usual.ubatch,
            kv_type if kv_type in footprint.KV_TYPES else MemoryRun.kv_type,
            threads,
        )


@dataclass(frozen=True)
class LmEvalOptions:
    """Tasks of lm-eval instead of text; ``url``: of a server that is running."""

    lm_eval: Annotated[
        tuple[str, ...],
        Flag(
            "lm-eval",
            "A task of lm-eval, or a task's YAML file; needs tenp-edge[lm-eval] and the task's "
            "data; repeat for more.",
            TASKS,
        ),
    ] = ()
    lm_eval_limit: Annotated[
        int | None, Flag("lm-eval-limit", "Items of each task.", TASKS, least=1)
    ] = None
    url: Annotated[
        str | None,
        Flag("url", "Run them on the model that tenp-edge serve serves at this address.", TASKS),
    ] = None

    def __post_init__(self) -> None:
        for name, value in (("lm-eval-limit", self.lm_eval_limit), ("url", self.url)):
            if value is not None and not self.lm_eval:
                raise UserError(
                    f"--{name} is for tasks of lm-eval, and none is named",
                    f"--lm-eval TASK too, or leave --{name} out",
                )


@dataclass(frozen=True, kw_only=True)
class StatisticsOptions:
    """Statistics that there are already."""

    statistics: Annotated[
        Path | None,
        Flag(
            "calibration",
            "Directory of finished statistics, or a score file of tenp-edge pack.",
            CALIBRATION,
            also=("--scores",),
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class CompressOptions(StatisticsOptions):
    """``repair``, ``repair_ridge`` and ``heal`` change weights that stay (`recover`); where
    ``repair`` is None, the default method's are repaired. ``output`` is for recipes alone:
    `run_compress` is told it."""

    output: Annotated[Path | None, Flag("output", "Output directory (OUT).", also=("-o",))] = None
    plan: PlanOptions = field(default_factory=PlanOptions)
    calibration: CalibrationOptions = field(default_factory=CalibrationOptions)
    validation: ValidationOptions = field(default_factory=ValidationOptions)
    successive: Annotated[
        bool,
        Flag(
            "successive",
            "Plan twice: calibrate later layers again on what the first plan's cuts leave them.",
            knob=True,
        ),
    ] = False
    repair: Annotated[
        bool | None,
        Flag(
            "repair",
            "Refit the down projections of cut experts in closed form, so that the neurons that "
            "stay take over what the cut ones wrote. Default: yes for method adaptive, else no.",
            MENDING,
        ),
    ] = None
    repair_ridge: Annotated[
        float | None,
        Flag(
            "repair-ridge",
            "The pull of repair towards the original weights, above 0. Default: 0.1.",
            knob=True,
            above=0,
            example="0.1",
        ),
    ] = None
    heal: Annotated[
        str | None,
        Flag(
            "heal",
            "A short training of each layer against the original's: routers, or norms (routers and "
            "the layer's norms).",
            knob=True,
            choices=("routers", "norms"),
        ),
    ] = None
    skip_checkpoint: Annotated[
        bool, Flag("skip-checkpoint", "Export without storing the checkpoint.")
    ] = False
    checkpoint_dtype: Annotated[
        str,
        Flag(
            "checkpoint-dtype",
            "What a quantised model's checkpoint is written in: decoded, the model's own dtype "
            "(bf16), or source, as it is stored wherever the cut lets it.",
            choices=("decoded", "source"),
        ),
    ] = "decoded"
    no_validate: Annotated[bool, Flag("no-validate", "Leave the comparison out.")] = False
    force: Annotated[bool, Flag("force", "Overwrite another run's output.", recorded=False)] = False


@dataclass(frozen=True, kw_only=True)
class FileOptions:
    """What `export` writes, and what it is made from. ``layout`` and ``quant``: None for the
    format's own; ``statistics`` without ``no_imatrix`` weighs columns by importance."""

    format: Annotated[str, Flag("format", "gguf or onnx.", EXPORT, offered=FORMATS)] = "gguf"
    layout: Annotated[
        str | None, Flag("layout", LAYOUTS, EXPORT, also=("--mode",), offered=LAYOUT_NAMES)
    ] = None
    quant: Annotated[
        str | None,
        Flag(
            "quant",
            f"{QUANTS} Default: Q8_0, none.",
            EXPORT,
            words=QUANT_WORDS,
            offered=QUANT_NAMES,
        ),
    ] = None
    knobs: FileKnobs = field(default_factory=FileKnobs)
    length: Annotated[
        int | None, Flag("length", "Prompt tokens at once. Default: 128.", STATIC)
    ] = None
    past: Annotated[
        int | None,
        Flag("past", "Places of the KV cache: context - 1. Default: 1023.", STATIC),
    ] = None
    known: StatisticsOptions = field(default_factory=StatisticsOptions)
    text: TextOptions = field(default_factory=TextOptions)
    no_imatrix: Annotated[
        bool,
        Flag(
            "no-imatrix",
            "Quantise without the importance matrix that calibration gives.",
            EXPORT,
        ),
    ] = False
    imatrix_out: Annotated[
        Path | None,
        Flag("imatrix-out", "Write the importance matrix too, as llama.cpp's GGUF."),
    ] = None
    plan: Annotated[
        Path | None,
        Flag(
            "plan",
            "Prune by this plan.json while exporting; for a pruned checkpoint, the plan that made "
            "it (default: plan.json beside its directory).",
        ),
    ] = None
