"""Do the exported directories run in optimum's ORTModelForCausalLM, token for token like torch?

    python benchmarks/check_optimum.py [FAMILY ...]

optimum-onnx needs transformers below 4.58, tenp-edge needs 5: the two cannot share an environment.
So this script exports tiny models of every family here, builds an environment with what the extra
``optimum`` of pyproject.toml names (and nothing else, not tenp-edge), lets it generate 32 greedy
tokens from each directory, and compares them with torch. The environment takes about 1 GB of disk
and is removed at the end.

optimum takes the cache's shape from config.json by model_type, and for these families not always
the right one (hidden_size / num_attention_heads instead of head_dim). `with_cache_shape` sets it
from the graph; it is all that a user has to add to optimum's own example.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import tomllib
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def with_cache_shape(model: Any) -> Any:
    """ORTModelForCausalLM with the heads and the size that its graph has."""
    _, heads, _, size = model.input_shapes["past_key_values.0.key"]
    model.num_key_value_heads = heads
    model.embed_size_per_head = model.qk_head_dim = model.v_head_dim = size
    return model


def generate(directory: Path, prompt: list[int], count: int) -> list[int]:
    """Greedy tokens, in the environment that has optimum."""
    import torch
    from optimum.onnxruntime import ORTModelForCausalLM  # type: ignore[import-not-found]

    model = with_cache_shape(ORTModelForCausalLM.from_pretrained(directory))
    ids = torch.tensor([prompt])
    made = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        min_new_tokens=count,
        max_new_tokens=count,
        pad_token_id=0,
    )
    found: list[int] = made[0, len(prompt) :].tolist()
    return found


def build_environment(directory: Path) -> Path:
    """A new environment with the requirements of the extra; its Python."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = project["optional-dependencies"]["optimum"]
    venv.create(directory, with_pip=True)
    python = directory / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", *requirements], check=True, env=_clean())
    return python


def _clean() -> dict[str, str]:
    """The environment's own packages, not what PYTHONPATH adds to ours."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def check(families: Sequence[str], scratch: Path, python: Path) -> bool:
    """Whether optimum's tokens for a ragged tiny model of every family are torch's."""
    from support import tiny
    from support.onnx_directories import (
        GENERATED,
        PROMPT,
        export_onnx,
        greedy_in_torch,
        ragged_source,
    )

    # Tied embeddings make a random model repeat its last token.
    made = [tiny.make(scratch / name, name, tie_word_embeddings=False) for name in families]
    sources = [ragged_source(checkpoint) for checkpoint in made]
    directories = [
        str(export_onnx(source, scratch / f"{name}-onnx"))
        for name, source in zip(families, sources, strict=True)
    ]
    done = subprocess.run(
        [python, __file__, "--in-environment"],
        input=json.dumps([directories, list(PROMPT), GENERATED]),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=_clean(),
    )
    agreed = []
    for name, source, line in zip(families, sources, done.stdout.splitlines(), strict=True):
        found = json.loads(line)
        agreed.append(len(found) == GENERATED and found == greedy_in_torch(source, PROMPT, found))
        verdict = "the same" if agreed[-1] else "DIFFERENT"
        print(f"{name:12} {verdict} {len(found)} tokens: {found[:8]} ...")
    return all(agreed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("families", nargs="*", help="default: every family")
    parser.add_argument("--in-environment", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.in_environment:
        directories, prompt, count = json.loads(sys.stdin.read())
        for directory in directories:
            print(json.dumps(generate(Path(directory), prompt, count)))
        return
    sys.path += [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]
    from support import tiny

    with tempfile.TemporaryDirectory(prefix="check-optimum-") as name:
        scratch = Path(name)
        python = build_environment(scratch / "environment")
        agreed = check(arguments.families or tiny.FAMILIES, scratch, python)
    sys.exit(0 if agreed else 1)


if __name__ == "__main__":
    main()
