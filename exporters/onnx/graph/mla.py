"""DeepSeek's multi-head latent attention, its keys and values expanded to heads.

    x ── (q_a ── norm ── q_b | q) ──┬── without position ───────────┐
                                    └── rotary ──────────────── Concat ── q ──┐
    x ── kv_a ──┬── norm ── kv_b ──┬── keys without position ── Concat ── k ──┼── Attention ── o
                │                  └── values (padded) ───────────── v ───────┘
                └── rotary (one head) ── Expand to heads ──────┘

With ``latent`` the cache holds what goes into kv_b and the rotated key instead of k and v, and
kv_b runs over past and present alike, as transformers does it.
"""

from __future__ import annotations

import onnx_ir as ir

from tenp_edge.exporters.onnx.graph.context import Context, Heads
from tenp_edge.exporters.onnx.graph.rope import attention_scale

# The norms inside MLA take transformers' default, not the config's.
_EPSILON = 1e-6


def latent_attention(c: Context, path: str, x: ir.Value, layer: int) -> ir.Value:
    """(batch, query, hidden) -> (batch, query, hidden)."""
    count = c.config.layer_attention(layer).heads
    q = _query(c, path, x, layer)
    latent, position = _low_rank(c, path, x, layer)
    if c.latent:
        latent, position = _with_past(c, f"{path}/cache", latent, position, layer)
    # A latent cache holds no values: what they expand to is as long as the model says.
    size = c.mla.v_head_dim if c.latent else c.run.caches[layer].value_size
    k, v = _expanded(c, path, latent, position, layer, size)
    heads = Heads(count, count, attention_scale(c.config, layer))
    mixed = c.makers.attend(c, path, q, k, v, heads, None if c.latent else layer)
    mixed = _values_alone(c, f"{path}/v_unpad", mixed, count, size)
    return c.linear(f"{path}/o_proj", mixed, "o", layer)


def _query(c: Context, path: str, x: ir.Value, layer: int) -> ir.Value:
    """(batch, query, heads x head_dim), the rotary part of each head rotated and last."""
    mla, attention = c.mla, c.config.layer_attention(layer)
    if mla.q_lora_rank is None:
        q = c.linear(f"{path}/q_proj", x, "q", layer)
    else:
        low = c.linear(f"{path}/q_a_proj", x, "q_a", layer)
        low = c.norm(f"{path}/q_a_norm", low, "q_a_norm", layer, _EPSILON)
        q = c.linear(f"{path}/q_b_proj", low, "q_b", layer)
    by_head = c.g.op(f"{path}/q_heads", "Reshape", [q, [0, 0, attention.heads, attention.head_dim]])
    sizes = [mla.qk_nope_head_dim, mla.qk_rope_head_dim]
    plain, position = _cut(c, f"{path}/q_heads", by_head, sizes)
    flat = c.g.op(f"{path}/q_flat", "Reshape", [position, [0, 0, attention.heads * sizes[1]]])
    rotated = c.makers.rotary(c, f"{path}/q_rotary", flat, attention.heads, True, layer)
    rotated = c.g.op(f"{path}/q_rotated", "Reshape", [rotated, [0, 0, attention.heads, sizes[1]]])
    return _joined(c, f"{path}/q", plain, rotated, attention.heads * attention.head_dim)


def _low_rank(c: Context, path: str, x: ir.Value, layer: int) -> tuple[ir.Value, ir.Value]:
    """The normalised latent (batch, query, rank) and the rotated key (batch, query, rotary)."""
    low = c.linear(f"{path}/kv_a_proj", x, "kv_a", layer)
    sizes = [c.mla.kv_lora_rank, c.mla.qk_rope_head_dim]
    latent, position = _cut(c, f"{path}/kv_a", low, sizes)
    latent = c.norm(f"{path}/kv_a_norm", latent, "kv_a_norm", layer, _EPSILON)
    return latent, c.makers.rotary(c, f"{path}/k_rotary", position, 1, True, layer)


def _with_past(
    c: Context, path: str, latent: ir.Value, position: ir.Value, layer: int
) -> tuple[ir.Value, ir.Value]:
    """Past and new latents and rotated keys, (batch, key, size); both are kept as they are."""
    squeezed, kept = [], []
    for name, new, past in zip(("k", "v"), (latent, position), c.run.past[layer], strict=True):
        one_head = c.g.op(f"{path}/{name}_head", "Unsqueeze", [new, [1]])
        whole = c.g.op(f"{path}/{name}", "Concat", [past, one_head], axis=2)
        kept.append(whole)
        squeezed.append(c.g.op(f"{path}/{name}", "Squeeze", [whole, [1]]))
    c.present(layer, *kept)
    return squeezed[0], squeezed[1]


def _expanded(
    c: Context, path: str, latent: ir.Value, position: ir.Value, layer: int, size: int
) -> tuple[ir.Value, ir.Value]:
    """Keys (batch, key, heads x head_dim) and values (batch, key, heads x cached ``size``)."""
    mla, heads = c.mla, c.config.layer_attention(layer).heads
    both = c.linear(f"{path}/kv_b_proj", latent, "kv_b", layer)
    sizes = [mla.qk_nope_head_dim, mla.v_head_dim]
    both = c.g.op(f"{path}/kv_heads", "Reshape", [both, [0, 0, heads, sum(sizes)]])
    plain, value = _cut(c, f"{path}/kv_heads", both, sizes)
    rotary = mla.qk_rope_head_dim
    one = c.g.op(f"{path}/k_rotated", "Reshape", [position, [0, 0, 1, rotary]])
    every = c.g.op(f"{path}/k_rotated", "Concat", [one] * heads, axis=2)
    if size > mla.v_head_dim:
        pads = [0] * 7 + [size - mla.v_head_dim]
        value = c.g.op(f"{path}/v_pad", "Pad", [value, pads])
    value = c.g.op(f"{path}/v", "Reshape", [value, [0, 0, heads * size]])
    width = heads * c.config.layer_attention(layer).head_dim
    return _joined(c, f"{path}/k", plain, every, width), value


def _cut(c: Context, path: str, x: ir.Value, sizes: list[int]) -> tuple[ir.Value, ir.Value]:
    """Two parts of the last dimension. Slices: not every compiler takes an uneven Split."""
    first, second = sizes
    return (
        c.g.op(f"{path}/first", "Slice", [x, [0], [first], [-1]]),
        c.g.op(f"{path}/second", "Slice", [x, [first], [first + second], [-1]]),
    )


def _joined(c: Context, path: str, plain: ir.Value, rotated: ir.Value, width: int) -> ir.Value:
    """(batch, n, heads, size) twice -> (batch, n, heads x head_dim), which is ``width``."""
    whole = c.g.op(path, "Concat", [plain, rotated], axis=-1)
    return c.g.op(path, "Reshape", [whole, [0, 0, width]])


def _values_alone(c: Context, path: str, mixed: ir.Value, heads: int, size: int) -> ir.Value:
    """Each head's output without the padding of its values, which are ``size`` long."""
    kept = c.mla.v_head_dim
    if size == kept:
        return mixed
    by_head = c.g.op(f"{path}/split", "Reshape", [mixed, [0, 0, heads, size]])
    values = c.g.op(path, "Slice", [by_head, [0], [kept], [3]])
    return c.g.op(f"{path}/merge", "Reshape", [values, [0, 0, heads * kept]])
