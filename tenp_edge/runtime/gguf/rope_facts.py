"""What a file says of the rotary embedding, as arguments of ggml_rope_ext."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tenp_edge.runtime.gguf.metadata_reader import Fields
from tenp_edge.runtime.gguf.yarn import BETA_FAST, BETA_SLOW, frequency_divisors

# Whether YaRN's range is rounded: llama.cpp always does.
YARN_TRUNCATE = "rope.scaling.yarn_truncate"
_FREQUENCY_SCALED = ("linear", "yarn")


@dataclass(frozen=True)
class Rope:
    """Arguments of ggml_rope_ext, as llama.cpp derives them; ``divisors``: of each frequency, where
    ggml cannot compute them by itself."""

    dimensions: int
    base: float
    scale: float = 1.0
    original_context: int = 0
    ext_factor: float = 0.0
    attention_factor: float = 1.0
    beta_fast: float = BETA_FAST
    beta_slow: float = BETA_SLOW
    divisors: tuple[float, ...] = ()


def read_rope(fields: Fields) -> Rope:
    """YaRN as llama.cpp does it: ggml scales the rotation by 1 + 0.1 ln(factor) on its own, so the
    attention factor cancels that where latent attention scales the scores instead."""
    dimensions = fields.integer("rope.dimension_count")
    base = fields.real("rope.freq_base")
    kind = fields.text("rope.scaling.type", "none")
    attention_factor = fields.real("rope.scaling.attn_factor", 1.0)
    if kind == "none":
        return Rope(dimensions, base, attention_factor=attention_factor)
    factor = fields.real("rope.scaling.factor")
    if kind not in _FREQUENCY_SCALED or not factor >= 1.0:
        raise fields.error(f"rope scaling '{kind}' by {factor:g} is not known")
    if kind == "linear":
        return Rope(dimensions, base, scale=1.0 / factor, attention_factor=attention_factor)
    magnitude = 1.0 + 0.1 * math.log(factor)
    if not fields.flag(YARN_TRUNCATE, True):
        original = fields.integer("rope.scaling.original_context_length")
        divisors = frequency_divisors(
            dimensions, base, factor, original, BETA_FAST, BETA_SLOW, truncate=False
        )
        return Rope(
            dimensions,
            base,
            attention_factor=attention_factor * magnitude,
            divisors=tuple(divisors.tolist()),
        )
    cancelled = fields.real("rope.scaling.yarn_log_multiplier", 0.0) != 0.0
    return Rope(
        dimensions,
        base,
        scale=1.0 / factor,
        original_context=fields.integer("rope.scaling.original_context_length"),
        ext_factor=1.0,
        attention_factor=attention_factor / magnitude if cancelled else attention_factor,
        beta_fast=fields.real("rope.scaling.yarn_beta_fast", BETA_FAST),
        beta_slow=fields.real("rope.scaling.yarn_beta_slow", BETA_SLOW),
    )


def check_sections(fields: Fields, rope: Rope, layers: int) -> None:
    """What only pictures need, and llama.cpp takes as it is. For a text all positions are one."""
    sections = fields.integers("rope.dimension_sections")
    deepstack = fields.integer("n_deepstack_layers", 0)
    half, total = rope.dimensions // 2, sum(sections)
    if len(sections) != 4 or min(sections) < 0 or not half <= total <= rope.dimensions:
        raise fields.error(f"rope.dimension_sections are {sections}, half a head is {half}")
    if deepstack > layers:
        raise fields.error(f"{deepstack} of its {layers} layers take pictures")
