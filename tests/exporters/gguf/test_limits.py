"""Every config that a GGUF file can hold runs right; every other is refused with the reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import tiny
from support.gguf_cases import assert_close, export, llama_logits, random_plan, torch_logits

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.errors import UserError
from tenp_edge.exporters.base import ExportOptions
from tenp_edge.exporters.gguf import EXPORTER

Make = Callable[[str], Path]

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
SECTIONS = {"rope_type": "default", "mrope_section": [8, 4, 4], "mrope_interleaved": True}
MSCALE = {"mscale": 1.0, "mscale_all_dim": 1.0}
FULL, LINEAR = "full_attention", "linear_attention"
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "yarn": ("qwen3_moe", {"rope_scaling": YARN}),
    "yarn attention factor": ("olmoe", {"rope_scaling": YARN | {"attention_factor": 1.5}}),
    "yarn mscale": ("mixtral", {"rope_scaling": YARN | {"mscale": 0.7, "mscale_all_dim": 0.9}}),
    "yarn latent": ("deepseek_v3", {"rope_scaling": YARN | MSCALE}),
    "linear": ("qwen3_moe", {"rope_scaling": {"type": "linear", "factor": 2.0}}),
    "bf16": ("qwen3_moe", {"torch_dtype": "bfloat16"}),
    "f16": ("mixtral", {"torch_dtype": "float16"}),
    "tied qwen2": ("qwen2_moe", {"tie_word_embeddings": True}),
    "tied olmoe": ("olmoe", {"tie_word_embeddings": True}),
    "tied mixtral": ("mixtral", {"tie_word_embeddings": True}),
    "tied deepseek": ("deepseek_v2", {"tie_word_embeddings": True}),
    "one KV head": ("mixtral", {"num_key_value_heads": 1}),
    "wide heads": ("mixtral", {"head_dim": 32}),
    "no qkv bias": ("qwen2_moe", {"qkv_bias": False}),
    "no low-rank query": ("deepseek_v3", {"q_lora_rank": None}),
    "low-rank query": ("deepseek_v2", {"q_lora_rank": 24}),
    "all layers routed": ("deepseek_v2", {"first_k_dense_replace": 0}),
    "wide values": ("deepseek_v3", {"v_head_dim": 32}),
    "lite": ("deepseek_v2", {"num_hidden_layers": 27, "n_routed_experts": 3}),
    "groups": ("deepseek_v3", {"n_group": 4, "topk_group": 2}),
    "greedy ignores groups": ("deepseek_v2", {"n_group": 2, "topk_group": 1}),
    "no renormalisation": ("deepseek_v3", {"norm_topk_prob": False}),
    "norms of heads": ("glm4_moe", {"use_qk_norm": True, "attention_bias": False}),
    "sections that end early": ("qwen3_vl_moe", {"rope_scaling": SECTIONS, "rope_theta": 100.0}),
    "a longer convolution": ("lfm2_moe", {"conv_L_cache": 5, "num_dense_layers": 2}),
    "every layer routed and untied": (
        "lfm2_moe",
        {"num_dense_layers": 0, "tie_word_embeddings": False, "num_key_value_heads": 4},
    ),
    "as many key heads": ("qwen3_next", {"linear_num_value_heads": 2}),
    "one key head": ("qwen3_5_moe", {"linear_num_key_heads": 1}),
    "states behind": ("qwen3_next", {"layer_types": [FULL, LINEAR, LINEAR]}),
    "yarn of a part": ("qwen3_next", {"rope_scaling": YARN, "tie_word_embeddings": True}),
    "no shared expert": ("ernie4_5_moe", {"moe_num_shared_experts": 0, "moe_layer_start_index": 0}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_config_variants_in_llama_cpp(variant: str, tmp_path: Path) -> None:
    family, changes = VARIANTS[variant]
    # Mixtral's YaRN in transformers wants head_dim spelled out.
    defaults = {"head_dim": 16} if family == "mixtral" else {}
    checkpoint = Checkpoint(tiny.make(tmp_path / "model", family, **(defaults | changes)))
    export(ModelSource(checkpoint), tmp_path / "model.gguf")
    assert_close(llama_logits(tmp_path / "model.gguf"), torch_logits(checkpoint.path))


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "a factor of the experts' sum": (
        "lfm2_moe",
        {"routed_scaling_factor": 2.0},
        "llama.cpp's lfm2moe has no factor for the experts' sum, this model has "
        "routed_scaling_factor = 2",
    ),
    "renormalised": (
        "qwen2_moe",
        {"norm_topk_prob": True},
        "llama.cpp never renormalises the top-k weights of qwen2moe, "
        "this model has norm_topk_prob = true",
    ),
    "not renormalised": (
        "qwen3_moe",
        {"norm_topk_prob": False},
        "llama.cpp always renormalises the top-k weights of qwen3moe, "
        "this model has norm_topk_prob = false",
    ),
    "dense between states": (
        "qwen3_next",
        {"mlp_only_layers": [1]},
        "layer 1 is dense, and llama.cpp's qwen3next routes in every layer",
    ),
    "no shared expert beside states": (
        "qwen3_5_moe",
        {"shared_expert_intermediate_size": 0},
        "llama.cpp's qwen35moe needs a shared expert",
    ),
    "bias of a gate": (
        "qwen3_5_moe",
        {"attention_bias": True},
        "llama.cpp loads no attention biases for qwen35moe",
    ),
    "attention bias": (
        "qwen3_moe",
        {"attention_bias": True},
        "llama.cpp loads no attention biases for qwen3moe",
    ),
    "dense layer": (
        "qwen3_moe",
        {"mlp_only_layers": [1]},
        "layer 1 is dense, and llama.cpp's qwen3moe routes in every layer",
    ),
    "dense behind": (
        "ernie4_5_moe",
        {"moe_layer_end_index": 1},
        "layer 0, 2 is dense, and llama.cpp's ernie4_5-moe has dense layers only in front",
    ),
    "sparse step": (
        "qwen2_moe",
        {"decoder_sparse_step": 2},
        "layer 0, 2 is dense, and llama.cpp's qwen2moe routes in every layer",
    ),
    "group-limited greedy": (
        "deepseek_v2",
        {"n_group": 2, "topk_group": 1, "topk_method": "group_limited_greedy"},
        "it picks expert groups by their best expert (n_group = 2), "
        "llama.cpp by the sum of the best two",
    ),
    "odd heads": (
        "olmoe",
        {"head_dim": 8},
        "llama.cpp's olmoe needs heads x head_dim = hidden_size, this model has 4 x 8 = 32 and 64",
    ),
    "grouped queries": (
        "olmoe",
        {"num_key_value_heads": 2},
        "llama.cpp's olmoe needs as many KV heads as heads, this model has 2 and 4",
    ),
    "taken for Lite": (
        "deepseek_v3",
        {"num_hidden_layers": 27},
        "llama.cpp takes a deepseek2 model of 27 layers for a Lite model, which has no q_lora_rank",
    ),
    "YaRN betas": (
        "qwen2_moe",
        {"rope_parameters": YARN | {"rope_theta": 1e4, "beta_fast": 16}},
        "llama.cpp fixes YaRN's beta_fast and beta_slow of qwen2moe at 32 and 1, "
        "this model has 16 and 1",
    ),
    "unequal mscale": (
        "deepseek_v3",
        {"rope_scaling": YARN | {"mscale": 1.0}},
        "llama.cpp's deepseek2 needs YaRN's mscale and mscale_all_dim to be equal, "
        "this model has 1.0 and None",
    ),
    "linear rope": (
        "deepseek_v2",
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        "llama.cpp's deepseek2 does not scale its rotary embedding linearly",
    ),
    "windows in other layers": (
        "gpt_oss",
        {"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
        "in llama.cpp's gpt-oss every 2nd layer looks at the whole context and the others at a "
        "window, in this model layer 0, 2 do",
    ),
    "no windows": (
        "gpt_oss",
        {"layer_types": ["full_attention"] * 3},
        "in llama.cpp's gpt-oss every 2nd layer looks at the whole context and the others at a "
        "window, in this model layer 0, 1, 2 do",
    ),
    "no attention biases": (
        "gpt_oss",
        {"attention_bias": False},
        "llama.cpp's gpt-oss needs attention biases",
    ),
    "no shared expert": (
        "qwen2_moe",
        {"shared_expert_intermediate_size": 0},
        "llama.cpp's qwen2moe needs a shared expert",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_llama_cpp_computes_otherwise_is_refused(case: str, tmp_path: Path) -> None:
    family, changes, reason = REFUSED[case]
    checkpoint = Checkpoint(tiny.make(tmp_path / "model", family, **changes))
    with pytest.raises(UserError) as caught:
        EXPORTER.check(checkpoint.config, ExportOptions("F32"))
    assert str(caught.value) == (
        f"{family} cannot be written as GGUF: {reason}\n"
        "try: run the pruned checkpoint with transformers instead"
    )


def test_options_that_do_not_exist(checkpoint_of: Make) -> None:
    checkpoint = Checkpoint(checkpoint_of("qwen3_moe"))
    ragged = ModelSource(checkpoint, random_plan(checkpoint, "ragged")).config
    for options, text in (
        (
            ExportOptions("Q9"),
            "GGUF has no tensor type 'Q9'\ntry: --quant F32|F16|BF16|Q8_0|Q6_K|Q5_K_M|"
            "Q5_K_S|Q4_K_M|Q4_K_S|IQ4_NL|IQ4_XS|Q4_0|MXFP4|Q3_K_M|IQ3_M|IQ3_S|IQ3_XXS|"
            "Q2_K|IQ2_M|IQ2_S|IQ2_XS|IQ2_XXS|IQ1_M|IQ1_S|TQ2_0|TQ1_0",
        ),
        (
            ExportOptions("F32", "flat"),
            "GGUF has no layout 'flat'\ntry: --layout per-expert|merged|padded",
        ),
        (
            ExportOptions("F32", "merged"),
            "the merged layout needs one expert width, this model has 3: 32, 40, 96\n"
            "try: --layout per-expert or padded; or compress again with --layout merged",
        ),
    ):
        with pytest.raises(UserError) as caught:
            EXPORTER.check(ragged, options)
        assert str(caught.value) == text
