"""Qwen3-VL, the language model in it: Qwen3-MoE, whose heads' frequencies are divided among time,
height and width. For a text the three are one, and it is Qwen3-MoE: so it is run, and written.

The vision part is left out. A GGUF says what llama.cpp needs to look at pictures with it.
"""

from tenp_edge.models.family import Family
from tenp_edge.models.wrapper import WRAPPED_BY, Wrapper

FAMILY = Family(
    model_type="qwen3_vl_moe",
    architecture="Qwen3MoeForCausalLM",
    moe_block="mlp",
    projections=("gate_proj", "up_proj", "down_proj"),
    width_key="moe_intermediate_size",
    experts_key="num_experts",
    attention="gqa",
    qk_norm="head",
    rope_sections=True,
    always_norm_topk=True,
    qkv_bias_key="attention_bias",
    o_bias_key="attention_bias",
    wrapper=Wrapper(
        text_type="qwen3_vl_moe_text",
        alone_type="qwen3_moe",
        parts=(
            "vision_config",
            "image_token_id",
            "video_token_id",
            "vision_start_token_id",
            "vision_end_token_id",
        ),
        taken=(("vision_config", "deepstack_visual_indexes"),),
        implied={"norm_topk_prob": True},
        lifted=("mrope_section", "mrope_interleaved"),
    ),
    defaults={
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 1408,
        "attention_bias": False,
        "mrope_section": [24, 20, 20],
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 128000,
    },
    allowed={"mrope_interleaved": (True, None), "use_sliding_window": (False, None)},
    extra_keys=("mrope_section", "deepstack_visual_indexes", WRAPPED_BY),
)
