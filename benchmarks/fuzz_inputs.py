"""Random damage to JSON, to metadata of GGUF files, and chat templates that mean harm."""

from __future__ import annotations

import copy
import json
import random
import struct
from collections.abc import Callable
from typing import Any

_SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY, _FLOAT = 8, 9, 6
_TEXTS = (b"none", b"bert", b"llama", b"gpt2", b"rwkv", b"t5", b"default", b"merged", b"padded")
_DEEP = 3000

NASTY: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    3,
    7,
    2**31 - 1,
    2**31,
    2**63,
    10**9,
    10**30,
    0.0,
    -0.5,
    1e-320,
    1e25,
    1e308,
    float("inf"),
    float("-inf"),
    float("nan"),
    "",
    "0",
    "abc",
    "../x",
    "\ud800",
    "a" * 5000,
    "{{ 1/0 }}",
    [],
    {},
    [0],
    ["a"],
    [[]],
    {"a": 1},
    [1.5, -1],
    [10**12],
)


def damage_json(sound: Any, generator: random.Random) -> bytes:
    """``sound`` with one to three values replaced, removed, added or moved; now and then nested
    too deep, or with bytes changed."""
    value = copy.deepcopy(sound)
    for _ in range(generator.randint(1, 3)):
        _damage_value(value, generator)
    text = json.dumps(value).encode()
    chance = generator.random()
    if chance < 0.02:
        text = b'{"a":' * _DEEP + text + b"}" * _DEEP
    elif chance < 0.05:
        text = text.replace(b"{", b'{"x": 1, "x": 2, ', 1)
    elif chance < 0.12 and text:
        data = bytearray(text)
        for _ in range(generator.randint(1, 4)):
            data[generator.randrange(len(data))] = generator.randrange(256)
        text = bytes(data)
    return text


def _damage_value(value: Any, generator: random.Random) -> None:
    places = list(_places(value))
    if not places:
        return
    holder, key = generator.choice(places)
    action = generator.randrange(6)
    if action == 0:
        del holder[key]
    elif action == 1 and isinstance(holder, dict):
        other, name = generator.choice(places)
        holder[str(name)] = copy.deepcopy(other[name])
    elif action == 2 and isinstance(holder, dict):
        holder[f"{key}_"] = holder.pop(key)
    elif action == 3 and isinstance(holder[key], int | float):
        holder[key] = _near(holder[key], generator)
    else:
        holder[key] = copy.deepcopy(generator.choice(NASTY))


def _near(number: float, generator: random.Random) -> float:
    changes: tuple[Callable[[float], float], ...] = (
        lambda n: n + 1,
        lambda n: n - 1,
        lambda n: -n,
        lambda n: n * 2,
        float,
        lambda n: n * 1e9,
    )
    try:
        return generator.choice(changes)(number)
    except OverflowError:
        return -number


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (dict or list, key) of a JSON value; of long lists a few."""
    found: list[tuple[Any, Any]] = []
    items = value.items() if isinstance(value, dict) else enumerate(value[:8])
    for key, inner in list(items):
        found.append((value, key))
        if isinstance(inner, dict | list):
            found += _places(inner)
    return found


# -- GGUF ------------------------------------------------------------------------------------------


def damage_fields(header: bytes, generator: random.Random) -> bytes:
    """``header`` with one to three metadata fields changed or removed, legal in itself."""
    fields, end = _fields(header)
    for _ in range(generator.randint(1, 3)):
        index = generator.randrange(len(fields))
        key, kind, value = fields[index]
        if generator.random() < 0.15 and len(fields) > 1:
            del fields[index]
        else:
            fields[index] = (key, kind, _damaged_field(kind, value, generator))
    if generator.random() < 0.1:
        key, kind, value = generator.choice(fields)
        fields.append((key + generator.choice((b"_x", b".y", b"2")), kind, value))
    return _made(header, fields, end)


def with_sentencepiece(header: bytes, vocab: int) -> bytes:
    """``header`` with a vocabulary of ``vocab`` tokens in sentencepiece style."""
    fields, end = _fields(header)
    kept = [field for field in fields if not field[0].startswith(b"tokenizer.")]
    texts = [b"<unk>", b"<s>", b"</s>", *(b"<0x%02X>" % byte for byte in range(256))]
    texts += [b"\xe2\x96\x81%d" % number for number in range(vocab - len(texts))]
    types = [2, 3, 3, *[6] * 256, *[1] * (vocab - 259)]
    kept += [
        (b"tokenizer.ggml.model", _STRING, _text(b"llama")),
        (b"tokenizer.ggml.tokens", _ARRAY, _array(_STRING, vocab, b"".join(map(_text, texts)))),
        (b"tokenizer.ggml.scores", _ARRAY, _array(6, vocab, struct.pack(f"<{vocab}f", *types))),
        (b"tokenizer.ggml.token_type", _ARRAY, _array(5, vocab, struct.pack(f"<{vocab}i", *types))),
        (b"tokenizer.ggml.bos_token_id", 4, struct.pack("<I", 1)),
        (b"tokenizer.ggml.eos_token_id", 4, struct.pack("<I", 2)),
    ]
    return _made(header, kept, end)


def _text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def _array(kind: int, count: int, body: bytes) -> bytes:
    return struct.pack("<IQ", kind, count) + body


def _made(header: bytes, fields: list[tuple[bytes, int, bytes]], end: int) -> bytes:
    """A header of ``fields`` and the tensor table of ``header``, which begins at ``end``."""
    body = b"".join(_text(key) + struct.pack("<I", kind) + value for key, kind, value in fields)
    tensors = struct.unpack_from("<Q", header, 8)[0]
    infos = header[end:].rstrip(b"\0")
    made = header[:8] + struct.pack("<QQ", tensors, len(fields)) + body + infos
    # The last tensor's offset may end in zeros: padding that was cut off is put back.
    made += header[end + len(infos) : end + len(infos) + 8]
    return made + bytes(-len(made) % 32)


def _fields(header: bytes) -> tuple[list[tuple[bytes, int, bytes]], int]:
    count, at = struct.unpack_from("<Q", header, 16)[0], 24
    found = []
    for _ in range(count):
        length = struct.unpack_from("<Q", header, at)[0]
        key = header[at + 8 : at + 8 + length]
        at += 8 + length
        kind = struct.unpack_from("<I", header, at)[0]
        start, at = at + 4, _end(header, at + 4, kind)
        found.append((key, kind, header[start:at]))
    return found, at


def _end(header: bytes, at: int, kind: int) -> int:
    """Where the value that begins at ``at`` ends."""
    if kind in _SCALARS:
        return at + _SCALARS[kind]
    if kind == _STRING:
        return at + 8 + int(struct.unpack_from("<Q", header, at)[0])
    inner, count = struct.unpack_from("<IQ", header, at)
    at += 12
    if inner in _SCALARS:
        return int(at + _SCALARS[inner] * count)
    for _ in range(count):
        at = _end(header, at, _STRING)
    return at


def _damaged_field(kind: int, value: bytes, generator: random.Random) -> bytes:
    if kind == _FLOAT:
        number = generator.choice((0.0, -1.0, 1e-30, 1e30, float("nan"), float("inf"), 0.5, 2.0))
        return struct.pack("<f", number)
    if kind in _SCALARS:
        size = _SCALARS[kind]
        number = generator.choice((0, 1, 2, 3, 5, 8, 16, 64, 511, 512, 513, 2**31, 2**32 - 1))
        small = int.from_bytes(value, "little") + generator.choice((-1, 1))
        chosen = number if generator.random() < 0.6 else small
        return (chosen % 2 ** (8 * size)).to_bytes(size, "little")
    if kind == _STRING:
        texts = (
            b"",
            b"none",
            b"bert",
            b"llama",
            b"gpt2",
            b"rwkv",
            b"t5",
            b"default",
            b"\xff",
            b"x",
        )
        text = generator.choice(texts)
        return _text(text)
    data = bytearray(value)
    for _ in range(generator.randint(1, 3)):
        at = generator.randrange(12, len(data)) if len(data) > 12 else 0
        data[at] = generator.choice((0, 1, 2, 255, generator.randrange(256)))
    return bytes(data)


# -- templates -------------------------------------------------------------------------------------

_VALUES = (
    "'a'",
    "messages",
    "messages[0].content",
    "1",
    "0",
    "range(99999)",
    "range(10**9)",
    "'ab' * 10**9",
    "[1] * 10**9",
    "10**99999",
    "lipsum(n=9999)",
    "'%099999999999d' % 1",
    "'{:>9999999999}'.format('a')",
    "''.__class__.__mro__",
    "self.__init__.__globals__",
    "namespace(x=1)",
    "'\\ud800'",
    "cycler('a')",
    "undefined.x.y",
    "1/0",
    "f()",
)
_FILTERS = ("|center(10**10)", "|join", "|length", "|list", "|upper", "|tojson", "|map('x')|list")
_STATEMENTS = (
    "{{{{ {0} }}}}",
    "{{{{ {0} ~ {1} }}}}",
    "{{% for i in {0} %}}{2}{{% endfor %}}",
    "{{% for i in range(99999) %}}{{% for j in range(99999) %}}{2}{{% endfor %}}{{% endfor %}}",
    "{{% set ns = namespace(s='ab') %}}{{% for i in range(60) %}}"
    "{{% set ns.s = ns.s ~ ns.s %}}{{% endfor %}}",
    "{{% macro f() %}}{2}{{{{ f() }}}}{{% endmacro %}}{{{{ f() }}}}",
    "{{% if {0} %}}{2}{{% endif %}}",
    "{{{{ raise_exception({0}) }}}}",
    "{{{{ strftime_now({0}) }}}}",
    "{{% include 'x' %}}",
    "{{{{ ((((({0}))))) }}}}",
    "{{% {0} %}}",
)


def hostile_template(generator: random.Random) -> str:
    """A few statements one after the other, or in each other."""
    made = ""
    for _ in range(generator.randint(1, 3)):
        first, second = (generator.choice(_VALUES) for _ in range(2))
        first += generator.choice(("", "", *_FILTERS))
        statement = generator.choice(_STATEMENTS).format(first, second, made or "x")
        made = statement if generator.random() < 0.5 else made + statement
    return made
