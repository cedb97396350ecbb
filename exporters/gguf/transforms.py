"""Tensors that the file stores in another form, each transform beside its inverse.

    role          source tensor               tensors of the file
    q, k          rows of a head in halves    rows of a head in pairs (arch llama only)
    kv_b          (heads (nope + v), rank)    k_b (heads, rank, nope), v_b (heads, v, rank)
    router_bias   (1, experts) or (experts,)  (experts,)
    conv, ssm_conv  (channels, 1, taps)       (channels, taps)
    norms         w, zero-centred             1 + w
    delta_*       a gated delta net's         see `delta_net_forms`
    ssm_a         log, (heads,)               - exp, (heads, 1)
    ssm_d         (heads,)                    (heads, 1)
    ssm_norm      (values,)                   (groups, values / groups)
    shared_gate_up  (2 width, hidden)         shared_gate, shared_up (width, hidden)
    any other     as it is                    as it is

`file_roles` names the file's tensors of a role, `to_file` gives one of them, `from_file` puts them
together again: nothing is rounded, so the round trip is the tensor bit for bit. Only where a number
is computed (1 + w, the decay of its logarithm) is it rounded, to float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from tenp_edge.exporters.gguf import delta_net_forms
from tenp_edge.exporters.gguf.architectures import architecture
from tenp_edge.models import Mamba2, ModelConfig

_LATENT = ("k_b", "v_b")
_SHARED = ("shared_gate", "shared_up")
_SPLIT = {
    "kv_b": _LATENT,
    "shared_gate_up": _SHARED,
    delta_net_forms.JOINED: delta_net_forms.PARTS,
}
_DELTA_NET = "delta_"
_Form = Callable[[ModelConfig, torch.Tensor], torch.Tensor]


def file_roles(role: str) -> tuple[str, ...]:
    """The roles in the file (keys of NAMES) of the source tensor of ``role``."""
    return _SPLIT.get(role, (role,))


def source_role(config: ModelConfig, file_role: str) -> str:
    """The role of the source tensor that a tensor of the file is made from."""
    if file_role in _SHARED and not config.family.shared_stacked:
        return file_role
    return next((role for role, parts in _SPLIT.items() if file_role in parts), file_role)


def file_columns(config: ModelConfig, file_role: str, columns: torch.Tensor) -> torch.Tensor:
    """What belongs to each column of a source matrix, [columns], in the order of the file's."""
    if file_role not in delta_net_forms.COLUMNS:
        return columns
    return to_file(config, file_role, columns[None])[0]


def is_transformed(config: ModelConfig, file_role: str) -> bool:
    """Whether `to_file` changes what it is given, and so needs the whole tensor at once."""
    if file_role.startswith(_DELTA_NET):
        return delta_net_forms.is_changed(config, file_role)
    changed = file_role in _FORMS or _is_zero_centred(config, file_role)
    changed = (
        changed or is_reshaped(config, file_role) or source_role(config, file_role) != file_role
    )
    return changed or _rotated_heads(config, file_role) is not None


def is_reshaped(config: ModelConfig, file_role: str) -> bool:
    """Whether that is all: the same numbers, in the same order."""
    if file_role.startswith(_DELTA_NET):
        return delta_net_forms.is_reshaped(config, file_role)
    return file_role in _RESHAPED or _is_row(config, file_role)


def to_file(config: ModelConfig, file_role: str, tensor: torch.Tensor) -> torch.Tensor:
    """The file's tensor ``file_role`` of the source tensor that it is made from."""
    if file_role.startswith(_DELTA_NET):
        return delta_net_forms.to_file(config, file_role, tensor)
    if file_role in _LATENT:
        return _split_latent(config, file_role, tensor)
    if _is_row(config, file_role):
        return tensor.reshape(-1)
    if file_role in _FORMS:
        return _FORMS[file_role][0](config, tensor)
    if _is_zero_centred(config, file_role):
        return 1 + tensor.float()
    if source_role(config, file_role) != file_role:
        return tensor.chunk(2)[_SHARED.index(file_role)]
    heads = _rotated_heads(config, file_role)
    return tensor if heads is None else _halves_to_pairs(tensor, heads)


def from_file(config: ModelConfig, role: str, *parts: torch.Tensor) -> torch.Tensor:
    """The source tensor of ``role`` from the file's tensors, in the order of `file_roles`."""
    if role.startswith(_DELTA_NET):
        return delta_net_forms.from_file(config, role, *parts)
    if role == "kv_b":
        return _join_latent(*parts)
    if len(parts) > 1:
        return torch.cat(parts)
    (tensor,) = parts
    if _is_row(config, role):
        return tensor.reshape(1, -1)
    if role in _FORMS:
        return _FORMS[role][1](config, tensor)
    if _is_zero_centred(config, role):
        return tensor - 1
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


_RESHAPED = frozenset(("conv", "ssm_conv", "ssm_d", "ssm_norm"))


def _is_row(config: ModelConfig, role: str) -> bool:
    """Of the biases that select experts, where the source has them as a matrix of one row."""
    return role == "router_bias" and config.family.router_bias_row


def _is_zero_centred(config: ModelConfig, role: str) -> bool:
    return role in config.family.zero_centred_roles


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
