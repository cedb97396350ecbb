"""The importance matrix: how much each column of a matrix matters when it is quantised.

A quantiser rounds a weight w_k; the output moves by (error of w_k) x_k, so column k is weighed by
the mean of x_k^2 over the calibration tokens, as llama.cpp's imatrix has it. For gate and up of an
expert x is the expert's input, for down its neurons m, cut like the matrix itself: what the kept
neurons were fed does not depend on the others.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from tenp_edge.calibration.statistics import INPUT_SUM
from tenp_edge.calibration.storage import CALIBRATE, Statistics
from tenp_edge.checkpoint.compression_plan import CompressionPlan, load_plan
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.errors import UserError


@dataclass(frozen=True)
class Squares:
    """Sum of squared inputs of a matrix, float32 [columns], over ``tokens`` tokens."""

    sums: torch.Tensor
    tokens: int

    def weights(self) -> torch.Tensor:
        """Their mean, float32; ones where no token came by, as llama-quantize fills them in."""
        if not self.tokens:
            return torch.ones_like(self.sums)
        return self.sums / torch.tensor(float(self.tokens), dtype=torch.float32)


# Matrices that some families store as halves of another.
_HALVES = {"shared_gate": "shared_gate_up", "shared_up": "shared_gate_up"}


class Importance:
    """The squares of every matrix of the model that ``plan`` makes (None: the whole model).

    Layers and experts are numbered as in the pruned model. All domains count together, token by
    token. Raises UserError for statistics of another model than the plan's.
    """

    def __init__(self, statistics: Statistics, plan: CompressionPlan | None = None) -> None:
        if plan is not None and plan.fingerprint != statistics.fingerprint:
            raise UserError(
                f"the statistics belong to another checkpoint ({statistics.fingerprint[:12]}, "
                f"the plan is for {plan.fingerprint[:12]})",
                "the statistics that the plan was made from, or --no-imatrix",
            )
        self._statistics, self._plan = statistics, plan
        self._layer: tuple[int, dict[str, torch.Tensor]] | None = None

    @property
    def digest(self) -> str:
        """Identity of the calibration that it is made of."""
        return hashlib.sha256(json.dumps(self._statistics.info).encode()).hexdigest()[:32]

    @property
    def domains(self) -> tuple[str, ...]:
        return self._statistics.domains

    @property
    def samples(self) -> int:
        """Calibration chunks, all domains together."""
        return sum(int(domain["samples"]) for domain in self._statistics.info["domains"].values())

    @property
    def seq_len(self) -> int:
        """Tokens of the longest chunk."""
        return int(self._statistics.info["seq_len"])

    @property
    def tokens(self) -> int:
        """Calibration tokens, all domains together."""
        return sum(int(domain["tokens"]) for domain in self._statistics.info["domains"].values())

    def expert(self, layer: int, expert: int, projection: str) -> Squares:
        """Of one routed expert's ``projection``: gate, up ([hidden]) or down ([kept width])."""
        sums, original = self._expert_sums(layer), self._original(layer, expert)
        tokens = int(sums["tokens"][original])
        if projection != "down":
            return Squares(sums[INPUT_SUM][original].float(), tokens)
        neurons = sums["activation_sq"][original]
        if self._plan is not None and self._plan.widths[layer][original] < len(neurons):
            neurons = neurons[self._plan.neurons(layer, original)]
        return Squares(neurons.float(), tokens)

    def matrix(self, layer: int, role: str) -> Squares | None:
        """Of a matrix outside the routed experts; None where nothing was collected."""
        total: torch.Tensor | None = None
        for domain in self.domains:
            squares = self._statistics.matrix_inputs(domain, layer, role)
            if squares is None and role in _HALVES:
                squares = self._statistics.matrix_inputs(domain, layer, _HALVES[role])
            if squares is not None:
                total = squares if total is None else total + squares
        return None if total is None else Squares(total.float(), self.tokens)

    def _original(self, layer: int, expert: int) -> int:
        return expert if self._plan is None else self._plan.kept_experts(layer)[expert]

    def _expert_sums(self, layer: int) -> dict[str, torch.Tensor]:
        """The layer's sums over all domains; those of the last layer are remembered."""
        if self._layer is None or self._layer[0] != layer:
            self._layer = None
            by_domain = [self._statistics.layer(domain, layer) for domain in self.domains]
            names = ("tokens", INPUT_SUM, "activation_sq")
            totals = {
                name: torch.stack([stats[name] for stats in by_domain]).sum(dim=0) for name in names
            }
            self._layer = layer, totals
        return self._layer[1]


def importance_of(
    checkpoint: Checkpoint, statistics: Statistics, plan: CompressionPlan | None = None
) -> Importance:
    """Of ``checkpoint`` seen through ``plan``; of a pruned one through the plan that made it.

    A pruned checkpoint does not say which neurons it kept: without ``plan``, its plan.json is
    looked for beside its directory, where compress leaves it. Raises UserError when the plan is
    not to be found or another checkpoint's, or the statistics are another model's.
    """
    pruned = checkpoint.config.raw.get("tenp")
    if pruned:
        plan = plan or _plan_beside(checkpoint.path)
        # What the kept neurons were fed is the plan's affair, whether or not they were mended.
        digest = str((pruned.get("mended") or {}).get("plan_digest", pruned["digest"]))
        if plan.digest != digest:
            raise UserError(
                f"the plan is not the one that {checkpoint.path} was pruned by "
                f"({plan.digest[:12]}, not {digest[:12]})",
                "--plan with the plan.json of that run",
            )
    elif plan is None and statistics.fingerprint != checkpoint.fingerprint:
        raise UserError(
            f"the statistics belong to another checkpoint ({statistics.fingerprint[:12]}, "
            f"this one is {checkpoint.fingerprint[:12]})",
            f"{CALIBRATE}; or --no-imatrix",
        )
    return Importance(statistics, plan)


def _plan_beside(directory: Path) -> CompressionPlan:
    file = directory.resolve().parent / "plan.json"
    if not file.is_file():
        raise UserError(
            f"{directory} does not say which neurons it kept, and there is no {file}",
            "--plan with the plan.json that it was pruned by, or --no-imatrix",
        )
    return load_plan(file)
