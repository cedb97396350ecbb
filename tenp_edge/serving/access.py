"""Who may ask: names of this machine, keys, other origins."""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fastapi import Request

from tenp_edge.errors import UserError
from tenp_edge.serving.refusal import RefusalError

_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
# A Host header: a name or an address in brackets, and a port. Anything else (a user, a path) is no
# browser's.
_HOST = re.compile(r"(?:\[(?P<address>[0-9a-f:.]+)\]|(?P<name>[a-z0-9.-]+))(?::\d{1,5})?", re.I)
_NAME_SHOWN = 80
# What a browser sends as Origin: no path, no slash at the end.
_ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[^/\s]+", re.I)
# What tells nothing of anybody's text: a page must load before it can ask for a key.
_OPEN_PATHS = frozenset({"/", "/health", "/v1/health", "/favicon.ico"})


@dataclass(frozen=True)
class Access:
    """``local_name``: the loopback address that the server listens on, whose names alone it
    answers to (None: any name). ``keys``: one of them comes with every request, unless there are
    none. ``origins``: sites whose pages may ask."""

    local_name: str | None = None
    keys: Sequence[str] = ()
    origins: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Raise UserError for a site that no browser can name so."""
        for origin in self.origins:
            if not _ORIGIN.fullmatch(origin):
                scheme, _, name = origin.rpartition("://")
                site = name.strip("/").partition("/")[0] or "chat.example"
                raise UserError(
                    f"--cors {origin} is no site as browsers name it",
                    f"--cors {scheme or 'https'}://{site}",
                )

    def guards(self) -> list[Callable[[Request], None]]:
        """What every request passes, or raises RefusalError."""
        guards = []
        if self.local_name is not None:
            guards.append(_foreign_names_refused(self.local_name))
        if self.keys:
            guards.append(_strangers_refused([key.encode() for key in self.keys]))
        return guards


def _foreign_names_refused(local_name: str) -> Callable[[Request], None]:
    """A web page whose own name was pointed at 127.0.0.1 (DNS rebinding) must not reach the
    model."""
    known = _LOCAL_NAMES | {local_name.lower()}

    def refuse(request: Request) -> None:
        stated = request.headers.get("host", "")
        match = _HOST.fullmatch(stated)
        name = (match["address"] or match["name"]).lower() if match else ""
        if name not in known:
            shown = match["address"] or match["name"] if match else stated[:_NAME_SHOWN]
            raise RefusalError(403, f"this server answers to localhost alone, not to '{shown}'")

    return refuse


def _strangers_refused(keys: Sequence[bytes]) -> Callable[[Request], None]:
    """Keys come as OpenAI's clients send them, or as Anthropic's do."""

    def refuse(request: Request) -> None:
        if request.url.path in _OPEN_PATHS:
            return
        bearer = request.headers.get("authorization", "").partition(" ")
        stated = bearer[2] if bearer[0].lower() == "bearer" else ""
        given = (stated or request.headers.get("x-api-key", "")).strip().encode("latin-1")
        # All of them, each in a time that does not tell how much of it is right.
        if not sum(hmac.compare_digest(given, key) for key in keys):
            raise RefusalError(
                401,
                "the API key is wrong" if given else "an API key is needed",
                "invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    return refuse
