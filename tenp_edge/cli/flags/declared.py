"""The command line's flags: made of the options that the verbs' dataclasses declare (`settings`).

A verb's parameter that is such a dataclass becomes its flags, and the verb gets the dataclass:

    @app.command()
    @flags.expanded(recipes=True)
    def plan(model: flags.Model, options: PlanOptions, *, screen: Screen) -> None: ...

What is declared for no dataclass, or differently for one verb, is here as typer has it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import is_dataclass, replace
from inspect import Parameter, signature
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from tenp_edge.cli.hub import local_model, spoken
from tenp_edge.cli.output.readers import last_words
from tenp_edge.cli.output.screen import Screen
from tenp_edge.errors import UserError
from tenp_edge.planning.options.settings import Option, assigned, make, options_of, written_value
from tenp_edge.verbs.options import CALIBRATION, CompressOptions
from tenp_edge.verbs.recipe_files import read_recipe

_LONGEST_LIST = 36  # letters of a list of values that stands in the help beside its flag
MOST_HELP = "One more choice, NAME=VALUE; repeat for more. tenp-edge plan --help-set lists them."


def _flag(*names: str, help: str, panel: str | None = None, **more: Any) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(*names, help=help, rich_help_panel=panel, **more)
    return option


# -- flags of dataclasses --------------------------------------------------------------------------


def expanded(recipes: bool = False) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A verb whose parameters that are dataclasses of options are flags on the command line.

    A flag goes before a recipe, a recipe before the default. ``recipes``: the verb takes --recipe,
    and --set for knobs; without, knobs are flags too.
    """

    def decorate(verb: Callable[..., None]) -> Callable[..., None]:
        parameters = signature(verb, eval_str=True).parameters
        grouped: dict[str, Any] = {
            name: parameter.annotation
            for name, parameter in parameters.items()
            if is_dataclass(parameter.annotation)
        }
        known: dict[str, Option] = {}
        for declared in grouped.values():
            known |= options_of(declared)

        def called(**given: Any) -> None:
            values = _values(given, known) if recipes else {}
            flagged = {k: v for k, v in known.items() if not (recipes and v.flag.knob)}
            typed = _typed(given, flagged)
            replaced = {known[name].flag.instead_of for name in typed}
            values = {k: v for k, v in values.items() if k not in replaced} | typed
            for name, declared in grouped.items():
                names = options_of(declared)
                given[name] = make(declared, {k: v for k, v in values.items() if k in names})
            try:
                verb(**given)
            except UserError as error:
                raise said_here(
                    error, known if recipes else {}, _model(given, parameters)
                ) from error

        shown = list(_parameters(parameters, recipes))
        called.__name__, called.__doc__ = verb.__name__, verb.__doc__
        called.__signature__ = signature(verb).replace(parameters=shown)  # type: ignore[attr-defined]
        called.__annotations__ = {one.name: one.annotation for one in shown}
        return called

    return decorate


_MODEL = re.compile(r"\bMODEL\b")
_FLAG = re.compile(r"--(no-)?([a-z][a-z-]*[a-z])(?:[ =]('[^']*'|[^\s,;:()]+))?")


def said_here(
    error: UserError, known: Mapping[str, Option], model: Path | None = None
) -> UserError:
    """``error`` as this verb's user can type it. What several verbs call says --name VALUE; here
    knobs of ``known`` are --set name=VALUE. MODEL is what was typed for it, where it was."""

    def written(match: re.Match[str]) -> str:
        no, name, value = match.groups()
        option = known.get(name)
        if option is None or not option.flag.knob:
            return match.group()
        if option.kind is bool:
            kept = "" if value is None else f" {value}"
            return f"--set {name}={'no' if no else 'yes'}{kept}"
        if value is None:
            return f"--set {name}"
        # A word of the sentence is in small letters.
        is_value = value in option.flag.choices or not value.isalpha() or not value.islower()
        return f"--set {name}={value}" if is_value else f"--set {name} {value}"

    message, hint = _FLAG.sub(written, error.message), error.hint
    if hint and model is not None:
        hint = _MODEL.sub(lambda _: quote(spoken(model)), hint)
    return UserError(message, hint and _FLAG.sub(written, hint))


def _model(given: Mapping[str, Any], parameters: Mapping[str, Parameter]) -> Path | None:
    """The model among what was ``given`` to a verb."""
    return next((given[name] for name, one in parameters.items() if one.annotation == Model), None)


def _values(given: dict[str, Any], known: Mapping[str, Option]) -> dict[str, Any]:
    """What --recipe and --set say."""
    recipe, words = given.pop("recipe"), given.pop("settings")
    values = read_recipe(recipe, known, CompressOptions) if recipe else {}
    return values | assigned(tuple(words or ()), known, CompressOptions)


def _typed(given: dict[str, Any], known: Mapping[str, Option]) -> dict[str, Any]:
    """What flags say; taken out of ``given``."""
    values = {}
    for name, option in known.items():
        value = given.pop(_identifier(name))
        if value not in (None, []):
            values[name] = _parsed(option, value)
    return values


def _parsed(option: Option, value: Any) -> Any:
    """What was typed, by the option's own words; switches and paths are read already."""
    if option.many:
        return tuple(_parsed(replace(option, many=False), one) for one in value)
    return option.parse(value) if isinstance(value, str) else value


def _identifier(name: str) -> str:
    return f"option_{name.replace('-', '_')}"


def _parameters(declared: Mapping[str, Parameter], recipes: bool) -> Iterator[Parameter]:
    """The verb's own parameters with dataclasses replaced by their flags, in order."""
    last: list[Parameter] = []
    for parameter in declared.values():
        kind = Parameter.KEYWORD_ONLY
        if parameter.annotation is Screen:
            last += [_parameter(one) for one in options_of(Screen).values()]
        elif is_dataclass(parameter.annotation):
            options = options_of(parameter.annotation).values()  # type: ignore[arg-type]
            yield from (_parameter(one) for one in options if not (recipes and one.flag.knob))
        elif parameter.annotation is HelpSet:
            last.append(parameter.replace(kind=kind))
        else:
            yield parameter.replace(kind=kind)
    if recipes:
        yield Parameter("settings", kind, default=None, annotation=Settings)
        yield Parameter("recipe", kind, default=None, annotation=Recipe)
    yield from last


def _parameter(option: Option) -> Parameter:
    """The flag of an option: None where it is not on the command line."""
    flag = option.flag
    # Text is read by the option itself, in our words.
    kind = option.kind if option.kind in (bool, Path) else str
    names = [f"--{flag.name}", *flag.also]
    if option.kind is bool and option.default is not False:
        names = [f"--{flag.name}/--no-{flag.name}"]
    nothing = option.default in (None, ()) or isinstance(option.default, bool)
    shown = "" if nothing else f" Default: {_shown(option)}."
    info = _flag(
        *names,
        help=flag.help + shown,
        panel=flag.panel or None,
        show_default=False,
        metavar=_metavar(option),
        autocompletion=_completed(option) if option.flag.choices or option.flag.offered else None,
    )
    hint: Any = list[kind] if option.many else kind  # type: ignore[valid-type]
    return Parameter(
        _identifier(flag.name),
        Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[hint | None, info],
    )


def _metavar(option: Option) -> str | None:
    """What stands for the value in the help."""
    if option.kind is str:
        values = "|".join(option.known_values())
        return values if 0 < len(values) <= _LONGEST_LIST else f"<{option.name}>"
    kinds: dict[type, str] = {int: "<int>", float: "<float>"}
    return "<size>" if option.flag.size else kinds.get(option.kind)


def _completed(option: Option) -> Callable[[str], list[str]]:
    """What the shell offers for the letters that are there, in any case."""

    def complete(incomplete: str) -> list[str]:
        typed_small = incomplete != "" and incomplete == incomplete.lower()
        known = (value.lower() if typed_small else value for value in option.known_values())
        return [value for value in known if value.startswith(incomplete)]

    return complete


def _shown(option: Option) -> str:
    value = written_value(option, option.default)
    return ", ".join(map(str, value)) if option.many else str(value)


def settings_rows() -> list[tuple[str, str, str, str]]:
    """What --set takes: name, default, help, and the verbs it is for."""
    from_plan = {name for name, option in options_of(CompressOptions).items() if _is_plan(option)}
    return [
        (name, _default(option), option.flag.help, "" if name in from_plan else "compress")
        for name, option in options_of(CompressOptions).items()
        if option.flag.knob
    ]


def _is_plan(option: Option) -> bool:
    return option.path[0] == "plan"


def _default(option: Option) -> str:
    if isinstance(option.default, bool):
        return "yes" if option.default else "no"
    return "" if option.default in (None, ()) else str(option.default)


def _help_set(value: bool) -> None:
    if not value:
        return
    table = Table("--set", "default", "", "only", box=None, pad_edge=False)
    for row in settings_rows():
        table.add_row(*row)
    with last_words():
        Console(width=110).print(table)
    raise typer.Exit


# -- one by one ------------------------------------------------------------------------------------

Model = Annotated[
    Path,
    typer.Argument(
        help="Model directory: config.json and safetensors; or a GGUF (or a hub id, with network; "
        "demo: the bundled model).",
        callback=local_model,
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite another run's output.")]
Settings = Annotated[list[str] | None, typer.Option("--set", help=MOST_HELP)]
Recipe = Annotated[
    Path | None,
    typer.Option("--recipe", help="Options from a TOML file, as compress leaves one in OUT."),
]
HelpSet = Annotated[
    bool,
    typer.Option("--help-set", help="What --set takes.", callback=_help_set, is_eager=True),
]
ProfileFile = Annotated[
    Path | None, typer.Option("--profile-file", help="Your own profile (TOML).")
]
Types = Annotated[
    bool,
    _flag(
        "--types",
        help="Measure what each tensor type does to this model, for plan and compress to choose "
        "widths and types together.",
        panel=CALIBRATION,
    ),
]
TypesFormat = Annotated[
    str,
    _flag(
        "--format", help="The format whose types --types measures: gguf, onnx.", panel=CALIBRATION
    ),
]
