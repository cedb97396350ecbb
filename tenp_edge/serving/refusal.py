"""Requests that are refused, in the words of OpenAI's API."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tenp_edge.errors import UserError

# Where a field of chats stands in a request of another API: the beginnings of paths, as patterns.
Names = Mapping[str, str]


class RefusalError(Exception):
    """An HTTP ``status`` with OpenAI's error object; ``param`` is the field that is to blame."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers
        self.body = error_body(status, message, code, param)

    def in_words_of(self, names: Names) -> RefusalError:
        """The same of another API, whose fields have other ``names``."""
        found = self.body["error"]
        message, param = _renamed(str(found["message"]), names), found["param"]
        named = None if param is None else _renamed(param, names)
        return RefusalError(self.status, message, found["code"], named, self.headers)

    @classmethod
    def of(
        cls, error: UserError, status: int, code: str | None = None, param: str | None = None
    ) -> RefusalError:
        """``error`` and its way out in one message: OpenAI's object has no place for hints."""
        hint = "" if error.hint is None else f"; try: {error.hint}"
        return cls(status, f"{error.message}{hint}", code, param)


def _renamed(text: str, names: Names) -> str:
    for pattern, name in names.items():
        text = re.sub(rf"^{pattern}(?![a-z_])", name, text)
    return text


@contextmanager
def spelled(names: Names) -> Iterator[None]:
    """What is refused inside is said with another API's ``names`` of the fields."""
    try:
        yield
    except RefusalError as error:
        raise error.in_words_of(names) from None


def error_body(
    status: int, message: str, code: str | None = None, param: str | None = None
) -> dict[str, Any]:
    """``{"error": ...}`` as OpenAI's clients read it."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
