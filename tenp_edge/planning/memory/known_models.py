"""Well-known models and what they take, for a first look at what a machine can run.

Peak memory of a run with context 4096, in GiB: ``whole`` and with 60 % of the experts' neurons,
both as Q4_K_M; ``stored`` is the checkpoint. A test compares them with docs/results/fits.json.
"""

from __future__ import annotations

from dataclasses import dataclass

from tenp_edge.units import percent

_GIB = 2**30
# Bytes a parameter as Q8_0, over bfloat16's two.
_Q8_0 = 8.5 / 16
# What a run takes beside the weights, at most, of these models.
_BESIDE = 1.0
# Below, a model is not itself any more (README, "Models").
_LEAST = 0.4


@dataclass(frozen=True)
class KnownModel:
    name: str
    stored: float
    whole: float
    pruned: float

    def fits(self, budget_bytes: int) -> str | None:
        """What of it fits, in words; None where less than 40 % of the neurons do."""
        budget = budget_bytes / _GIB
        if self.stored * _Q8_0 + _BESIDE <= budget:
            return "whole, in 8 bits"
        if self.whole <= budget:
            return "whole, in 4 bits"
        share = 1 - (self.whole - budget) / (self.whole - self.pruned) * 0.4
        return f"about {percent(share, 0)} of the neurons, in 4 bits" if share >= _LEAST else None


KNOWN = (
    KnownModel("allenai/OLMoE-1B-7B-0924", 12.887943, 4.5812244, 3.2414646),
    KnownModel("LiquidAI/LFM2-8B-A1B", 15.534331, 4.8834359, 3.1477792),
    KnownModel("ibm-granite/granite-4.0-h-tiny", 12.924964, 4.2973759, 3.0418875),
    KnownModel("Qwen/Qwen1.5-MoE-A2.7B", 26.665226, 9.7562504, 6.662508),
    KnownModel("deepseek-ai/DeepSeek-V2-Lite", 29.255607, 9.9605174, 6.4136119),
    KnownModel("moonshotai/Moonlight-16B-A3B", 29.728022, 10.14317, 6.5962644),
    KnownModel("openai/gpt-oss-20b", 38.956771, 15.03561, 9.6824478),
    KnownModel("baidu/ERNIE-4.5-21B-A3B-PT", 40.653046, 12.750752, 8.5248926),
    KnownModel("google/gemma-4-26B-A4B", 47.000389, 16.305579, 10.670819),
    KnownModel("zai-org/GLM-4.7-Flash", 55.773917, 17.304575, 11.54465),
    KnownModel("Qwen/Qwen3-30B-A3B", 56.87051, 17.90589, 11.837591),
    KnownModel("Qwen/Qwen3.6-35B-A3B", 64.560418, 20.293536, 13.598124),
    KnownModel("mistralai/Mixtral-8x7B-v0.1", 86.99073, 27.19841, 16.990158),
    KnownModel("zai-org/GLM-4.5-Air", 199.02783, 66.660719, 42.075377),
)


def fitting(budget_bytes: int) -> list[tuple[str, str]]:
    """Name and what fits of it, of every known model that ``budget_bytes`` take."""
    found = ((model.name, model.fits(budget_bytes)) for model in KNOWN)
    return [(name, fits) for name, fits in found if fits is not None]
