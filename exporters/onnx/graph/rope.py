"""Rotary frequencies, as transformers computes them; cosines and sines are made in the graph.

    position_ids (batch, query) ── Cast ── Unsqueeze ── Mul ──┬── Cos ── (Mul scaling) ── cos
                                                     │        └── Sin ── (Mul scaling) ── sin
                                          inverse frequencies (size / 2)

A table of cosines would take 134 MB for a context of 262,144 and end there; these four nodes are
the float32 arithmetic of transformers itself, once per model.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from tenp_edge.exporters.onnx.graph.builder import FLOAT, GraphBuilder
from tenp_edge.exporters.onnx.graph.context import Rotation
from tenp_edge.models import ModelConfig

Floats = npt.NDArray[np.float32]
_PATH = "/model/rotary"


def frequencies(config: ModelConfig, layer: int = 0) -> tuple[Floats, float]:
    """Inverse frequencies float32 [size / 2] and what cosines and sines are multiplied by.

    transformers' modeling_rope_utils: default, linear, YaRN (arXiv 2309.00071), and proportional,
    where the last pairs of a head stand still.
    """
    size, rope = config.rotary_size(layer), config.layer_ropes[layer]
    exponents = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
    plain = (1.0 / np.float32(rope.theta) ** exponents).astype(np.float32)
    if rope.kind == "linear":
        return (plain / np.float32(rope.scaling["factor"])).astype(np.float32), 1.0
    if rope.kind == "yarn":
        return _yarn(config, plain)
    if rope.kind == "proportional":
        plain[int(rope.scaling.get("partial_rotary_factor", 1.0) * size // 2) :] = 0
    return plain, 1.0


def _yarn(config: ModelConfig, plain: Floats) -> tuple[Floats, float]:
    """Low frequencies interpolated, high ones kept, a ramp between the correction dimensions."""
    size, scaling = config.rotary_size(0), config.rope.scaling
    original, factor = scaling["original_max_position_embeddings"], float(scaling["factor"])

    def dimension(rotations: float) -> float:
        ratio = original / (rotations * 2 * math.pi)
        return size * math.log(ratio) / (2 * math.log(config.rope.theta))

    low, high = (dimension(scaling.get(k) or d) for k, d in (("beta_fast", 32), ("beta_slow", 1)))
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    high += 0.001 if low == high else 0
    ramp = np.clip((np.arange(size // 2, dtype=np.float32) - low) / (high - low), 0, 1)
    mixed = plain / np.float32(factor) * ramp + plain * (1 - ramp)
    return mixed.astype(np.float32), _yarn_attention(config, factor)


def _yarn_attention(config: ModelConfig, factor: float) -> float:
    scaling = config.rope.scaling
    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])
    one, every = scaling.get("mscale"), scaling.get("mscale_all_dim")
    if one and every:
        return yarn_mscale(factor, float(one)) / yarn_mscale(factor, float(every))
    return yarn_mscale(factor, 1.0)


def yarn_mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def attention_scale(config: ModelConfig, layer: int) -> float:
    """What scores are multiplied by: 1/sqrt(size), and YaRN's mscale squared in DeepSeek's MLA."""
    if config.family.attention_scale is not None:
        return config.family.attention_scale
    scale: float = config.layer_attention(layer).head_dim ** -0.5
    every = config.rope.scaling.get("mscale_all_dim") or 0
    if config.mla is None or config.rope.kind == "default" or not every:
        return scale
    return scale * yarn_mscale(float(config.rope.scaling["factor"]), every) ** 2


def make_rotations(
    g: GraphBuilder, config: ModelConfig, positions: ir.Value
) -> dict[int, Rotation]:
    """cos and sin of this run's positions for every layer that attends; layers that rotate alike
    share them."""
    steps = g.op(_PATH, "Cast", [positions], to=FLOAT)
    column = g.op(_PATH, "Unsqueeze", [steps, [2]])
    made: list[tuple[object, Rotation]] = []
    rotations = {}
    for layer in config.attention_by_layer:
        kind = (config.layer_ropes[layer], config.rotary_size(layer))
        known = next((rotation for other, rotation in made if other == kind), None)
        if known is None:
            path = _PATH if not made else f"{_PATH}/{len(made)}"
            known = _rotation(g, path, config, layer, column)
            made.append((kind, known))
        rotations[layer] = known
    return rotations


def _rotation(
    g: GraphBuilder, path: str, config: ModelConfig, layer: int, column: ir.Value
) -> Rotation:
    inverse, scaling = frequencies(config, layer)
    angles = g.op(path, "Mul", [column, g.constant(inverse, f"{path}/inverse_frequencies")])
    cos_sin = []
    for kind in ("Cos", "Sin"):
        value = g.op(path, kind, [angles])
        if scaling != 1.0:
            factor = np.asarray(scaling, np.float32)
            value = g.op(f"{path}/{kind}", "Mul", [value, factor])
        cos_sin.append(value)
    return cos_sin[0], cos_sin[1]
