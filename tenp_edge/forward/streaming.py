"""The layer-by-layer forward: a model of any size, one decoder layer's weights in memory.

transformers' own layers do the arithmetic. The whole model exists on the meta device only; each
layer is filled with its weights when its turn comes, run over all sequences, and dropped.
Attention is causal and sequences are padded on the right, so padding needs no mask: what a real
token sees never includes it.
"""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear
from transformers import AutoConfig, AutoModelForCausalLM

from tenp_edge.checkpoint.files import ExpertWeights
from tenp_edge.checkpoint.source import WeightSource
from tenp_edge.errors import UserError
from tenp_edge.forward import sinks
from tenp_edge.forward.experts import RaggedExperts, ReadExperts, set_experts
from tenp_edge.models import EXPERT_KEYS, LayerAttention, ModelConfig, TensorSpec

_VOCAB_CHUNK = 16384
_ALIGNED = 32  # values, of two bytes or more
# Of a package of kernels for a GPU, which it would have everybody install: the same numbers.
logging.getLogger("transformers.integrations.hub_kernels").addFilter(
    lambda record: "falling back to its reference" not in record.getMessage()
)
# Keys of config.json that are not for the model; the last is for those who load it without us.
_NOT_FOR_MODELS = (
    "tenp",
    "auto_map",
    "model_type",
    "quantization_config",
    "time_step_limit",
    "experts_implementation",
)


def transformers_config(config: ModelConfig) -> Any:
    """The transformers config of ``config``, with the experts that are left."""
    # A copy all the way down: transformers writes into the nested rope parameters it is given, and
    # the raw config is what a checkpoint's fingerprint is made of.
    raw = copy.deepcopy(config.raw)
    raw = {k: v for k, v in raw.items() if k not in _NOT_FOR_MODELS}
    counts = [key for key in EXPERT_KEYS if raw.get(key) is not None]
    raw |= dict.fromkeys(counts or [config.family.experts_key], config.num_experts)
    try:
        return AutoConfig.for_model(config.raw["model_type"], **raw)
    except Exception as error:  # transformers checks keys that are none of ours, in many ways
        why = " ".join(str(error).split())[:200]
        raise UserError(
            f"transformers cannot read config.json: {why}",
            "the config.json that belongs to the checkpoint",
        ) from None


def skeleton(config: ModelConfig) -> Any:
    """The whole transformers model without weights (meta device), its rotary tables real."""
    hf_config = transformers_config(config)
    attention = "eager" if config.family.sinks else "sdpa"
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(hf_config, attn_implementation=attention)
    # What is computed, not stored, would stay empty on the meta device: rotary frequencies first.
    name = config.family.rotary_module
    if name is not None:
        setattr(model.model, name, type(getattr(model.model, name))(config=model.config))
    for module in model.modules():
        _fill_computed(model, module)
    return model.eval().requires_grad_(False)


def _fill_computed(model: Any, module: nn.Module) -> None:
    """Make the buffers of ``module`` that no checkpoint holds, as transformers does after loading;
    its weights, on the meta device, are not touched by that."""
    computed = [name for name, _ in module.named_buffers(recurse=False)]
    computed = [name for name in computed if name in module._non_persistent_buffers_set]
    computed = [name for name in computed if getattr(module, name).is_meta]
    for name in computed:
        setattr(module, name, torch.empty_like(getattr(module, name), device="cpu"))
    if computed:
        model._init_weights(module)


def name_in_memory(config: ModelConfig, spec: TensorSpec) -> str:
    """transformers' name for ``spec``: most families' MoE block is called ``mlp`` in memory."""
    block = config.family.moe_block
    if spec.layer is None or not block or not spec.name.startswith(config.moe_prefix(spec.layer)):
        return spec.name
    name = spec.name.removeprefix(config.moe_prefix(spec.layer))
    if config.family.router_in_memory is not None and spec.part == "router":
        name = name.replace(config.family.router, config.family.router_in_memory)
    owner = dict(config.family.in_memory).get(name.partition(".")[0])
    inner = name if owner is None else f"{owner}.{name}"
    return f"{config.layer_prefix(spec.layer)}{config.family.block_in_memory}.{inner}"


def compute_tensor(
    spec: TensorSpec, tensor: torch.Tensor, device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    """``tensor``, of any shape, as the forward wants it; the router's selection bias stays
    float32."""
    tensor_dtype = torch.float32 if spec.role == "router_bias" else dtype
    return tensor.to(device=device, dtype=tensor_dtype)


class StreamingModel:
    """One layer at a time of the model that ``source`` describes, on ``device`` in ``dtype``."""

    def __init__(
        self,
        source: WeightSource,
        device: torch.device,
        dtype: torch.dtype,
        like: StreamingModel | None = None,
    ) -> None:
        """``like``: another model of the same number of experts, whose empty layers are shared."""
        self.source, self.config = source, source.config
        self.device, self.dtype = device, dtype
        self._skeleton: Any = skeleton(source.config) if like is None else like._skeleton
        if source.config.family.sinks:
            self._skeleton.config._attn_implementation = sinks.NAME
        rotary = source.config.family.rotary_module
        self._rotary = None if rotary is None else getattr(self._skeleton.model, rotary).to(device)
        # Where transformers lets layers share keys and values, a layer may leave its own behind.
        parameters = inspect.signature(self._skeleton.model.layers[0].forward).parameters
        self._shared: dict[str, Any] = (
            {"shared_kv_states": {}} if "shared_kv_states" in parameters else {}
        )

    def with_source(self, source: WeightSource) -> StreamingModel:
        """The same forward over another plan of the model; shares what does not depend on it."""
        same = source.config.num_experts == self.config.num_experts
        return StreamingModel(source, self.device, self.dtype, like=self if same else None)

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """[n, seq] int64 -> [n, seq, hidden]; reads the embedding a slice of rows at a time."""
        ids, places = torch.unique(tokens, return_inverse=True)
        table = torch.empty(len(ids), self.config.hidden_size, dtype=self.dtype)
        for start in range(0, self.config.vocab_size, _VOCAB_CHUNK):
            stop = min(start + _VOCAB_CHUNK, self.config.vocab_size)
            inside = (ids >= start) & (ids < stop)
            if inside.any():
                rows = self.source.read_rows(self.config.embedding_name, start, stop)
                table[inside] = rows[ids[inside] - start].to(self.dtype)
        if self.config.family.embedding_scale:
            table *= torch.tensor(self.config.hidden_size**0.5).to(self.dtype)
        table *= self.config.multipliers.embedding
        return table[places]

    def layer(self, index: int) -> nn.Module:
        """Decoder layer ``index`` with its weights; drop it before asking for the next."""
        layer = copy.deepcopy(self._skeleton.model.layers[index])
        prefix = self.config.layer_prefix(index)
        state = {
            name_in_memory(self.config, spec).removeprefix(prefix): compute_tensor(
                spec, self.source.read(spec.name), self.device, self.dtype
            )
            for spec in self.source.tensors.values()
            if spec.layer == index and spec.expert is None
        }
        if index in self.config.expert_widths:
            set_experts(layer, self.config.family, self._experts(index))
        unexpected = layer.load_state_dict(state, strict=False, assign=True).unexpected_keys
        assert not unexpected and not any(t.is_meta for t in layer.state_dict().values())
        layer.streamed_index = index
        return layer.requires_grad_(False)  # type: ignore[no-any-return]

    def _experts(self, layer: int) -> RaggedExperts:
        """Kept in the smaller of the stored and the computing dtype: half the memory of a bf16
        layer that is computed in float32, for 2 % of its time. Decoded ones are not kept."""
        stored, family = self.source.stored_dtype, self.config.family
        count = len(self.config.expert_widths[layer])
        if stored is None:
            read = self.source.held_experts(layer)
            return ReadExperts(lambda e: self._moved(read(e), self.dtype), count, family)
        kept = stored if stored.itemsize < self.dtype.itemsize else self.dtype
        read = partial(self.source.expert, layer)
        room = Room(_numbers(self.config, layer), kept, self.device)
        return RaggedExperts([read(e).mapped(room.moved) for e in range(count)], family)

    def _moved(self, weights: ExpertWeights, dtype: torch.dtype) -> ExpertWeights:
        return weights.mapped(lambda tensor: tensor.to(self.device, dtype))

    @torch.no_grad()
    def run(self, layer: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        """``layer`` over ``hidden`` [n, seq, hidden], in and out on the device."""
        return self.forward(layer, hidden)

    def forward(self, layer: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        """`run`, [n, seq, hidden] to the same, with whatever the caller says about gradients."""
        positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
        index = layer.streamed_index
        assert isinstance(index, int)
        output = layer(
            hidden,
            attention_mask=self._mask(index, positions[0]),
            position_ids=positions,
            **self._rotations(index, hidden, positions),
            **self._shared,
        )
        assert isinstance(output, torch.Tensor)
        return output

    def _mask(self, layer: int, positions: torch.Tensor) -> torch.Tensor | None:
        """bool (1, 1, query, key): what the layer sees; None where that is all up to the query,
        which the operator knows by itself, and where it does not attend: a state is of what came
        before, and padding comes after."""
        own = self.config.mixers[layer]
        if not isinstance(own, LayerAttention):
            return None
        window = own.window
        if window is None and not self.config.family.sinks:
            return None
        behind = positions[:, None] - positions[None]
        return ((behind >= 0) & (behind < (window or len(positions))))[None, None]

    def _rotations(
        self, layer: int, hidden: torch.Tensor, positions: torch.Tensor
    ) -> dict[str, Any]:
        """Cosines and sines of ``positions``, for a layer's forward, where the family rotates; one
        of two rotations is asked for one of them by the layer's type."""
        if self._rotary is None:
            return {}
        two = self.config.family.layer_keys is not None
        kind = (self._skeleton.config.layer_types[layer],) if two else ()
        return {"position_embeddings": self._rotary(hidden, positions, *kind)}

    def final_norm(self, name: str) -> nn.Module:
        """The empty module of the tensor ``name``."""
        found = self._skeleton.get_submodule(name.removesuffix(".weight"))
        assert isinstance(found, nn.Module)
        return found

    def head(self) -> Head:
        """The final norm and output matrix."""
        return Head(self)


class Room:
    """One block of memory for the tensors of a layer's experts, gone at once with the last of them.

    Allocated one by one among what decoding takes for the while, they left the heap of a long run
    half holes: 1.1 GiB beside 1.5 GiB of experts after a dozen layers.
    """

    def __init__(self, numbers: Iterable[int], dtype: torch.dtype, device: torch.device) -> None:
        """``numbers`` of values of every tensor that will be moved here, in any order."""
        total = sum(map(_aligned, numbers))
        self._block, self._used = torch.empty(total, dtype=dtype, device=device), 0

    def moved(self, tensor: torch.Tensor) -> torch.Tensor:
        """``tensor`` here, of the same shape, in the dtype of the room."""
        end = self._used + tensor.numel()
        place = self._block[self._used : end].view(tensor.shape)
        self._used += _aligned(tensor.numel())
        return place.copy_(tensor)


def _aligned(count: int) -> int:
    """``count`` values up to where the next tensor may begin: 64 bytes or more apart, as torch's
    own are, for the kernels' sake."""
    return -(-count // _ALIGNED) * _ALIGNED


def _numbers(config: ModelConfig, layer: int) -> Iterator[int]:
    """How many values every tensor of the layer's experts has."""
    for expert, width in enumerate(config.expert_widths[layer]):
        for part in config.parts_of(layer, expert):
            projection, _, bias = part.partition("_")
            rows = config.hidden_size if projection == "down" else width
            yield rows if bias else config.hidden_size * width


class Head:
    """Final norm and output matrix, the matrix as it is stored, cast a slice at a time."""

    def __init__(self, model: StreamingModel) -> None:
        source = model.source
        norm_name = model.config.norm_name
        norm = copy.deepcopy(model.final_norm(norm_name))
        tied = model.config.tie_word_embeddings
        self.dtype, self.device = model.dtype, model.device
        self._softcap = model.config.logit_softcap
        self._multiplier = model.config.multipliers.logits
        self.vocab = model.config.vocab_size
        self.rows = source.held(model.config.embedding_name if tied else "lm_head.weight")
        scale = source.read(norm_name).to(model.device, model.dtype)
        norm.load_state_dict({"weight": scale}, assign=True)
        self.norm = norm

    @torch.no_grad()
    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """[tokens, hidden] -> float32 logits [tokens, vocab] on the CPU."""
        normed = self.norm(hidden.to(self.device))
        logits = torch.empty(len(hidden), self.vocab)
        for start in range(0, self.vocab, _VOCAB_CHUNK):
            stop = min(start + _VOCAB_CHUNK, self.vocab)
            rows = self.rows(start, stop).to(self.device, self.dtype)
            logits[:, start : start + len(rows)] = self.capped(linear(normed, rows)).float()
        return logits

    def capped(self, products: torch.Tensor) -> torch.Tensor:
        """Logits of what the output matrix gives: scaled, and within the family's bound, where it
        has these."""
        bound, scaled = self._softcap, products * self._multiplier
        return scaled if bound is None else torch.tanh(scaled / bound) * bound


def check_tokens(config: ModelConfig, tokens: torch.Tensor) -> None:
    """Raise UserError for ``tokens`` [n, seq] or a length that the model does not have."""
    if tokens.numel() and int(tokens.max()) >= config.vocab_size:
        raise UserError(
            f"token {int(tokens.max())} is outside the model's vocabulary of {config.vocab_size}",
            "the tokenizer that belongs to this checkpoint",
        )
    if tokens.shape[1] > config.max_position_embeddings:
        raise UserError(
            f"sequences of {tokens.shape[1]} tokens are longer than the model's "
            f"{config.max_position_embeddings} positions",
            f"--seq-len {config.max_position_embeddings} or less",
        )
