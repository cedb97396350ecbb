"""One interface: the file picks its runtime, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.gguf_cases import TOKENS, assert_close

from tenp_edge.errors import UserError
from tenp_edge.runtime.ggml.model import PerExpertModel
from tenp_edge.runtime.gguf.header import read_header
from tenp_edge.runtime.memory.peak import measure_peak_rss
from tenp_edge.runtime.opening import RunOptions, open_model

FileOf = Callable[..., Path]


def test_the_file_picks_its_runtime(file_of: FileOf) -> None:
    options = RunOptions(context=128, threads=1, kv_type="F32", flash_attention=False)
    rows = []
    for layout, runtime in (("per-expert", "tenp-edge (per-expert)"), ("padded", "llama.cpp")):
        with open_model(file_of("mixtral", layout=layout), options) as model:
            assert model.runtime == runtime
            assert model.detokenize(model.tokenize("def f(x): pass")) == "def f(x): pass"
            model.evaluate(TOKENS[:10])
            model.reset(4)
            rows.append([model.prompt(TOKENS[:9]), model.decode(TOKENS[9])])
            assert model.position == 10
    assert_close(np.array(rows[0]), np.array(rows[1]))


def test_refused_requests(file_of: FileOf) -> None:
    file = file_of("olmoe")

    def refused(call: Callable[[], object]) -> str:
        with pytest.raises(UserError) as caught:
            call()
        return str(caught.value)

    assert refused(lambda: PerExpertModel(file, kv_type="Q4_9")) == (
        "no KV cache type 'Q4_9'\ntry: --kv-type F32|F16|BF16|Q8_0|Q5_1|Q5_0|Q4_1|Q4_0"
    )
    assert refused(lambda: PerExpertModel(file, kv_type="Q8_0", flash_attention=False)) == (
        "a Q8_0 cache needs flash attention\ntry: --kv-type F16"
    )
    assert refused(lambda: PerExpertModel(file, kv_type="Q8_0")) == (
        "a Q8_0 cache needs heads that are multiples of 32, this model's are 16\ntry: --kv-type F16"
    )
    assert refused(lambda: PerExpertModel(file, context=0)) == (
        "--context is 0\ntry: --context of 1 or more"
    )
    assert refused(lambda: open_model(file, RunOptions(gpu_layers=1))) == (
        f"{file.name} has the per-expert layout, which runs on the CPU\n"
        "try: leave --gpu-layers out; or make a file for GPUs: tenp-edge compress MODEL "
        "--ram 8GiB --layout merged -o OUT"
    )
    for layout in ("per-expert", "padded"):
        options = RunOptions(context=8, threads=1)
        with open_model(file_of("olmoe", layout=layout), options) as model:
            model.evaluate([1, 2, 3])
            assert refused(lambda m=model: m.evaluate([1] * 6)) == (
                "9 tokens do not fit into a context of 8\n"
                "try: a larger --context or a shorter prompt"
            )
            for token in (-1, 384):
                assert refused(lambda m=model, t=token: m.decode(t)) == (
                    f"token {token} is not in the vocabulary of 384"
                )
            assert refused(lambda m=model: m.evaluate([])) == (
                "there are no tokens to evaluate\ntry: a prompt that is not empty"
            )
            assert model.position == 3


def test_models_come_and_go_without_growth(file_of: FileOf) -> None:
    """Buffers, graphs and the mapping are freed: 20 loads take no more memory than 2."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from tenp_edge.runtime.ggml.model import PerExpertModel\n"
        "def resident():\n"
        "    lines = Path('/proc/self/status').read_text().splitlines()\n"
        "    return next(int(l.split()[1]) for l in lines if l.startswith('VmRSS'))\n"
        "sizes = []\n"
        "for _ in range(20):\n"
        "    with PerExpertModel(sys.argv[1], context=512, threads=1) as model:\n"
        "        model.evaluate([5] * 300)\n"
        "    sizes.append(resident())\n"
        "assert sizes[-1] - sizes[2] < 4096, sizes\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    if not Path("/proc/self/status").is_file():
        pytest.skip("resident memory is read from /proc")
    run_python(code, str(file_of("qwen3_moe")))


def test_memory_is_known_from_the_header(file_of: FileOf, tmp_path: Path) -> None:
    file = file_of("deepseek_v2", "Q8_0")
    whole, empty = file.read_bytes(), tmp_path / "header.gguf"
    start = read_header(file).data_start
    with empty.open("wb") as stream:
        stream.write(whole[:start])
        stream.truncate(len(whole))
    choices = {"context": 300, "kv_type": "F16", "ubatch": 64}
    with PerExpertModel(file, **choices) as real, PerExpertModel(empty, **choices) as hollow:
        found = real.memory()
        assert hollow.memory() == found
    # Three layers of 512 slots of 32 + 16 latent values.
    assert found.kv_bytes == 3 * 512 * 48 * 2
    assert len(whole) - start - 32 * 200 < found.weights_bytes <= len(whole) - start
    assert found.total_bytes > found.weights_bytes + found.kv_bytes + found.compute_bytes > 0


def test_peak_rss_is_measured_in_our_runtime_too(file_of: FileOf) -> None:
    peak = measure_peak_rss(file_of("qwen3_moe"), context=256, ubatch=64, kv_type="F16", threads=1)
    assert 20 * 2**20 < peak < 300 * 2**20


def run_python(code: str, *arguments: str) -> None:
    import os

    root = str(Path(__file__).resolve().parents[2])
    environment = os.environ | {"PYTHONPATH": root}
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, env=environment)
