"""One calibration of one model: what the ways to spend bytes build from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from tenp_edge.calibration.storage import Statistics
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.evaluation.comparison.compared_methods import Case, Mend
from tenp_edge.exporters.base import Exporter
from tenp_edge.planning.measured.rounding_errors import RoundingErrors
from tenp_edge.planning.measured.trials import Trial

WIDTH_MULTIPLE = 32  # rows of down as long as the shortest blocks
Made = TypeVar("Made")


@dataclass
class Calibrated:
    """``whole_kl``: nats that each type costs the whole model, as it was measured; ``rounding``:
    what rounding does to this model, where that was measured; ``mend`` and ``trials`` as in
    `compared_methods.Case`."""

    checkpoint: Checkpoint
    writer: Exporter
    statistics: Statistics
    seed: int
    whole_kl: Mapping[str, float]
    mend: Mend | None = None
    trials: Sequence[Trial] = ()
    rounding: RoundingErrors | None = None
    width_multiple: int = WIDTH_MULTIPLE
    _made: dict[Hashable, Any] = field(default_factory=dict)

    @cached_property
    def measured(self) -> str:
        """Identity of the measurements that plans are chosen by: they may be made again, of other
        numbers."""
        rounding = {} if self.rounding is None else self.rounding.to_json()
        parts = [{**rounding, "seconds": 0.0}, [trial.to_json() for trial in self.trials]]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def layout(self) -> str:
        return self.writer.layouts[0]

    def case(self, multiple: int) -> Case:
        """With widths in multiples of ``multiple``."""
        return self.once(("case", multiple), lambda: self._case(multiple))

    def _case(self, multiple: int) -> Case:
        return Case(self.checkpoint, self.statistics, multiple, self.seed, self.mend, self.trials)

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What ``make`` gives, made once: a search remembers its prices from budget to budget."""
        if key not in self._made:
            self._made[key] = make()
        found: Made = self._made[key]
        return found
