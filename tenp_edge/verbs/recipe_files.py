"""Recipe files: the options of a run as TOML, to be kept, edited and repeated.

    ram = "8GiB"
    method = "adaptive"
    tilt = 0.5

`compress` writes OUT/recipe.toml with every option that has a value; ``--recipe FILE`` reads one.
Names are those of the flags and of ``--set``.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tenp_edge.disk import atomic_file
from tenp_edge.errors import UserError, shown
from tenp_edge.planning.options.settings import HELP, Option, options_of, written_value

FILE = "recipe.toml"


def recipe_text(options: object, **others: Any) -> str:
    """The options that have a value, one a line; ``others`` are options that are not in it."""
    lines = ["# tenp-edge compress MODEL --recipe THIS_FILE repeats the run."]
    for option in options_of(type(options)).values():
        value = others.get(option.name, option.read(options))
        if option.flag.recorded and value not in (None, ()):
            lines.append(f"{option.name} = {_toml(written_value(option, value))}")
    return "\n".join(lines) + "\n"


def write_recipe(file: Path, options: object, **others: Any) -> None:
    """`recipe_text` in ``file``, which is left alone where it says just that."""
    data = recipe_text(options, **others).encode()
    if not file.is_file() or file.read_bytes() != data:
        with atomic_file(file, len(data)) as stream:
            stream.write(data)


def _toml(value: Any) -> str:
    """Strings, numbers, booleans and lists of strings: as TOML they are what they are in JSON."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def read_recipe(file: Path, known: Mapping[str, Option], every: type) -> dict[str, Any]:
    """The values of ``known`` options in ``file``, by name.

    ``every``: a dataclass with the options of all verbs: what is only another verb's is passed
    over. Raises UserError for a file that is no recipe, a name or a value that is not one.
    """
    try:
        raw = tomllib.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(
            f"there is no recipe file {file}", "the recipe.toml of a run, OUT/recipe.toml"
        ) from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{file} is not a recipe: {shown(str(error))}", "NAME = VALUE") from None
    values = {}
    for name, value in raw.items():
        option = options_of(every).get(name)
        if option is None or not option.flag.recorded:
            raise UserError(f"{file}: {shown(name)} is not known", f"a flag's name; {HELP}")
        if name in known:
            values[name] = _value(file, option, value)
    return values


def _value(file: Path, option: Option, value: Any) -> Any:
    ones = value if option.many and isinstance(value, list) else [value]
    parsed = [_one(file, option, one) for one in ones]
    if option.many != isinstance(value, list):
        raise _malformed(file, option, value)
    for one in parsed:
        option.check((one,) if option.many else one)
    return tuple(parsed) if option.many else parsed[0]


def _one(file: Path, option: Option, value: Any) -> Any:
    if option.kind in (str, Path) or option.flag.size:
        if not isinstance(value, str):
            raise _malformed(file, option, value)
        return option.parse(value)
    allowed = (int, float) if option.kind is float else option.kind
    if not isinstance(value, allowed) or isinstance(value, bool) != (option.kind is bool):
        raise _malformed(file, option, value)
    return option.kind(value)


def _malformed(file: Path, option: Option, value: Any) -> UserError:
    example = option.example.split("|")[0]
    parsed = json.loads(example) if _is_json(example) else example
    parsed = {"yes": True, "no": False}.get(example, parsed)
    right = _toml([parsed] if option.many else parsed)
    return UserError(
        f"{file}: {option.name} = {shown(json.dumps(value, default=str))} is malformed",
        f"{option.name} = {right}",
    )


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
