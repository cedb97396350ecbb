"""GGUF files that llama.cpp would die of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import gguf_bytes as made
from support import tiny
from support.edits import refusal
from support.gguf_cases import export, random_plan
from support.runtime_cases import export_ragged

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.runtime.ggml.model import PerExpertModel
from tenp_edge.runtime.gguf.header import Header, Texts, read_header
from tenp_edge.runtime.gguf.model_metadata import read_stacked
from tenp_edge.runtime.gguf.tensor_checks import check_tensors
from tenp_edge.runtime.gguf.vocabulary_checks import check_vocabulary
from tenp_edge.runtime.llamacpp.model import LlamaCppModel
from tenp_edge.runtime.opening import RunOptions, open_model
from tenp_edge.runtime.session import Session

CheckpointOf = Callable[[str], Path]
EXPORT = "export it again"


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory, checkpoint_of: CheckpointOf) -> Path:
    file = tmp_path_factory.mktemp("stacked") / "model.gguf"
    checkpoint = Checkpoint(checkpoint_of("qwen3_moe"))
    export(ModelSource(checkpoint, random_plan(checkpoint, "uniform")), file, "Q8_0", "merged")
    return file


@pytest.fixture(scope="module")
def padded(tmp_path_factory: pytest.TempPathFactory, checkpoint_of: CheckpointOf) -> Path:
    file = tmp_path_factory.mktemp("stacked") / "model.gguf"
    export_ragged(checkpoint_of("deepseek_v3"), file, "Q8_0", "padded")
    return file


def changed(file: Path, **changes: Any) -> Header:
    """The header of ``file`` with fields added, replaced (dots written as __) or removed (None)."""
    header = read_header(file)
    fields = header.fields | {key.replace("__", "."): value for key, value in changes.items()}
    fields = {key: value for key, value in fields.items() if value is not None}
    return Header("model.gguf", fields, header.tensors, header.data_start, 0)


def check(header: Header) -> None:
    check_tensors(header, read_stacked(header))
    check_vocabulary(header)


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("layout", ["merged", "padded"])
def test_what_is_exported_is_accepted(
    family: str, layout: str, checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    file = tmp_path / "model.gguf"
    export(ModelSource(Checkpoint(checkpoint_of(family))), file, "Q8_0", layout)
    check(read_header(file))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"qwen3moe__expert_used_count": None}, "expert_used_count is None, not a size"),
        ({"qwen3moe__expert_used_count": 0}, "expert_used_count is 0, not a size"),
        ({"qwen3moe__expert_used_count": 9}, "9 of 8 experts in 1 of 1 groups"),
        ({"qwen3moe__block_count": 2**20}, "its routed layers are not 0..1048575"),
        (
            {"qwen3moe__attention__layer_norm_rms_epsilon": -1.0},
            "attention.layer_norm_rms_epsilon is -1.0, not a number",
        ),
        ({"qwen3moe__rope__dimension_count": 16}, "rope.dimension_count is 16, a head has 32"),
        ({"qwen3moe__rope__dimension_count": 0}, "rope.dimension_count is 0, not a size"),
        ({"qwen3moe__pooling_type": 1}, "qwen3moe.pooling_type is no key of ours"),
        ({"split__count": 2}, "split.count is no key of ours"),
        (
            {"tenp__expert_widths": np.array([32, 48] * 12, dtype=np.uint32)},
            "its merged experts have different widths",
        ),
    ],
)
def test_merged_files_that_llama_cpp_would_die_of(
    merged: Path, changes: dict[str, Any], why: str
) -> None:
    header = changed(merged, **changes)
    assert refusal(lambda: check(header)) == (f"model.gguf cannot be run: {why}", EXPORT)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"deepseek2__attention__head_count_kv": 2}, "latent attention has one KV head, not 2"),
        ({"deepseek2__expert_group_used_count": 2}, "2 of 2 groups of experts are used"),
    ],
)
def test_padded_files_that_llama_cpp_would_die_of(
    padded: Path, changes: dict[str, Any], why: str
) -> None:
    header = changed(padded, **changes)
    assert refusal(lambda: check(header)) == (f"model.gguf cannot be run: {why}", EXPORT)


def test_layers_that_llama_cpp_has_no_room_for(merged: Path) -> None:
    many = {
        "qwen3moe__block_count": 513,
        "tenp__moe_layers": np.arange(513, dtype=np.uint32),
        "tenp__expert_widths": np.array([48] * 513 * 8, dtype=np.uint32),
    }
    assert refusal(lambda: check(changed(merged, **many))) == (
        "model.gguf cannot be run: 513 layers of 8 experts; llama.cpp takes 512 of 512",
        EXPORT,
    )


def texts(*values: bytes) -> Texts:
    return Texts(len(values), b"".join(map(made.text, values)))


BYTES = [b"<0x%02X>" % byte for byte in range(256)]
WORDS = [b"w%d" % number for number in range(384 - 256)]
TYPES = np.array([6] * 256 + [1] * 128, dtype=np.int32)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (
            {"tokenizer__ggml__model": "bert"},
            "tokenizer.ggml.model is 'bert'; gpt2, llama and gemma4 are known",
        ),
        (
            {"tokenizer__ggml__model": "none"},
            "tokenizer.ggml.model is 'none'; gpt2, llama and gemma4 are known",
        ),
        ({"tokenizer__ggml__model": "llama"}, "it has no token for the byte 0x00"),
        (
            {
                "tokenizer__ggml__model": "llama",
                "tokenizer__ggml__tokens": texts(*BYTES[:10], b"x", *BYTES[11:], *WORDS),
            },
            "it has no token for the byte 0x0A",
        ),
        (
            {
                "tokenizer__ggml__model": "llama",
                "tokenizer__ggml__tokens": texts(*BYTES, *WORDS),
                "tokenizer__ggml__token_type": np.roll(TYPES, 1),
            },
            "token 256 is a byte, but does not say which",
        ),
        (
            {"tokenizer__ggml__tokens": texts(b"a", b"b")},
            "it has 2 tokens, fewer than 16",
        ),
        (
            {"tokenizer__ggml__merges": np.zeros(3, dtype=np.int32)},
            "tokenizer.ggml.merges is not a list of texts",
        ),
        ({"tokenizer__ggml__model": "gemma4"}, "it has no token for the byte 0x00"),
        (
            {"tokenizer__ggml__model": "gemma4", "tokenizer__ggml__bos_token_id": 384},
            "every text gets the BOS token, which it does not name",
        ),
        (
            {
                "tokenizer__ggml__model": "gemma4",
                "tokenizer__ggml__add_eos_token": True,
                "tokenizer__ggml__eos_token_id": -1,
            },
            "every text gets the EOS token, which it does not name",
        ),
        (
            {
                "tokenizer__ggml__pre": "chatglm-bpe",
                "tokenizer__ggml__add_bos_token": True,
                "tokenizer__ggml__bos_token_id": "x",
            },
            "every text gets the BOS token, which it does not name",
        ),
    ],
)
def test_vocabularies_that_llama_cpp_would_die_of(
    merged: Path, changes: dict[str, Any], why: str
) -> None:
    assert refusal(lambda: check_vocabulary(changed(merged, **changes))) == (
        f"the vocabulary of model.gguf is broken: {why}",
        EXPORT,
    )


def test_other_files_are_tried_in_a_process_that_may_die(merged: Path, tmp_path: Path) -> None:
    """Without our keys it is anyone's: a sound one runs, one that llama.cpp dies of is refused."""
    data = merged.read_bytes().replace(b"tenp.layout", b"them.layout")
    file = tmp_path / "other.gguf"
    file.write_bytes(data)
    with open_model(file, RunOptions(context=64, threads=1)) as session:
        assert len(session.evaluate([1, 2, 3])) == 384
    key = b"qwen3moe.expert_used_count" + made.U32.to_bytes(4, "little")
    at = data.index(key) + len(key)
    file.write_bytes(data[:at] + (99).to_bytes(4, "little") + data[at + 4 :])
    message, hint = refusal(lambda: open_model(file, RunOptions(context=64, threads=1)))
    assert message.startswith("llama.cpp cannot run other.gguf: it ends the process (exit -6: ")
    assert "\n" not in message
    assert hint == "a sound copy of the file, or one that tenp-edge exported"


@pytest.mark.parametrize("kind", [PerExpertModel, LlamaCppModel])
@pytest.mark.parametrize("threads", [-1, 0, 513, 3_000_000_000])
def test_threads(
    kind: type[Session], threads: int, merged: Path, checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    if kind is PerExpertModel:
        export_ragged(checkpoint_of("qwen3_moe"), tmp_path / "model.gguf")
        merged = tmp_path / "model.gguf"
    message, hint = refusal(lambda: kind(merged, context=64, threads=threads))  # type: ignore[call-arg]
    assert message == f"--threads is {threads}"
    assert hint is not None and hint.startswith("--threads of 1 to 512; this machine has ")


def test_a_context_that_nothing_can_hold(merged: Path) -> None:
    assert refusal(lambda: LlamaCppModel(merged, context=10**9)) == (
        "--context is 1000000000",
        "--context of at most 16777216",
    )


def test_text_that_is_not_unicode(merged: Path) -> None:
    with open_model(merged, RunOptions(context=64, threads=1)) as session:
        assert refusal(lambda: session.tokenize("a\ud800")) == (
            "character 2 of the text is not Unicode",
            "text in UTF-8",
        )
