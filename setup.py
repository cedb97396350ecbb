"""The optional C extension; everything else is in pyproject.toml."""

import os

from setuptools import Extension, setup

# No fused multiply-add: the sum over experts rounds as ggml's own operations do.
FLAGS = [] if os.name == "nt" else ["-O3", "-ffp-contract=off"]
RAGGED = Extension(
    "tenp_edge.runtime.ggml._ragged",
    ["tenp_edge/runtime/ggml/_ragged.c"],
    extra_compile_args=FLAGS,
    optional=True,
)
setup(ext_modules=[RAGGED])
