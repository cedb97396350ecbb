"""A model as it will be: a checkpoint seen through a plan, one tensor at a time.

The writer of pruned checkpoints, the exporters and the layer-by-layer forward all read weights
from here, so "prune, then export" and "export straight from the original" are the same code.
Without a plan it is the checkpoint itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import replace
from functools import cached_property, partial
from typing import Protocol

import torch

from tenp_edge.checkpoint.blocks import held_layer, held_rows
from tenp_edge.checkpoint.compression_plan import CompressionPlan
from tenp_edge.checkpoint.files import Checkpoint, ExpertWeights
from tenp_edge.checkpoint.overlay import Overlay, model_digest
from tenp_edge.checkpoint.slicing import slice_expert
from tenp_edge.errors import UserError
from tenp_edge.models import ModelConfig, TensorSpec, expected_tensors
from tenp_edge.runtime.memory.footprint import PlannedRun

BLOCK_BYTES = 64 * 2**20
# The experts of a layer are read again for each use where they would be more than this.
HELD_DECODED_BYTES = 2 * 2**30
_DOWN = -1
Rows = Callable[[int, int], torch.Tensor]


class WeightSource(Protocol):
    """Where the layer-by-layer forward takes a model's weights from, by their on-disk names.

    ``config``: of this very model, widths included. ``stored_dtype``: what the experts are stored
    in, None where reading decodes them (a quantised file), so that none is kept.
    """

    @property
    def config(self) -> ModelConfig: ...

    @property
    def stored_dtype(self) -> torch.dtype | None: ...

    @property
    def tensors(self) -> Mapping[str, TensorSpec]: ...

    def read(self, name: str) -> torch.Tensor: ...

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor: ...

    def held(self, name: str) -> Rows:
        """Matrix ``name`` kept in memory as it is stored: (start, stop) -> those rows."""
        ...

    def expert(self, layer: int, expert: int) -> ExpertWeights: ...

    def held_experts(self, layer: int) -> Callable[[int], ExpertWeights]:
        """The experts of ``layer`` by number, for who reads them many times: kept in memory as they
        are stored, where that takes less than reading them again."""
        ...


class StoredModel(WeightSource, Protocol):
    """The weights of an exported file, decoded. ``plan_digest``: what it was pruned by, if told."""

    @property
    def plan_digest(self) -> str | None: ...


class ModelSource:
    """Reads the pruned model's tensors from the unpruned checkpoint.

    ``config`` describes the model after pruning: ``expert_widths`` as planned, and where experts
    are removed, fewer of them. Expert numbers are those of the pruned model. ``mended``: tensors
    that repair or healing changed, by their names in the pruned model. ``budgeted``: it is for the
    file whose memory was planned.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        plan: CompressionPlan | None = None,
        mended: Overlay | None = None,
        budgeted: bool = True,
    ) -> None:
        if plan is not None:
            plan.check(checkpoint.config, checkpoint.fingerprint)
        self.checkpoint = checkpoint
        self.plan = plan
        self.mended = mended
        self._budgeted = budgeted
        self._last: tuple[tuple[int, int], ExpertWeights] | None = None
        self._kept = (
            {}
            if plan is None
            else {layer: torch.tensor(plan.kept_experts(layer)) for layer in plan.widths}
        )
        self.config = checkpoint.config if plan is None else pruned_config(checkpoint.config, plan)

    @property
    def planned_run(self) -> PlannedRun | None:
        """The run that the plan was made for: of the plan, or as a pruned checkpoint says."""
        if self.plan is None:
            planned = PlannedRun.from_json((self.config.raw.get("tenp") or {}).get("run"))
        else:
            memory, budget = self.plan.memory, self.plan.record.budget_bytes
            planned = PlannedRun.from_json({**memory, "ram_budget": budget or 0})
        if planned is None or self._budgeted:
            return planned
        return replace(planned, ram_budget=0, device="")

    @property
    def planned_file(self) -> str | None:
        """The file that the plan was made for; None where nobody says it."""
        if self.plan is not None:
            return self.plan.record.file
        told = ((self.config.raw.get("tenp") or {}).get("run") or {}).get("file")
        return None if told is None else str(told)

    @cached_property
    def tensors(self) -> dict[str, TensorSpec]:
        """Every tensor of the (pruned) model by its on-disk name, in file order."""
        return {spec.name: spec for spec in expected_tensors(self.config)}

    def read(self, name: str) -> torch.Tensor:
        """Tensor ``name`` of the pruned model in the stored dtype.

        Raises UserError when it holds a NaN or an infinity.
        """
        spec = self.tensors[name]
        if spec.expert is not None and spec.layer is not None:
            return self._expert_tensor(spec)
        if self._is_mended(name):
            return check_finite(name, self._mended(name))
        tensor = self.checkpoint.read(name)
        if spec.part == "router" and spec.layer in self._kept:
            experts = self._kept[spec.layer]
            tensor = tensor[..., experts] if spec.role == "router_bias" else tensor[experts]
        return check_finite(name, tensor)

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows ``start:stop`` of tensor ``name``, reading only them where it is stored as it is.

        For matrices too large to hold (embeddings). Raises UserError like `read`.
        """
        spec = self.tensors[name]
        if spec.expert is not None or spec.part == "router" or self._is_mended(name):
            return self.read(name)[start:stop]
        return check_finite(name, self.checkpoint.read_rows(name, start, stop))

    def held(self, name: str) -> Rows:
        """Matrix ``name`` in memory, as it is stored, as a function of (start, stop)."""
        blocks = None if self._is_mended(name) else held_rows(self.checkpoint, name)
        if blocks is not None:
            return lambda start, stop: check_finite(name, blocks(start, stop))
        whole = self.read(name)
        return lambda start, stop: whole[start:stop]

    def held_experts(self, layer: int) -> Callable[[int], ExpertWeights]:
        held = copy(self)
        held.checkpoint, held._last = held_layer(self.checkpoint, layer), None
        return partial(held.expert, layer)

    @property
    def stored_dtype(self) -> torch.dtype | None:
        """None of a quantised checkpoint whose layers are too large to be held decoded: 1.7 GB of
        gpt-oss-120b become 6.4."""
        return None if self._is_large_decoded else self.checkpoint.dtype

    @cached_property
    def _is_large_decoded(self) -> bool:
        config = self.config
        widest = max(map(sum, config.expert_widths.values()))
        nbytes = (
            len(config.family.matrices)
            * config.hidden_size
            * widest
            * self.checkpoint.dtype.itemsize
        )
        return nbytes > HELD_DECODED_BYTES and self.checkpoint.has_quantised_experts

    def blocks(self, name: str) -> Iterator[torch.Tensor]:
        """Tensor ``name`` in order, in blocks of rows where the whole would be large to hold."""
        spec = self.tensors[name]
        pruned = spec.part in ("routed experts", "router")
        nbytes = 0 if pruned else self.checkpoint.nbytes(name)
        if nbytes <= BLOCK_BYTES:
            yield self.read(name)
            return
        rows = spec.shape[0]
        step = max(1, BLOCK_BYTES * rows // nbytes)
        for start in range(0, rows, step):
            yield self.read_rows(name, start, min(start + step, rows))

    def dtype(self, name: str) -> str:
        """The safetensors name ("BF16") of the dtype that ``read(name)`` gives."""
        spec = self.tensors[name]
        if spec.expert is None or spec.layer is None:
            return self.checkpoint.dtype_of(name)
        original = self.original_expert(spec.layer, spec.expert)
        if _expert_part(spec) not in self.checkpoint.config.parts_of(spec.layer, original):
            return "F32"  # A constant that the plan makes.
        return self.checkpoint.expert_dtype(spec.layer, original, _expert_part(spec))

    def expert(self, layer: int, expert: int) -> ExpertWeights:
        """All matrices of one routed expert of the pruned model.

        The last expert is remembered: writers ask for its matrices one after the other.
        """
        if self._last is None or self._last[0] != (layer, expert):
            self._last = None  # before the next is read: never two in memory
            self._last = ((layer, expert), self._read_expert(layer, expert))
        return self._last[1]

    def _read_expert(self, layer: int, expert: int) -> ExpertWeights:
        original = self.original_expert(layer, expert)
        weights = self.checkpoint.expert(layer, original)
        for index, projection in enumerate(self.config.family.matrices):
            name = self.config.expert_tensor(layer, original, index)
            check_finite(name, getattr(weights, projection))
            bias = getattr(weights, f"{projection}_bias")
            if bias is not None:
                check_finite(self.config.expert_bias(layer, original, index), bias)
        if self.plan is None or self.plan.widths[layer][original] == self.plan.full_width:
            return weights
        sliced = slice_expert(weights, self.plan.neurons(layer, original))
        down = self.config.expert_tensor(layer, expert, _DOWN)
        if self._is_mended(down):
            return replace(sliced, down=self._mended(down))
        mean = (self.plan.means or {}).get((layer, original))
        return sliced if mean is None else replace(sliced, down_bias=_mean_output(weights, mean))

    def changes(self, name: str) -> bool:
        """Whether tensor ``name`` holds other numbers than the checkpoint's, cuts aside: it was
        mended, or lost rows with the experts that are removed."""
        removes = self.plan is not None and self.plan.removes_experts
        return self._is_mended(name) or (removes and self.tensors[name].part == "router")

    def _is_mended(self, name: str) -> bool:
        return self.mended is not None and name in self.mended

    def _mended(self, name: str) -> torch.Tensor:
        assert self.mended is not None
        tensor = self.mended.read(name)
        assert tuple(tensor.shape) == self.tensors[name].shape, name
        return tensor

    @property
    def digest(self) -> str | None:
        """Identity of what was done to the weights: by the plan, and by mending after it.

        Of a checkpoint that was pruned before, the one it names; None of one that was not.
        """
        if self.plan is not None:
            return model_digest(self.plan.digest, self.mended)
        named = (self.config.raw.get("tenp") or {}).get("digest")
        return None if named is None else str(named)

    def original_expert(self, layer: int, expert: int) -> int:
        """Number, in the unpruned model, of expert ``expert`` of the pruned one."""
        return expert if layer not in self._kept else int(self._kept[layer][expert])

    def _expert_tensor(self, spec: TensorSpec) -> torch.Tensor:
        assert spec.layer is not None and spec.expert is not None
        tensor = getattr(self.expert(spec.layer, spec.expert), _expert_part(spec))
        assert isinstance(tensor, torch.Tensor), spec.name
        return tensor


def _mean_output(weights: ExpertWeights, mean: torch.Tensor) -> torch.Tensor:
    """float32 [hidden], or as the bias is; ``mean``: of each neuron, [width]."""
    output, bias = weights.down.float() @ mean, weights.down_bias
    return output if bias is None else (output + bias.float()).to(bias.dtype)


def _expert_part(spec: TensorSpec) -> str:
    """The name in `ExpertWeights` of a routed expert's tensor."""
    return spec.role.removeprefix("expert_")


def pruned_config(config: ModelConfig, plan: CompressionPlan) -> ModelConfig:
    """``config`` with the plan's widths; removed experts are gone from the counts."""
    if config.raw.get("tenp"):
        raise UserError(
            "the checkpoint is already pruned (its config.json has a tenp section)",
            "prune the original model, which the section names by its fingerprint",
        )
    widths = {
        layer: tuple(row[expert] for expert in plan.kept_experts(layer))
        for layer, row in plan.widths.items()
    }
    counts = {len(row) for row in widths.values()}
    if len(counts) != 1 or min(counts) < config.num_experts_per_tok:
        raise UserError(
            f"the plan leaves {min(counts)} to {max(counts)} experts per layer; every layer needs "
            f"the same number, at least top-k = {config.num_experts_per_tok}"
        )
    bare = [layer for layer, row in widths.items() if not any(row)]
    if bare:
        raise UserError(f"the plan leaves no neurons in layer {bare[0]}", "plan again")
    if min(counts) % config.n_group:
        raise UserError(
            f"the plan leaves {min(counts)} experts per layer, which do not divide into the "
            f"router's {config.n_group} groups",
            f"a multiple of {config.n_group} experts",
        )
    constants = {
        layer: frozenset(expert for of, expert in plan.constants if of == layer) for layer in widths
    }
    constants = {layer: row for layer, row in constants.items() if row}
    return replace(config, num_experts=counts.pop(), expert_widths=widths, constants=constants)


def check_finite(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """``tensor`` itself; UserError when it holds a NaN or an infinity (one sum tells).

    A bf16 sum adds in float32 anyway; asked for as float32 it takes a path nine times slower.
    """
    if not torch.isfinite(tensor.sum()) and not torch.isfinite(tensor).all():
        bad = int((~torch.isfinite(tensor)).sum())
        raise UserError(
            f"{name} holds {bad} values that are not finite (NaN or infinity)",
            "a sound copy of the checkpoint",
        )
    return tensor
