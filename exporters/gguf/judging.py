"""A GGUF as it runs: in its own runtime, or its padded twin in unmodified llama.cpp."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from tenp_edge.exporters.base import Findings, Judge, JudgeRequest
from tenp_edge.exporters.session_judging import require_sizes, session_logits, tokenizers_agree
from tenp_edge.runtime.gguf.padded_twin import TWIN, GgufFile, write_padded_twin
from tenp_edge.runtime.memory.footprint import MemoryRun
from tenp_edge.runtime.memory.peak import measure_peak_rss, predict_peak
from tenp_edge.runtime.opening import RunOptions, open_model

# F16 flips the routing of near-ties, which would be counted against the weights.
_KV_TYPE = "F32"


def judge(path: Path, request: JudgeRequest) -> Judge:
    """`Exporter.judge` of the file ``path``."""
    file, config = GgufFile(path), request.reference.config
    sizes = {
        "block_count": (config.num_hidden_layers, file.size("block_count")),
        "embedding_length": (config.hidden_size, file.size("embedding_length")),
    }
    require_sizes(path, sizes)
    runnable = path
    if request.twin and file.layout == "per-expert":
        runnable = request.scratch / "twin.gguf"
        write_padded_twin(file, runnable, request.progress)
    options = RunOptions(
        context=request.tokens.shape[1],
        threads=request.threads,
        kv_type=_KV_TYPE,
        flash_attention=False,
    )
    # Opened and closed again: what is wrong shows before the long forwards, beside which the
    # weights need not lie in memory.
    with open_model(runnable, options) as model:
        through = model.runtime if runnable == path else TWIN
        require_sizes(path, {"vocab_size": (config.vocab_size, model.vocab_size)})
        findings = Findings(tokenizer_agrees=tokenizers_agree(model, request))
    if request.memory is not None:
        predicted = request.predicted_peak_rss if runnable == path else None
        with request.progress.task("measuring peak memory", 1, "runs") as task:
            findings = _with_peaks(findings, runnable, request.memory, predicted)
            task.advance()
        findings = replace(findings, measured_as=through)
    opened = session_logits(lambda: open_model(runnable, options), request)
    return Judge(through, opened, findings=findings)


def _with_peaks(findings: Findings, file: Path, run: MemoryRun, predicted: int | None) -> Findings:
    """With the predicted and the measured peak RSS of running ``file``."""
    if predicted is None:
        predicted = predict_peak(file, run).total_bytes
    measured = measure_peak_rss(file, **asdict(run))
    return replace(findings, predicted_peak_rss=predicted, measured_peak_rss=measured)
