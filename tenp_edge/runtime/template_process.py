"""The process that renders chat templates: a line of JSON in, a line of JSON out.

A template comes with the model's file, from anyone. Jinja's sandbox keeps it from what it must not
touch, but nothing in one process can keep a loop or a string from growing; so `chat_template` runs
this file as a process of its own, with limits, and ends it when it takes too long. It imports
nothing of ours, to be small.

    {"template", "variables", "memory_bytes"} -> {"text"}, {"error"}, or {"limit"} that it broke
"""

from __future__ import annotations

import datetime
import json
import sys
from functools import lru_cache
from typing import Any, NoReturn

_ERROR_CHARACTERS = 200


def main() -> None:
    """Say that it is ready, then answer until stdin ends."""
    import jinja2.sandbox  # noqa: F401  what takes time is not the template's fault

    _say({})
    for line in sys.stdin:
        request = json.loads(line)
        _limit_memory(request["memory_bytes"])
        _say(_answer(request))


def _say(answer: dict[str, str]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def _answer(asked: dict[str, Any]) -> dict[str, str]:
    try:
        text = _compiled(asked["template"]).render(**asked["variables"])
        text.encode()
        return {"text": text}
    except MemoryError:
        return {"limit": "needs too much memory"}
    except RecursionError:
        return {"limit": "is nested too deep"}
    except UnicodeEncodeError:
        return {"limit": "makes text that is not Unicode"}
    except Exception as error:  # whatever a template can do wrong
        return {"error": _one_line(error)}


def _one_line(error: Exception) -> str:
    from jinja2 import TemplateError

    text = " ".join(str(error).split())
    kind = "" if isinstance(error, TemplateError) and text else f"{type(error).__name__}: "
    return (kind + text).removesuffix(": ")[:_ERROR_CHARACTERS]


@lru_cache(maxsize=4)
def _compiled(template: str) -> Any:
    """Compiled once: a server that compiles it for every request is slow, and its heap grows."""
    return _environment().from_string(template)


@lru_cache(maxsize=1)
def _environment() -> Any:
    """What transformers gives chat templates: loop controls, JSON that is not escaped for HTML,
    and a tag around answers, for training, which changes nothing here."""
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012  as Jinja declares it

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _now
    return environment


def _json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _refuse(message: str) -> NoReturn:
    from jinja2 import TemplateError

    raise TemplateError(message)


def _now(format: str) -> str:
    return datetime.datetime.now().strftime(format)


def _limit_memory(nbytes: int) -> None:
    """At most ``nbytes`` of addresses; not on Windows, which has no such limit, nor where macOS
    refuses one below what every process has reserved (400 GB on Apple silicon). There the time is
    the limit."""
    if sys.platform != "win32":
        import resource

        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        limit = nbytes if hard == resource.RLIM_INFINITY else min(nbytes, hard)
        try:
            resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
        except (ValueError, OSError):
            if sys.platform != "darwin":
                raise


if __name__ == "__main__":
    main()
