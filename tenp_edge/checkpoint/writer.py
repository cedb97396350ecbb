"""Write the pruned checkpoint: read an expert, slice it, write it, forget it.

The directory is a Hugging Face model directory in the source's dtype: sharded safetensors with
per-expert names (`stacked` where transformers reads no others), config.json with a ``tenp`` section
that lists every expert's width, tokenizer, generation config, chat template, licence and a model
card. A quantised source's weights are written as the numbers that they mean or, where that is asked
for, as they are stored (`as_stored`). config.json comes last, so a directory that has one is
complete; until then a marker says whose half-written shards lie there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tenp_edge.checkpoint.as_stored import AsStored, Piece
from tenp_edge.checkpoint.compression_plan import CompressionPlan
from tenp_edge.checkpoint.files import Shard, TensorEntry, is_written, plan_shards, write_shards
from tenp_edge.checkpoint.model_origin import (
    COPIED,
    base_model,
    display_name,
    front_matter,
    inherited,
    tags_of,
)
from tenp_edge.checkpoint.overlay import Mended, settings_of
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.checkpoint.stacked import WrittenStacks
from tenp_edge.disk import copy_file, read_json, require_free, write_json, write_text
from tenp_edge.errors import UserError
from tenp_edge.models import EXPERT_KEYS
from tenp_edge.models.headers import INDEX_NAME
from tenp_edge.models.mixers import Shape
from tenp_edge.models.quantization import with_unquantised
from tenp_edge.progress import QUIET, Progress
from tenp_edge.resumable import JobRecord
from tenp_edge.units import format_count, format_size
from tenp_edge.version import __version__

TENP_VERSION = 1
MARKER = "tenp-unfinished.json"
# DeepSeek's multi-token-prediction layers are not written, so they must not be announced.
_MTP_KEYS = ("num_nextn_predict_layers", "num_mtp_layers")
# Code of its own, and how the weights were quantised, which are written decoded.
_QUANTISED = "quantization_config"
_NOT_WRITTEN = ("auto_map", _QUANTISED)
# What the ``tenp`` section says of which checkpoint it is.
_IDENTITY = ("digest", "stored")
# What transformers names when it refuses the checkpoint: the one key of config.json that it checks
# before it reads a weight, in words that it repeats. Else it fails at stacking the experts.
_EXPERTS = "narrower experts; tenp_edge.load_pruned(PATH) loads them"
_NARROWED = "Its experts are narrower than config.json says, which plain transformers cannot load:"


class PrunedFiles:
    """The weight files that ``source`` is written as, exact in names and bytes. ``dtype``:
    "decoded", a quantised source's weights as numbers, or "source", as they are stored where
    slicing allows."""

    def __init__(self, source: ModelSource, dtype: str = "decoded") -> None:
        self.source, self.as_stored = source, AsStored(source, dtype)
        pieces = map(self._published, self._all_pieces())
        self._pieces = {piece.entry.name: piece for piece in pieces}
        self.shards = plan_shards([piece.entry for piece in self._pieces.values()])

    def blocks(self, name: str) -> Iterator[torch.Tensor]:
        """Rows of tensor ``name`` in order."""
        return self._pieces[name].blocks()

    @property
    def nbytes(self) -> int:
        return sum(shard.nbytes for shard in self.shards)

    @property
    def identity(self) -> dict[str, Any]:
        """Which model this is, and in which form: keys of the ``tenp`` section."""
        form = {"stored": self.as_stored.text} if self.as_stored.any else {}
        return {"digest": self.source.digest, **form}

    def _published(self, piece: Piece) -> Piece:
        """``piece`` under the name that the family's files have; a wrapped language model stands
        alone."""
        config = self.source.config
        if config.family.wrapper is not None:
            return piece
        return replace(piece, entry=replace(piece.entry, name=config.stored_name(piece.entry.name)))

    def _all_pieces(self) -> Iterator[Piece]:
        stacked, seen = WrittenStacks(self.source, self.as_stored), set[int]()
        for name, spec in self.source.tensors.items():
            if spec.expert is None or spec.layer is None or not stacked.any:
                yield from self.as_stored.pieces(spec) or [self._number(name, spec.shape)]
            elif spec.layer not in seen:
                seen.add(spec.layer)
                yield from stacked.pieces(spec.layer)

    def _number(self, name: str, shape: Shape) -> Piece:
        entry = TensorEntry(name, self.source.dtype(name), shape)
        return Piece(entry, partial(self.source.blocks, name))


def checkpoint_files(source: ModelSource, dtype: str = "decoded") -> dict[str, int]:
    """Exact bytes of every weight file of the pruned checkpoint, by name."""
    return {shard.name: shard.nbytes for shard in PrunedFiles(source, dtype).shards}


def write_checkpoint(
    source: ModelSource,
    directory: Path,
    progress: Progress = QUIET,
    dtype: str = "decoded",
) -> Mapping[str, str]:
    """`write_files` of ``source``, seen through a plan."""
    return write_files(PrunedFiles(source, dtype), directory, progress)


def write_files(
    files: PrunedFiles, directory: Path, progress: Progress = QUIET
) -> Mapping[str, str]:
    """Write ``files`` and what belongs to them to ``directory``; again, to continue.

    Holds one expert, or one block of an embedding's rows, in memory at a time. Returns the SHA-256
    of the weight files that it wrote, by name: those that were there are not read.
    Raises UserError when ``directory`` holds another model or the disk has no room.
    """
    source, shards, written = files.source, files.shards, pruned_json(files)
    digests: dict[str, str] = {}
    if _is_complete(written, directory, shards):
        return digests
    _require_neurons(_plan(source))
    _claim(files.identity, directory)
    pending = [shard for shard in shards if not is_written(directory, shard)]
    require_free(directory, sum(shard.nbytes for shard in pending), "the pruned checkpoint")
    total = sum(entry.nbytes for shard in pending for entry in shard.entries)
    with progress.task("writing the pruned checkpoint", total, "bytes") as task:
        for entry in write_shards(directory, shards, files.blocks, digests):
            task.advance(entry.nbytes)
    for file in copied_files(source.checkpoint.path):
        target = directory / file.relative_to(source.checkpoint.path)
        target.parent.mkdir(exist_ok=True)
        copy_file(file, target)
    write_text(directory / "README.md", model_card(files))
    write_json(directory / "config.json", written, indent=2)
    (directory / MARKER).unlink()
    return digests


def _plan(source: ModelSource) -> CompressionPlan:
    assert source.plan is not None, "a checkpoint is written through a plan"
    return source.plan


def _require_neurons(plan: CompressionPlan) -> None:
    for layer, row in plan.widths.items():
        for expert, width in enumerate(row):
            if 0 < width < plan.full_width:
                plan.neurons(layer, expert)


def _is_complete(config: Mapping[str, Any], directory: Path, shards: Sequence[Shard]) -> bool:
    """True when this very model is there; UserError when a finished other one is."""
    if not (directory / "config.json").is_file():
        return False
    if read_json(directory / "config.json") != config:
        raise UserError(
            f"{directory} already holds another model",
            "another output directory, or --force to overwrite this one",
        )
    return not (directory / MARKER).is_file() and all(is_written(directory, s) for s in shards)


def is_other_checkpoint(directory: Path, files: PrunedFiles) -> bool:
    """Whether a finished checkpoint other than ``files`` lies in ``directory``."""
    file = directory / "config.json"
    if not file.is_file():
        return False
    section, identity = read_json(file).get("tenp") or {}, files.identity
    return any(section.get(key) != identity.get(key) for key in _IDENTITY)


def reopen(directory: Path, files: PrunedFiles) -> None:
    """Make the finished checkpoint in ``directory``, of whose ``files`` some are missing, an
    unfinished one: `write_files` then writes what is missing and keeps the rest."""
    if directory.is_dir():
        JobRecord(directory / MARKER, files.identity).write()


def _claim(identity: Mapping[str, Any], directory: Path) -> None:
    """Mark ``directory`` as ours; what an interrupted run for another plan left is removed. The
    marker says whose half-written shards lie there; a shard that has its name is done."""
    directory.mkdir(parents=True, exist_ok=True)
    record = JobRecord(directory / MARKER, identity)
    files = sorted([*directory.glob("*.safetensors"), *directory.glob(INDEX_NAME)])
    if record.file.is_file():
        stale = files if record.found() is None else []
        for file in [*stale, *directory.glob("*.partial")]:
            file.unlink()
    elif files and not (directory / "config.json").is_file():
        raise UserError(
            f"{directory} holds {files[0].name}, which this run did not write",
            "an empty output directory, or --force to overwrite this one",
        )
    record.write()


def copied_files(directory: Path, patterns: Sequence[str] = COPIED) -> Iterator[Path]:
    """The files of a model directory that a pruned copy takes over as they are."""
    for pattern in patterns:
        for file in sorted(directory.glob(pattern)):
            if file.is_file() and file.name not in (INDEX_NAME, MARKER):
                yield file


def pruned_json(files: PrunedFiles) -> dict[str, Any]:
    """config.json of the pruned model: the source's, new counts, and the ``tenp`` section; how the
    weights are quantised where some are still."""
    source, stored = files.source, files.as_stored
    raw = {key: value for key, value in source.config.raw.items() if key not in _NOT_WRITTEN}
    if stored.any:
        raw[_QUANTISED] = with_unquantised(source.config, stored.unquantised)
    for key in _MTP_KEYS:
        if raw.get(key):
            raw[key] = 0
    counts = [key for key in EXPERT_KEYS if raw.get(key) is not None]
    for key in counts or [source.config.family.experts_key]:
        raw[key] = source.config.num_experts
    if _is_narrowed(source):
        raw["experts_implementation"] = _EXPERTS
    raw["tenp"] = _tenp_section(source) | files.identity
    return raw


def _is_narrowed(source: ModelSource) -> bool:
    full, widths = source.config.moe_intermediate_size, source.config.expert_widths
    return any(width != full for row in widths.values() for width in row)


def _tenp_section(source: ModelSource) -> dict[str, Any]:
    plan = _plan(source)
    section = {
        "version": TENP_VERSION,
        "tool": f"tenp-edge {__version__}",
        "method": plan.record.method or None,
        "keep_ratio": plan.keep_ratio,
        "source_fingerprint": plan.fingerprint,
        "digest": source.digest,
        "expert_widths": {
            str(layer): list(row) for layer, row in sorted(source.config.expert_widths.items())
        },
    }
    if source.config.constants:
        rows = sorted(source.config.constants.items())
        section["constants"] = {str(layer): sorted(row) for layer, row in rows}
    if plan.removes_experts:
        # Which experts of the source the remaining ones are.
        section["kept_experts"] = {
            str(layer): [source.original_expert(layer, expert) for expert in range(len(row))]
            for layer, row in sorted(source.config.expert_widths.items())
        }
    if tags := tags_of(source.checkpoint.path):
        section["tags"] = tags  # For files made of it; its own card says what it is itself.
    if source.planned_run is not None:
        section["run"] = source.planned_run.to_json() | {"file": plan.record.file}
    if isinstance(source.mended, Mended):
        info = source.mended.info
        section["mended"] = {**settings_of(info), "plan_digest": plan.digest}
    return section


# -- the model card ----------------------------------------------------------------------------


def model_card(files: PrunedFiles) -> str:
    """README.md of the pruned checkpoint: what was done, and how to load it."""
    source = files.source
    base = base_model(source.checkpoint.path, source.config.raw)
    name = base or f"A {source.config.family.model_type} model"
    shown = display_name(source.checkpoint.path, source.config.raw).split("/")[-1]
    front = {
        **({} if base is None else {"base_model": base}),
        **inherited(source.checkpoint.path),
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["tenp-edge", "moe", "pruned"],
        "model_name": shown,
    }
    return "\n".join([front_matter(front), f"# {shown}, pruned", "", _card_text(files, name)])


def _card_text(files: PrunedFiles, name: str) -> str:
    source = files.source
    plan, config = _plan(source), source.config
    widths = [width for row in config.expert_widths.values() for width in row]
    kept = config.expert_weights
    left_out = source.checkpoint.left_out_text
    extra = f"| left out | {left_out} |\n" if left_out else ""
    removed = "some of its routed experts" if plan.removes_experts else "neurons of its experts"
    loading = _NARROWED if _is_narrowed(source) else "Load it with:"
    return f"""\
{name} with {removed} removed by tenp-edge
{__version__}. {_unchanged(files)}

| | |
|---|---|
| method | {plan.record.method or "given widths"} |
| routed-expert parameters kept | {plan.keep_ratio:.2%} ({format_count(kept)}) |
| expert width | {min(widths)} to {max(widths)} of {plan.full_width} |
| experts per layer | {config.num_experts} |
| size | {format_size(files.nbytes)} |
{extra}
{loading}

```python
import tenp_edge

model = tenp_edge.load_pruned("PATH")
```

`tenp-edge export PATH --format gguf -o model.gguf` writes a GGUF from it.
"""


def _unchanged(files: PrunedFiles) -> str:
    """What of the original is still there as it was."""
    source = files.source
    if not isinstance(source.mended, Mended):
        rest = "Everything else, the router's remaining rows included, is the original's, bit for"
        return f"{rest}\nbit{_decoded(files)}."
    info, done = source.mended.info, []
    if info["repair"]:
        ridge = f"by ridge least squares ({info['repair_ridge']:g})"
        done.append(f"the down projections of the cut experts were refitted {ridge}")
    if info["heal"]:
        what = {"routers": "the routers", "norms": "the routers and the layers' norms"}
        done.append(f"{what[info['heal']]} were trained against the original, layer by layer")
    return "Then " + " and\n".join(done) + f".\nEverything else is the original's{_decoded(files)}."


def _decoded(files: PrunedFiles) -> str:
    """What to add of a quantised original: which weights are written as the numbers they mean."""
    if files.as_stored.any:
        return f". {files.as_stored.text}"
    weights = files.source.checkpoint.weights.values()
    titles = sorted({weight.layout.title for weight in weights if not weight.is_plain})
    return f", decoded from {' and '.join(titles)}" if titles else ""
