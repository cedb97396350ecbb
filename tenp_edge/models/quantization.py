"""quantization_config -> the layouts that a checkpoint's weights may have. No torch in here.

Which of them a weight has, its own tensors say: their names, dtypes and shapes. So a weight that
the config leaves as it was (modules_to_not_convert, ignore) is read as such without its lists.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tenp_edge.disk import read_json
from tenp_edge.errors import UserError
from tenp_edge.models.config.reader import malformed
from tenp_edge.models.layouts import Layout
from tenp_edge.models.model_config import ModelConfig
from tenp_edge.models.quantised_layouts import (
    MX_GROUP,
    awq,
    gptq,
    mxfp4,
    mxfp4_stacked,
    nvfp4,
    packed,
    scaled,
)

_SECTION = "quantization_config"
_BLOCK = (128, 128)
_FP8 = ("F8_E4M3", "F8_E5M2")
_INVERSE = (".weight_scale_inv", "_scale_inv", ".scale")
_SCALE = (".weight_scale", "_weight_scale")
ORIGINAL = "the bf16, f16 or f32 checkpoint of the same model"
# Scales of activations and of the KV cache: runtimes that compute in FP8 or FP4 need them.
_ACTIVATIONS = re.compile(
    r"(^|[._])(input|output|activation|q|k|v|kv)_((global_)?scale(_ub)?|zero_point)$|\.qscale_act$"
)


def quantised_layouts(raw: Mapping[str, Any]) -> tuple[Layout, ...]:
    """The layouts that ``raw`` (config.json) allows; none where it is not quantised.

    Raises UserError for a method or a setting that is not known, by its name.
    """
    config = _stated(raw)
    if not config:
        return ()
    method = config.get("quant_method")
    if not isinstance(method, str) or method not in METHODS:
        reason = _REASONS.get(str(method), "this layout is not known")
        raise _refused(str(method or "unknown"), reason)
    return METHODS[method](config)


def _stated(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """quantization_config of ``raw``, empty where there is none; the method's name may be all."""
    stated = raw.get(_SECTION) or {}
    return stated if isinstance(stated, dict) else {"quant_method": stated}


def with_modelopt(raw: dict[str, Any], directory: Path) -> dict[str, Any]:
    """``raw`` with what ModelOpt writes into a file of its own beside config.json."""
    file = directory / "hf_quant_config.json"
    if raw.get(_SECTION) or not file.is_file():
        return raw
    stated = read_json(file).get("quantization")
    if not isinstance(stated, dict) or not stated.get("quant_algo"):
        return raw
    return raw | {_SECTION: {"quant_method": "modelopt"} | stated}


def is_of_activations(name: str) -> bool:
    """Whether tensor ``name`` scales activations or the KV cache, which the weights do not need."""
    return _ACTIVATIONS.search(name) is not None


def _refused(what: str, reason: str) -> UserError:
    known = ", ".join(sorted(METHODS))
    return UserError(
        f"the checkpoint is quantised ({what}): {reason}",
        f"{ORIGINAL}, or one quantised as {known}",
    )


def _size(config: Mapping[str, Any], key: str, default: int | None) -> int | None:
    """A number of columns; None for -1, which stands for all."""
    value = config.get(key, default)
    if value in (None, -1):
        return None
    if type(value) is not int or value < 1:
        raise malformed(f"quantization_config.{key}", value, "a number above zero")
    return value


def _one_of(config: Mapping[str, Any], key: str, default: Any, known: tuple[Any, ...]) -> Any:
    value = config.get(key, default)
    if value not in known:
        method = config.get("quant_method", "compressed-tensors")
        raise _refused(f"{method}, {key} = {value!r}", f"known are {', '.join(map(str, known))}")
    return value


# -- a method each ---------------------------------------------------------------------------------


def _fp8(config: Mapping[str, Any]) -> tuple[Layout, ...]:
    """DeepSeek-V3's blocks, also of exponents only; DeepSeek-V4's experts are MXFP4 beside them."""
    _one_of(config, "fmt", "e4m3", ("e4m3", "float8_e4m3fn", "e5m2"))
    block = _block(config.get("weight_block_size", _BLOCK))
    suffixes = (*_INVERSE, *_SCALE)
    kinds = (block, (1, None), (None, None)) if block else ((1, None), (None, None))
    return (
        *(scaled("FP8", _FP8, kind, suffixes) for kind in kinds),
        mxfp4((".weight",), (".scale", ".weight_scale_inv")),
    )


def _block(stated: Any) -> tuple[int, int] | None:
    if stated is None:
        return None
    sizes = stated
    if isinstance(stated, str):  # "128x128": compressed-tensors reads its older spelling too
        sizes = [int(size) for size in stated.split("x") if size.isdecimal()]
    is_pair = isinstance(sizes, list | tuple) and len(sizes) == 2
    if not is_pair or not all(type(size) is int and size > 0 for size in sizes):
        raise malformed("quantization_config's size of blocks", stated, "two numbers above zero")
    return sizes[0], sizes[1]


def _mxfp4(config: Mapping[str, Any]) -> tuple[Layout, ...]:
    return (mxfp4_stacked(),)


def _modelopt(config: Mapping[str, Any]) -> tuple[Layout, ...]:
    _one_of(config, "quant_algo", None, _MODELOPT)
    kinds = ((None, None), (1, None), _BLOCK)
    return (
        nvfp4(".weight", ".weight_scale_2", reciprocal=False),
        *(scaled("FP8", _FP8, kind, _SCALE) for kind in kinds),
    )


_MODELOPT = (
    "NVFP4",
    "W4A16_NVFP4",
    "FP8",
    "FP8_PER_CHANNEL_PER_TOKEN",
    "FP8_PB_WO",
    "MIXED_PRECISION",
)


def _gptq(config: Mapping[str, Any]) -> tuple[Layout, ...]:
    bits = _one_of(config, "bits", None, (2, 4, 8))
    key = "checkpoint_format" if "checkpoint_format" in config else "format"
    version = _one_of(config, key, "gptq", ("gptq", "gptq_v2"))
    group = _size(config, "group_size", -1)
    return (gptq(bits, group, shift=int(version == "gptq")),)


def _awq(config: Mapping[str, Any]) -> tuple[Layout, ...]:
    _one_of(config, "bits", 4, (4,))
    key = "version" if "version" in config else "format"
    _one_of(config, key, "gemm", ("gemm", "GEMM"))
    return (awq(_size(config, "group_size", -1)),)


# -- compressed-tensors ----------------------------------------------------------------------------


def _compressed(config: Mapping[str, Any]) -> tuple[Layout, ...]:
    """A layout for each group of modules; the tensors say which module is of which."""
    sparsity = _section(config, "sparsity_config").get("format")
    if sparsity not in (None, "dense"):
        raise _refused(f"compressed-tensors, {sparsity}", "the zeros that it left out are not read")
    if config.get("transform_config"):
        raise _refused("compressed-tensors, transform_config", "rotated weights are not read")
    stated = _section(config, "config_groups")
    if not stated:
        raise malformed("quantization_config.config_groups", stated, "the groups of modules")
    groups = [_section(stated, name) for name in stated]
    return tuple(_group(config, group) for group in groups if group.get("weights"))


def _section(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The object ``key`` of quantization_config, empty where there is none."""
    value = config.get(key) or {}
    if not isinstance(value, dict):
        raise malformed(f"quantization_config: {key}", value, "an object")
    return value


def _group(config: Mapping[str, Any], group: Mapping[str, Any]) -> Layout:
    name = group.get("format") or config.get("format")
    if not isinstance(name, str) or name not in _FORMATS:
        raise _refused(f"compressed-tensors, {name}", "this format is not known")
    return _FORMATS[name](_section(group, "weights"))


def _integers(weights: Mapping[str, Any]) -> Layout:
    _one_of(weights, "type", "int", ("int",))
    _one_of(weights, "strategy", None, ("group", "channel"))
    bits = _one_of(weights, "num_bits", None, (4, 8))
    group = _size(weights, "group_size", None)
    return packed(bits, group, zero_points=not weights.get("symmetric", True))


def _naive(weights: Mapping[str, Any]) -> Layout:
    """A code a byte: FP8 or INT8."""
    kind = _one_of(weights, "type", "int", ("int", "float"))
    _one_of(weights, "num_bits", None, (8,))
    strategy = _one_of(weights, "strategy", "tensor", tuple(_STRATEGIES))
    block = _STRATEGIES[strategy](weights)
    name, codes = ("INT8", ("I8",)) if kind == "int" else ("FP8", _FP8)
    asymmetric = not weights.get("symmetric", True)
    return scaled(name, codes, block, _SCALE, rounds_to="scale", zero_points=asymmetric)


_STRATEGIES: dict[str, Callable[[Mapping[str, Any]], tuple[int | None, int | None]]] = {
    "tensor": lambda weights: (None, None),
    "channel": lambda weights: (1, None),
    "group": lambda weights: (1, _size(weights, "group_size", None)),
    "block": lambda weights: _block(weights.get("block_structure")) or _BLOCK,
}
_FORMATS: dict[str, Callable[[Mapping[str, Any]], Layout]] = {
    "pack-quantized": _integers,
    "int-quantized": _naive,
    "float-quantized": _naive,
    "naive-quantized": _naive,
    "mxfp8-quantized": lambda weights: scaled(
        "MXFP8", _FP8, (1, MX_GROUP), _SCALE, rounds_to="bfloat16"
    ),
    "mxfp4-pack-quantized": lambda weights: mxfp4((".weight_packed",), _SCALE),
    "nvfp4-pack-quantized": lambda weights: nvfp4(
        ".weight_packed", ".weight_global_scale", reciprocal=True, rounds_to="bfloat16"
    ),
}
METHODS: dict[str, Callable[[Mapping[str, Any]], tuple[Layout, ...]]] = {
    "fp8": _fp8,
    "mxfp4": _mxfp4,
    "compressed-tensors": _compressed,
    "modelopt": _modelopt,
    "gptq": _gptq,
    "awq": _awq,
}
_REASONS = {
    "bitsandbytes": "its blocks run over rows and its tables are nested, which is not read",
}

# -- which modules are not quantised ---------------------------------------------------------------


def with_unquantised(config: ModelConfig, modules: Sequence[str]) -> dict[str, Any]:
    """quantization_config of ``config``, which names ``modules`` too as such that are not
    quantised, in the words of its method, and all of them as the language model alone has them."""
    stated = dict(_stated(config.raw))
    key = next((key for key in _UNQUANTISED if key in stated), None)
    key = key or _OWN_UNQUANTISED.get(stated["quant_method"], _UNQUANTISED[0])
    if key == _RULES:  # a pattern with a minus before it
        patterns: dict[str, Any] = {f"-:{re.escape(module)}": {} for module in modules}
        return stated | {key: {**_section(stated, key), **patterns}}
    names = stated.get(key) or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise malformed(f"quantization_config.{key}", names, "a list of modules")
    return stated | {key: [*map(config.text_name, names), *modules]}


_RULES = "dynamic"  # GPTQModel's
_UNQUANTISED = ("modules_to_not_convert", "ignore", "exclude_modules", _RULES)
_OWN_UNQUANTISED = {"compressed-tensors": "ignore", "modelopt": "ignore", "gptq": _RULES}
