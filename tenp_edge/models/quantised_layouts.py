"""The layouts of quantised weights as they are published: names, dtypes and shapes of their parts.

Each function makes the `Layout` of one kind for the sizes that config.json states. What the codes
mean is in the decoder of the same name (`tenp_edge.checkpoint.stored`).
"""

from __future__ import annotations

from functools import cache, partial

from tenp_edge.models.layouts import Layout, PartRule, Rules
from tenp_edge.models.mixers import Shape

FLOATS = ("F32", "BF16", "F16")
_E8M0 = ("F8_E8M0", "U8")  # an exponent in a byte, under either name
_ONE: tuple[Shape, ...] = ((), (1,), (1, 1))
_WORD_BITS = 32
MX_GROUP, NV_GROUP = 32, 16
# Where in a word of eight, counted from the lowest bits, output 0, 1, 2, ... of the eight lies.
AWQ_LANES = (0, 4, 1, 5, 2, 6, 3, 7)


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
        rule = partial(PartRule, rows=block[0] or 0, columns=block[1] or 0)
        parts = {
            "codes": PartRule((".weight", ""), codes, (shape,)),
            "scale": rule(suffixes, (*FLOATS, *_E8M0), shapes),
        }
        if zero_points:
            kinds = ("I8", *FLOATS)
            parts["zero"] = rule((".weight_zero_point",), kinds, shapes)
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
            "codes": PartRule(
                ("_blocks",), ("U8",), ((rows, groups, MX_GROUP // 2),), columns=MX_GROUP
            ),
            "scale": PartRule(("_scales",), _E8M0, ((rows, groups),), columns=MX_GROUP),
        }

    return Layout("fp4", "MXFP4", rules, {"group": MX_GROUP})


def mxfp4(codes: tuple[str, ...], scale: tuple[str, ...]) -> Layout:
    """Two codes a byte, (rows, columns / 2), and an exponent for 32 of them."""

    @cache
    def rules(shape: Shape) -> Rules:
        rows, columns = shape
        return {
            "codes": PartRule(codes, ("U8", "I8"), ((rows, columns // 2),), columns=2),
            "scale": PartRule(scale, _E8M0, ((rows, columns // MX_GROUP),), columns=MX_GROUP),
        }

    return Layout("fp4", "MXFP4", rules, {"group": MX_GROUP})


def nvfp4(codes: str, whole: str, *, reciprocal: bool, rounds_to: str | None = None) -> Layout:
    """Two codes a byte, an FP8 scale for 16 of them, and one float for the whole matrix: multiplied
    as ModelOpt stores it (`weight_scale_2`), divided by as compressed-tensors does
    (`weight_global_scale`), which is the ``reciprocal``."""

    @cache
    def rules(shape: Shape) -> Rules:
        rows, columns = shape
        scales = ((rows, columns // NV_GROUP),)
        return {
            "codes": PartRule((codes,), ("U8",), ((rows, columns // 2),), columns=2),
            "scale": PartRule((".weight_scale",), ("F8_E4M3",), scales, columns=NV_GROUP),
            "whole": PartRule((whole,), ("F32",), _ONE, rows=0, columns=0),
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
        words, in_word = _words(columns, bits), _WORD_BITS // bits
        scales: tuple[Shape, ...] = ((rows, groups),) if groups > 1 else ((rows, 1), (rows,))
        parts = {
            "codes": PartRule((".weight_packed",), ("I32",), ((rows, words),), columns=in_word),
            "scale": PartRule((".weight_scale",), FLOATS, scales, columns=group or 0),
            "shape": PartRule(
                (".weight_shape",), ("I64", "I32"), ((2,),), 0, columns=0, optional=True
            ),
            "order": _order((".weight_g_idx",), columns),
        }
        if zero_points:
            parts["zero"] = PartRule(
                (".weight_zero_point",),
                ("I32",),
                ((_words(rows, bits), groups),),
                rows=in_word,
                columns=group or 0,
                lanes=tuple(range(in_word)),
            )
        return parts

    facts = {"bits": bits, "group": group, "rounds_to": "scale"}
    return Layout("packed", f"INT{bits}, {_groups(group)}", rules, facts)


def _order(suffixes: tuple[str, ...], columns: int) -> PartRule:
    """The group of each column, which a cut of columns would number anew."""
    shapes = ((columns,),)
    return PartRule(suffixes, ("I32",), shapes, rows=0, columns=None, optional=True)


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
        groups, in_word = _blocks(columns, group), _WORD_BITS // bits
        words, zeros = _words(columns, bits), _words(rows, bits)
        across = partial(PartRule, columns=group or 0, transposed=True)
        lanes = tuple(range(in_word))
        return {
            "codes": PartRule(
                (".qweight",), ("I32",), ((words, rows),), columns=in_word, transposed=True
            ),
            "zero": across((".qzeros",), ("I32",), ((groups, zeros),), rows=in_word, lanes=lanes),
            "scale": across((".scales",), FLOATS, ((groups, rows),)),
            "order": _order((".g_idx",), columns),
        }

    facts = {"bits": bits, "group": group, "shift": shift}
    return Layout("gptq", f"GPTQ, {bits} bits, {_groups(group)}", rules, facts)


def awq(group: int | None) -> Layout:
    """AWQ's "gemm": eight codes of 4 bits in a word along the outputs, in an order of its own."""

    @cache
    def rules(shape: Shape) -> Rules:
        rows, columns = shape
        groups, words = _blocks(columns, group), _words(rows, 4)
        eight = partial(PartRule, rows=8, transposed=True, lanes=AWQ_LANES)
        scales = ((groups, rows),)
        return {
            "codes": eight((".qweight",), ("I32",), ((columns, words),)),
            "zero": eight((".qzeros",), ("I32",), ((groups, words),), columns=group or 0),
            "scale": PartRule((".scales",), FLOATS, scales, columns=group or 0, transposed=True),
        }

    return Layout("awq", f"AWQ, 4 bits, {_groups(group)}", rules, {"group": group})
