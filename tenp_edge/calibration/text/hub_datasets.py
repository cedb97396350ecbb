"""Records of a data set on the Hugging Face hub, streamed by the `datasets` library."""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

from tenp_edge.calibration.text.file_formats import Placed
from tenp_edge.calibration.text.records import parse_record
from tenp_edge.errors import UserError

PREFIX = "hf:"
# OWNER/DATASET, a configuration behind another slash where the data set has several, and a split.
_SPEC = re.compile(r"([\w.-]+/[\w.-]+)(?:/([\w.-]+))?(?::([\w.-]+))?")
DEFAULT_SPLIT = "train"
INSTEAD = "a file: --data NAME=FILE.jsonl"


class HubData(NamedTuple):
    """``config``: None where the data set has one."""

    name: str
    config: str | None
    split: str


def parse_hub(spec: str) -> HubData:
    """Of "hf:OWNER/DATASET[/CONFIG][:SPLIT]"."""
    match = _SPEC.fullmatch(spec.removeprefix(PREFIX))
    if not match:
        raise UserError(
            f"'{spec}' names no data set of the hub", "--data NAME=hf:OWNER/DATASET[:SPLIT]"
        )
    name, config, split = match.groups()
    return HubData(name, config, split or DEFAULT_SPLIT)


@cache
def hub_records(spec: str, most_chars: int) -> tuple[Placed, ...]:
    """The first records, ``most_chars`` of text or a little more. Fetched once: comparisons
    calibrate several times."""
    records, size = [], 0
    for placed in _records(spec):
        records.append(placed)
        size += len(str(placed.record))
        if size >= most_chars:
            break
    return tuple(records)


def _records(spec: str) -> Iterator[Placed]:
    source = parse_hub(spec)
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise UserError(
            f"{spec} needs the library datasets, which is not installed", "pip install datasets"
        ) from None
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # every retry, in its own words
    try:
        for number, row in enumerate(_rows(datasets, source), 1):
            where = f"{spec}, record {number}"
            yield Placed(where, parse_record(where, row))
    except UserError:
        raise
    except OSError as error:  # every failure of the network, a name that does not exist too
        raise UserError(
            f"{spec} could not be fetched: {_line(error)}",
            f"on a machine with network, and a data set that is there; or {INSTEAD}",
        ) from None
    except Exception as error:  # a bad split or configuration, a broken file: any class
        raise UserError(f"{spec} cannot be read: {_line(error)}", INSTEAD) from None


def _rows(datasets: Any, wanted: HubData) -> Any:
    return datasets.load_dataset(wanted.name, wanted.config, split=wanted.split, streaming=True)


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
