"""Mixtral: few wide experts named w1, w3, w2; the top-k weights are always renormalised."""

from tenp_edge.models.family import Family

FAMILY = Family(
    model_type="mixtral",
    architecture="MixtralForCausalLM",
    moe_block="block_sparse_moe",
    projections=("w1", "w3", "w2"),
    width_key="intermediate_size",
    experts_key="num_local_experts",
    attention="gqa",
    always_norm_topk=True,
    defaults={
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "num_key_value_heads": 8,
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072,
    },
    allowed={"sliding_window": (None,)},
    extra_keys=("router_jitter_noise",),
)
