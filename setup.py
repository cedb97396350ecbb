"""The optional C extension; everything else is in pyproject.toml."""

import os

from setuptools import Extension, setup

# No fused multiply-add: the sum over experts rounds as ggml's own operations do. MSVC makes none
# under /fp:precise (Visual Studio 2022), and has C11's atomics behind a switch (17.5 and newer).
MSVC = ["/O2", "/fp:precise", "/std:c11", "/experimental:c11atomics"]
FLAGS = MSVC if os.name == "nt" else ["-O3", "-ffp-contract=off"]
RAGGED = Extension(
    "tenp_edge.runtime.ggml._ragged",
    ["tenp_edge/runtime/ggml/_ragged.c", "tenp_edge/runtime/ggml/_columns.c"],
    depends=["tenp_edge/runtime/ggml/_columns.h"],
    extra_compile_args=FLAGS,
    optional=True,
)
setup(ext_modules=[RAGGED])
