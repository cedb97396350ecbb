"""Send a server many requests in a row, of every kind, and watch its memory and latency.

    python benchmarks/bench_serve.py --requests 1000
    python benchmarks/bench_serve.py --file model.gguf --requests 200 --max-tokens 64
    python benchmarks/bench_serve.py --clients 8 --threads 2 --max-tokens 64

Without --file it serves a tiny per-expert model. Kinds, in turn: completion, streamed completion,
streamed chat, four streams at once, refused body, a client that leaves mid-stream, and a forced
call of a tool. Exits with
1 when the resident memory grew by more than --allowed-growth MiB in the second half of them: 500
requests that leak 2 KiB each are found.

With --clients it measures instead how many tokens per second that many get together and one alone,
and how long a short request waits while a long prompt is read (serving_clients.py).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

from records import Table, add_record_flag, write_record

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import serving_clients
from support.serving_cases import Server, make_files, serving, together

COLUMNS = (
    ("requests", "{requests:,}"),
    ("seconds", "{seconds:.0f}"),
    ("resident memory", "{rss:size}"),
)
Request = Callable[[Server, int, int], int]


def main() -> None:
    arguments = _arguments()
    if arguments.clients:
        table = serving_clients.measure(arguments)
        print(table)
        write_record(arguments.record, clients=table)
        return
    with tempfile.TemporaryDirectory() as scratch:
        file = arguments.file or make_files(Path(scratch))["per-expert"]
        with serving(file, "--threads", arguments.threads) as server:
            print(server.first_line.strip())
            growth = _measure(server, arguments)
    sys.exit(1 if growth > arguments.allowed_growth * 2**20 else 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--file", type=Path, help="a GGUF file with a chat template")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--max-tokens", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--allowed-growth", type=float, default=1.0, help="MiB")
    parser.add_argument("--clients", type=int, default=0, help="measure so many at once instead")
    parser.add_argument("--shape", default="qwen3_moe", help="with --clients: of bench_runtime")
    parser.add_argument("--type", default="Q4_K", help="with --clients: of every matrix")
    parser.add_argument("--layers", type=int, default=4, help="with --clients")
    parser.add_argument("--rounds", type=int, default=5, help="with --clients")
    add_record_flag(parser)
    return parser.parse_args()


def _measure(server: Server, arguments: argparse.Namespace) -> int:
    """Bytes by which the resident memory grew in the second half of the requests."""
    kinds = cycle((_complete, _stream, _chat, _four_at_once, _refused, _leaves, _call))
    done, warm, seconds, started = 0, 0, list[float](), time.perf_counter()
    step, table = arguments.requests // 10, Table(COLUMNS)
    print(table.head)
    for number, kind in enumerate(kinds):
        begun = time.perf_counter()
        done += kind(server, number, arguments.max_tokens)
        seconds.append(time.perf_counter() - begun)
        if done >= step:
            taken = time.perf_counter() - started
            row = {"requests": done, "seconds": taken, "rss": server.rss_bytes()}
            print(table.add(row), flush=True)
            if not warm and 2 * done >= arguments.requests:
                warm = server.rss_bytes()
            step += arguments.requests // 10
        if done >= arguments.requests:
            break
    elapsed, growth = time.perf_counter() - started, server.rss_bytes() - warm
    write_record(arguments.record, requests=table)
    print(f"{done} requests in {elapsed:.1f} s, median {1000 * median(seconds):.1f} ms")
    print(f"RSS growth in the second half: {growth / 2**20:.2f} MiB")
    return growth


def _fields(number: int, tokens: int) -> dict[str, Any]:
    return {"prompt": f"def f{number}(x):", "max_tokens": tokens, "seed": number}


def _complete(server: Server, number: int, tokens: int) -> int:
    assert server.post("/v1/completions", **_fields(number, tokens)).status_code == 200
    return 1


def _stream(server: Server, number: int, tokens: int) -> int:
    fields = _fields(number, tokens) | {"model": None}
    chunks = list(server.openai.completions.create(stream=True, **fields))
    assert 1 <= len(chunks) <= tokens and chunks[-1].choices[0].finish_reason
    return 1


def _chat(server: Server, number: int, tokens: int) -> int:
    messages = [{"role": "user", "content": f"What is {number}?"}]
    ask = partial(server.openai.chat.completions.create, model=None, max_tokens=tokens)
    assert list(ask(messages=messages, stream=True))[-1].choices[0].finish_reason
    return 1


def _call(server: Server, number: int, tokens: int) -> int:
    """A call of one of more tools than the server keeps compiled grammars."""
    name = f"f{number % 16}"
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}}
    tool = {"type": "function", "function": {"name": name, "parameters": schema}}
    asked = {"tools": [tool], "tool_choice": "required", "parallel_tool_calls": False}
    messages = [{"role": "user", "content": "Call it."}]
    answer = server.post("/v1/chat/completions", messages=messages, max_tokens=300, **asked)
    assert answer.status_code == 200, answer.text
    return 1


def _four_at_once(server: Server, number: int, tokens: int) -> int:
    calls = [partial(_stream, server, 4 * number + index, tokens) for index in range(4)]
    assert together(*calls) == [1] * 4
    return 4


def _refused(server: Server, number: int, tokens: int) -> int:
    body = b"{" if number % 2 else b" " * (2**20 + 1)
    headers = {"content-type": "application/json"}
    status = server.http.post("/v1/completions", content=body, headers=headers).status_code
    assert status == (400 if number % 2 else 413)
    return 1


def _leaves(server: Server, number: int, tokens: int) -> int:
    fields = _fields(number, 1000) | {"stream": True}
    with server.http.stream("POST", "/v1/completions", json=fields) as response:
        next(response.iter_lines())
    server.wait_for(running=0, waiting=0, seconds=60)
    return 1


if __name__ == "__main__":
    main()
