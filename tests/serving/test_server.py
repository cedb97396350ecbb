"""`tenp-edge serve` as its clients meet it: the official one, careless ones, ones that leave."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import openai
import pytest
from support.serving_cases import Server, error_of, serving, together

from tenp_edge.errors import UserError
from tenp_edge.runtime.generation import Piece, run_text
from tenp_edge.runtime.opening import RunOptions, open_model
from tenp_edge.runtime.sampling import SamplingOptions
from tenp_edge.serving.server import is_loopback, serve
from tenp_edge.serving.stops import Stops

PROMPT = "def f(x):"
MESSAGES = [{"role": "user", "content": "Hi"}]
CONTEXT, BODY = 8192, 2**16
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
# Seconds that an unwanted generation of the whole context would keep the model busy: several.
SOON = 2.0


@pytest.fixture(scope="module")
def server(files: dict[str, Path]) -> Iterator[Server]:
    flags = ("--context", CONTEXT, "--queue", 3, "--max-body", f"{BODY}B", "--max-tokens", 8000)
    with serving(files["per-expert"], *flags) as running:
        yield running


def complete(server: Server, prompt: str = PROMPT, tokens: int = 24, **more: object) -> str:
    answer = server.openai.completions.create(
        model="per-expert", prompt=prompt, max_tokens=tokens, temperature=0, extra_body=more
    )
    return answer.choices[0].text


def streamed(server: Server, prompt: str = PROMPT, tokens: int = 24, **more: object) -> list[str]:
    chunks = server.openai.completions.create(
        model="per-expert",
        prompt=prompt,
        max_tokens=tokens,
        temperature=0,
        stream=True,
        extra_body=more,
    )
    return [chunk.choices[0].text for chunk in chunks]


# -- the official client ---------------------------------------------------------------------------


def test_says_what_is_served(server: Server) -> None:
    assert server.first_line.startswith("per-expert on http://127.0.0.1:")
    assert server.first_line.endswith("/v1, in tenp-edge (per-expert); Ctrl-C ends it\n")
    assert [model.id for model in server.openai.models.list()] == ["per-expert"]
    assert server.openai.models.retrieve("per-expert").owned_by == "tenp-edge"
    with pytest.raises(openai.NotFoundError):
        server.openai.models.retrieve("gpt-4")
    assert server.health() == {"status": "ok", "running": 0, "waiting": 0}


def test_completion(server: Server) -> None:
    answer = server.openai.completions.create(
        model="per-expert", prompt=PROMPT, max_tokens=5, temperature=0
    )
    assert answer.object == "text_completion" and answer.choices[0].finish_reason == "length"
    assert answer.usage is not None and answer.usage.completion_tokens == 5
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 5
    assert complete(server).startswith(answer.choices[0].text) and answer.choices[0].text


def test_streams_a_chunk_per_token(server: Server) -> None:
    chunks = list(
        server.openai.completions.create(
            model="per-expert",
            prompt=PROMPT,
            max_tokens=24,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    *tokens, last = chunks
    texts = [chunk.choices[0].text for chunk in tokens]
    assert "".join(texts) == complete(server)
    assert "" in texts, "no character was held back until it was complete"
    assert [chunk.choices[0].finish_reason for chunk in tokens] == [None] * 23 + ["length"]
    assert last.choices == [] and last.usage is not None
    assert last.usage.completion_tokens == len(tokens) == 24


def test_chat_streamed_and_whole(server: Server) -> None:
    ask = partial(
        server.openai.chat.completions.create,
        model="per-expert",
        messages=MESSAGES,
        max_completion_tokens=12,
        temperature=0,
    )
    whole = ask()
    assert whole.choices[0].message.role == "assistant" and whole.usage is not None
    assert whole.usage.completion_tokens == 12
    assert whole.choices[0].message.content == complete(server, "<user>Hi\n<assistant>", 12)
    deltas = [chunk.choices[0].delta for chunk in ask(stream=True)]
    assert [delta.role for delta in deltas] == ["assistant"] + [None] * 11
    assert "".join(delta.content or "" for delta in deltas) == whole.choices[0].message.content
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    assert ask(messages=parts).choices[0].message.content == whole.choices[0].message.content


def test_four_clients_at_once_read_what_one_after_the_other_would(server: Server) -> None:
    prompts = [PROMPT, "import os", "class A:", "Once upon"]
    alone = [streamed(server, prompt, 60) for prompt in prompts]
    assert len({"".join(texts) for texts in alone}) == 4
    calls = [partial(streamed, server, prompt, 60) for prompt in prompts]
    assert together(*calls) == alone


def test_sampling_parameters_arrive(server: Server) -> None:
    def drawn(**fields: object) -> str:
        found = server.post(COMPLETIONS, prompt=PROMPT, max_tokens=30, **fields).json()
        text: str = found["choices"][0]["text"]
        return text

    best = drawn(temperature=0)
    assert drawn(seed=1, temperature=1.5) == drawn(seed=1, temperature=1.5)
    assert drawn(seed=1, temperature=1.5) != drawn(seed=2, temperature=1.5)
    assert drawn(seed=-1, temperature=1.5, top_p=1.0, min_p=0.0) != best
    for only_the_best in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        assert drawn(temperature=1.5, **only_the_best) == best
    assert drawn(temperature=0, repeat_penalty=1.8) != best
    neutral = {"n": 1, "best_of": 1, "presence_penalty": 0.0, "frequency_penalty": 0, "user": "me"}
    assert drawn(temperature=0, logit_bias={}, echo=False, **neutral) == best
    assert drawn(temperature=0, frequency_penalty=2.0) != best != drawn(presence_penalty=2.0)


def test_stop_strings(server: Server) -> None:
    whole = complete(server)
    stop = whole[6:9]
    answer = server.openai.completions.create(
        model="per-expert", prompt=PROMPT, max_tokens=24, temperature=0, stop=["never", stop]
    )
    assert answer.choices[0].text == whole[: whole.index(stop)]
    assert answer.choices[0].finish_reason == "stop"
    assert "".join(streamed(server, stop=stop)) == whole[: whole.index(stop)]


def test_prompts_as_tokens(server: Server) -> None:
    answer = server.post(COMPLETIONS, prompt=[[5, 6, 7]], max_tokens=1, temperature=0).json()
    assert answer["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 1,
        "total_tokens": 4,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    wanted = (400, "token 384 is not in the vocabulary of 384", "prompt")
    assert server.error(COMPLETIONS, prompt=[384]) == wanted


def test_merged_files_are_served_by_llama_cpp(server: Server, files: dict[str, Path]) -> None:
    with serving(files["merged"], "--name", "per-expert", "--context", 256) as other:
        assert other.first_line.endswith("in llama.cpp; Ctrl-C ends it\n")
        assert streamed(other) == streamed(server)


# -- careless clients ------------------------------------------------------------------------------


def test_bodies_that_are_no_requests(server: Server) -> None:
    json_type = {"content-type": "application/json"}

    def sent(content: bytes, headers: dict[str, str] = json_type) -> tuple[int, str]:
        return error_of(server.http.post(COMPLETIONS, content=content, headers=headers))[:2]

    for malformed in (b"", b"{", b"\xff\xfe", b"[" * 30_000, b'{"prompt": "\\ud800"}'):
        status, message = sent(malformed)
        assert status == 400 and message.startswith("the body is not JSON: "), message
    assert sent(b"[]") == (400, "the body is no JSON object")
    assert sent(b'{"prompt": "a", "temperature": NaN}')[0] == 400
    too_large = (413, f"the body is larger than {BODY} bytes")
    assert sent(b" " * (BODY + 1)) == too_large
    chunks = iter([b" " * BODY, b" "])
    chunked = server.http.post(COMPLETIONS, content=chunks, headers=json_type)
    assert error_of(chunked)[:2] == too_large
    assert sent(b"{}", {"content-type": "text/plain"}) == (
        415,
        "the content type is 'text/plain', not application/json; "
        "try: -H 'Content-Type: application/json'",
    )
    assert complete(server)


def test_other_paths_and_names(server: Server) -> None:
    status, said, *_ = error_of(server.http.get("/v1/nothing"))
    assert status == 404 and said.startswith("GET /v1/nothing is no route of this server; it has /")
    assert error_of(server.http.get(CHAT))[:2] == (405, f"GET {CHAT}: Method Not Allowed")
    assert server.http.get("/v1/messages").json() == {
        "type": "error",
        "error": {
            "type": "invalid_request_error",
            "message": "GET /v1/messages: Method Not Allowed",
        },
    }
    assert error_of(server.http.get("/health", headers={"host": "evil.example:80"}))[:2] == (
        403,
        "this server answers to localhost alone, not to 'evil.example'",
    )
    assert server.http.get("/health", headers={"host": "localhost"}).status_code == 200


# -- clients that leave ----------------------------------------------------------------------------

LONG = {"prompt": PROMPT, "max_tokens": 8000, "temperature": 0}


def test_a_client_that_leaves_mid_stream_frees_the_model(server: Server) -> None:
    with server.http.stream("POST", COMPLETIONS, json=LONG | {"stream": True}) as response:
        lines = response.iter_lines()
        assert json.loads(next(lines).removeprefix("data: "))["choices"][0]["finish_reason"] is None
        assert server.health()["running"] == 1
    server.wait_for(running=0, waiting=0, seconds=SOON)
    assert complete(server) == complete(server)


def test_a_client_that_leaves_before_the_whole_answer_frees_the_model(server: Server) -> None:
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(server.url + COMPLETIONS, json=LONG, timeout=0.3)
    server.wait_for(running=0, waiting=0, seconds=SOON)


def test_a_full_line_refuses_and_those_who_leave_it_make_room(files: dict[str, Path]) -> None:
    flags = ("--context", CONTEXT, "--queue", 3, "--parallel", 1)
    with serving(files["per-expert"], *flags) as server:

        def start(**more: object) -> tuple[httpx.Client, httpx.Response]:
            client = httpx.Client(base_url=server.url, timeout=60)
            request = client.build_request("POST", COMPLETIONS, json=LONG | {"stream": True} | more)
            return client, client.send(request, stream=True)

        running = start()
        server.wait_for(running=1, waiting=0, seconds=SOON)
        line = [start() for _ in range(2)] + [start(max_tokens=3)]
        server.wait_for(running=1, waiting=3, seconds=SOON)
        refused = server.post(COMPLETIONS, **LONG)
        assert error_of(refused)[:2] == (503, "3 requests are waiting already; try again later")
        assert refused.headers["retry-after"] == "5"
        for client, response in line[:2]:
            response.close()
            client.close()
        server.wait_for(running=1, waiting=1, seconds=SOON)
        running[1].close()
        running[0].close()
        # Whose turn it is now was in the line all the time.
        client, response = line[2]
        assert "".join(response.iter_text()).endswith("data: [DONE]\n\n")
        client.close()
        server.wait_for(running=0, waiting=0, seconds=SOON)


def test_ctrl_c_ends_streams_with_an_error(files: dict[str, Path]) -> None:
    with serving(files["per-expert"], "--context", CONTEXT) as server:
        chunks = server.openai.completions.create(model="per-expert", stream=True, **LONG)
        next(iter(chunks))
        begun = time.monotonic()
        server.process.send_signal(signal.SIGINT)
        with pytest.raises(openai.APIError, match="the server is going down"):
            list(chunks)
        server.process.wait(SOON)
        assert time.monotonic() - begun < SOON


def test_requests_leave_no_memory_behind(server: Server) -> None:
    def round_of(count: int) -> None:
        for number in range(count):
            streamed(server, f"{PROMPT} {number}", 8)
            complete(server, f"{number} {PROMPT}", 8)

    round_of(20)
    before = server.rss_bytes()
    round_of(40)
    assert server.rss_bytes() - before < 2**20


# -- without a server ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "stops", "wanted"),
    [
        (["ab", "cd"], [], ["ab", "cd"]),
        (["ab", "cd"], ["bc"], ["a", ""]),
        # What only began like a stop string is sent with the next token.
        (["ab", "x", "d"], ["bc"], ["a", "bx", "d"]),
        # ... or with the last one.
        (["x", "ab"], ["bc"], ["x", "ab"]),
        (["aab"], ["zz", "ab", "b"], ["a"]),
        (["<", "/", "s", ">", "no"], ["</s>"], ["", "", "", ""]),
        # The first in the text wins, not the first in the list.
        (["xyz"], ["z", "y"], ["x"]),
    ],
)
def test_stops(texts: list[str], stops: list[str], wanted: list[str]) -> None:
    pieces = [Piece(number, text) for number, text in enumerate(texts)]
    pieces[-1] = Piece(len(texts) - 1, texts[-1], "length")
    ending, found = Stops(stops), list[Piece]()
    for piece in pieces:
        found.append(ending.cut(piece))
        if found[-1].finish is not None:
            break
    assert [piece.text for piece in found] == wanted
    ended = "length" if "".join(wanted) == "".join(texts) else "stop"
    assert [piece.finish for piece in found] == [None] * (len(wanted) - 1) + [ended]


def test_a_taken_port_is_refused_before_the_file_is_read() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError) as caught:
            serve(Path("missing.gguf"), port=port)
    assert str(caught.value) == (
        f"cannot listen on port {port} of 127.0.0.1: Address already in use\n"
        "try: --port 0 for any free port"
    )


def test_loopback() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "192.168.0.2", "host.example"))


def test_an_onnx_directory_is_served_under_its_name(files: dict[str, Path]) -> None:
    with serving(files["onnx"], "--context", 128) as server:
        asked = {"model": "onnx-model", "prompt": "def f(x):", "max_tokens": 8, "temperature": 0}
        answer = server.openai.completions.create(**asked)
        assert server.first_line.startswith("onnx-model on http://127.0.0.1:")
    with open_model(files["onnx"], RunOptions(context=128, threads=1)) as session:
        greedy = SamplingOptions(temperature=0.0)
        assert answer.choices[0].text == "".join(run_text(session, "def f(x):", greedy, 8))
