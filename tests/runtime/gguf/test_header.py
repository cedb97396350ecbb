"""Reading headers of files that anyone may have sent: sound ones, and every kind of broken."""

from __future__ import annotations

import ctypes
import random
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from support import gguf_bytes as made
from support import tiny
from support.runtime_cases import CheckpointOf, export_mixed, export_ragged

from tenp_edge.checkpoint.stored.ggml import ggml_library
from tenp_edge.errors import UserError
from tenp_edge.runtime.ggml.library import open_library
from tenp_edge.runtime.ggml.model import PerExpertModel
from tenp_edge.runtime.gguf.header import GGML_TYPES, Header, Texts, parse_header, read_header
from tenp_edge.runtime.gguf.model_metadata import read_facts
from tenp_edge.runtime.gguf.runnable_architectures import ARCHITECTURES
from tenp_edge.runtime.gguf.tensor_checks import check_tensors
from tenp_edge.runtime.gguf.vocabulary_checks import check_vocabulary

MUTANTS = 3000


def test_every_field_and_tensor_is_what_gguf_py_reads(
    checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    file = tmp_path / "model.gguf"
    export_ragged(checkpoint_of("deepseek_v3"), file, "Q8_0")
    header, reference = read_header(file), gguf.GGUFReader(file)
    for name, wanted in reference.fields.items():
        if name.startswith("GGUF."):
            continue
        found, value = header.fields[name], wanted.contents()
        if isinstance(found, np.ndarray):
            assert found.tolist() == value, name
        elif isinstance(found, Texts):
            assert [text.decode() for text in found.values()] == value, name
        else:
            assert found == value, name
    assert header.data_start == reference.data_offset
    assert [
        (tensor.name, tuple(tensor.shape.tolist()), tensor.data_offset, tensor.n_bytes)
        for tensor in reference.tensors
    ] == [(t.name, t.shape, t.offset, t.nbytes) for t in header.tensors.values()]


def test_types_are_ggmls() -> None:
    library = open_library()
    name_of = ggml_library().ggml_type_name
    name_of.restype = ctypes.c_char_p
    for number, (name, block, nbytes) in GGML_TYPES.items():
        assert name_of(number).decode().upper() == name
        assert library.ggml_blck_size(number) == block
        assert library.ggml_type_size(number) == nbytes


F32_ROW = made.info("a", (8,), 0, 0)
BROKEN: dict[str, tuple[bytes, str]] = {
    "empty header": (b"GGUF", "it has 4 bytes, a header needs 24"),
    "magic": (made.file_of(magic=b"GGML"), "it begins with b'GGML', not b'GGUF'"),
    "version": (made.file_of(version=1), "version 1; 2 and 3 can be read"),
    "big endian": (made.file_of(version=3 << 24), "version 50331648; 2 and 3 can be read"),
    "field count": (
        made.file_of(counts=(0, 2**63)),
        "9,223,372,036,854,775,808 metadata fields do not fit into the 8 bytes left",
    ),
    "tensor count": (made.file_of(counts=(99, 0)), "99 tensors do not fit into the 8 bytes left"),
    "key length": (
        made.file_of([struct.pack("<Q", 2**60) + bytes(8)]),
        "a key of 1,152,921,504,606,846,976 bytes",
    ),
    "text length": (
        made.file_of([made.field("a", made.STRING, struct.pack("<Q", 2**60))]),
        "the header ends early (1,152,921,504,606,846,976 bytes wanted, 19 are left)",
    ),
    "array length": (
        made.file_of([made.field("a", made.ARRAY, struct.pack("<IQ", made.U32, 2**61))]),
        "2,305,843,009,213,693,952 values of a do not fit into the 15 bytes left",
    ),
    "texts": (
        made.file_of([made.field("a", made.ARRAY, struct.pack("<IQQ", made.STRING, 1, 2**63))]),
        "the header ends early (in a list of texts)",
    ),
    "nested array": (
        made.file_of([made.field("a", made.ARRAY, struct.pack("<IQ", made.ARRAY, 1))]),
        "a is an array of the type 9",
    ),
    "field type": (made.file_of([made.field("a", 13, b"")]), "a has the unknown type 13"),
    "field twice": (
        made.file_of([made.field("a", made.U32, bytes(4))] * 2),
        "the key a is there twice",
    ),
    "not UTF-8": (
        made.file_of([made.field("a", made.STRING, made.text(b"\xff"))]),
        "a name or a text is not UTF-8",
    ),
    "alignment": (
        made.file_of([made.field("general.alignment", made.U32, struct.pack("<I", 48))]),
        "general.alignment is 48, not a multiple of 32",
    ),
    "dimensions": (made.file_of(infos=[made.info("a", (1,) * 5, 0, 0)]), "a has 5 dimensions"),
    "overflowing shape": (
        made.file_of(infos=[made.info("a", (2**32, 2**32), 0, 0)]),
        "a has the impossible shape 4294967296 x 4294967296",
    ),
    "empty shape": (
        made.file_of(infos=[made.info("a", (8, 0), 0, 0)]),
        "a has the impossible shape 8 x 0",
    ),
    "tensor type": (made.file_of(infos=[made.info("a", (8,), 4, 0)]), "a has the unknown type 4"),
    "block": (
        made.file_of(infos=[made.info("a", (40,), 8, 0)]),
        "a: rows of 40 do not divide into Q8_0 blocks",
    ),
    "tensor twice": (
        made.file_of(infos=[F32_ROW, made.info("a", (8,), 0, 32)], data=64),
        "the tensor a is there twice",
    ),
    "overlap": (
        made.file_of(infos=[F32_ROW, made.info("b", (8,), 0, 0)], data=64),
        "b lies at 0, not at 32",
    ),
    "huge offset": (
        made.file_of(infos=[made.info("a", (8,), 0, 2**63)], data=64),
        "a lies at 9223372036854775808, not at 0",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_headers_are_refused(name: str) -> None:
    data, why = BROKEN[name]
    with pytest.raises(UserError) as caught:
        parse_header(data, len(data), "x.gguf")
    assert str(caught.value) == f"x.gguf is not a usable GGUF file: {why}\ntry: a sound copy of it"


def test_truncated_and_missing_files(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    export_ragged(checkpoint_of("olmoe"), file)
    whole = file.read_bytes()
    file.write_bytes(whole[:-32])
    last = read_sound(whole)
    name, info = list(last.tensors.items())[-1]
    end = info.offset + info.nbytes
    assert refusal(file) == (
        f"model.gguf is truncated: {name} ends at byte {end:,}, the file has {end - 32:,}\n"
        "try: a complete copy of the file"
    )
    file.write_bytes(b"")
    assert refusal(file) == f"{file} cannot be read: it is empty\ntry: the path of a GGUF file"
    missing = tmp_path / "none.gguf"
    assert refusal(missing) == f"{missing} does not exist\ntry: the path of a GGUF file"


def read_sound(data: bytes) -> Header:
    return parse_header(data, len(data))


def refusal(file: Path) -> str:
    with pytest.raises(UserError) as caught:
        PerExpertModel(file)
    return str(caught.value)


# -- contradictions: sound headers that describe no model ------------------------------------------


MAY_BE_MISSING = ("tenp-deepseek2.nextn_predict_layers",)


def rewritten(data: bytes, **changes: Any) -> Header:
    """The header of ``data`` with fields replaced (dots written as __) or removed (None)."""
    header = read_sound(data)
    fields = dict(header.fields)
    for key, value in changes.items():
        name = key.replace("__", ".")
        assert name in fields or name in MAY_BE_MISSING
        fields[name] = value
        if value is None:
            del fields[name]
    return Header("model.gguf", fields, header.tensors, header.data_start, {})


def _emptied() -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    """The widths of `sound`, but for the first expert, which has no neurons."""
    row = [32, 64, 96] * 3
    return np.array([0, *row[1:8], *row[:8]], dtype=np.uint32)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, checkpoint_of: CheckpointOf) -> bytes:
    file = tmp_path_factory.mktemp("sound") / "model.gguf"
    export_ragged(checkpoint_of("deepseek_v3"), file)
    return file.read_bytes()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"tenp__version": 3}, "cannot be run: tenp.version is 3; this release reads 2"),
        (
            {"tenp__version": 2, "tenp__expert_widths": np.array([0] * 16, dtype=np.uint32)},
            "cannot be run: no expert of layer 1 has neurons",
        ),
        (
            {"tenp__version": 2, "tenp__expert_widths": _emptied()},
            "contradicts itself: blk.1.ffn_gate.0.weight belongs to no layer",
        ),
        (
            {"tenp-deepseek2__nextn_predict_layers": 1},
            "cannot be run: it has layers that predict further tokens",
        ),
        (
            {"general__architecture": "gpt2"},
            "architecture 'gpt2' is not known\n"
            f"try: known: {', '.join('tenp-' + name for name in sorted(ARCHITECTURES))}",
        ),
        (
            {"tenp-deepseek2__expert_count": 9},
            "cannot be run: 3 of 9 experts in 1 of 2 groups",
        ),
        (
            {"tenp-deepseek2__expert_count": 10},
            "cannot be run: 16 expert widths for 2 layers of 10 experts",
        ),
        (
            {"tenp-deepseek2__block_count": 4},
            "cannot be run: its routed layers are not 1..3",
        ),
        (
            {"tenp-deepseek2__block_count": 2**24},
            "cannot be run: its routed layers are not 1..16777215",
        ),
        (
            {"tenp-deepseek2__block_count": None},
            "cannot be run: block_count is None, not a size",
        ),
        (
            {"tenp-deepseek2__attention__head_count": -4},
            "cannot be run: attention.head_count is -4, not a size",
        ),
        (
            {"tenp-deepseek2__attention__key_length": 100},
            "cannot be run: its latent attention sizes contradict each other",
        ),
        (
            {"tenp-deepseek2__rope__dimension_count": 15},
            "cannot be run: its latent attention sizes contradict each other",
        ),
        (
            {"tenp-deepseek2__expert_gating_func": 3},
            "cannot be run: expert_gating_func is 3; 1 (softmax) and 2 (sigmoid) are known",
        ),
        (
            {"tenp-deepseek2__rope__freq_base": float("nan")},
            "cannot be run: rope.freq_base is nan, not a number",
        ),
        (
            {"tenp__expert_widths": np.array([0] * 16, dtype=np.uint32)},
            "cannot be run: an expert width is not in 1..96",
        ),
        (
            {"tenp-deepseek2__embedding_length": 32},
            "contradicts itself: token_embd.weight is 64 x 384, the metadata says 32 x 384",
        ),
        (
            {"tenp__expert_widths": np.array([96] * 16, dtype=np.uint32)},
            "contradicts itself: blk.1.ffn_gate.0.weight is 64 x 32, the metadata says 64 x 96",
        ),
    ],
)
def test_metadata_that_contradicts_the_tensors(
    sound: bytes, changes: dict[str, Any], why: str
) -> None:
    separator = " " if why.startswith(("cannot", "contradicts")) else ": "
    with pytest.raises(UserError) as caught:
        check(rewritten(sound, **changes))
    hint = "" if "\ntry: " in why else "\ntry: export it again"
    assert str(caught.value) == f"model.gguf{separator}{why}{hint}"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (
            {"tenp-qwen3vlmoe__rope__dimension_sections": np.array([6, 5, 4, 0], dtype=np.uint32)},
            "rope.dimension_sections are [6, 5, 4, 0], half a head is 16",
        ),
        (
            {"tenp-qwen3vlmoe__n_deepstack_layers": 4},
            "4 of its 3 layers take pictures",
        ),
    ],
    ids=("sections", "deepstack"),
)
def test_facts_for_pictures_that_llama_cpp_would_not_survive(
    checkpoint_of: CheckpointOf, tmp_path: Path, changes: dict[str, Any], why: str
) -> None:
    export_ragged(checkpoint_of("qwen3_vl_moe"), tmp_path / "model.gguf")
    with pytest.raises(UserError) as caught:
        check(rewritten((tmp_path / "model.gguf").read_bytes(), **changes))
    assert str(caught.value) == f"model.gguf cannot be run: {why}\ntry: export it again"


def check(header: Header) -> None:
    check_tensors(header, read_facts(header))
    check_vocabulary(header)


# The third is the first to llama.cpp; an empty one is not a repetition.
REPEATED = (b"a", b"a", b"a\0b", b"")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"tokenizer__ggml__tokens": None}, "it has no tokens"),
        (
            {"tokenizer__ggml__tokens": Texts(4, b"".join(map(made.text, REPEATED)))},
            "2 of 4 tokens are repeated",
        ),
        (
            {"tokenizer__ggml__token_type": np.ones(383, dtype=np.int32)},
            "tokenizer.ggml.token_type is not a list of 384 numbers",
        ),
        (
            {"tokenizer__ggml__token_type": np.ones(384, dtype=np.int8)},
            "tokenizer.ggml.token_type is not a list of 384 numbers",
        ),
    ],
)
def test_vocabularies_that_would_abort_llamacpp(
    sound: bytes, changes: dict[str, Any], why: str
) -> None:
    with pytest.raises(UserError) as caught:
        check(rewritten(sound, **changes))
    assert str(caught.value) == (
        f"the vocabulary of model.gguf is broken: {why}\ntry: export it again"
    )


def test_missing_and_unknown_tensors(sound: bytes) -> None:
    header = read_sound(sound)
    for name, why in (
        ("blk.1.ffn_up.7.weight", "blk.1.ffn_up.7.weight is missing"),
        ("output_norm.weight", "output_norm.weight is missing"),
    ):
        tensors = {key: info for key, info in header.tensors.items() if key != name}
        with pytest.raises(UserError) as caught:
            check(Header("m", header.fields, tensors, header.data_start, {}))
        assert str(caught.value) == f"m contradicts itself: {why}\ntry: export it again"
    extra = header.tensors | {"blk.9.x": header.tensors["output_norm.weight"]}
    with pytest.raises(UserError) as caught:
        check(Header("m", header.fields, extra, header.data_start, {}))
    assert str(caught.value) == (
        "m contradicts itself: blk.9.x belongs to no layer\ntry: export it again"
    )


# -- random damage ---------------------------------------------------------------------------------


def test_random_damage_is_refused_or_harmless(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    """Many headers in one process; tests/benchmarks/test_fuzz_loaders.py has every loader."""
    generator = random.Random(0)
    outcomes = {"refused": 0, "accepted": 0}
    for family in tiny.FAMILIES:
        file = tmp_path / f"{family}.gguf"
        export_mixed(checkpoint_of(family), file)
        whole = file.read_bytes()
        header = whole[: read_sound(whole).data_start]
        for _ in range(MUTANTS // len(tiny.FAMILIES)):
            mutant = made.damage(header, generator)
            try:
                check(parse_header(mutant, len(whole)))
                outcomes["accepted"] += 1
            except UserError:
                outcomes["refused"] += 1
    assert outcomes["refused"] > MUTANTS // 3 and outcomes["accepted"] > 0
