"""Files whose tensors take types of their own: what may be chosen, what it takes, what a mix is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import prod

from tenp_edge.checkpoint.tensor_types import TensorTypes, other_key
from tenp_edge.errors import UserError
from tenp_edge.exporters.gguf.fields import padded
from tenp_edge.exporters.gguf.layout import Entry
from tenp_edge.exporters.gguf.recipes import is_quantised
from tenp_edge.exporters.gguf.types import FILE_TYPES, TYPES, legal_type
from tenp_edge.exporters.mixing import TypedMatrix
from tenp_edge.models import ModelConfig


def _bits(name: str) -> float:
    """Of a weight."""
    kind = TYPES[name]
    return 8 * kind.block_bytes / kind.block


# Of weights that were not trained to be ternary TQ leaves next to nothing.
MIXED_TYPES = tuple(
    sorted((name for name in TYPES if not name.startswith("TQ")), key=_bits, reverse=True)
)


def tensor_bytes(rows: int, columns: int, type: str) -> int:
    """What a matrix takes in the file: in the type that its rows allow, alignment included."""
    return padded(TYPES[legal_type(type, columns)].nbytes((rows, columns)))


def check_types(types: TensorTypes, config: ModelConfig, *, one_type: bool, imatrix: bool) -> None:
    """Raise UserError unless ``types`` are types of ``config``'s experts and can be written.

    ``one_type``: the layout stacks a layer's experts, which then have one type a matrix.
    """
    unknown = sorted(types.names - set(TYPES))
    if unknown:
        raise UserError(
            f"the plan's types name '{unknown[0]}', which GGUF has not",
            "--quant Q8_0, or plan again with --format gguf",
        )
    if not types.has_experts({layer: len(row) for layer, row in config.expert_widths.items()}):
        raise UserError("the plan's types do not have the experts of this model", "plan again")
    weighed = sorted(name for name in types.names if TYPES[name].needs_importance)
    if weighed and not imatrix:
        raise UserError(
            f"the plan's types need an importance matrix (for {weighed[0]})",
            "--calibration WORK (tenp-edge calibrate MODEL -o WORK) "
            "without --no-imatrix, or --quant Q4_K_M",
        )
    for layer in types.gate_up if one_type else ():
        for projection in ("gate", "down"):
            names = sorted(set(types.row(layer, projection)))
            if len(names) > 1:
                raise UserError(
                    f"experts that lie in one tensor have one type: the plan gives those of layer "
                    f"{layer} {', '.join(names)}",
                    "--layout per-expert, or plan again with this layout",
                )


def typed_matrices(found: Iterable[Entry]) -> tuple[TypedMatrix, ...]:
    """Of a file's tensors those outside the routed experts whose type may be chosen."""
    return tuple(
        TypedMatrix(other_key(e.layer, e.role), e.layer, e.role, e.tensor.shape)
        for e in found
        if e.tensor.part != "routed experts" and is_quantised(e.role, e.tensor.shape)
    )


def types_of(found: Sequence[Entry], counts: Mapping[int, int]) -> TensorTypes:
    """The types that the entries want, before their row lengths have a say.

    ``counts``: layer -> its experts.
    """
    gated = any(entry.role == "expert_gate" for entry in found)  # which up's type is, too
    first = "expert_gate" if gated else "expert_up"
    experts: dict[str, dict[int, list[str]]] = {first: {}, "expert_down": {}}
    wanted: dict[str, str] = {}
    for entry in found:
        wanted[other_key(entry.layer, entry.role)] = entry.wanted
        if entry.role in experts and entry.layer is not None:
            copies = counts[entry.layer] if entry.expert is None else 1
            row = experts[entry.role].setdefault(entry.layer, [])
            row += [entry.wanted] * copies
    gate_up, down = (
        {layer: tuple(row) for layer, row in rows.items()} for rows in experts.values()
    )
    others = {matrix.key: wanted[matrix.key] for matrix in typed_matrices(found)}
    return TensorTypes(gate_up, down, others)


def mostly(found: Sequence[Entry]) -> int:
    """general.file_type of a mix: of the type that most weights have, as llama.cpp guesses it for a
    file that does not say."""
    weights: Counter[str] = Counter()
    for entry in found:
        weights[entry.tensor.type] += prod(entry.tensor.shape)
    return _FILE_TYPES[weights.most_common(1)[0][0]]


# llama.cpp's own guesses (llama_model_loader): of a K-type its M mix.
_FILE_TYPES = {name: FILE_TYPES[name].file_type for name in TYPES if name in FILE_TYPES} | {
    "Q4_1": 3,
    "Q5_0": 8,
    "Q5_1": 9,
    "Q3_K": 12,
    "Q4_K": 15,
    "Q5_K": 17,
}
