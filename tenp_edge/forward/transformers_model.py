"""A pruned checkpoint as a transformers model: `generate()` works, names are as stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.forward.experts import RaggedExperts, set_experts
from tenp_edge.forward.streaming import compute_tensor, name_in_memory, skeleton
from tenp_edge.models import ModelConfig

_CPU = torch.device("cpu")


def load_pruned(path: str | Path, dtype: torch.dtype | None = None) -> Any:
    """The model in ``path`` (a checkpoint, pruned or not, or what `compress` wrote).

    ``dtype`` None keeps the stored one. Every tensor is read once, straight to its place. Raises
    UserError for a directory that is no usable checkpoint.
    """
    checkpoint = Checkpoint(path)
    return model_of(ModelSource(checkpoint), dtype or checkpoint.dtype)


def model_of(source: ModelSource, dtype: torch.dtype) -> Any:
    """The whole transformers model of ``source`` in memory, on the CPU."""
    config = source.config
    model = skeleton(config)
    for layer in config.expert_widths:
        experts = _experts(source, layer, dtype)
        set_experts(model.model.layers[layer], config.family, experts)
    for spec in source.tensors.values():
        if spec.expert is None:
            tensor = compute_tensor(spec, source.read(spec.name), _CPU, dtype)
            _assign(model, name_in_memory(config, spec), tensor)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
        _leave_out_alias(model)
    _rename_blocks(model, config)
    model.config.dtype = dtype
    _read_generation_config(model, source.checkpoint.path)
    assert not any(tensor.is_meta for tensor in model.state_dict().values())
    return model


def _experts(source: ModelSource, layer: int, dtype: torch.dtype) -> RaggedExperts:
    experts = []
    for number in range(len(source.config.expert_widths[layer])):
        weights = source.expert(layer, number)
        experts.append(weights.mapped(lambda tensor: tensor.to(dtype)))
    return RaggedExperts(experts, source.config.family)


def _assign(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Put ``tensor`` where the parameter or buffer ``name`` is on the meta device."""
    parent, _, leaf = name.rpartition(".")
    module = model.get_submodule(parent)
    is_parameter = leaf in module._parameters
    setattr(module, leaf, nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor)


def _rename_blocks(model: Any, config: ModelConfig) -> None:
    """Register what lies elsewhere in memory under its on-disk name: each MoE block (Mixtral's is
    not ``mlp``) and modules in it."""
    block, in_memory = config.family.moe_block, config.family.block_in_memory
    for layer in config.expert_widths if block else ():
        module = model.model.layers[layer]
        inner = module.get_submodule(in_memory)
        for name, owner in config.family.in_memory:
            _move(inner.get_submodule(owner), name, inner, name)
        if config.family.router_in_memory is not None:
            _rename_router(inner, config.family.router_in_memory, config.family.router)
        if block != in_memory:
            _move(module, in_memory, module, block)


def _move(owner: nn.Module, name: str, home: nn.Module, new_name: str) -> None:
    """Register ``owner.name`` in ``home``; the owner's forward still finds it, as a plain
    attribute."""
    moved = owner._modules.pop(name)
    owner.__dict__[name] = moved
    home.add_module(new_name, moved)


def _rename_router(block: nn.Module, name: str, stored: str) -> None:
    """Register the weight of the router ``name`` where the file has it, in a module of its own."""
    router = block.get_submodule(name)
    weight = router._parameters.pop("weight")
    router.__dict__["weight"] = weight
    home = nn.Module()
    home.register_parameter("weight", weight)
    router.add_module(stored.removeprefix(f"{name}."), home)


def _leave_out_alias(model: Any) -> None:
    """Tied embeddings are stored once: the state dict has no lm_head.weight, loading adds it."""

    def drop(_: nn.Module, state: dict[str, Any], prefix: str, __: Any) -> None:
        state.pop(f"{prefix}lm_head.weight", None)

    def add(_: nn.Module, state: dict[str, Any], prefix: str, *__: Any) -> None:
        embedding = state.get(f"{prefix}model.embed_tokens.weight")
        if embedding is not None:
            state.setdefault(f"{prefix}lm_head.weight", embedding)

    model._register_state_dict_hook(drop)
    model.register_load_state_dict_pre_hook(add)


def _read_generation_config(model: Any, path: Path) -> None:
    if (path / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(path, local_files_only=True)
