"""The flags of `tenp-edge run`, each declared once, and a reader of them that loads no library.

`run_flags` makes the command line's options of the same table. `read` takes what is plainly right;
help, mistakes and everything else are left to the full command line, which costs 12 MiB that a run
would hold to its end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenp_edge.runtime.memory.footprint import KV_NAMES, MOST_THREADS

RUNTIME, SAMPLING, CHATTING = "Runtime", "Sampling", "Conversation"


@dataclass(frozen=True)
class Flag:
    """``names`` as typed; ``kind``: str, int, float or bool (a switch); numbers may be at ``least``
    and at ``most`` so much."""

    names: tuple[str, ...]
    kind: type[Any]
    help: str
    panel: str | None = None
    default: Any = None
    least: int | None = None
    most: int | None = None

    @property
    def key(self) -> str:
        """The parameter that it sets: "max_tokens"."""
        return max(self.names, key=len).lstrip("-").replace("-", "_")

    def value(self, text: str) -> Any:
        """``text`` as a value. Raises ValueError for what is none."""
        parsed = self.kind(text)
        low, high = self.least, self.most
        if (low is not None and parsed < low) or (high is not None and parsed > high):
            raise ValueError(text)
        return parsed


PROMPT = Flag(
    ("-p", "--prompt"),
    str,
    "One message to answer, or with --raw a text to continue. Default: what is piped in; on a "
    "terminal, a conversation.",
)
CHAT = Flag(
    ("--chat",),
    bool,
    "A conversation also after -p, and with every line that is piped in.",
    default=False,
)
RAW = Flag(
    ("--raw",),
    bool,
    "Continue the text as it is, without the model's chat template.",
    default=False,
)
SYSTEM = Flag(("--system",), str, "System message of the conversation.", CHATTING)
NO_THINKING = Flag(
    ("--no-thinking",),
    bool,
    "Ask for answers without thinking first, where the model's chat template can.",
    CHATTING,
    default=False,
)
TEMPLATE_VARIABLES = Flag(
    ("--chat-template-kwargs",),
    str,
    'What else the chat template is told, as JSON: {"reasoning_effort": "low"}.',
    CHATTING,
)
NO_HISTORY = Flag(
    ("--no-history",),
    bool,
    "Do not keep what is typed for the next conversation.",
    CHATTING,
    default=False,
)
JSON = Flag(
    ("--json",),
    bool,
    "Print JSON lines: one for every piece of text, then one with counts and speed.",
    default=False,
)

CONTEXT = Flag(
    ("--context",),
    int,
    "Tokens that the KV cache holds. Default: what the file was planned for, else 2048; never more "
    "than the model's.",
    RUNTIME,
    least=1,
)
THREADS = Flag(
    ("--threads",),
    int,
    "CPU threads. Default: all cores, or a container's quota.",
    RUNTIME,
    least=1,
    most=MOST_THREADS,
)
UBATCH = Flag(
    ("--ubatch",),
    int,
    "Prompt tokens evaluated at once. Default: what the file was planned for, else 512.",
    RUNTIME,
    least=1,
)
KV_TYPE = Flag(
    ("--kv-type",),
    str,
    f"Type of the KV cache: {KV_NAMES}. Default: what the file was planned for, else F16. "
    "ONNX: what the graph has.",
    RUNTIME,
)
GPU_LAYERS = Flag(
    ("--gpu-layers",),
    int,
    "Layers on the GPU: merged and padded files, in a GPU build of llama.cpp.",
    RUNTIME,
    default=0,
    least=0,
)
NO_PREPACK = Flag(
    ("--no-prepack",),
    bool,
    "ONNX: use the weights where the file is mapped, without a copy laid out for speed. "
    "Much less memory, slower.",
    RUNTIME,
    default=False,
)

MAX_TOKENS = Flag(
    ("-n", "--max-tokens"),
    int,
    "Tokens to generate at most. Default: until the model ends or the context is full.",
    SAMPLING,
)
TEMPERATURE = Flag(
    ("--temperature",), float, "0 takes the best token every time.", SAMPLING, default=0.8
)
TOP_K = Flag(("--top-k",), int, "Draw from the K best tokens; 0: all.", SAMPLING, default=40)
TOP_P = Flag(
    ("--top-p",),
    float,
    "Draw from the best tokens that make up P together.",
    SAMPLING,
    default=0.95,
)
MIN_P = Flag(
    ("--min-p",), float, "Drop tokens below P times the best one's.", SAMPLING, default=0.05
)
REPEAT_PENALTY = Flag(
    ("--repeat-penalty",),
    float,
    "Above 1 makes recent tokens less likely.",
    SAMPLING,
    default=1.0,
)
SEED = Flag(
    ("--seed",), int, "Same seed, same text. Default: another one every time.", SAMPLING, least=0
)

RUN = (
    PROMPT,
    CHAT,
    RAW,
    JSON,
    SYSTEM,
    NO_THINKING,
    TEMPLATE_VARIABLES,
    NO_HISTORY,
    MAX_TOKENS,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    MIN_P,
    REPEAT_PENALTY,
    SEED,
    CONTEXT,
    THREADS,
    UBATCH,
    KV_TYPE,
    GPU_LAYERS,
    NO_PREPACK,
)
_BY_NAME = {name: flag for flag in RUN for name in flag.names}


def read(arguments: Sequence[str]) -> dict[str, Any] | None:
    """What ``tenp-edge run`` is given, by parameter, every default included; None for what only
    the full command line can answer."""
    values: dict[str, Any] = {flag.key: flag.default for flag in RUN}
    files: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if not argument.startswith("-"):
            files.append(argument)
            continue
        try:
            flag, value = _option(argument, rest)
        except (KeyError, ValueError, StopIteration):
            return None
        values[flag.key] = value
    return {"file": Path(files[0]), **values} if len(files) == 1 else None


def _option(argument: str, rest: Iterator[str]) -> tuple[Flag, Any]:
    """The flag that ``argument`` names, and its value: after "=", or the next argument."""
    name, equals, text = argument.partition("=")
    flag = _BY_NAME[name]
    if equals and (flag.kind is bool or not name.startswith("--")):
        raise ValueError(argument)
    if flag.kind is bool:
        return flag, True
    return flag, flag.value(text if equals else next(rest))
