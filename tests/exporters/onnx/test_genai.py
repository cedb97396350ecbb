"""onnxruntime-genai generates what torch generates, from the directory as it is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support import tiny
from support.onnx_directories import GENERATED, PROMPT, export_onnx, greedy_in_torch, ragged_source

CheckpointOf = Callable[[str], Path]
genai = pytest.importorskip("onnxruntime_genai")


@pytest.mark.parametrize("family", [f for f in tiny.FAMILIES if f not in tiny.STATE_FAMILIES])
def test_the_same_greedy_tokens_as_torch(family: str, tmp_path: Path) -> None:
    # Tied embeddings make a random model repeat its last token.
    model = tiny.make(tmp_path / "model", family, tie_word_embeddings=False)
    source = ragged_source(model)
    loaded = genai.Model(str(export_onnx(source, tmp_path / "onnx")))
    parameters = genai.GeneratorParams(loaded)
    length = len(PROMPT) + GENERATED
    parameters.set_search_options(do_sample=False, min_length=length, max_length=length)
    generator = genai.Generator(loaded, parameters)
    generator.append_tokens(np.array(PROMPT, np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    found = [int(token) for token in generator.get_sequence(0)][len(PROMPT) :]
    assert len(found) == GENERATED and len(set(found)) > 1
    assert found == greedy_in_torch(source, PROMPT, found)


def test_its_tokenizer_reads_the_directory(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    directory = export_onnx(ragged_source(checkpoint_of("olmoe")), tmp_path / "onnx")
    tokenizer = genai.Tokenizer(genai.Model(str(directory)))
    tokens = tokenizer.encode("def f(x):\n    return x")
    assert tokenizer.decode(tokens) == "def f(x):\n    return x"
