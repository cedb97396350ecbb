"""The families. Adding one: a file beside this one, a line in the table, a row in the tests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, MutableMapping
from importlib import import_module

from tenp_edge.models.family import Family

# The modules of this package, each named as config.json's ``model_type``.
_MODULES = (
    "qwen2_moe",
    "qwen3_moe",
    "deepseek_v2",
    "deepseek_v3",
    "olmoe",
    "mixtral",
    "glm4_moe_lite",
    "glm4_moe",
    "ernie4_5_moe",
    "qwen3_vl_moe",
    "gpt_oss",
    "gemma4",
    "lfm2_moe",
    "nemotron_h",
    "granitemoehybrid",
    "qwen3_next",
    "qwen3_5_moe",
)


class _Families(MutableMapping[str, Family]):
    """Families by ``model_type``. Those of ``modules`` are loaded when they are looked up."""

    def __init__(self, modules: Iterable[str]) -> None:
        self._known: dict[str, Family | None] = dict.fromkeys(modules)

    def __getitem__(self, model_type: str) -> Family:
        family = self._known[model_type]
        if family is None:
            family = import_module(f"tenp_edge.models.families.{model_type}").FAMILY
            self._known[model_type] = family
        return family

    def __setitem__(self, model_type: str, family: Family) -> None:
        self._known[model_type] = family

    def __delitem__(self, model_type: str) -> None:
        del self._known[model_type]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)


FAMILIES: MutableMapping[str, Family] = _Families(_MODULES)
