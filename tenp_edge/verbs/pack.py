"""`pack`: the recipe and the scores of a run, for others to cut the same model again."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from tenp_edge.calibration.storage import load_statistics
from tenp_edge.checkpoint.compression_plan import load_plan
from tenp_edge.checkpoint.digests import file_digest
from tenp_edge.checkpoint.locking import one_writer
from tenp_edge.disk import write_text
from tenp_edge.errors import UserError
from tenp_edge.planning.measured import rounding_errors, type_costs
from tenp_edge.planning.options.settings import make, options_of
from tenp_edge.planning.scores.pack import FILE, write_pack
from tenp_edge.verbs.options import CompressOptions
from tenp_edge.verbs.recipe_files import FILE as RECIPE
from tenp_edge.verbs.recipe_files import read_recipe, recipe_text
from tenp_edge.version import __version__

# Of which every width that may be asked for later is a multiple, where the run's own widths are.
_GRID = 32
# What others have no use for, or is a path of this machine.
_PRIVATE = ("output", "data", "eval-data", "calibration", "profile-file", "imatrix-out")
_LIBRARIES = ("torch", "transformers", "llama-cpp-python", "gguf")


@dataclass(frozen=True)
class Packed:
    """What was written, with its bytes; ``weighs_types``: whether plans from it can choose types by
    what they were measured to cost."""

    recipe: Path
    scores: Path
    weighs_types: bool

    def to_json(self) -> dict[str, object]:
        return {"recipe": str(self.recipe), "scores": str(self.scores), "bytes": self.nbytes}

    @property
    def nbytes(self) -> int:
        return sum(file.stat().st_size for file in self.files)

    @property
    def files(self) -> tuple[Path, ...]:
        return self.scores, self.recipe


def run_pack(output: Path, directory: Path) -> Packed:
    """Write ``directory``/scores.zip and recipe.toml of the run in ``output``; needs no model.

    Raises UserError where ``output`` is no finished run with statistics of its own.
    """
    plan_file, recipe = output / "plan.json", output / RECIPE
    if not (plan_file.is_file() and recipe.is_file()):
        raise UserError(f"{output} holds no finished run", "what tenp-edge compress wrote (OUT)")
    known = options_of(CompressOptions)
    options = make(CompressOptions, read_recipe(recipe, known, CompressOptions))
    statistics_directory = options.statistics or output / "calibration"
    if statistics_directory.is_file():
        raise UserError(
            f"{output} was made from a score file: {statistics_directory}", "share that file"
        )
    statistics, plan = load_statistics(statistics_directory), load_plan(plan_file)
    multiple = plan.record.width_multiple
    with one_writer(directory):
        scores = directory / FILE
        write_pack(
            scores,
            statistics,
            statistics_directory,
            multiple=_GRID if multiple % _GRID == 0 else multiple,
        )
        write_text(directory / RECIPE, _recipe(options, scores, statistics.fingerprint))
    measured = (rounding_errors.FILE, type_costs.FILE)
    weighs_types = any((statistics_directory / name).is_file() for name in measured)
    return Packed(directory / RECIPE, scores, weighs_types)


def _recipe(options: CompressOptions, scores: Path, fingerprint: str) -> str:
    """The run's options but for those of this machine, with what it was run by."""
    shared = recipe_text(options)
    lines = [line for line in shared.splitlines() if line.split(" = ")[0] not in _PRIVATE][1:]
    versions = ", ".join(f"{name} {version(name)}" for name in _LIBRARIES)
    head = [
        f"# tenp-edge compress MODEL --recipe {RECIPE} --scores {scores.name} -o OUT",
        "# cuts MODEL again, without calibrating; --ram SIZE beside it for another size.",
        f"# tenp-edge {__version__}, {versions}",
        f"# model: {fingerprint}",
        f"# {scores.name}: sha256 {file_digest(scores)}",
    ]
    return "\n".join([*head, *lines]) + "\n"
