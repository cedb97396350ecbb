"""The layer-by-layer forward computes what transformers computes, for any widths."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import plans, tiny
from support.neuron_maths import mask_cut_neurons
from support.references import reference_model

from tenp_edge.checkpoint.compression_plan import CompressionPlan
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.errors import UserError
from tenp_edge.forward.device import choose_device, choose_dtype
from tenp_edge.forward.experts import GROUP_MULTIPLE, group_by_expert, pad_group, routed_experts
from tenp_edge.forward.streaming import StreamingModel
from tenp_edge.forward.sweep import streaming_logits
from tenp_edge.forward.text_batch import batches

CPU = torch.device("cpu")
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "yarn": ("qwen3_moe", {"rope_parameters": YARN, "max_position_embeddings": 256}),
    "query_rank": ("deepseek_v2", {"q_lora_rank": 48}),
    "groups": (
        "deepseek_v2",
        {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2},
    ),
    "dense_layer": ("qwen2_moe", {"mlp_only_layers": [1]}),
    "tied": ("mixtral", {"tie_word_embeddings": True}),
    "fused": ("olmoe", {"fused": True}),
    "routed_between": ("ernie4_5_moe", {"moe_layer_end_index": 1, "moe_layer_start_index": 0}),
    "head_norms": ("glm4_moe", {"use_qk_norm": True, "partial_rotary_factor": 0.25}),
    "layer_types": ("glm4_moe_lite", {"mlp_layer_types": ["dense", "dense", "sparse"]}),
}


def some_tokens(count: int = 3, seq_len: int = 90) -> torch.Tensor:
    return torch.randint(
        0, tiny.VOCAB, (count, seq_len), generator=torch.Generator().manual_seed(0)
    )


def streamed(
    source: ModelSource, tokens: torch.Tensor, dtype: torch.dtype = torch.float32, **options: Any
) -> torch.Tensor:
    return torch.stack(list(streaming_logits(source, tokens, device=CPU, dtype=dtype, **options)))


@torch.no_grad()
def whole(path: Path, tokens: torch.Tensor, plan: CompressionPlan | None = None) -> torch.Tensor:
    """transformers' logits; with a plan, of the full model with the cut neurons zeroed."""
    model = reference_model(path, experts_implementation="eager")
    if plan is not None:
        mask_cut_neurons(model, plan)
    return model(tokens).logits


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    bound = 1e-4 * max(1.0, float(expected.std()))
    assert float((found - expected).abs().max()) < bound


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_equals_transformers(family: str, checkpoint_of: Callable[[str], Path]) -> None:
    path, tokens = checkpoint_of(family), some_tokens()
    assert_close(streamed(ModelSource(Checkpoint(path)), tokens), whole(path, tokens))


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_equal_transformers(variant: str, tmp_path: Path) -> None:
    family, changes = VARIANTS[variant]
    path, tokens = tiny.make(tmp_path, family, **changes), some_tokens()
    assert_close(streamed(ModelSource(Checkpoint(path)), tokens), whole(path, tokens))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_mask_equals_slice(family: str, checkpoint_of: Callable[[str], Path]) -> None:
    """Invariant 1, with a different width for every expert."""
    path, tokens = checkpoint_of(family), some_tokens()
    checkpoint = Checkpoint(path)
    plan = plans.plan_for(checkpoint, plans.cycled(checkpoint, (32, 17, 96, 64, 1)))
    sliced = streamed(ModelSource(checkpoint, plan), tokens)
    assert_close(sliced, whole(path, tokens, plan))
    dense = whole(path, tokens)
    assert float((sliced - dense).abs().max()) > 1e-2 * float(dense.std())


@pytest.mark.parametrize("family", ["gpt_oss", "nemotron_h"])
def test_experts_of_a_layer_lie_in_one_block(
    family: str, checkpoint_of: Callable[[str], Path]
) -> None:
    """Of any widths; each tensor begins where torch's kernels like it."""
    checkpoint = Checkpoint(checkpoint_of(family))
    plan = plans.plan_for(checkpoint, plans.cycled(checkpoint, (32, 17, 96, 64, 1)))
    source, layer = ModelSource(checkpoint, plan), max(checkpoint.config.moe_layers)
    experts = routed_experts(StreamingModel(source, CPU, torch.float32).layer(layer))
    stored = [experts[e].matrices(torch.float32).parts for e in range(len(experts))]
    assert len({t.untyped_storage().data_ptr() for parts in stored for t in parts.values()}) == 1
    assert not any(t.data_ptr() % 64 for parts in stored for t in parts.values())
    for expert, parts in enumerate(stored):
        for name, tensor in source.expert(layer, expert).parts.items():
            assert torch.equal(parts[name], tensor), name


def test_an_expert_is_converted_where_the_last_one_was(tmp_path: Path) -> None:
    """Else every expert of a layer leaves a hole in the heap; a backward pass needs them all."""
    path = tiny.make(tmp_path, "qwen3_moe", torch_dtype="bfloat16")
    source = ModelSource(Checkpoint(path))
    experts = routed_experts(StreamingModel(source, CPU, torch.float32).layer(0))
    with torch.no_grad():
        first, second = (experts.computed(e, torch.float32).down for e in (0, 1))
        assert first.data_ptr() == second.data_ptr()
        assert torch.equal(second, source.expert(0, 1).down.float())
    first, second = (experts.computed(e, torch.float32).down for e in (0, 1))
    assert first.data_ptr() != second.data_ptr()


def test_removed_experts_leave_the_router(checkpoint_of: Callable[[str], Path]) -> None:
    checkpoint = Checkpoint(checkpoint_of("qwen3_moe"))
    source = ModelSource(checkpoint, plans.removal_plan(checkpoint, keep=5))
    logits = streamed(source, some_tokens())
    assert logits.isfinite().all()


def test_bfloat16_is_near_float32(checkpoint_of: Callable[[str], Path]) -> None:
    source = ModelSource(Checkpoint(checkpoint_of("qwen2_moe")))
    exact = streamed(source, some_tokens())
    rough = streamed(source, some_tokens(), dtype=torch.bfloat16)
    # Single tokens may change an expert, so the middle is judged, not the maximum.
    error = float((rough - exact).abs().median() / exact.std())
    assert 0 < error < 0.05


def test_spilled_states_give_the_same(checkpoint_of: Callable[[str], Path], tmp_path: Path) -> None:
    source, tokens = ModelSource(Checkpoint(checkpoint_of("mixtral"))), some_tokens()
    spilled = streamed(source, tokens, work=tmp_path, spill_bytes=0)
    assert torch.equal(spilled, streamed(source, tokens))
    assert not list(tmp_path.iterdir())


def test_first_position(checkpoint_of: Callable[[str], Path]) -> None:
    source, tokens = ModelSource(Checkpoint(checkpoint_of("olmoe"))), some_tokens()
    tail = streamed(source, tokens, first_position=70)
    assert tail.shape == (3, 20, tiny.VOCAB)
    assert_close(tail, streamed(source, tokens)[:, 70:])


def test_groups_cover_every_choice_once() -> None:
    chosen = torch.tensor([[2, 0], [0, 4], [2, 1], [4, 4]])  # 4 is "skipped"
    groups = {e: (r.tolist(), s.tolist()) for e, r, s in group_by_expert(chosen, 4)}
    assert groups == {0: ([0, 1], [1, 0]), 1: ([2], [1]), 2: ([0, 2], [0, 0])}


def test_groups_are_padded_where_kernels_are_compiled_per_shape() -> None:
    rows = torch.ones(GROUP_MULTIPLE + 3, 8)
    assert pad_group(rows).shape == rows.shape
    padded = pad_group(rows.bfloat16())
    assert len(padded) == 2 * GROUP_MULTIPLE and not padded[len(rows) :].any()


def test_batches_hold_whole_sequences() -> None:
    assert batches(5, 100, 250) == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert batches(2, 1000, 10) == [slice(0, 1), slice(1, 2)]


def test_dtypes() -> None:
    assert choose_dtype("float16", CPU, torch.bfloat16) == torch.float16
    assert choose_dtype("auto", CPU, torch.float16) == torch.float32
    assert choose_dtype("auto", torch.device("cuda"), torch.float16) == torch.float16
    assert choose_dtype("auto", CPU, torch.bfloat16) in (torch.bfloat16, torch.float32)
    with pytest.raises(UserError) as error:
        choose_dtype("int8", CPU, torch.float32)
    assert str(error.value) == "'int8' is not a dtype\ntry: --dtype auto|float32|bfloat16|float16"


def test_devices() -> None:
    assert choose_device("cpu") == CPU
    with pytest.raises(UserError) as error:
        choose_device("tpu")
    assert str(error.value) == "'tpu' is not a device\ntry: --device auto|cpu|cuda|mps"
    if not torch.cuda.is_available():
        with pytest.raises(UserError) as error:
            choose_device("cuda")
        assert str(error.value) == "torch sees no cuda device on this machine\ntry: --device cpu"


def test_tokens_that_do_not_fit(checkpoint_of: Callable[[str], Path]) -> None:
    source = ModelSource(Checkpoint(checkpoint_of("olmoe")))
    with pytest.raises(UserError) as error:
        streamed(source, torch.tensor([[1, 400]]))
    assert str(error.value) == (
        "token 400 is outside the model's vocabulary of 384\n"
        "try: the tokenizer that belongs to this checkpoint"
    )
    with pytest.raises(UserError) as error:
        streamed(source, torch.zeros(1, 513, dtype=torch.int64))
    assert str(error.value) == (
        "sequences of 513 tokens are longer than the model's 512 positions\n"
        "try: --seq-len 512 or less"
    )
