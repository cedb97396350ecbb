"""The families. Adding one: a file beside these, a line in the table, a row in the tests."""

from __future__ import annotations

from tenp_edge.models import (
    deepseek_v2,
    deepseek_v3,
    ernie4_5_moe,
    gemma4,
    glm4_moe,
    glm4_moe_lite,
    gpt_oss,
    granitemoehybrid,
    lfm2_moe,
    mixtral,
    nemotron_h,
    olmoe,
    qwen2_moe,
    qwen3_moe,
    qwen3_vl_moe,
)
from tenp_edge.models.family import Family

FAMILIES: dict[str, Family] = {
    module.FAMILY.model_type: module.FAMILY
    for module in (
        qwen2_moe,
        qwen3_moe,
        deepseek_v2,
        deepseek_v3,
        olmoe,
        mixtral,
        glm4_moe_lite,
        glm4_moe,
        ernie4_5_moe,
        qwen3_vl_moe,
        gpt_oss,
        gemma4,
        lfm2_moe,
        nemotron_h,
        granitemoehybrid,
    )
}
