"""Several clients at once against one: tokens per second, and who waits for whom.

Random weights in a shape of bench_runtime, experts ragged. Rounds alternate between one client and
several, so that a slow minute hits both. CPU time tells more than the clock where other processes
take cores away (with OMP_WAIT_POLICY=passive, so that a thread that waits counts nothing).
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
from bench_runtime import config_of, layout_of
from random_gguf import write_random
from random_tokenizer import write_full_tokenizer
from records import Table
from support.serving_cases import Server, serving, together

from tenp_edge.exporters.gguf.tokenizer import tokenizer_fields

_FEW_TOKENS, _CONTEXT = 512, 4096
COLUMNS = (
    ("shape", "{shape}"),
    ("type", "{type}"),
    ("threads", "{threads}"),
    ("clients", "{clients}"),
    ("tokens/s, one client", "{one:.1f}"),
    ("all together", "{all:.1f}"),
    ("times", "{gain:.2f}"),
    ("CPU of the server per token, one", "{cpu_one:.1f} ms"),
    ("all", "{cpu_all:.1f} ms"),
    ("times", "{cpu_gain:.2f}"),
    ("of the clients, one", "{client_one:.1f} ms"),
    ("all", "{client_all:.1f} ms"),
    ("first token alone", "{alone:.2f} s"),
    ("beside a long prompt", "{beside:.2f} s"),
    ("that prompt", "{long:.1f} s"),
)


@dataclass(frozen=True)
class Cost:
    """What a generated token takes: seconds that pass, CPU seconds of the server and of all
    clients."""

    seconds: float
    server: float
    clients: float


def measure(arguments: Any) -> Table:
    """A row: the gain of ``arguments.clients`` clients, and what a short request waits for."""
    with _file(arguments) as file, _served(file, arguments) as server:
        one, several = _costs(server, arguments)
        alone, beside, long = _first_tokens(server, arguments)
    row = {
        "shape": f"{arguments.shape}, {arguments.layers} layers",
        "type": arguments.type,
        "threads": str(arguments.threads),
        "clients": str(arguments.clients),
        "one": 1 / one.seconds,
        "all": 1 / several.seconds,
        "gain": one.seconds / several.seconds,
        "cpu_one": 1000 * one.server,
        "cpu_all": 1000 * several.server,
        "cpu_gain": one.server / several.server,
        "client_one": 1000 * one.clients,
        "client_all": 1000 * several.clients,
        "alone": alone,
        "beside": beside,
        "long": long,
    }
    return Table(COLUMNS, [row])


@contextmanager
def _file(arguments: Any) -> Iterator[Path]:
    if arguments.file is not None:
        yield arguments.file
        return
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "model.gguf"
        write_served(arguments.shape, arguments.type, arguments.layers, file)
        yield file


def write_served(shape: str, kind: str, layers: int, file: Path) -> None:
    """The ragged model of bench_runtime, every matrix of type ``kind``, with a tokenizer."""
    config = config_of(shape, "ragged", layers)
    with tempfile.TemporaryDirectory() as directory:
        write_full_tokenizer(Path(directory), config.vocab_size)
        fields = tokenizer_fields(Path(directory), config)
    write_random(config, layout_of("ragged"), lambda entry: kind, file, tokenizer=fields)


@contextmanager
def _served(file: Path, arguments: Any) -> Iterator[Server]:
    flags = {
        "--threads": arguments.threads,
        "--parallel": arguments.clients,
        "--queue": arguments.clients,
        "--context": _CONTEXT,
        "--kv-type": "F16",
    }
    with serving(file, *(part for pair in flags.items() for part in pair)) as server:
        yield server


def _costs(server: Server, arguments: Any) -> tuple[Cost, Cost]:
    """Of one client and of all, medians of the rounds."""
    rounds: list[tuple[Cost, Cost]] = []
    for number in range(arguments.rounds + 1):  # The first only warms up.
        one, several = (
            _cost(server, number, clients, arguments.max_tokens)
            for clients in (1, arguments.clients)
        )
        rounds.append((one, several))
    one, several = (_median(costs) for costs in zip(*rounds[1:], strict=True))
    return one, several


def _cost(server: Server, number: int, clients: int, tokens: int) -> Cost:
    calls = [
        partial(_answer, server, _prompt(100 * number + index, 16), tokens)
        for index in range(clients)
    ]
    begun = _clocks(server)
    count = sum(together(*calls))
    spent = (after - before for before, after in zip(begun, _clocks(server), strict=True))
    return Cost(*(seconds / count for seconds in spent))


def _clocks(server: Server) -> tuple[float, float, float]:
    used = psutil.Process(server.process.pid).cpu_times()
    return time.perf_counter(), used.user + used.system, time.process_time()


def _median(costs: Sequence[Cost]) -> Cost:
    return Cost(*map(median, zip(*map(astuple, costs), strict=True)))


def _first_tokens(server: Server, arguments: Any) -> tuple[float, float, float]:
    """Seconds to the first token of a short request alone and beside a long prompt, and of that
    prompt: medians."""
    found = []
    for number in range(arguments.rounds):
        alone = _first_token(server, 7 * number + 1, 8)
        long: list[float] = []
        read = partial(_first_token, server, 7 * number + 2, 2048)
        reading = threading.Thread(target=_append_to, args=(long, read))
        reading.start()
        time.sleep(0.3)
        beside = _first_token(server, 7 * number + 3, 8)
        reading.join()
        found.append((alone, beside, long[0]))
    first, second, third = zip(*found, strict=True)
    return median(first), median(second), median(third)


def _prompt(seed: int, size: int) -> list[int]:
    tokens: list[int] = np.random.default_rng(seed).integers(_FEW_TOKENS, size=size).tolist()
    return tokens


def _answer(server: Server, prompt: list[int], tokens: int) -> int:
    """Tokens of a streamed answer."""
    fields = {"prompt": prompt, "max_tokens": tokens, "stream": True, "ignore_eos": True}
    count = 0
    with server.http.stream(
        "POST", "/v1/completions", json=fields | {"temperature": 0.8, "seed": 1}, timeout=600
    ) as response:
        for line in response.iter_lines():
            data = line.removeprefix("data: ")
            if data.startswith("{"):
                choices = json.loads(data)["choices"]
                count += bool(choices)
    return count


def _first_token(server: Server, seed: int, size: int) -> float:
    """Seconds to the first token of a prompt."""
    begun = time.perf_counter()
    _answer(server, _prompt(seed, size), 1)
    return time.perf_counter() - begun


def _append_to(found: list[float], call: Callable[[], float]) -> None:
    found.append(call())
