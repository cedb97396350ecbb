"""Text to validate on, in two domains of any model's tokens: the licence, and this docstring."""

from __future__ import annotations

from pathlib import Path

from tenp_edge.calibration.text.domains import load_tokenizer, make_domains
from tenp_edge.forward.text_batch import Domain

LICENSE = Path(__file__).parents[2] / "LICENSE"


def domains_of(model: Path, seq_len: int = 48) -> list[Domain]:
    """Two domains, the second with a short last sequence; of texts that nobody edits: where two
    experts are as good as tied, a rounding decides between them."""
    source = LICENSE.read_text(encoding="utf-8")
    texts = {"code": [source[:4000]], "prose": [__doc__ + " It is short."]}
    return make_domains(texts, load_tokenizer(model), 3, seq_len, seed=0)
