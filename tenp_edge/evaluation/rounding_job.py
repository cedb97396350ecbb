"""What is to be measured of a file's types, and under which conditions that holds."""

from __future__ import annotations

from dataclasses import dataclass

from tenp_edge.evaluation.mixed_plans import PARTS
from tenp_edge.exporters.base import Exporter, ExportOptions
from tenp_edge.exporters.mixing import Mixer
from tenp_edge.models import ModelConfig
from tenp_edge.planning.measured.probes import KEEPS
from tenp_edge.planning.measured.rounding_errors import EXPERT_GROUPS
from tenp_edge.planning.measured.type_costs import Conditions


@dataclass(frozen=True)
class RoundingJob:
    """What is to be measured: ``types`` of ``writer``, a `Mixer`, in files of ``options``; () for
    all that it can mix."""

    writer: Exporter
    options: ExportOptions
    types: tuple[str, ...] = ()

    @property
    def mixer(self) -> Mixer:
        assert isinstance(self.writer, Mixer)
        return self.writer

    def forwards(self, config: ModelConfig) -> int:
        """Of the model that measuring takes: a group, a mixed plan, a cut and the dense model
        on either text."""
        roles = {matrix.role for matrix in self.mixer.typed_matrices(config, self.options)}
        return 2 + len(EXPERT_GROUPS) + len(roles) + len(PARTS) + 2 * len(KEEPS)

    def conditions(self, fingerprint: str, text: str) -> Conditions:
        options = self.options
        return Conditions(
            fingerprint, text, self.writer.format, options.imatrix, options.tensor_types
        )
