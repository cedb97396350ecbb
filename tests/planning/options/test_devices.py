"""Device profiles: the bundled ones are sound, a wrong one says which field."""

from __future__ import annotations

from pathlib import Path

import pytest

from tenp_edge import cgroups
from tenp_edge.errors import UserError
from tenp_edge.exporters.base import exporter
from tenp_edge.planning.options.devices import (
    LAYOUTS,
    load_profile,
    load_profile_file,
    profile_names,
    this_machine,
)
from tenp_edge.runtime.memory.footprint import KV_TYPES

GOOD = """\
description = "a box"
memory = "8 GiB"
system = "1 GiB"
runtime = "tenp-edge"
format = "gguf"
layout = "per-expert"
tensor_types = ["F16", "Q8_0"]
default_tensor_type = "Q8_0"
width_multiple = 32
kv_type = "F16"
context = 4096
memory_bandwidth = "50 GB"
threads = 4
runtime_overhead = "48 MiB"
ubatch = 512
"""


def test_at_least_ten_profiles_with_sources_in_comments() -> None:
    names = profile_names()
    assert len(names) >= 10
    for name in names:
        assert (Path(__file__).parents[3] / "profiles" / f"{name}.toml").read_text().startswith("#")


@pytest.mark.parametrize("name", profile_names())
def test_bundled_profile_is_sound(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert 0 < profile.budget_bytes < profile.memory_bytes
    writer = exporter(profile.format)
    assert profile.default_tensor_type == {"gguf": "Q8_0", "onnx": "int8"}[profile.format]
    assert set(LAYOUTS[profile.format]) == set(writer.layouts)
    assert profile.layout in writer.layouts
    assert set(profile.tensor_types) <= set(writer.quants)
    assert bool(profile.targets) == (profile.layout in writer.fixed_layouts)


def test_this_machine_is_the_issue_s_default() -> None:
    here = this_machine()
    assert (here.format, here.layout, here.default_tensor_type) == ("gguf", "per-expert", "Q8_0")
    assert (here.context, here.kv_type) == (4096, "F16")
    assert here.threads >= 1 and here.budget_bytes > 0


def test_own_file(tmp_path: Path) -> None:
    file = tmp_path / "box.toml"
    file.write_text(GOOD)
    profile = load_profile_file(file)
    assert profile.name == "box"
    assert profile.budget_bytes == 7 * 2**30
    assert profile.memory_bandwidth_bytes_per_second == 50 * 10**9


SIZE = 'a size such as "8 GiB"'
COUNT = "a whole number above zero"


@pytest.mark.parametrize(
    ("old", "new", "message", "hint"),
    [
        ('memory = "8 GiB"\n', "", "field 'memory' is missing", f"memory: {SIZE}"),
        ('"8 GiB"', '"-8 GiB"', "field 'memory' is '-8 GiB'", f"memory: {SIZE}"),
        ('"8 GiB"', "8", "field 'memory' is 8", f"memory: {SIZE}"),
        ("threads = 4", "threads = 0", "field 'threads' is 0", f"threads: {COUNT}"),
        ("threads = 4", "threads = true", "field 'threads' is True", f"threads: {COUNT}"),
        ("context = 4096", "context = -1", "field 'context' is -1", f"context: {COUNT}"),
        ('"F16"\n', '"F12"\n', "field 'kv_type' is 'F12'", f"kv_type: {', '.join(KV_TYPES)}"),
        (
            'default_tensor_type = "Q8_0"',
            'default_tensor_type = "F32"',
            "field 'default_tensor_type' is 'F32'",
            "default_tensor_type: F16, Q8_0",
        ),
        (
            '["F16", "Q8_0"]',
            "[]",
            "field 'tensor_types' is []",
            "tensor_types: a list of type names",
        ),
        (
            '"1 GiB"',
            '"9 GiB"',
            "field 'system' is '9.00 GiB'",
            "system: less than the memory, 8.00 GiB",
        ),
        (
            '"per-expert"',
            '"best"',
            "field 'layout' is 'best'",
            "layout: per-expert, merged, padded",
        ),
        (
            "ubatch = 512\n",
            'ubatch = 512\ntargets = "qnn"\n',
            "field 'targets' is 'qnn'",
            "targets: a list of compilers",
        ),
        (
            '"tenp-edge"',
            '"abacus"',
            "field 'runtime' is 'abacus'",
            "runtime: tenp-edge, llama.cpp, onnxruntime",
        ),
    ],
)
def test_wrong_field_is_named(tmp_path: Path, old: str, new: str, message: str, hint: str) -> None:
    file = tmp_path / "box.toml"
    assert old in GOOD
    file.write_text(GOOD.replace(old, new))
    with pytest.raises(UserError) as caught:
        load_profile_file(file)
    assert caught.value.message == f"{file}: {message}"
    assert caught.value.hint == hint


def test_unknown_field_unknown_profile_and_unreadable_files(tmp_path: Path) -> None:
    file = tmp_path / "box.toml"
    file.write_text(GOOD + "colour = 3\n")
    with pytest.raises(UserError) as caught:
        load_profile_file(file)
    assert caught.value.message == f"{file}: unknown field 'colour'"
    with pytest.raises(UserError) as caught:
        load_profile("toaster")
    assert caught.value.message == "no device profile 'toaster'"
    assert caught.value.hint == ", ".join(("auto", *profile_names()))
    with pytest.raises(UserError) as caught:
        load_profile_file(tmp_path / "none.toml")
    assert caught.value.message == (
        f"{tmp_path / 'none.toml'} cannot be read: No such file or directory"
    )
    file.write_text("memory = = 3")
    with pytest.raises(UserError, match="is not valid TOML"):
        load_profile_file(file)


def test_names_in_any_case_and_this_machine() -> None:
    assert load_profile("LAPTOP-8GB") == load_profile("laptop-8gb")
    assert load_profile("auto") == this_machine()


def test_a_container_has_what_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(cgroups, "_ROOT", tmp_path)
    limit.write_text("max\n")
    whole = this_machine().memory_bytes
    limit.write_text("1073741824\n")
    (tmp_path / "memory.current").write_text("0")
    assert this_machine().memory_bytes == 2**30 <= whole
