"""Scores of a calibrated model in one small file: enough to cut it again at any size, no weights.

What the default method reads of the statistics, reduced to the legal widths:

    every expert's neurons   in which step of the widths each one goes (a byte a neuron)
    every expert's widths    what cutting to each costs, and what rounding costs there
    every expert's mean      of its neurons, for the constant that may stand for it
    importance               sums of squared inputs, for tensor types that weigh columns
    measured                 rounding*.json, types.json and refine.json of the calibration

A plan from it is the plan from the statistics, bit for bit (`tests/verbs/test_pack.py`).
No text and no token is in it; the names of the domains are. Arrays lie byte plane by byte plane,
which is what makes floats compress; the file is a zip.
"""

from __future__ import annotations

import io
import json
import lzma
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tenp_edge.calibration.held_out import SLICE_RECORD, stored_slice
from tenp_edge.calibration.statistics import INPUT_SUM, MEANS, ROUNDING, LayerStatistics
from tenp_edge.calibration.storage import Statistics
from tenp_edge.disk import atomic_file
from tenp_edge.errors import UserError
from tenp_edge.models import ModelConfig
from tenp_edge.planning.measured import rounding_errors, trials, type_costs
from tenp_edge.planning.measured.probes import WAYS
from tenp_edge.planning.options.methods import method_named
from tenp_edge.planning.options.spec import DEFAULT_METHOD, PlanOptions
from tenp_edge.planning.scores.pack_checks import check_array, check_packed, damaged
from tenp_edge.planning.scores.tables import Evidence, LayerEvidence, Scores, scores_of
from tenp_edge.planning.space import Space

Array = npt.NDArray[Any]
FORMAT, VERSION = "tenp-edge scores", 1
FILE = "scores.zip"
_INFO = "scores.json"
_MEASURED = (type_costs.FILE, trials.FILE)
_STAMP = (1980, 1, 1, 0, 0, 0)  # the same scores are the same bytes

# What the zip, its members and what is made of them raise where bytes are lost or changed:
# RuntimeError for a member marked as encrypted, NotImplementedError for a way of packing.
_DAMAGE = (
    *(OSError, KeyError, ValueError, TypeError, EOFError, RuntimeError, NotImplementedError),
    *(zipfile.BadZipFile, lzma.LZMAError, zlib.error),
)


# -- writing ---------------------------------------------------------------------------------------


def write_pack(
    file: Path,
    statistics: Statistics,
    beside: Path,
    *,
    multiple: int,
) -> None:
    """``beside``: the calibration's directory; ``multiple``: of which every width is that may be
    asked for later. Raises UserError for statistics that the default method cannot use."""
    info = statistics.info
    space = Space(statistics.layers, int(info["experts"]), int(info["width"]), multiple)
    variants = _variants(statistics)
    packed = {
        "format": FORMAT,
        "version": VERSION,
        "statistics": dict(info),
        "multiple": multiple,
        "choices": statistics.choices,
        "has_elimination": statistics.has_elimination,
        "has_rounding": statistics.has_rounding,
        "variants": [asdict(scores) for scores in variants],
        "slice": stored_slice(beside),
    }
    with (
        atomic_file(file, 0) as stream,
        zipfile.ZipFile(stream, "w", zipfile.ZIP_LZMA) as archive,
    ):
        _add(archive, _INFO, json.dumps(packed, sort_keys=True).encode())
        for name in sorted(path.name for path in beside.glob("*.json")):
            if _is_measured(name):
                _add(archive, name, (beside / name).read_bytes())
        for name, array in _arrays(statistics, space, variants):
            _add(archive, name, _planes(array))


def _is_measured(name: str) -> bool:
    return name in _MEASURED or rounding_errors.is_errors_file(name)


def _variants(statistics: Statistics) -> list[Scores]:
    """Every way in which the default method may look at the statistics."""
    method = method_named(DEFAULT_METHOD)
    options = (replace(PlanOptions(), **way) for way in WAYS)
    found = (scores_of(method, asked, statistics, 0) for asked in (PlanOptions(), *options))
    return list(dict.fromkeys(found))


def _arrays(
    statistics: Statistics, space: Space, variants: Sequence[Scores]
) -> Iterator[tuple[str, Array]]:
    for number, scores in enumerate(variants):
        evidence = Evidence(statistics, space, scores)
        for layer in space.layers:
            yield from _variant_arrays(evidence, f"{number}/{layer}/", layer)
    evidence = Evidence(statistics, space, variants[0])
    for layer in space.layers:
        table, prefix = evidence.layers[layer], f"{layer}/"
        yield f"{prefix}tokens", table.tokens.numpy()
        yield f"{prefix}ranking", np.asarray(table.ranking, dtype=np.int32)
        yield f"{prefix}peaks", evidence.peaks(layer).numpy()
        if statistics.has_rounding:
            sums = statistics.rounding(layer)
            yield f"{prefix}rounding", np.array([float(sums[name].sum()) for name in ROUNDING])
        if statistics.has_means:
            for name, values in zip(MEANS, statistics.means(layer), strict=True):
                yield prefix + name, values.numpy()
        use = statistics.sequence_use(layer)
        if use is not None:
            yield f"{prefix}use", use.float().numpy()
        yield from _importance_arrays(statistics, prefix, layer)


def _variant_arrays(evidence: Evidence, prefix: str, layer: int) -> Iterator[tuple[str, Array]]:
    table = evidence.layers[layer]
    yield f"{prefix}losses", table.losses.numpy()
    yield f"{prefix}insured", table.insured.numpy()
    yield f"{prefix}gains", table.gains.numpy()
    yield f"{prefix}stream", np.array([table.stream])
    yield f"{prefix}steps", _steps(evidence.order(layer), evidence.space)
    if evidence.statistics.has_rounding:
        sums = evidence.rounding_sums(layer, evidence.space.legal_widths)
        yield f"{prefix}rounding", np.stack(sums)


def _steps(order: torch.Tensor, space: Space) -> Array:
    """Which legal width is the first that keeps each neuron, uint16 [experts, width]."""
    places = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1]).expand_as(order).contiguous()
    )
    ends = torch.tensor(space.legal_widths)
    return torch.bucketize(places, ends, right=True).numpy().astype(np.uint16)


def _importance_arrays(
    statistics: Statistics, prefix: str, layer: int
) -> Iterator[tuple[str, Array]]:
    """Sums over all domains, as `imatrix.Importance` adds them."""
    by_domain = [statistics.layer(domain, layer) for domain in statistics.domains]
    for name in (INPUT_SUM, "activation_sq"):
        total = torch.stack([stats[name] for stats in by_domain]).sum(dim=0)
        yield f"{prefix}{name}", total.float().numpy()
    infix = f"/layers.{layer}.inputs."
    roles = sorted({name.split(infix)[1] for name in statistics.stored if infix in name})
    for role in roles:
        total_inputs: torch.Tensor | None = None
        for domain in statistics.domains:
            squares = statistics.matrix_inputs(domain, layer, role)
            if squares is not None:
                total_inputs = squares if total_inputs is None else total_inputs + squares
        if total_inputs is not None:
            yield f"{prefix}inputs.{role}", total_inputs.float().numpy()


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    archive.writestr(zipfile.ZipInfo(name, _STAMP), data, zipfile.ZIP_LZMA)


def _planes(array: Array) -> bytes:
    """As .npy, all first bytes of the numbers before all second ones."""
    stream = io.BytesIO()
    array = np.ascontiguousarray(array)
    head = json.dumps({"dtype": array.dtype.str, "shape": array.shape}).encode()
    stream.write(len(head).to_bytes(4, "little") + head)
    size = array.dtype.itemsize
    stream.write(array.reshape(-1).view(np.uint8).reshape(-1, size).T.tobytes())
    return stream.getvalue()


def _from_planes(data: bytes) -> Array:
    length = int.from_bytes(data[:4], "little")
    head = json.loads(data[4 : 4 + length])
    dtype = np.dtype(head["dtype"])
    if dtype.hasobject:
        raise ValueError("objects")
    planes = np.frombuffer(data, np.uint8, offset=4 + length).reshape(dtype.itemsize, -1)
    array: Array = planes.T.copy().view(dtype).reshape(head["shape"])
    return array


# -- reading ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PackedScores(Statistics):
    """A score file as the statistics that it was made from, as far as the default method goes."""

    file: Path
    packed: Mapping[str, Any]

    @property
    def domains(self) -> tuple[str, ...]:
        """All text together: importance adds the domains up."""
        return ("all",)

    @property
    def choices(self) -> int:
        return int(self.packed["choices"])

    @property
    def has_gradients(self) -> bool:
        return False

    @property
    def has_elimination(self) -> bool:
        return bool(self.packed["has_elimination"])

    @property
    def has_rounding(self) -> bool:
        return bool(self.packed["has_rounding"])

    @property
    def has_means(self) -> bool:
        return f"{self.layers[0]}/{MEANS[0]}" in self._names

    def means(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        neurons, taken_off = (self._tensor(f"{layer}/{name}") for name in MEANS)
        return neurons.float(), taken_off

    def layer(self, domain: str, layer: int) -> LayerStatistics:
        """What importance is made of."""
        names = ("tokens", INPUT_SUM, "activation_sq")
        sums = {name: self._tensor(f"{layer}/{name}") for name in names}
        return LayerStatistics(sums)

    def rounding(self, layer: int) -> dict[str, torch.Tensor]:
        """The sums over a layer's neurons, [1, 1] each."""
        totals = self._tensor(f"{layer}/rounding")
        return {name: totals[i].reshape(1, 1) for i, name in enumerate(ROUNDING)}

    def sequence_use(self, layer: int) -> torch.Tensor | None:
        return self._tensor(f"{layer}/use") if f"{layer}/use" in self._names else None

    def matrix_inputs(self, domain: str, layer: int, role: str) -> torch.Tensor | None:
        name = f"{layer}/inputs.{role}"
        return self._tensor(name) if name in self._names else None

    def variant(self, scores: Scores) -> int:
        """The number of the tables that were made with ``scores``. Raises UserError without."""
        known = self.packed["variants"]
        wanted = json.loads(json.dumps(asdict(replace(scores, seed=0))))
        if wanted not in known:
            raise UserError(
                f"{self.file} has the scores of method {DEFAULT_METHOD} with its own settings only",
                "leave --method and its settings out, or --calibration with statistics",
            )
        return int(known.index(wanted))

    def array(self, name: str) -> Array:
        """Raises UserError where the file is damaged."""
        try:
            array = _from_planes(self._archive.read(name))
            check_array(name, array, self.packed)
        except _DAMAGE as error:
            raise damaged(self.file, f"{name} cannot be read") from error
        return array

    def _tensor(self, name: str) -> torch.Tensor:
        return torch.from_numpy(self.array(name)).double()

    @cached_property
    def _archive(self) -> zipfile.ZipFile:
        return zipfile.ZipFile(self.file)

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(self._archive.namelist())


class PackedEvidence(Evidence):
    """A score file's tables in the place of statistics. Raises UserError for widths or scores that
    it has none for."""

    statistics: PackedScores

    def __init__(self, statistics: PackedScores, space: Space, scores: Scores) -> None:
        multiple = int(statistics.packed["multiple"])
        if space.multiple % multiple or scores.block > 1:
            asked = scores.block if scores.block > 1 else space.multiple
            raise UserError(
                f"{statistics.file} has scores for widths that are multiples of {multiple}, not "
                f"for blocks of {asked}",
                "--calibration with statistics (tenp-edge calibrate MODEL -o WORK)",
            )
        full = int(statistics.info["width"])
        self._widths = (0, *range(multiple, full, multiple), full)
        self._variant = statistics.variant(scores)
        super().__init__(statistics, space, scores)

    def _layer(self, layer: int) -> LayerEvidence:
        columns = self._columns((0, *self.space.legal_widths))
        found = {name: self._table(layer, name) for name in ("losses", "insured", "gains")}
        return LayerEvidence(
            tuple(self.statistics.array(f"{layer}/ranking").tolist()),
            found["losses"][:, columns],
            found["gains"][:, [column - 1 for column in columns[1:]]],
            found["insured"][:, columns],
            torch.from_numpy(self.statistics.array(f"{layer}/tokens")),
            float(self._table(layer, "stream")[0]),
        )

    def order(self, layer: int) -> torch.Tensor:
        """Right at the legal widths; in between as the neurons are numbered."""
        steps = self.statistics.array(f"{self._variant}/{layer}/steps").astype(np.int64)
        return torch.from_numpy(steps).argsort(dim=1, stable=True)

    def rounding_sums(self, layer: int, widths: Sequence[int]) -> tuple[Array, Array, Array]:
        sums = self.statistics.array(f"{self._variant}/{layer}/rounding")
        padded = np.pad(sums, ((0, 0), (0, 0), (1, 0)))[:, :, self._columns(widths)]
        gate, up, down = (np.ascontiguousarray(part) for part in padded)
        return gate, up, down

    def peaks(self, layer: int) -> torch.Tensor:
        return torch.from_numpy(self.statistics.array(f"{layer}/peaks"))

    def _columns(self, widths: Sequence[int]) -> list[int]:
        places = {width: place for place, width in enumerate(self._widths)}
        return [places[width] for width in widths]

    def _table(self, layer: int, name: str) -> torch.Tensor:
        return torch.from_numpy(self.statistics.array(f"{self._variant}/{layer}/{name}"))


def evidence_of(statistics: Statistics, space: Space, scores: Scores) -> Evidence:
    """``statistics`` seen through ``scores``: collected ones, or a score file's."""
    if isinstance(statistics, PackedScores):
        return PackedEvidence(statistics, space, scores)
    return Evidence(statistics, space, scores)


def load_pack(
    file: Path, fingerprint: str | None = None, config: ModelConfig | None = None
) -> PackedScores:
    """Raises UserError for a file that is none, and for scores of another model: config, headers
    and sampled bytes of the weights are compared."""
    packed = _read_info(file)
    info = packed["statistics"]
    if fingerprint is not None and info["fingerprint"] != fingerprint:
        raise UserError(
            f"the scores in {file} belong to another model ({info['fingerprint'][:12]}, this one "
            f"is {fingerprint[:12]})",
            "the very model that they were made from: the same revision, unquantised",
        )
    check_packed(file, packed, config)
    return PackedScores(info, {}, file, packed)


def _read_info(file: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(file) as archive:
            packed = json.loads(archive.read(_INFO))
        sound = packed["format"] == FORMAT and isinstance(packed["statistics"]["fingerprint"], str)
    except _DAMAGE:
        sound, packed = False, {}
    if not sound:
        raise UserError(f"{file} is not a score file", "what tenp-edge pack wrote")
    if packed["version"] != VERSION:
        raise UserError(
            f"{file} is a score file of version {packed['version']}, {VERSION} is wanted",
            "pack it again, or another version of tenp-edge",
        )
    return dict(packed)


def extract_measured(file: Path, directory: Path) -> None:
    """What was measured beside the statistics, for the planner to find in ``directory``."""
    packed = load_pack(file).packed
    for name, data in _measured_members(file):
        (directory / name).write_bytes(data)
    (directory / SLICE_RECORD).write_text(json.dumps({"slice": packed["slice"]}), "utf-8")


def _measured_members(file: Path) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(file) as archive:
        for name in sorted(filter(_is_measured, archive.namelist())):
            try:
                yield name, archive.read(name)
            except _DAMAGE as error:
                raise damaged(file, f"{name} cannot be read") from error
