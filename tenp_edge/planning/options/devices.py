"""DeviceProfile: what a device has and what its runtime takes, read from profiles/*.toml."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

from tenp_edge import machine
from tenp_edge.errors import UserError
from tenp_edge.runtime.memory.footprint import KV_TYPES
from tenp_edge.units import format_size, parse_size

AUTO = "auto"  # the profile of the machine that plans
_HERE = "this-machine"  # and its name
RUNTIMES = ("tenp-edge", "llama.cpp", "onnxruntime")
# Formats that are part of tenp-edge: a profile's layout is checked before its exporter is loaded.
LAYOUTS = {
    "gguf": ("per-expert", "merged", "padded"),
    "onnx": ("portable", "static", "ort-cpu"),
}
GGUF_TYPES = tuple(
    "F32 F16 BF16 Q8_0 Q6_K Q5_K_M Q5_K_S Q4_K_M Q4_K_S IQ4_NL IQ4_XS Q4_0 MXFP4 Q3_K_M IQ3_M "
    "IQ3_S IQ3_XXS Q2_K IQ2_M IQ2_S IQ2_XS IQ2_XXS IQ1_M IQ1_S TQ2_0 TQ1_0".split()
)
# The process of `tenp-edge run` before it opens a file, where it cannot be measured.
THIS_MACHINE_OVERHEAD_BYTES = 48 * 2**20


@dataclass(frozen=True)
class DeviceProfile:
    """One device and the runtime on it. ``system_bytes`` is what the system keeps of the memory.

    ``tensor_types`` are those the runtime can load (``--quant``); a cut expert's width is a
    multiple of ``width_multiple``; ``ubatch`` is how many prompt tokens are computed at once.
    ``targets`` are the compilers that a file of fixed shapes is for; its cache holds ``context``
    and it takes ``ubatch`` prompt tokens at once, as far as the model's context goes.
    ``runtime_overhead_bytes`` is what the runtime's process has resident before it opens a file
    (interpreter, libraries); what depends on the file (vocabulary, header, graphs, buffers) is
    added by the planner. None: this machine, where the process is measured.
    """

    name: str
    description: str
    memory_bytes: int
    system_bytes: int
    runtime: str
    format: str
    layout: str
    tensor_types: tuple[str, ...]
    default_tensor_type: str
    width_multiple: int
    kv_type: str
    context: int
    memory_bandwidth_bytes_per_second: int
    threads: int
    runtime_overhead_bytes: int | None
    ubatch: int
    targets: tuple[str, ...] = ()

    @property
    def budget_bytes(self) -> int:
        """What a run may use: the memory without the system's share."""
        return self.memory_bytes - self.system_bytes


def profile_names() -> tuple[str, ...]:
    """The bundled profiles, in alphabetical order."""
    names = (entry.name for entry in files("tenp_edge.profiles").iterdir())
    return tuple(sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml")))


def known_profiles() -> tuple[str, ...]:
    """What --profile takes."""
    return (AUTO, *profile_names())


def load_profile(name: str) -> DeviceProfile:
    """The bundled profile ``name``, in any case, or ``auto``, `this_machine`; UserError with the
    list when there is none."""
    known = name.lower()
    if known == AUTO:
        return this_machine()
    if known not in profile_names():
        raise UserError(f"no device profile '{name}'", ", ".join(known_profiles()))
    entry = files("tenp_edge.profiles") / f"{known}.toml"
    return _parse(known, f"{known}.toml", entry.read_text(encoding="utf-8"))


def load_profile_file(path: str | Path) -> DeviceProfile:
    """A profile from the user's own TOML file; UserError naming the field that is wrong."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {_reason(error)}", "a TOML file") from None
    return _parse(path.stem, str(path), text)


def device_words(name: str) -> str:
    """A profile's name in a sentence."""
    return "this machine" if name == _HERE else name


def this_machine() -> DeviceProfile:
    """This machine's CPU with a per-expert GGUF: what is planned for when no profile is named."""
    memory = machine.memory().total
    return DeviceProfile(
        name=_HERE,
        description="this machine's CPU",
        memory_bytes=memory,
        system_bytes=min(2 * 2**30, memory // 4),
        runtime="tenp-edge",
        format="gguf",
        layout="per-expert",
        tensor_types=GGUF_TYPES,
        default_tensor_type="Q8_0",
        width_multiple=32,
        kv_type="F16",
        context=4096,
        # Dual-channel DDR4-3200, the commonest machine; a profile file can say better.
        memory_bandwidth_bytes_per_second=51_200_000_000,
        threads=machine.physical_cores(),
        runtime_overhead_bytes=None,
        ubatch=512,
    )


def spare_bytes() -> int:
    """What a run may use here: ``--ram auto``."""
    return this_machine().budget_bytes


# -- reading a profile -----------------------------------------------------------------------------


def _size(value: Any) -> int:
    if not isinstance(value, str):
        raise ValueError
    try:
        return parse_size(value)
    except UserError:
        raise ValueError from None


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError
    return value


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError
    return tuple(_text(item) for item in value)


def _one_of(allowed: tuple[str, ...]) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value not in allowed:
            raise ValueError
        return str(value)

    return read


_Kind = tuple[str, Callable[[Any], Any], str]  # attribute, reader, what is allowed
_A_SIZE, _A_COUNT = 'a size such as "8 GiB"', "a whole number above zero"
_FIELDS: dict[str, _Kind] = {
    "description": ("description", _text, "a line of text"),
    "memory": ("memory_bytes", _size, _A_SIZE),
    "system": ("system_bytes", _size, _A_SIZE),
    "runtime": ("runtime", _one_of(RUNTIMES), ", ".join(RUNTIMES)),
    "format": ("format", _text, 'the name of an export format such as "gguf"'),
    "layout": ("layout", _text, "the name of one of the format's layouts"),
    "tensor_types": ("tensor_types", _texts, "a list of type names"),
    "default_tensor_type": ("default_tensor_type", _text, "one of tensor_types"),
    "width_multiple": ("width_multiple", _count, _A_COUNT),
    "kv_type": ("kv_type", _one_of(tuple(KV_TYPES)), ", ".join(KV_TYPES)),
    "context": ("context", _count, _A_COUNT),
    "memory_bandwidth": (
        "memory_bandwidth_bytes_per_second",
        _size,
        'bytes per second as a size such as "50 GB"',
    ),
    "threads": ("threads", _count, _A_COUNT),
    "runtime_overhead": ("runtime_overhead_bytes", _size, _A_SIZE),
    "ubatch": ("ubatch", _count, _A_COUNT),
    "targets": ("targets", _texts, "a list of compilers"),
}
_OPTIONAL = frozenset({"targets"})
assert {kind[0] for kind in _FIELDS.values()} | {"name"} == {f.name for f in fields(DeviceProfile)}


def _parse(name: str, origin: str, text: str) -> DeviceProfile:
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{origin} is not valid TOML: {error}") from None
    name = raw.pop("name", name)
    unknown, missing = (
        sorted(set(raw) - set(_FIELDS)),
        sorted(set(_FIELDS) - set(raw) - _OPTIONAL, key=list(_FIELDS).index),
    )
    if unknown:
        raise UserError(f"{origin}: unknown field '{unknown[0]}'", f"fields: {', '.join(_FIELDS)}")
    if missing:
        allowed = _FIELDS[missing[0]][2]
        raise UserError(f"{origin}: field '{missing[0]}' is missing", f"{missing[0]}: {allowed}")
    profile = DeviceProfile(name=str(name), **_read_fields(origin, raw))
    _check_consistent(origin, profile)
    return profile


def _read_fields(origin: str, raw: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in raw.items():
        attribute, read, allowed = _FIELDS[key]
        try:
            values[attribute] = read(value)
        except ValueError:
            raise _wrong(origin, key, value, allowed) from None
    return values


def _check_consistent(origin: str, profile: DeviceProfile) -> None:
    """What no single field shows: the default among the types, room left, GGUF's own names."""
    types, default = profile.tensor_types, profile.default_tensor_type
    if profile.format == "gguf":
        for name in types:
            if name not in GGUF_TYPES:
                raise _wrong(origin, "tensor_types", name, ", ".join(GGUF_TYPES))
    layouts = LAYOUTS.get(profile.format)
    if layouts is not None and profile.layout not in layouts:
        raise _wrong(origin, "layout", profile.layout, ", ".join(layouts))
    if default not in types:
        raise _wrong(origin, "default_tensor_type", default, ", ".join(types))
    if profile.system_bytes >= profile.memory_bytes:
        allowed = f"less than the memory, {format_size(profile.memory_bytes)}"
        raise _wrong(origin, "system", format_size(profile.system_bytes), allowed)


def _wrong(origin: str, field: str, value: Any, allowed: str) -> UserError:
    return UserError(f"{origin}: field '{field}' is {value!r}", f"{field}: {allowed}")


def _reason(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else "it is not UTF-8 text"
