"""Sizes and numbers as people read and write them."""

from __future__ import annotations

import pytest

from tenp_edge.errors import UserError
from tenp_edge.units import (
    counted,
    format_count,
    format_seconds,
    format_size,
    nats,
    parse_size,
    percent,
    write_size,
)

GIB = 2**30


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GiB", 8 * GIB), ("8 g", 8 * GIB), ("7.5GB", 7_500_000_000), (".5M", 2**19), ("9B", 9)],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("8", "'8' has no unit"),
        ("0GiB", "'0GiB' is not a size above zero"),
        ("-1GiB", "'-1GiB' is not a size"),
        ("8 apples", "'8 apples' is not a size"),
    ],
)
def test_what_is_no_size(text: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        parse_size(text)
    assert error.value.message == message


@pytest.mark.parametrize(
    ("size", "text"),
    [(8 * GIB, "8GiB"), (3 * GIB // 2, "1.5GiB"), (1536, "1.5KiB"), (GIB + 1, f"{GIB + 1}B")],
)
def test_sizes_are_written_exactly(size: int, text: str) -> None:
    assert write_size(size) == text and parse_size(text) == size


def test_what_is_said() -> None:
    assert [format_size(size) for size in (5, 1536, GIB)] == ["5 B", "1.50 KiB", "1.00 GiB"]
    assert [format_count(count) for count in (14.3e9, 41.2e6, 7)] == ["14.3B", "41.2M", "7"]
    assert [nats(kl) for kl in (0, 0.25, 0.00123, 5e-13)] == [
        *("0.0000", "0.2500", "0.00123", "< 1e-6")
    ]
    assert (percent(0.911), percent(0.65, 0)) == ("91.1 %", "65 %")
    assert (counted(6, "layers"), counted(1, "layers")) == ("6 layers", "1 layer")
    assert [format_seconds(time) for time in (42, 420, 12000)] == ["42 s", "7 min", "3 h 20 min"]
