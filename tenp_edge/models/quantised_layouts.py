"""The layouts of quantised weights as they are published: names, dtypes and shapes of their parts.

Each function makes the `Layout` of one kind for the sizes that config.json states. What the codes
mean is in the decoder of the same name (`tenp_edge.checkpoint.stored`).
"""

from __future__ import annotations

from functools import cache

from tenp_edge.models.layouts import Layout, PartRule, Rules
from tenp_edge.models.tensors import Shape

FLOATS = ("F32", "BF16", "F16")
_E8M0 = ("F8_E8M0", "U8")  # an exponent in a byte, under either name
_ONE: tuple[Shape, ...] = ((), (1,), (1, 1))
_WORD_BITS = 32
MX_GROUP, NV_GROUP = 32, 16


def scaled(
    kind: str,
    codes: tuple[str, ...],
    block: tuple[int | None, int | None],
    suffixes: tuple[str, ...],
    *,
    rounds_to: str | None = None,
    zero_points: bool = False,
) -> Layout:
    """Codes (rows, columns) of ``kind`` times a scale for each ``block`` of (rows, columns).

    A size of None is the whole dimension: (1, None) is a scale per output channel. Blocks at the
    edges may be smaller. ``suffixes``: of the scale. ``rounds_to``: what the product is rounded to
    before it becomes the model's dtype: "scale" for the scale's.
    """

    @cache
    def rules(shape: Shape) -> Rules:
        grid = tuple(
            _blocks(size, block_size) for size, block_size in zip(shape, block, strict=True)
        )
        shapes: tuple[Shape, ...] = (grid,)
        if grid == (1, 1):
            shapes = (grid, *_ONE)
        elif block == (1, None):
            shapes = (grid, grid[:1])
        rows = block[0] or 0
        parts = {
            "codes": PartRule((".weight", ""), codes, (shape,)),
            "scale": PartRule(suffixes, (*FLOATS, *_E8M0), shapes, rows),
        }
        if zero_points:
            parts["zero"] = PartRule((".weight_zero_point",), ("I8", *FLOATS), shapes, rows)
        return parts

    facts = {"block": block, "rounds_to": rounds_to}
    return Layout("scaled", f"{kind}, {_scales(block)}", rules, facts)


def _blocks(size: int, own: int | None) -> int:
    return 1 if own is None else -(-size // own)


def _scales(block: tuple[int | None, int | None]) -> str:
    rows, columns = block
    if rows is None:
        return "a scale per matrix"
    if columns is None:
        return "a scale per row"
    return f"scales of {rows} x {columns} blocks" if rows > 1 else f"groups of {columns}"


def mxfp4_stacked() -> Layout:
    """gpt-oss: blocks (rows, columns / 32, 16) of two codes a byte, scales (rows, columns / 32)."""

    @cache
    def rules(shape: Shape) -> Rules:
        rows, groups = shape[0], shape[1] // MX_GROUP
        return {
            "codes": PartRule(("_blocks",), ("U8",), ((rows, groups, MX_GROUP // 2),)),
            "scale": PartRule(("_scales",), _E8M0, ((rows, groups),)),
        }

    return Layout("fp4", "MXFP4", rules, {"group": MX_GROUP})


def mxfp4(codes: tuple[str, ...], scale: tuple[str, ...]) -> Layout:
    """Two codes a byte, (rows, columns / 2), and an exponent for 32 of them."""

    @cache
    def rules(shape: Shape) -> Rules:
        rows, columns = shape
        return {
            "codes": PartRule(codes, ("U8", "I8"), ((rows, columns // 2),)),
            "scale": PartRule(scale, _E8M0, ((rows, columns // MX_GROUP),)),
        }

    return Layout("fp4", "MXFP4", rules, {"group": MX_GROUP})


def nvfp4(codes: str, whole: str, *, reciprocal: bool, rounds_to: str | None = None) -> Layout:
    """Two codes a byte, an FP8 scale for 16 of them, and one float for the whole matrix: multiplied
    as ModelOpt stores it (`weight_scale_2`), divided by as compressed-tensors does
    (`weight_global_scale`), which is the ``reciprocal``."""

    @cache
    def rules(shape: Shape) -> Rules:
        rows, columns = shape
        return {
            "codes": PartRule((codes,), ("U8",), ((rows, columns // 2),)),
            "scale": PartRule((".weight_scale",), ("F8_E4M3",), ((rows, columns // NV_GROUP),)),
            "whole": PartRule((whole,), ("F32",), _ONE, rows=0),
        }

    facts = {"group": NV_GROUP, "reciprocal": reciprocal, "rounds_to": rounds_to}
    return Layout("fp4", "NVFP4", rules, facts)


def packed(bits: int, group: int | None, *, zero_points: bool) -> Layout:
    """compressed-tensors: whole numbers of ``bits`` in 32-bit words along the columns, a scale for
    ``group`` of them (None: the whole row), and, packed along the rows, their zero points."""

    @cache
    def rules(shape: Shape) -> Rules:
        rows, columns = shape
        groups = _blocks(columns, group)
        words = _words(columns, bits)
        scales: tuple[Shape, ...] = ((rows, groups),) if groups > 1 else ((rows, 1), (rows,))
        parts = {
            "codes": PartRule((".weight_packed",), ("I32",), ((rows, words),)),
            "scale": PartRule((".weight_scale",), FLOATS, scales),
            "shape": PartRule((".weight_shape",), ("I64", "I32"), ((2,),), 0, optional=True),
            "order": PartRule((".weight_g_idx",), ("I32",), ((columns,),), 0, optional=True),
        }
        if zero_points:
            zeros = ((_words(rows, bits), groups),)
            rows_a_word = _WORD_BITS // bits
            parts["zero"] = PartRule((".weight_zero_point",), ("I32",), zeros, rows_a_word)
        return parts

    facts = {"bits": bits, "group": group, "rounds_to": "scale"}
    return Layout("packed", f"INT{bits}, {_groups(group)}", rules, facts)


def _words(count: int, bits: int) -> int:
    return -(-count * bits // _WORD_BITS)


def _groups(group: int | None) -> str:
    return "a scale per row" if group is None else f"groups of {group}"


def gptq(bits: int, group: int | None, *, shift: int) -> Layout:
    """GPTQ: words along the inputs, (columns / n, rows); zero points along the outputs, to which
    ``shift`` is added: 1 in the first version of the format, 0 in the second."""

    @cache
    def rules(shape: Shape) -> Rules:
        rows, columns = shape
        groups = _blocks(columns, group)
        return {
            "codes": PartRule((".qweight",), ("I32",), ((_words(columns, bits), rows),), 0),
            "zero": PartRule((".qzeros",), ("I32",), ((groups, _words(rows, bits)),), 0),
            "scale": PartRule((".scales",), FLOATS, ((groups, rows),), 0),
            "order": PartRule((".g_idx",), ("I32",), ((columns,),), 0, optional=True),
        }

    facts = {"bits": bits, "group": group, "shift": shift}
    return Layout("gptq", f"GPTQ, {bits} bits, {_groups(group)}", rules, facts)


def awq(group: int | None) -> Layout:
    """AWQ's "gemm": eight codes of 4 bits in a word along the outputs, in an order of its own."""

    @cache
    def rules(shape: Shape) -> Rules:
        rows, columns = shape
        groups, words = _blocks(columns, group), _words(rows, 4)
        return {
            "codes": PartRule((".qweight",), ("I32",), ((columns, words),), 0),
            "zero": PartRule((".qzeros",), ("I32",), ((groups, words),), 0),
            "scale": PartRule((".scales",), FLOATS, ((groups, rows),), 0),
        }

    return Layout("awq", f"AWQ, 4 bits, {_groups(group)}", rules, {"group": group})
