"""How a GGUF stores a gated delta net's tensors, each form beside its inverse.

    role                     source tensor              tensors of the file
    delta_qkvz               q, k, v, z by key head     delta_qkv: all q, all k, all v; delta_z
    delta_conv               (channels, 1, kernel)      (channels, kernel)
    delta_decay              log of a decay             minus the decay
    delta_ba                 beta, alpha by key head    as it is
    any, matrices apart      value heads by group       value heads by turns

Value heads lie grouped by the key head that serves them. Of a family whose matrices lie apart,
llama.cpp wants the first of every group, then the second of every group (as ggml repeats key
heads); of one whose matrices lie together, the groups.
"""

from __future__ import annotations

import torch

from tenp_edge.models import DeltaNet, ModelConfig

JOINED, PARTS = "delta_qkvz", ("delta_qkv", "delta_z")
COLUMNS = ("delta_out",)  # whose columns may be in another order
_CHANGED = frozenset({*PARTS, "delta_conv", "delta_decay"})
_BY_VALUE_HEAD = frozenset(
    "delta_qkv delta_z delta_a delta_b delta_dt_bias delta_decay delta_conv delta_out".split()
)


def is_changed(config: ModelConfig, file_role: str) -> bool:
    """Whether the file holds the tensor in another form."""
    return file_role in (_BY_VALUE_HEAD if _is_apart(config) else _CHANGED)


def is_reshaped(config: ModelConfig, file_role: str) -> bool:
    """Whether that is all: the same numbers, in the same order."""
    return file_role == "delta_conv" and not _is_apart(config)


def to_file(config: ModelConfig, file_role: str, tensor: torch.Tensor) -> torch.Tensor:
    """The file's tensor ``file_role`` of the source tensor that it is made from."""
    net = delta_net(config)
    if file_role in PARTS and not _is_apart(config):
        return _split(net, tensor)[PARTS.index(file_role)]
    if file_role == "delta_conv":
        tensor = tensor.squeeze(1)
    if file_role == "delta_decay":
        tensor = -tensor.float().exp()
    return _reordered(config, file_role, tensor, (net.key_heads, _served(net)))


def from_file(config: ModelConfig, role: str, *parts: torch.Tensor) -> torch.Tensor:
    """The source tensor of ``role`` from the file's tensors."""
    net = delta_net(config)
    if role == JOINED:
        return _join(net, *parts)
    (tensor,) = parts
    tensor = _reordered(config, role, tensor, (_served(net), net.key_heads))
    if role == "delta_decay":
        return (-tensor).log()
    return tensor[:, None] if role == "delta_conv" else tensor


def delta_net(config: ModelConfig) -> DeltaNet:
    """The sizes, which all delta nets of a model share."""
    return next(own for own in config.mixers if isinstance(own, DeltaNet))


# Helpers.


def _is_apart(config: ModelConfig) -> bool:
    return not config.family.joined_projections


def _served(net: DeltaNet) -> int:
    """Value heads of a key head."""
    return net.value_heads // net.key_heads


def _reordered(
    config: ModelConfig, role: str, tensor: torch.Tensor, counts: tuple[int, int]
) -> torch.Tensor:
    """``tensor`` with its value heads, which lie as ``counts`` says, taken by turns, where the file
    wants another order of them."""
    if role not in _BY_VALUE_HEAD or not _is_apart(config):
        return tensor
    if role in COLUMNS:
        return _turned(tensor.T, counts).T.contiguous()
    kept = 2 * delta_net(config).key_size if role in ("delta_qkv", "delta_conv") else 0
    return torch.cat([tensor[:kept], _turned(tensor[kept:], counts)])


def _turned(rows: torch.Tensor, counts: tuple[int, int]) -> torch.Tensor:
    """[(a b size), ...] -> [(b a size), ...]"""
    split = rows.reshape(*counts, -1, *rows.shape[1:])
    return split.transpose(0, 1).reshape(rows.shape)


def _split(net: DeltaNet, qkvz: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[key heads (q + k + v + z), hidden] -> all of q, k and v; all of z"""
    by_head = qkvz.reshape(net.key_heads, -1, qkvz.shape[-1])
    q, k, v, z = (part.flatten(0, 1) for part in torch.split(by_head, _sizes(net), dim=1))
    return torch.cat([q, k, v]), z


def _join(net: DeltaNet, qkv: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    parts = (*torch.split(qkv, [net.key_size, net.key_size, net.value_size]), z)
    by_head = [part.reshape(net.key_heads, -1, part.shape[-1]) for part in parts]
    return torch.cat(by_head, dim=1).flatten(0, 1)


def _sizes(net: DeltaNet) -> list[int]:
    """Rows of q, k, v and z of one key head."""
    values = _served(net) * net.head_dim
    return [net.head_dim, net.head_dim, values, values]
