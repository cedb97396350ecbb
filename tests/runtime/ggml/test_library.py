"""The installed ggml is tested before it is used."""

from __future__ import annotations

import pytest

from tenp_edge.errors import UserError
from tenp_edge.runtime.ggml import bindings as ggml
from tenp_edge.runtime.ggml import library


def test_an_unknown_ggml_is_refused() -> None:
    found = ggml.Library(library._open())
    library._check_layout(found)
    found.ggml_tensor_overhead = lambda: 400
    with pytest.raises(UserError) as caught:
        library._check_layout(found)
    assert str(caught.value) == (
        f"this runtime does not know ggml {found.ggml_version().decode()}: "
        "a tensor of 368 bytes expected, found 400\n"
        "try: pip install 'llama-cpp-python>=0.3.36,<0.4'"
    )
