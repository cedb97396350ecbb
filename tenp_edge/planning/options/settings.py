"""Options that are declared once, at a dataclass's field: name, help, what they may be.

    keep: Annotated[float | None, Flag("keep", "Share to keep.", above=0, most=1)] = None

Flags of the command line (`flags`), `--set NAME=VALUE`, recipe files (`recipes`) and the checks are
all read from there. A field without a `Flag` is for Python alone; a field that is such a dataclass
itself brings its options along.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from tenp_edge.errors import UserError
from tenp_edge.units import parse_size, write_size

Options = TypeVar("Options")
_WORDS = {"yes": True, "true": True, "no": False, "false": False}


@dataclass(frozen=True)
class Flag:
    """How an option is written, and what it may be.

    ``name``: --name, or with ``knob`` --set name=value; ``also``: other flags for the same.
    ``choices``: the values that there are; ``offered``: those that the shell completes where what
    is allowed is checked elsewhere; ``above``, ``least`` and ``most``: bounds of a number.
    ``instead_of``: the option whose place it takes, in a recipe too. ``example``: a value that
    works. ``size``: bytes, written as "8GiB"; ``auto``: what "auto" means instead. ``words``: known
    values, and other names of them, by how they are typed in small letters; ``choices`` are such
    words too. ``recorded``: False where a recipe does not hold it.
    """

    name: str
    help: str
    panel: str = ""
    knob: bool = False
    also: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    offered: tuple[str, ...] | Callable[[], tuple[str, ...]] = ()
    above: float | None = None
    least: float | None = None
    most: float | None = None
    example: str = ""
    size: bool = False
    auto: Callable[[], int] | None = None
    words: Mapping[str, str] = field(default_factory=dict)
    recorded: bool = True
    instead_of: str = ""


@dataclass(frozen=True)
class Option:
    """A declared option. ``path``: the fields that lead to it; ``kind``: of one value, of which
    it takes ``many`` or one."""

    flag: Flag
    path: tuple[str, ...]
    kind: type
    many: bool
    default: Any

    @property
    def name(self) -> str:
        return self.flag.name

    def known_values(self) -> tuple[str, ...]:
        """What can be typed for it, where that is a list."""
        offered = self.flag.offered
        return (offered() if callable(offered) else offered) or self.flag.choices

    def read(self, options: object) -> Any:
        for step in self.path:
            options = getattr(options, step)
        return options

    def written(self, value: object) -> str:
        """As it is typed: "--keep 0.6", or "--set tilt=0.5"."""
        shown = f"{value:g}" if isinstance(value, float) else str(value)
        return f"--set {self.name}={shown}" if self.flag.knob else f"--{self.name} {shown}"

    def parse(self, text: str) -> Any:
        """One value of its kind: of a word in any case, of a share as "60%" too. Raises UserError
        for text that is none."""
        if self.flag.size:
            auto = self.flag.auto if text.lower() == "auto" else None
            return parse_size(text) if auto is None else auto()
        if self.kind is str:
            return self._word(text)
        try:
            if self.kind is float and self.flag.most == 1 and text.endswith("%"):
                return float(text[:-1]) / 100
            return _WORDS[text.lower()] if self.kind is bool else self.kind(text)
        except (ValueError, KeyError):
            raise UserError(
                f"{self.written(text)}: '{text}' is not {_KINDS[self.kind]}",
                self.written(self.example),
            ) from None

    def _word(self, text: str) -> str:
        known = {choice.lower(): choice for choice in self.flag.choices} | {**self.flag.words}
        return known.get(text.lower(), text)

    @property
    def example(self) -> str:
        shown = {bool: "yes", int: "1", float: "0.5"}.get(self.kind, "VALUE")
        return self.flag.example or "|".join(self.flag.choices) or shown

    def check(self, value: Any) -> None:
        """Raise UserError for a value that the declaration does not allow; None is no value."""
        for one in value if self.many else (value,):
            if one is not None:
                self._check(one)

    def _check(self, value: Any) -> None:
        flag = self.flag
        if flag.choices and value not in flag.choices:
            raise UserError(
                f"{self.written(value)} is not known", self.written("|".join(flag.choices))
            )
        low = flag.above is not None and value <= flag.above
        low = low or (flag.least is not None and value < flag.least)
        if low or (flag.most is not None and value > flag.most):
            raise UserError(
                f"{self.written(value)} is not {_range(flag)}", self.written(self.example)
            )


_KINDS = {int: "a whole number", float: "a number", bool: "yes or no", str: "text", Path: "a path"}


def _range(flag: Flag) -> str:
    bounds = [
        f"above {flag.above:g}" if flag.above is not None else "",
        f"at least {flag.least:g}" if flag.least is not None else "",
        f"at most {flag.most:g}" if flag.most is not None else "",
    ]
    return " and ".join(filter(None, bounds))


def options_of(declared: type) -> Mapping[str, Option]:
    """The options of a dataclass and of those in it, by name, in the order of their fields."""
    if declared not in _known:
        _known[declared] = {option.name: option for option in _options(declared)}
    return _known[declared]


_known: dict[type, Mapping[str, Option]] = {}


def _options(declared: type) -> Iterator[Option]:
    hints = get_type_hints(declared, include_extras=True)
    for declared_field in fields(declared):
        hint = hints[declared_field.name]
        if is_dataclass(hint) and isinstance(hint, type):
            for inner in _options(hint):
                path = (declared_field.name, *inner.path)
                yield Option(inner.flag, path, inner.kind, inner.many, inner.default)
        elif get_origin(hint) is Annotated:
            kind, flag = get_args(hint)[:2]
            single, many = _kind(kind)
            yield Option(flag, (declared_field.name,), single, many, declared_field.default)


def _kind(hint: Any) -> tuple[type, bool]:
    """The type of one value, without None, and whether there may be many."""
    if get_origin(hint) in (Union, UnionType):
        (hint,) = [kind for kind in get_args(hint) if kind is not NoneType]
    if get_origin(hint) is tuple:
        return get_args(hint)[0], True
    return hint, False


def make(declared: type[Options], values: Mapping[str, Any]) -> Options:
    """The dataclass with ``values`` by option name, and the declared defaults for the rest."""
    tree: dict[str, Any] = {}
    for name, value in values.items():
        *nest, last = options_of(declared)[name].path
        branch = tree
        for step in nest:
            branch = branch.setdefault(step, {})
        branch[last] = value
    return _grown(declared, tree)


def _grown(declared: type[Options], tree: Mapping[str, Any]) -> Options:
    hints = get_type_hints(declared)
    return declared(
        **{
            name: _grown(hints[name], value) if isinstance(value, dict) else value
            for name, value in tree.items()
        }
    )


def check(options: object) -> None:
    """Raise UserError for a value that its declaration does not allow."""
    for option in options_of(type(options)).values():
        option.check(option.read(options))


# -- --set -----------------------------------------------------------------------------------------

HELP = "tenp-edge plan --help-set lists them"


def assigned(words: tuple[str, ...], known: Mapping[str, Option], every: type) -> dict[str, Any]:
    """The values of ``--set NAME=VALUE`` by name; a name that may have several is repeated.

    ``known``: the options of the verb; ``every``: a dataclass with those of all verbs. Raises
    UserError for a name or a value that is not one.
    """
    values: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            raise UserError(f"--set {word} is not NAME=VALUE", f"--set tilt=0.5; {HELP}")
        option = known.get(name)
        if option is None or not option.flag.knob:
            raise _unknown(name, text, option, every)
        value = option.parse(text)
        option.check((value,) if option.many else value)
        if option.many:
            values[name] = (*values.get(name, ()), value)
        elif name in values:
            raise UserError(f"--set {name} is given twice", option.written(text))
        else:
            values[name] = value
    return values


def _unknown(name: str, text: str, option: Option | None, every: type) -> UserError:
    if option is not None:
        return UserError(f"--set {name} is not needed: it is a flag", option.written(text))
    if name in options_of(every):
        return UserError(f"--set {name} is for compress", "leave it out")
    return UserError(f"--set {name} is not known", HELP)


# -- text ------------------------------------------------------------------------------------------


def listed(names: Iterable[str], last: str = "or") -> str:
    """ "a, b or c"."""
    *first, end = names
    return f"{', '.join(first)} {last} {end}"


def written_value(option: Option, value: Any) -> Any:
    """``value`` as TOML or a table has it: sizes with their unit, paths as text, lists."""
    if option.many:
        return [str(one) if option.kind is Path else one for one in value]
    if option.flag.size and value is not None:
        return write_size(value)
    return str(value) if isinstance(value, Path) else value


def command_words(options: object) -> list[str]:
    """What to type for ``options``: every value that is not the default."""
    words: list[str] = []
    for option in options_of(type(options)).values():
        value = option.read(options)
        if value != option.default:
            for one in value if option.many else (value,):
                words += _words(option, one)
    return words


def _words(option: Option, value: Any) -> list[str]:
    plain = written_value(replace(option, many=False), value)
    if option.flag.knob:
        shown = {True: "yes", False: "no"}.get(plain, plain) if option.kind is bool else plain
        return ["--set", f"{option.name}={shown}"]
    if option.kind is bool:
        return [f"--{option.name}" if value else f"--no-{option.name}"]
    return [f"--{option.name}", str(plain)]
