"""What `fuzz_loaders` damages, and the code that reads it in earnest."""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from fuzz_inputs import damage_fields, damage_json, hostile_template, with_sentencepiece
from support import gguf_bytes, tiny
from support.gguf_cases import export
from support.mixes import GGUF
from support.onnx_directories import export_onnx
from support.plans import ragged_plan
from support.runtime_cases import export_ragged
from support.synthetic import write_statistics

from tenp_edge.calibration.storage import load_statistics
from tenp_edge.checkpoint.compression_plan import load_plan
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.overlay import FILE as MENDED_FILE
from tenp_edge.checkpoint.overlay import Mended
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.exporters.base import ExportOptions
from tenp_edge.forward.streaming import transformers_config
from tenp_edge.models.headers import read_header
from tenp_edge.models.inspection import inspect_model
from tenp_edge.runtime.chat_template import TemplateProcess
from tenp_edge.runtime.directory_vocabulary import open_vocabulary
from tenp_edge.runtime.gguf.file_origin import is_ours, is_per_expert
from tenp_edge.runtime.gguf.header import parse_header
from tenp_edge.runtime.gguf.model_metadata import read_facts, read_stacked
from tenp_edge.runtime.gguf.tensor_checks import check_tensors
from tenp_edge.runtime.gguf.vocabulary_checks import check_vocabulary
from tenp_edge.runtime.onnx.directory import read_directory
from tenp_edge.runtime.opening import RunOptions, open_model
from tenp_edge.runtime.sampling import Sampler, SamplingOptions
from tenp_edge.serving.schemas.openai import ChatRequest, CompletionRequest
from tenp_edge.serving.schemas.wording import parse

_TEXT = "def f(x):\n\té日本" + "".join(map(chr, range(256)))
Damage = Callable[[random.Random], bytes]


@dataclass(frozen=True)
class Loader:
    """``damage`` makes an input; ``place`` puts it where ``check`` finds it, and ``use``, which
    takes longer. ``weight``: its share of the inputs."""

    damage: Damage
    place: Callable[[bytes], None]
    check: Callable[[], None]
    use: Callable[[], None] = lambda: None
    weight: int = 1


def make_loaders(scratch: Path) -> Mapping[str, Loader]:
    """Every loader by its name, with sound inputs in ``scratch``."""
    model = tiny.make(scratch / "model", "qwen3_moe")
    deepseek = tiny.make(scratch / "deepseek", "deepseek_v3")
    return {
        **_models(model, deepseek),
        **_plans(scratch, model),
        **_gguf(scratch, model, deepseek),
        **_onnx(scratch, model),
        "template": _templates(scratch),
        "request": _requests(scratch),
    }


def _json_file(file: Path, check: Callable[[], object], weight: int) -> Loader:
    """``file`` holds JSON, which is damaged; the rest of its directory is sound."""
    sound = json.loads(file.read_bytes())
    return Loader(
        lambda generator: damage_json(sound, generator),
        lambda data: _write(file, data),
        lambda: _ignore(check()),
        weight=weight,
    )


def _tensors(file: Path, check: Callable[[], object], weight: int) -> Loader:
    """The header of a safetensors file is damaged."""
    whole = file.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    sound, data = json.loads(whole[8 : 8 + length]), whole[8 + length :]

    def place(header: bytes) -> None:
        _write(file, len(header).to_bytes(8, "little") + header + data)

    return Loader(
        lambda generator: damage_json(sound, generator),
        place,
        lambda: _ignore(check()),
        weight=weight,
    )


def _ignore(_: object) -> None:
    """A loader's result is not looked at."""


def _write(file: Path, data: bytes) -> None:
    file.unlink(missing_ok=True)
    file.write_bytes(data)


def _copy(directory: Path, name: str) -> Path:
    return Path(shutil.copytree(directory, directory.with_name(f"{directory.name}-{name}")))


def _models(model: Path, deepseek: Path) -> dict[str, Loader]:
    def read(directory: Path) -> None:
        inspect_model(directory)
        transformers_config(Checkpoint(directory).config)

    configs = {name: _copy(path, "config") for name, path in (("", model), ("-mla", deepseek))}
    loaders = {
        f"config{name}": _json_file(path / "config.json", partial(read, path), 6)
        for name, path in configs.items()
    }
    tensors, sharded = _copy(model, "tensors"), _copy(model, "index")
    loaders["safetensors"] = _tensors(
        tensors / "model.safetensors", lambda: inspect_model(tensors), 6
    )
    weights, index = sharded / "model.safetensors", sharded / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(read_header(weights), weights.name)}))
    return loaders | {"index": _json_file(index, lambda: inspect_model(sharded), 2)}


def _plans(scratch: Path, model: Path) -> dict[str, Loader]:
    checkpoint = Checkpoint(model)
    for name in ("plan", "plan-tensors"):
        (scratch / name).mkdir()
        types = GGUF.types_of(checkpoint.config, ExportOptions("Q8_0", "per-expert"))
        typed = replace(ragged_plan(checkpoint), types=types, keeps_places=True)
        typed.save(scratch / name / "plan.json")
    for name in ("statistics", "sums"):
        write_statistics(scratch / name, checkpoint.config, checkpoint.fingerprint)
    mended = scratch / "mended"
    mended.mkdir()
    facts = {"format": "tenp-edge mended weights", "version": 1, "layers": {"0": {"held_out": 1.0}}}
    (mended / MENDED_FILE).write_text(json.dumps(facts | {"digest": "a", "plan_digest": "b"}))
    shutil.copy(model / "model.safetensors", mended / "layer-0.safetensors")

    def plan(name: str) -> None:
        load_plan(scratch / name / "plan.json").check(checkpoint.config, checkpoint.fingerprint)

    def sums(name: str) -> None:
        found = load_statistics(scratch / name, checkpoint.fingerprint, checkpoint.config)
        for layer in found.layers:
            found.weight_norms(layer)
            for domain in found.domains:
                dict(found.layer(domain, layer).sums)

    return {
        "plan": _json_file(scratch / "plan/plan.json", lambda: plan("plan"), 4),
        "neurons": _tensors(
            scratch / "plan-tensors/plan.safetensors", lambda: plan("plan-tensors"), 2
        ),
        "statistics": _json_file(
            scratch / "statistics/statistics.json", lambda: sums("statistics"), 4
        ),
        "sums": _tensors(scratch / "sums/statistics.safetensors", lambda: sums("sums"), 2),
        "mended": _json_file(mended / MENDED_FILE, lambda: len(Mended(mended)), 1),
    }


def _gguf(scratch: Path, model: Path, deepseek: Path) -> dict[str, Loader]:
    files = {}
    for family, path in (("qwen3", model), ("deepseek", deepseek)):
        for layout in ("per-expert", "padded"):
            files[family, layout] = scratch / f"{family}-{layout}.gguf"
            export_ragged(path, files[family, layout], "Q8_0", layout)
    merged = scratch / "merged.gguf"
    export(
        ModelSource(Checkpoint(tiny.make(scratch / "mixtral", "mixtral"))), merged, "Q8_0", "merged"
    )
    return {
        "per-expert": _headers(scratch, files["qwen3", "per-expert"], 8),
        "per-expert-mla": _headers(scratch, files["deepseek", "per-expert"], 8),
        "merged": _headers(scratch, merged, 8),
        "padded": _headers(scratch, files["qwen3", "padded"], 6),
        "sentencepiece": _headers(scratch, merged, 8, sentencepiece=True),
        "padded-mla": _headers(scratch, files["deepseek", "padded"], 8),
    }


def _headers(scratch: Path, sound: Path, weight: int, *, sentencepiece: bool = False) -> Loader:
    """The header of a GGUF file: its bytes at random, or the values of its metadata."""
    whole, file = sound.read_bytes(), scratch / f"damaged-{sentencepiece}-{sound.name}"
    start = parse_header(whole, len(whole)).data_start
    header, data = whole[:start], whole[start:]
    if sentencepiece:
        header = with_sentencepiece(header, tiny.VOCAB)

    def damage(generator: random.Random) -> bytes:
        return (damage_fields if generator.random() < 0.7 else gguf_bytes.damage)(header, generator)

    def check() -> None:
        found = parse_header(file.read_bytes(), file.stat().st_size)
        if is_ours(found.fields):
            read = read_facts if is_per_expert(found.fields) else read_stacked
            check_tensors(found, read(found))
            check_vocabulary(found)

    def run() -> None:
        with open_model(file, RunOptions(context=64, threads=1)) as session:
            for token in session.tokenize(_TEXT):
                session.vocabulary.piece(token, special=True)
            session.evaluate([token % session.vocab_size for token in range(1, 41)])
            session.decode(1)

    return Loader(damage, lambda made: _write(file, made + data), check, run, weight)


def _onnx(scratch: Path, model: Path) -> dict[str, Loader]:
    sound = export_onnx(ModelSource(Checkpoint(model)), scratch / "onnx")
    graphs = _copy(sound, "graph")
    graph = (graphs / "model.onnx").read_bytes()

    def settings(directory: Path) -> None:
        found = read_directory(directory)
        _ignore((found.context, found.mode, found.positions))
        vocabulary = open_vocabulary(directory)
        _ignore((vocabulary.chat_template, vocabulary.bos, vocabulary.eos, vocabulary.size))
        for token in vocabulary.tokenize(_TEXT):
            vocabulary.piece(token, special=True)
            vocabulary.ends(token)

    def run() -> None:
        with open_model(graphs, RunOptions(context=64, threads=1)) as session:
            session.evaluate([1, 2, 3])

    loaders = {}
    names = {
        "onnx config": "config.json",
        "onnx facts": "tenp.json",
        "tokenizer": "tokenizer.json",
        "special tokens": "tokenizer_config.json",
    }
    for loader, name in names.items():
        directory = _copy(sound, name)
        loaders[loader] = _json_file(
            directory / name,
            partial(settings, directory),
            2,
        )
    loaders["onnx graph"] = Loader(
        lambda generator: gguf_bytes.damage(graph, generator),
        lambda data: _write(graphs / "model.onnx", data),
        lambda: None,
        run,
        2,
    )
    return loaders


def _templates(scratch: Path) -> Loader:
    file, process = scratch / "template.jinja", TemplateProcess(0.5)
    messages = [{"role": "user", "content": "Hi"}]
    return Loader(
        lambda generator: hostile_template(generator).encode(),
        lambda data: _write(file, data),
        lambda: _ignore(process.render(file.read_text(), {"messages": messages})),
        weight=1,
    )


def _requests(scratch: Path) -> Loader:
    common = {
        "max_tokens": 3,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.1,
        "repeat_penalty": 1.1,
        "seed": 1,
        "stop": ["a"],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    message = {"role": "user", "content": [{"type": "text", "text": "Hi"}]}
    sound = ({"prompt": "Hi"} | common, {"messages": [message]} | common)
    file = scratch / "request.json"

    def check() -> None:
        raw = file.read_bytes()
        request: ChatRequest | CompletionRequest = parse(
            ChatRequest if b"messages" in raw else CompletionRequest, raw
        )
        _draw(request.sampling(SamplingOptions(), 10))
        request.stops()
        request.wanted_tokens()
        request.grammar_source()

    return Loader(
        lambda generator: damage_json(generator.choice(sound), generator),
        partial(_write, file),
        check,
        weight=3,
    )


def _draw(options: SamplingOptions) -> None:
    sampler = Sampler(options, [1, 2])
    logits = np.linspace(-30, 30, 50, dtype=np.float32)
    for _ in range(3):
        sampler.accept(sampler.choose(logits))
