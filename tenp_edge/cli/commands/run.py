"""The verbs that run a file: run, serve and bench. None of them needs torch."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from json import dumps
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from tenp_edge.cli.flags import declared as flags
from tenp_edge.cli.flags import lean_flags, run_flags, serve_flags
from tenp_edge.cli.output.notes import note
from tenp_edge.cli.output.readers import last_words
from tenp_edge.cli.report import rich_tables
from tenp_edge.units import format_size

if TYPE_CHECKING:
    from tenp_edge.runtime.parallel import ServerMemory
    from tenp_edge.serving.request_log import LoggedRequest
    from tenp_edge.serving.service import Service

_TEMPERATURE: float = lean_flags.TEMPERATURE.default
_TOP_K: int = lean_flags.TOP_K.default
_TOP_P: float = lean_flags.TOP_P.default
_MIN_P: float = lean_flags.MIN_P.default
_REPEAT_PENALTY: float = lean_flags.REPEAT_PENALTY.default


def run(
    file: run_flags.File,
    prompt: run_flags.Prompt = None,
    chat: run_flags.Chat = False,
    raw: run_flags.Raw = False,
    json: run_flags.Json = False,
    system: run_flags.System = None,
    no_thinking: run_flags.NoThinking = False,
    chat_template_kwargs: run_flags.TemplateVariables = None,
    no_history: run_flags.NoHistory = False,
    max_tokens: run_flags.MaxTokens = None,
    temperature: run_flags.Temperature = _TEMPERATURE,
    top_k: run_flags.TopK = _TOP_K,
    top_p: run_flags.TopP = _TOP_P,
    min_p: run_flags.MinP = _MIN_P,
    repeat_penalty: run_flags.RepeatPenalty = _REPEAT_PENALTY,
    seed: run_flags.Seed = None,
    context: run_flags.Context = None,
    threads: run_flags.Threads = None,
    ubatch: run_flags.Ubatch = None,
    kv_type: run_flags.KvType = None,
    gpu_layers: run_flags.GpuLayers = 0,
    no_prepack: run_flags.NoPrepack = False,
) -> None:
    """Talk to a model, or continue a text: a GGUF file, an ONNX directory or what compress wrote.

    On a terminal it is a conversation, where the file has a chat template; /help lists its
    commands. -p and pipes are one message each. The text alone goes to stdout. Per-expert files run
    in tenp-edge's own runtime, merged and padded ones in llama.cpp, ONNX directories in
    onnxruntime; stderr says which.

    Examples:

        tenp-edge run OUT

        tenp-edge run OUT -p "What is a router?" --temperature 0

        tenp-edge run OUT --raw -p "def fibonacci(n):" -n 100

        tenp-edge run OUT --context 8192 --kv-type Q8_0 < question.txt

        tenp-edge run OUT --chat --json < questions.txt

        tenp-edge run OUT/onnx --raw -p "def fibonacci(n):" --no-prepack
    """
    arguments = locals()
    from tenp_edge.cli.commands import lean_run

    lean_run.run(**arguments)


def serve(
    file: run_flags.File,
    host: serve_flags.Host = "127.0.0.1",
    port: serve_flags.Port = 8080,
    name: serve_flags.Name = None,
    alias: serve_flags.Alias = None,
    api_key: serve_flags.ApiKey = None,
    api_key_file: serve_flags.ApiKeyFile = None,
    cors: serve_flags.Cors = None,
    quiet: serve_flags.Quiet = False,
    json: serve_flags.Json = False,
    queue: serve_flags.Queue = 16,
    parallel: serve_flags.Parallel = None,
    max_tokens: serve_flags.MaxTokens = None,
    max_body: serve_flags.MaxBody = "1MiB",
    temperature: run_flags.Temperature = _TEMPERATURE,
    top_k: run_flags.TopK = _TOP_K,
    top_p: run_flags.TopP = _TOP_P,
    min_p: run_flags.MinP = _MIN_P,
    repeat_penalty: run_flags.RepeatPenalty = _REPEAT_PENALTY,
    seed: run_flags.Seed = None,
    context: run_flags.Context = None,
    threads: run_flags.Threads = None,
    ubatch: run_flags.Ubatch = None,
    kv_type: run_flags.KvType = None,
    gpu_layers: run_flags.GpuLayers = 0,
    no_prepack: run_flags.NoPrepack = False,
) -> None:
    """Serve a model with the APIs of OpenAI, llama-server and Anthropic, with tools and grammars.

    Several requests are answered at a time (--parallel). Only this machine can ask, unless --host
    says otherwise: then add --api-key. The sampling flags are the defaults of requests that do not
    say otherwise.

    Examples:

        tenp-edge serve OUT

        tenp-edge serve model.gguf --port 8000 --context 8192 --kv-type Q8_0

        tenp-edge serve OUT --host 0.0.0.0 --api-key my-secret --alias gpt-4o

        curl localhost:8080/v1/completions -H 'Content-Type: application/json' -d '{"prompt": "Hi"}'
    """
    from tenp_edge.runtime.locating import runnable
    from tenp_edge.runtime.opening import RunOptions
    from tenp_edge.runtime.parallel import server_memory
    from tenp_edge.runtime.sampling import SamplingOptions
    from tenp_edge.serving.keys import keys_of
    from tenp_edge.serving.server import is_loopback
    from tenp_edge.serving.server import serve as serve_file
    from tenp_edge.serving.service import Limits
    from tenp_edge.units import parse_size

    keys, model = keys_of(api_key or [], api_key_file), runnable(file)
    options = RunOptions(
        context, threads, ubatch, kv_type, gpu_layers=gpu_layers, prepack=not no_prepack, note=note
    )

    def started(service: Service, address: str) -> None:
        own = replace(options, parallel=len(service.session.slots), note=None)
        memory = server_memory(model, own)  # It takes a second: before anybody is told to come.
        _tell_started(service, address, memory, json)
        if not is_loopback(host) and not keys:
            note(f"anyone who can reach {host} can use it: add --api-key")

    serve_file(
        model,
        host=host,
        port=port,
        options=options,
        sampling=SamplingOptions(temperature, top_k, top_p, min_p, repeat_penalty, seed=seed),
        limits=Limits(max_tokens, parse_size(max_body), queue),
        parallel=parallel,
        name=name,
        aliases=alias or (),
        keys=keys,
        origins=cors or (),
        started=started,
        log=None if quiet else partial(_log, as_json=json),
    )


def _tell_started(
    service: Service, address: str, memory: ServerMemory | None, as_json: bool
) -> None:
    """Where the server is to be found; for programs on stdout, too."""
    if as_json:
        facts = {"model": service.name, "address": address, "runtime": service.runtime}
        print(dumps(facts | {"context": service.context}), flush=True)
    where = f"{address} (a chat page) and {address}/v1"
    note(f"{service.name} on {where}, in {service.runtime}; Ctrl-C ends it")
    if memory is not None:
        note(str(memory))


def _log(request: LoggedRequest, as_json: bool) -> None:
    if as_json:
        print(request.json(), flush=True)
    else:
        note(str(request))


def bench(
    file: run_flags.File,
    prompt_tokens: Annotated[
        int, typer.Option("--prompt-tokens", help="Tokens of the prompt.")
    ] = 512,
    generated_tokens: Annotated[
        int, typer.Option("--generated-tokens", help="Tokens generated after it.")
    ] = 64,
    repeats: Annotated[int, typer.Option("--repeats", help="Rounds; medians are shown.")] = 3,
    context: run_flags.Context = None,
    threads: run_flags.Threads = None,
    ubatch: run_flags.Ubatch = None,
    kv_type: run_flags.KvType = None,
    gpu_layers: run_flags.GpuLayers = 0,
    no_prepack: run_flags.NoPrepack = False,
    json_output: flags.Json = False,
) -> None:
    """Tokens per second of a model as it runs here, prompt and generation, and its peak memory.

    Examples:

        tenp-edge bench OUT

        tenp-edge bench model.gguf --threads 4 --prompt-tokens 1024 --json
    """
    from tenp_edge.runtime.bench import bench as measure
    from tenp_edge.runtime.locating import runnable
    from tenp_edge.runtime.opening import RunOptions

    file = runnable(file)
    options = RunOptions(
        context, threads, ubatch, kv_type, gpu_layers=gpu_layers, prepack=not no_prepack, note=note
    )
    speeds = measure(
        file,
        options,
        prompt_tokens=prompt_tokens,
        generated_tokens=generated_tokens,
        repeats=repeats,
    )
    if json_output:
        with last_words():
            print(speeds.to_json())
        return
    rows = {
        "runtime": f"{speeds.runtime}, {speeds.threads} threads, {speeds.kv_type} cache",
        "file": format_size(speeds.file_bytes),
        "load": f"{speeds.load_seconds:.2f} s",
        f"prompt of {prompt_tokens}": f"{speeds.prefill_tokens_per_second:.1f} tokens/s",
        f"generation of {generated_tokens}": f"{speeds.decode_tokens_per_second:.1f} tokens/s",
        # With what timing takes; `validate` measures `run` itself.
        "peak memory": f"{format_size(speeds.peak_rss_bytes)}, of bench; run takes less",
    }
    with last_words():
        Console(width=None if sys.stdout.isatty() else 110).print(
            rich_tables.facts(file.name, rows.items())
        )
