"""Files to run that anyone may have made: GGUF for llama.cpp, ONNX directories, chat templates."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf_bytes as made
import numpy as np
import onnx
import pytest
import tiny
from gguf_cases import export, random_plan
from runtime_cases import export_ragged
from test_bad_input import edit, refusal

from tenp_edge.checkpoint import Checkpoint
from tenp_edge.runtime.directory_vocabulary import open_vocabulary
from tenp_edge.runtime.facts import read_stacked
from tenp_edge.runtime.gguf_file import Header, Texts, read_header
from tenp_edge.runtime.llamacpp import LlamaCppModel
from tenp_edge.runtime.onnx_directory import read_directory
from tenp_edge.runtime.opening import RunOptions, open_model
from tenp_edge.runtime.perexpert import PerExpertModel
from tenp_edge.runtime.session import Session
from tenp_edge.runtime.template import TemplateError, TemplateProcess
from tenp_edge.runtime.tensors import check_tensors
from tenp_edge.runtime.vocabulary import check_vocabulary
from tenp_edge.source import ModelSource

CheckpointOf = Callable[[str], Path]
EXPORT = "export it again"


# -- files for llama.cpp ---------------------------------------------------------------------------


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
            "tokenizer.ggml.model is 'bert'; gpt2 and llama are known",
        ),
        (
            {"tokenizer__ggml__model": "none"},
            "tokenizer.ggml.model is 'none'; gpt2 and llama are known",
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


# -- templates -------------------------------------------------------------------------------------

MESSAGES = {"messages": [{"role": "user", "content": "Hi"}]}
HINT = "another file: its chat template is broken or hostile"
LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
DOUBLING = (
    "{% set ns = namespace(s='ab') %}{% for i in range(60) %}"
    "{% set ns.s = ns.s ~ ns.s %}{% endfor %}"
)


@pytest.fixture(scope="module")
def process() -> TemplateProcess:
    return TemplateProcess(1.0)


@pytest.mark.parametrize("text", [LOOPS, "{{ lipsum(n=100000) }}"])
def test_templates_end_in_time(process: TemplateProcess, text: str) -> None:
    process.render("warm", {})
    begun = time.monotonic()
    expected = ("the chat template takes over 1 seconds", HINT)
    assert refusal(lambda: process.render(text, MESSAGES)) == expected
    assert time.monotonic() - begun < 3
    assert process.render("{{ messages[0].content }}", MESSAGES) == "Hi"


@pytest.mark.parametrize(
    "text",
    [
        "{{ 'a' * (6 * 10**9) }}",
        "{{ 'a'|center(5000000000) }}",
        "{{ '%5000000000d' % 1 }}",
        "{{ [1] * 3000000000 }}",
    ],
)
def test_templates_end_in_memory(process: TemplateProcess, text: str) -> None:
    expected = ("the chat template needs too much memory", HINT)
    assert refusal(lambda: process.render(text, MESSAGES)) == expected


def test_templates_that_double_a_string() -> None:
    assert refusal(lambda: TemplateProcess(20.0).render(DOUBLING, {})) == (
        "the chat template needs too much memory",
        HINT,
    )


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "is nested too deep"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "is nested too deep"),
        ("{{ '\\ud800' }}", "makes text that is not Unicode"),
    ],
)
def test_templates_with_limits_of_other_kinds(
    process: TemplateProcess, text: str, why: str
) -> None:
    assert refusal(lambda: process.render(text, MESSAGES)) == (f"the chat template {why}", HINT)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{{ 1/0 }}", "ZeroDivisionError: division by zero"),
        (
            "{{ range(100000000) }}",
            "OverflowError: Range too big. The sandbox blocks ranges larger than MAX_RANGE "
            "(100000).",
        ),
        ("{{ raise_exception('user\nfirst') }}", "user first"),
        ("{{ messages.x.y }}", "'list object' has no attribute 'x'"),
        (
            "{{ ''.__class__.__mro__ }}",
            "access to attribute '__class__' of 'str' object is unsafe.",
        ),
    ],
)
def test_templates_that_fail(process: TemplateProcess, text: str, why: str) -> None:
    with pytest.raises(TemplateError) as caught:
        process.render(text, MESSAGES)
    assert str(caught.value) == why


def test_one_template_at_a_time(process: TemplateProcess) -> None:
    found: list[str] = []

    def render(number: int) -> None:
        found.append(process.render("{{ n }}", {"n": number}))

    threads = [threading.Thread(target=render, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [str(number) for number in range(8)]


def test_the_process_ends_with_ours() -> None:
    code = (
        "from tenp_edge.runtime.template import PROCESS; "
        "assert PROCESS.render('{{ 6 * 7 }}', {}) == '42'; print(PROCESS._process.pid)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not Path(f"/proc/{int(done.stdout)}").exists() and not done.stderr


# -- ONNX directories ------------------------------------------------------------------------------


@pytest.fixture
def directory(checkpoint_of: CheckpointOf, tmp_path: Path) -> Path:
    """Tokenizer and settings of an ONNX directory; its graph has one external tensor."""
    path = Path(shutil.copytree(checkpoint_of("qwen3_moe"), tmp_path / "onnx"))
    (path / "model.safetensors").unlink()
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[1], data_location=1)
    for key, value in (("location", "model.data"), ("offset", "abc"), ("length", "4")):
        tensor.external_data.add(key=key, value=value)
    graph = onnx.helper.make_graph([], "g", [], [], [tensor])
    onnx.save(onnx.helper.make_model(graph), path / "model.onnx")
    (path / "model.data").write_bytes(bytes(4))
    return path


def test_external_data_at_an_offset_that_is_none(directory: Path) -> None:
    message, hint = refusal(lambda: open_model(directory))
    assert message.startswith(f"onnxruntime cannot load {directory / 'model.onnx'}: ")
    assert hint == "copy the whole directory again, or export it again"


@pytest.mark.parametrize("past", ["7", 0, 1.5, []])
def test_lengths_that_are_none(directory: Path, past: object) -> None:
    (directory / "tenp.json").write_text(json.dumps({"lengths": {"past": past}}))
    assert refusal(lambda: read_directory(directory).context) == (
        f"{directory / 'tenp.json'}: lengths.past is {past!r}, not a number above zero",
        "copy the whole directory again, or export it again",
    )


def test_settings_that_are_nested_too_deep(directory: Path) -> None:
    (directory / "tenp.json").write_text('{"a":' * 100_000)
    assert refusal(lambda: read_directory(directory)) == (
        f"{directory / 'tenp.json'} is not JSON: it is nested too deep",
        EXPORT,
    )


def test_a_tokenizer_that_panics(directory: Path) -> None:
    """A regular expression that takes more retries than its library allows is a panic in Rust,
    which is no Exception in Python."""
    split: dict[str, Any] = {"type": "Split", "behavior": "Isolated", "invert": False}
    split["pattern"] = {"Regex": "(x+x+)+y"}
    edit(directory / "tokenizer.json", lambda raw: raw.update(pre_tokenizer=split))
    vocabulary = open_vocabulary(directory)
    assert refusal(lambda: vocabulary.tokenize("x" * 40)) == (
        f"{directory / 'tokenizer.json'} cannot be used: Onig: Regex search error: "
        "retry-limit-in-match over",
        "export it again, or copy the model's tokenizer files there",
    )


def test_chat_templates_that_are_no_templates(directory: Path) -> None:
    settings = directory / "tokenizer_config.json"
    edit(settings, lambda raw: raw.update(chat_template=[7, {"name": "default", "template": "x"}]))
    assert open_vocabulary(directory).chat_template == "x"
    (directory / "chat_template.jinja").write_bytes(b"\xff")
    assert refusal(lambda: open_vocabulary(directory).chat_template) == (
        f"{directory / 'chat_template.jinja'} is not UTF-8",
        "export it again, or copy the model's tokenizer files there",
    )
