"""A body as a request, and what is wrong with it in our own words."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from tenp_edge.serving.refusal import RefusalError

Request = TypeVar("Request", bound=BaseModel)
Made = TypeVar("Made")
_SHOWN = 60
# What a value of that kind is called, by pydantic's kinds of errors.
_KINDS = {
    "string": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "list": "a list",
    "dict": "an object",
    "model": "an object",
    "finite": "a finite number",
}
_BOUNDS = {
    "greater_than_equal": "at least {ge}",
    "greater_than": "above {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "below {lt}",
    "too_long": "at most {max_length} of them",
    "string_too_long": "at most {max_length} characters",
}


class WrongError(ValueError):
    """What is wrong with a request beyond one value; ``field`` is to blame."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def parse(kind: type[Request], body: bytes) -> Request:
    """``body`` as ``kind``; raises RefusalError (400) with the first thing that is wrong."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise refused(error, kind) from None


def check(kind: type[Request], fields: Mapping[str, Any]) -> Request:
    """``fields`` as ``kind``, as `parse` does."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise refused(error, kind) from None


def translated(make: Callable[[], Made]) -> Made:
    """What ``make`` makes of another API's request; raises RefusalError for what is none here."""
    try:
        return make()
    except WrongError as error:
        raise RefusalError(400, str(error), "invalid_value", error.field) from None


def refused(error: ValidationError, kind: type[BaseModel]) -> RefusalError:
    first = error.errors(include_url=False)[0]
    if first["type"] == "json_invalid":
        why = str(first["ctx"]["error"])
        return RefusalError(400, f"the body is not JSON: {why}", "invalid_json")
    found = first.get("ctx", {}).get("error")
    if isinstance(found, WrongError):
        return RefusalError(400, str(found), "invalid_value", found.field)
    if not first["loc"]:
        return RefusalError(400, "the body is no JSON object", "invalid_value")
    field = str(first["loc"][0])
    return RefusalError(400, _message(field, first, kind), "invalid_value", field)


def _message(field: str, first: Mapping[str, Any], kind: type[BaseModel]) -> str:
    where = _path(first["loc"])
    if first["type"] == "missing":
        return f"{where} is missing"
    if first["type"].endswith("too_short"):
        return f"{where} must not be empty"
    return f"{where} must be {_wanted(field, first, kind)}, not {_shown(first['input'])}"


def _wanted(field: str, first: Mapping[str, Any], kind: type[BaseModel]) -> str:
    """What the field holds: its own description, else what the error says."""
    declared = kind.model_fields.get(field)
    if declared is not None and declared.description and len(first["loc"]) <= 2:
        return declared.description
    found, context = str(first["type"]), first.get("ctx", {})
    if found in _BOUNDS:
        return _BOUNDS[found].format(**context)
    if found in ("literal_error", "enum"):
        return f"one of {context['expected']}"
    return next((name for key, name in _KINDS.items() if found.startswith(key)), "something else")


def _path(places: tuple[str | int, ...]) -> str:
    """messages, 0, content -> messages[0].content; what pydantic adds for unions is left out."""
    text = str(places[0])
    for place in places[1:]:
        if isinstance(place, int):
            text += f"[{place}]"
        elif place.isidentifier() and place[0].islower() and place not in _KINDS | {"str": ""}:
            text += f".{place}"
    return text


def _shown(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = str(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
