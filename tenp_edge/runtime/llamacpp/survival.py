"""Whether llama.cpp survives a file: asked of a process that may die of it.

llama.cpp ends the process where a file breaks one of its assertions. Files of ours are checked
against what we write; any other is first opened, without its weights, and its tokenizer tried, in a
process of its own, which takes half a second.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tenp_edge.errors import UserError
from tenp_edge.runtime.child import ChildError, answers, ask
from tenp_edge.runtime.llamacpp.llama_vocabulary import LlamaVocabulary
from tenp_edge.runtime.llamacpp.native import forget_log, load_model, native, reason

_CONTEXT = 64
# Every byte, and characters of one to four of them.
_TEXT = bytes(range(256)).decode("latin-1") + " def f(x):\n\té日本\U0001f600"


def require_survival(file: Path) -> None:
    """Raise UserError where llama.cpp refuses ``file`` or dies of it."""
    try:
        ask(probe, {"file": str(file)})
    except ChildError as error:
        raise UserError(
            f"llama.cpp cannot run {file.name}: it ends the process ({error})",
            "a sound copy of the file, or one that tenp-edge exported",
        ) from None


@answers
def probe(facts: Mapping[str, Any]) -> Mapping[str, Any]:
    """Open ``facts["file"]``, tokenise, and make a context."""
    os.environ["GGML_NO_BACKTRACE"] = "1"  # a debugger, where there is one, takes its time
    llama = native()
    model = load_model(Path(facts["file"]), weightless=True)
    vocabulary = LlamaVocabulary(model)
    vocabulary.detokenize(vocabulary.tokenize(_TEXT))
    params = llama.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = _CONTEXT
    forget_log()
    if not llama.llama_init_from_model(model, params):
        raise UserError(f"llama.cpp cannot make a context of {_CONTEXT} tokens: {reason()}")
    return {}
