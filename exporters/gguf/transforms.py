"""Tensors that the file stores in another form, each transform beside its inverse.

    role          source tensor               tensors of the file
    q, k          rows of a head in halves    rows of a head in pairs (arch llama only)
    kv_b          (heads (nope + v), rank)    k_b (heads, rank, nope), v_b (heads, v, rank)
    router_bias   (1, experts) or (experts,)  (experts,)
    conv, ssm_conv  (channels, 1, taps)       (channels, taps)
    ssm_a         log, (heads,)               - exp, (heads, 1)
    ssm_d         (heads,)                    (heads, 1)
    ssm_norm      (values,)                   (groups, values / groups)
    shared_gate_up  (2 width, hidden)         shared_gate, shared_up (width, hidden)
    any other     as it is                    as it is

`file_roles` names the file's tensors of a role, `to_file` gives one of them, `from_file` puts them
together again: the round trip is the tensor bit for bit, but for ssm_a's logarithm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from tenp_edge.exporters.gguf.architectures import architecture
from tenp_edge.models import Mamba2, ModelConfig

_LATENT = ("k_b", "v_b")
_SHARED = ("shared_gate", "shared_up")
_Form = Callable[[ModelConfig, torch.Tensor], torch.Tensor]


def file_roles(role: str) -> tuple[str, ...]:
    """The roles in the file (keys of NAMES) of the source tensor of ``role``."""
    return {"kv_b": _LATENT, "shared_gate_up": _SHARED}.get(role, (role,))


def source_role(config: ModelConfig, file_role: str) -> str:
    """The source tensor's role of the file's tensor ``file_role``."""
    stacked = file_role in _SHARED and config.family.shared_stacked
    return "shared_gate_up" if stacked else file_role


def is_transformed(config: ModelConfig, file_role: str) -> bool:
    """Whether `to_file` changes what it is given, and so needs the whole tensor at once."""
    flattened = file_role == "router_bias" and config.family.router_bias_row
    return (
        flattened
        or file_role in _FORMS
        or file_role in _LATENT
        or source_role(config, file_role) != file_role
        or _rotated_heads(config, file_role) is not None
    )


def to_file(config: ModelConfig, file_role: str, tensor: torch.Tensor) -> torch.Tensor:
    """The file's tensor ``file_role`` of the source tensor that it is made from."""
    if file_role in _LATENT:
        return _split_latent(config, file_role, tensor)
    if file_role == "router_bias" and config.family.router_bias_row:
        return tensor.reshape(-1)
    if file_role in _FORMS:
        return _FORMS[file_role][0](config, tensor)
    if source_role(config, file_role) != file_role:
        return tensor.chunk(2)[_SHARED.index(file_role)]
    heads = _rotated_heads(config, file_role)
    return tensor if heads is None else _halves_to_pairs(tensor, heads)


def from_file(config: ModelConfig, role: str, *parts: torch.Tensor) -> torch.Tensor:
    """The source tensor of ``role`` from the file's tensors, in the order of `file_roles`."""
    if role == "kv_b":
        return _join_latent(*parts)
    if len(parts) > 1:
        return torch.cat(parts)
    (tensor,) = parts
    if role == "router_bias" and config.family.router_bias_row:
        return tensor.reshape(1, -1)
    if role in _FORMS:
        return _FORMS[role][1](config, tensor)
    heads = _rotated_heads(config, role)
    return tensor if heads is None else _pairs_to_halves(tensor, heads)


# Helpers.


def _groups(config: ModelConfig) -> int:
    return next(mixer.groups for mixer in config.mixers if isinstance(mixer, Mamba2))


def _squeezed(config: ModelConfig, taps: torch.Tensor) -> torch.Tensor:
    return taps.squeeze(1)


def _unsqueezed(config: ModelConfig, taps: torch.Tensor) -> torch.Tensor:
    return taps.unsqueeze(1)


def _column(config: ModelConfig, values: torch.Tensor) -> torch.Tensor:
    return values.reshape(-1, 1)


def _flat(config: ModelConfig, values: torch.Tensor) -> torch.Tensor:
    return values.reshape(-1)


# Roles of which each tensor has another form in the file: (to it, from it).
_FORMS: Mapping[str, tuple[_Form, _Form]] = {
    "conv": (_squeezed, _unsqueezed),
    "ssm_conv": (_squeezed, _unsqueezed),
    "ssm_a": (
        lambda _, logs: -torch.exp(logs.float()).reshape(-1, 1),
        lambda _, decays: torch.log(-decays.float()).reshape(-1),
    ),
    "ssm_d": (_column, _flat),
    "ssm_norm": (lambda config, values: values.reshape(_groups(config), -1), _flat),
}


def _rotated_heads(config: ModelConfig, role: str) -> int | None:
    """Heads of a matrix whose rows are stored in pairs; None of any other."""
    heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads}
    return heads.get(role) if architecture(config).permuted else None


def _halves_to_pairs(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """[heads (2, half), ...] -> [heads (half, 2), ...]"""
    half = rows.shape[0] // heads // 2
    return rows.reshape(heads, 2, half, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def _pairs_to_halves(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """[heads (half, 2), ...] -> [heads (2, half), ...]"""
    half = rows.shape[0] // heads // 2
    return rows.reshape(heads, half, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def _split_latent(config: ModelConfig, file_role: str, kv_b: torch.Tensor) -> torch.Tensor:
    """kv_b [heads (nope + v), rank] -> k_b [heads, rank, nope] or v_b [heads, v, rank]"""
    assert config.mla is not None
    nope = config.mla.qk_nope_head_dim
    split = kv_b.reshape(config.num_attention_heads, -1, kv_b.shape[-1])
    if file_role == "k_b":
        return split[:, :nope].transpose(1, 2).contiguous()
    return split[:, nope:].contiguous()


def _join_latent(k_b: torch.Tensor, v_b: torch.Tensor) -> torch.Tensor:
    """k_b [heads, rank, nope], v_b [heads, v, rank] -> kv_b [heads (nope + v), rank]"""
    return torch.cat([k_b.transpose(1, 2), v_b], dim=1).reshape(-1, v_b.shape[-1])
