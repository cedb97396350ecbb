"""Requests that are refused, in the words of OpenAI's API."""

from __future__ import annotations

from typing import Any

from tenp_edge.errors import UserError


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

    @classmethod
    def of(
        cls, error: UserError, status: int, code: str | None = None, param: str | None = None
    ) -> RefusalError:
        """``error`` and its way out in one message: OpenAI's object has no place for hints."""
        hint = "" if error.hint is None else f"; try: {error.hint}"
        return cls(status, f"{error.message}{hint}", code, param)


def error_body(
    status: int, message: str, code: str | None = None, param: str | None = None
) -> dict[str, Any]:
    """``{"error": ...}`` as OpenAI's clients read it."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
