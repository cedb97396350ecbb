"""How long the long stages will take: said before they start, from a quick measurement."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache

import torch

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.forward.device import choose_device, choose_dtype
from tenp_edge.models.inspection import inspect_model
from tenp_edge.units import format_seconds
from tenp_edge.verbs.options import ComputeOptions

# One second of sequential reading and writing on a plain SSD; disks vary more than the estimate.
_DISK_BYTES_PER_SECOND = 300e6
# A statistics pass has one product more per expert than the forward's three.
_CALIBRATION_FACTOR = 4 / 3
_PROBE_SIZE = 1024
WORTH_SAYING_SECONDS = 15
# A plan, and the processes whose peak memory is measured; they hardly depend on the model.
_PLAN_SECONDS, _PEAK_SECONDS = 2.0, 5.0
_PROBE_SECONDS = 0.1
_PASS_SECONDS = 1.0  # of a pass over the layers, however small they are


@dataclass(frozen=True)
class Estimate:
    """Seconds by stage."""

    calibration: float
    files: float
    quantisation: float
    validation: float
    mending: float = 0.0
    measuring: float = 0.0

    @property
    def total(self) -> float:
        files = self.files + self.quantisation
        return self.calibration + self.measuring + self.mending + files + self.validation

    @property
    def stages(self) -> dict[str, float]:
        """Seconds of the stages of ``compress``, in their order."""
        return {
            "calibration": self.calibration,
            "measuring": self.measuring,
            "plan": _PLAN_SECONDS,
            "mending": self.mending,
            "checkpoint": self.files / 2,
            "export": self.files / 2 + self.quantisation,
            "validation": self.validation and self.validation + _PEAK_SECONDS,
        }

    def __str__(self) -> str:
        worth = {name: seconds for name, seconds in vars(self).items() if seconds >= 1}
        parts = ", ".join(f"{name} {format_seconds(s)}" for name, s in worth.items()) or "all of it"
        return f"about {format_seconds(self.total)} ({parts}), by a quick measurement"


@dataclass(frozen=True)
class Pace:
    """How fast one model runs here: seconds of a token, and of reading all its weights."""

    token: float
    reading: float

    def forward(self, tokens: int, times: float = 1.0) -> float:
        """Seconds of so many forwards of ``tokens``, layer by layer."""
        return times * tokens * self.token + self.reading + _PASS_SECONDS if tokens else 0.0

    def calibration(self, tokens: int) -> float:
        return self.forward(tokens, _CALIBRATION_FACTOR)

    @property
    def peak(self) -> float:
        """Of the processes whose memory is measured."""
        return _PEAK_SECONDS


def pace_of(checkpoint: Checkpoint, compute: ComputeOptions) -> Pace:
    """By a quick measurement, in float32 unless asked otherwise."""
    device = choose_device(compute.device)
    kind = "float32" if compute.dtype == "auto" else compute.dtype
    speed = operations_per_second(device, choose_dtype(kind, device, checkpoint.dtype))
    stored = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    active = inspect_model(checkpoint.path).active_parameters
    return Pace(2 * active / speed, stored / _DISK_BYTES_PER_SECOND)


def writing_seconds(written_bytes: int, read_bytes: int, encoded: int, speed: float) -> float:
    """Of a file; ``encoded`` parameters are quantised at ``speed`` bytes of float32 a second."""
    return (written_bytes + read_bytes) / _DISK_BYTES_PER_SECOND + 4 * encoded / speed


def estimate(
    active_parameters: int,
    model_bytes: int,
    written_bytes: int,
    calibration_tokens: int,
    validation_tokens: int,
    validation_forwards: int,
    quantised_parameters: int,
    encoding_speed: float,
    device: torch.device,
    dtype: torch.dtype,
    mending_forwards: int = 0,
    mended_tokens: int = 0,
    measuring: float = 0.0,
) -> Estimate:
    """Forwards cost 2 operations per active parameter and token; files cost their bytes, and
    quantising ``quantised_parameters`` at ``encoding_speed`` (bytes of float32 per second).

    The validation runs ``validation_forwards`` models: the exported file in its runtime, and at
    about the same speed, reading their weights, the others here. Mending runs
    ``mended_tokens`` about ``mending_forwards`` times. ``measuring``: seconds that plans and types
    are measured for.
    """
    per_token = 2 * active_parameters / operations_per_second(device, dtype)
    reading = model_bytes / _DISK_BYTES_PER_SECOND
    return Estimate(
        calibration=calibration_tokens * per_token * _CALIBRATION_FACTOR
        + (reading if calibration_tokens else 0),
        files=reading + written_bytes / _DISK_BYTES_PER_SECOND,
        quantisation=4 * quantised_parameters / encoding_speed,
        validation=validation_forwards * validation_tokens * per_token
        + ((validation_forwards - 1) * reading if validation_tokens else 0),
        mending=mending_forwards * mended_tokens * per_token,
        measuring=measuring,
    )


@cache
def operations_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a square matrix product, measured once."""
    matrix = torch.zeros(_PROBE_SIZE, _PROBE_SIZE, device=device, dtype=dtype)
    matrix @ matrix  # the first one compiles
    rounds, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < _PROBE_SECONDS:
        float((matrix @ matrix)[0, 0])  # waits for the device
        rounds += 1
    return rounds * 2 * _PROBE_SIZE**3 / elapsed
