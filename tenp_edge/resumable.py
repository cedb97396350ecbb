"""How a computation continues after a kill: a record on disk of which job it is, and what is done.

Whatever is calculated, four things are the same:

- the job has an *identity*, JSON values: everything that decides what comes out;
- what is *done* stands beside it in one JSON file, or in files that lie beside that one;
- a step is recorded when its work is on the disk, and the record is written whole or not at all: a
  kill costs the step that was running;
- a record with another identity is of another job, and nothing in it is done. Its owner writes over
  it, or refuses where that would destroy somebody's work.

The steps are layers (`forward.layer_job`), measured plans (`planning.measured.trials`), keep ratios
(`evaluation.comparison.grid`), shards (`checkpoint.writer`) or stages (`verbs.run_directory`).
What has no steps needs no record: a file or a directory that appears whole (`disk.atomic_file`, the
exporters'). types.json (`planning.type_costs`) and ranges are tables that are read without the job
at hand, so their own classes say what they belong to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tenp_edge.disk import read_json, write_json


@dataclass(frozen=True)
class JobRecord:
    """``file`` holds the ``identity``, then what is done: the keys of ``empty``, which has what
    they are before anything is. ``remedy``: what a user can do about a file that is damaged."""

    file: Path
    identity: Mapping[str, Any]
    empty: Mapping[str, Any] = field(default_factory=dict)
    remedy: str = "delete it"

    def read(self) -> dict[str, Any] | None:
        """What the file says, of whatever job; None without one. Raises UserError for a file that
        is no JSON object."""
        return read_json(self.file, self.remedy) if self.file.is_file() else None

    def found(self) -> dict[str, Any] | None:
        """What the file says of this very job; None where it says nothing of it."""
        state = self.read() or {}
        identity = {name: value for name, value in state.items() if name not in self.empty}
        return {**self.empty, **state} if state and identity == self.identity else None

    def state(self) -> dict[str, Any]:
        """`found`, or where nothing is the job with nothing done."""
        return self.found() or {**self.identity, **self.empty}

    def write(self, done: Mapping[str, Any] | None = None) -> None:
        """Record what is ``done``, by the keys of ``empty``."""
        write_json(self.file, {**self.identity, **self.empty, **(done or {})})
