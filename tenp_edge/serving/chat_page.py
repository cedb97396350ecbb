"""The chat page at ``/``: one file of HTML, style and script, with a policy that allows just these.

The page is put together once, from serving/page. Its Content-Security-Policy names the hashes of
its own style and script, so nothing that a model or a user writes can become either; scripts may
not turn text into HTML at all (``require-trusted-types-for``). No other server is asked.
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from fastapi import FastAPI
from fastapi.responses import Response

from tenp_edge.serving.service import Service

_SCRIPTS = ("markdown.js", "store.js", "chat.js")


@dataclass(frozen=True)
class ChatPage:
    """The page and the headers that belong to it."""

    body: bytes
    headers: Mapping[str, str]


def add_chat_page(app: FastAPI, service: Service) -> None:
    """Serve the page at ``/``; a browser's question for an icon has an answer too."""
    made = chat_page(service.vocabulary.chat_template is not None)

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def page() -> Response:
        return Response(made.body, headers=dict(made.headers), media_type="text/html")

    @app.get("/favicon.ico", include_in_schema=False)
    async def no_icon() -> Response:
        return Response(status_code=204)


@cache
def chat_page(has_template: bool) -> ChatPage:
    """The page: a conversation, or without a template a text that the model goes on with."""
    style, script = _read("chat.css"), "\n".join(map(_read, _SCRIPTS))
    html = _read("chat.html").replace("/*template*/", "yes" if has_template else "no")
    html = html.replace("/*style*/", style).replace("/*script*/", script)
    return ChatPage(html.encode(), _headers(style, script))


def _read(name: str) -> str:
    return (files("tenp_edge.serving") / "page" / name).read_text(encoding="utf-8")


def _headers(style: str, script: str) -> dict[str, str]:
    policy = (
        "default-src 'none'",
        f"script-src '{_source(script)}'",
        f"style-src '{_source(style)}'",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
    return {
        "Content-Security-Policy": "; ".join(policy),
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cache-Control": "no-cache",
    }


def _source(text: str) -> str:
    """As a policy names an inline style or script."""
    return f"sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
