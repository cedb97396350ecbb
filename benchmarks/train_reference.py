"""Train three small MoEs worth pruning, on several domains of text, as references to measure on.

    python benchmarks/train_reference.py WORK --corpus DIR        # trains; the same command resumes
    python benchmarks/train_reference.py WORK --corpus DIR --models qwen3_moe --tokens 12000000

qwen3_moe: 32 experts, top-4, renormalised, no shared expert. qwen2_moe: 48 fine experts, top-6,
not renormalised, one shared expert. deepseek_v3: sigmoid router with a selection bias, one shared
expert, multi-head latent attention, a dense first layer. 22 to 26 million parameters each.

`--corpus DIR`: one NAME.jsonl.gz per domain, {"text": ...} per line; the domain `code` is added
from the standard library. Without it the domains are the standard library's, `code` and `prose`.
A document's split is a hash of its beginning: 84 % training, 8 % calibration, 8 % held out, so
neither of the latter was ever trained on. WORK/calibration and WORK/heldout get them as files for
`--data` and `--eval-data`.

The models take turns, `--slice-tokens` each, so that all are usable early. After every slice
WORK/NAME/model holds the Hugging Face directory (an exponential mean of the weights) and WORK/
NAME/log.json the losses, held-out perplexity, divergence of expert use, and checksums. Batches
depend on the seed and the step alone. Needs torch, transformers and tokenizers. `--device cuda`
trains on a GPU, in bfloat16.

On Linux, two cores: 4,000 tokens a second with the allocator told to keep its memory, a third of
that without (page faults):

    export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=9999999999 MALLOC_TOP_PAD_=268435456
"""

import argparse
import gzip
import hashlib
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from moe_training import (
    RouterBalance,
    interruptions,
    learning_rate,
    make_optimizer,
    mean_loss,
    save_state,
    token_loss,
    unigram_perplexity,
    windows,
)
from reference_models import CONFIGS, FULL_SIZE, make_model
from torch import Tensor, nn
from training_data import END_OF_TEXT, encode, load_tokenizer, train_tokenizer, write_model

from tenp_edge.calibration.text.standard_library import standard_library_texts

SPLITS = ("train", "calibration", "heldout")
SPLIT_PERCENT = 8  # of the documents, for calibration and for the held-out split each
TOKENIZER_CHARS = 4_000_000  # of each domain; repeated or cut to that, so that all count alike
DOCUMENT_CHARS = 40_000  # a longer text is several documents: one book must not be a whole split


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result besides the text, the model and the number of steps."""

    seed: int = 0
    vocab_size: int = 6144
    sequence_length: int = 256
    sequences_per_step: int = 16
    peak_learning_rate: float = 3e-3
    warmup_steps: int = 60
    decay_share: float = 0.25
    weight_decay: float = 0.05
    balance_coefficient: float = 0.01
    bias_speed: float = 0.002
    domain_exponent: float = 0.5
    mean_every: int = 8
    mean_share: float = 0.06

    @property
    def tokens_per_step(self) -> int:
        return self.sequence_length * self.sequences_per_step


# --- text -------------------------------------------------------------------------------------


def split_of(text: str) -> str:
    """The split of a document, by its first 200 characters: the same on every machine."""
    digest = hashlib.sha256(text[:200].encode()).digest()
    place = int.from_bytes(digest[:8], "big") % 100
    return SPLITS[2 if place < SPLIT_PERCENT else 1 if place < 2 * SPLIT_PERCENT else 0]


def corpus_texts(corpus: Path | None) -> dict[str, list[str]]:
    """All documents by domain; `code` (and without a corpus `prose`) from the standard library."""
    code = standard_library_texts("calibration", include_tests=True)
    for domain, documents in standard_library_texts("heldout").items():
        code[domain] += documents
    if corpus is None:
        return code
    texts = {"code": code["code"]}
    for file in sorted(corpus.glob("*.jsonl.gz")):
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            documents = [json.loads(line)["text"] for line in lines if line.strip()]
        texts[file.name.removesuffix(".jsonl.gz")] = documents
    return texts


def by_split(documents: list[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {split: [] for split in SPLITS}
    for text in documents:
        for start in range(0, len(text), DOCUMENT_CHARS):
            piece = text[start : start + DOCUMENT_CHARS]
            found[split_of(piece)].append(piece)
    return found


def prepare(work: Path, corpus: Path | None, recipe: Recipe) -> None:
    """Tokenizer, encoded splits and their checksums in ``work``; corpus.json comes last."""
    if (work / "corpus.json").exists():
        return
    work.mkdir(parents=True, exist_ok=True)
    texts = {domain: by_split(documents) for domain, documents in corpus_texts(corpus).items()}
    samples = [_sample("".join(splits["train"])) for splits in texts.values()]
    tokenizer = train_tokenizer(samples, recipe.vocab_size)
    tokenizer.save(str(work / "tokenizer.json"))
    record: dict[str, Any] = {}
    for domain, splits in texts.items():
        for split, documents in splits.items():
            ids = encode(tokenizer, documents)
            np.save(work / f"{split}_{domain}.npy", ids)
            record[f"{split}/{domain}"] = {
                "documents": len(documents),
                "tokens": len(ids),
                "sha256": hashlib.sha256("\0".join(documents).encode()).hexdigest(),
            }
            if split != "train":
                _write_texts(work / split / f"{domain}.jsonl.gz", documents)
    (work / "corpus.json").write_text(json.dumps(record, indent=1) + "\n")


def _sample(text: str) -> str:
    return (text * (TOKENIZER_CHARS // max(1, len(text)) + 1))[:TOKENIZER_CHARS]


def _write_texts(file: Path, documents: list[str]) -> None:
    file.parent.mkdir(exist_ok=True)
    with gzip.open(file, "wt", encoding="utf-8") as lines:
        lines.writelines(json.dumps({"text": text}) + "\n" for text in documents)


def load_tokens(work: Path, split: str) -> dict[str, np.ndarray]:
    files = sorted(work.glob(f"{split}_*.npy"))
    return {file.stem.removeprefix(f"{split}_"): np.load(file) for file in files}


def batch(tokens: dict[str, np.ndarray], step: int, recipe: Recipe) -> Tensor:
    """Windows at random places of random domains, (sequences, length + 1).

    A domain's share is its size to the power `domain_exponent`: by the square root a small one is
    read more often than its size says and not yet learned by heart.
    """
    random = np.random.default_rng([recipe.seed, step])
    sizes = np.array([len(stream) for stream in tokens.values()])
    shares = sizes**recipe.domain_exponent / (sizes**recipe.domain_exponent).sum()
    streams, rows = list(tokens.values()), []
    for domain in random.choice(len(streams), recipe.sequences_per_step, p=shares):
        stream = streams[domain]
        start = random.integers(len(stream) - recipe.sequence_length)
        rows.append(stream[start : start + recipe.sequence_length + 1])
    return torch.from_numpy(np.stack(rows).astype(np.int64))


# --- training ---------------------------------------------------------------------------------


class Run:
    """One model in training: weights, their running mean, optimiser, step; saved as one file."""

    def __init__(self, work: Path, name: str, recipe: Recipe, device: str) -> None:
        self.directory, self.name, self.recipe = work / name, name, recipe
        self.device = torch.device(device)
        self.directory.mkdir(exist_ok=True)
        self.tokenizer = load_tokenizer(work)
        torch.manual_seed(recipe.seed)
        eos = self.tokenizer.token_to_id(END_OF_TEXT)
        self.model = make_model(name, recipe.vocab_size, eos).to(self.device)
        self.balance = RouterBalance(self.model)
        self.has_bias = any("e_score_correction_bias" in key for key in self.model.state_dict())
        self.optimizer = make_optimizer(self.model, recipe)
        self.mean = {key: value.clone() for key, value in self.model.state_dict().items()}
        self.step, self.seconds = 0, 0.0
        if (self.directory / "state.pt").exists():
            self._load()

    def _load(self) -> None:
        state = torch.load(self.directory / "state.pt", weights_only=True, map_location=self.device)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.mean, self.step, self.seconds = state["mean"], state["step"], state["seconds"]

    def save(self) -> None:
        save_state(
            self.directory / "state.pt",
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            mean=self.mean,
            step=self.step,
            seconds=self.seconds,
        )

    def train_step(self, rows: Tensor, steps: int) -> float:
        """One update; the training loss of ``rows`` in nats."""
        started = time.monotonic()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, steps, self.recipe)
        loss = token_loss(self.model, rows.to(self.device))
        if self.has_bias:
            self.balance.move_bias(self.recipe.bias_speed)
            # A tenth as much: the bias balances, this only keeps the scores from collapsing.
            coefficient = self.recipe.balance_coefficient / 10
        else:
            coefficient = self.recipe.balance_coefficient
        (loss + coefficient * self.balance.take()).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if self.step % self.recipe.mean_every == 0:
            self._follow()
        self.seconds += time.monotonic() - started
        return loss.item()

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the mean of the weights a little towards them; all the way at first."""
        # The mean must forget the first steps, so it covers at most half of those taken.
        share = max(self.recipe.mean_share, min(1.0, 2 * self.recipe.mean_every / self.step))
        for key, value in self.model.state_dict().items():
            self.mean[key].lerp_(value, share)

    def averaged(self) -> Any:
        """The model with the mean of its weights, rounded to bfloat16 as it will be stored."""
        eos = self.tokenizer.token_to_id(END_OF_TEXT)
        model = make_model(self.name, self.recipe.vocab_size, eos).to(self.device)
        model.load_state_dict(self.mean)
        for parameter in model.parameters():
            parameter.data = parameter.data.bfloat16().float()
        return model.eval()


# --- results ----------------------------------------------------------------------------------


def expert_use(model: nn.Module, rows: Tensor, at_once: int) -> Tensor:
    """Share of each expert in the choices on ``rows``, float64 (layers, experts)."""
    balance, counts = RouterBalance(model), []
    for part in rows.split(at_once):
        mean_loss(model, part, at_once)
        counts.append(torch.stack([share.double() for _, share in balance.shares]) * len(part))
        balance.take()
    return torch.stack(counts).sum(0).cpu() / len(rows)


def divergence(use: dict[str, Tensor]) -> dict[str, Any]:
    """How far apart the domains' expert uses are, mean over the layers.

    `js_bits`: Jensen-Shannon divergence of all domains at once, in bits (0: no difference;
    log2(domains): no expert in common). `variation`: share of choices that two domains give to
    different experts (total variation distance), mean over the pairs, and of each pair.
    """
    shares = torch.stack(list(use.values()))  # (domains, layers, experts)
    js = entropy_bits(shares.mean(0)) - entropy_bits(shares).mean(0)
    names, pairs = list(use), {}
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            apart = 0.5 * (use[first] - use[second]).abs().sum(-1).mean()
            pairs[f"{first}/{second}"] = round(float(apart), 4)
    return {
        "js_bits": round(float(js.mean()), 4),
        "js_bits_by_layer": [round(float(value), 4) for value in js],
        "variation": round(sum(pairs.values()) / max(1, len(pairs)), 4),
        "variation_by_pair": pairs,
    }


def entropy_bits(shares: Tensor) -> Tensor:
    return torch.special.entr(shares).sum(-1) / math.log(2)


def report(run: Run, work: Path, train_losses: list[float]) -> dict[str, Any]:
    """What is logged after a slice; writes the model directory."""
    recipe, model = run.recipe, run.averaged()
    training, heldout = load_tokens(work, "train"), load_tokens(work, "heldout")
    losses, use, unigram = {}, {}, {}
    for domain, tokens in heldout.items():
        rows = windows(tokens, recipe.sequence_length, most=32).to(run.device)
        losses[domain] = mean_loss(model, rows, recipe.sequences_per_step)
        use[domain] = expert_use(model, rows, recipe.sequences_per_step)
        unigram[domain] = unigram_perplexity(training[domain], tokens, recipe.vocab_size)
    directory = run.directory / "model"
    precious = {k: v for k, v in run.mean.items() if k.endswith("e_score_correction_bias")}
    stored = model.cpu().bfloat16()
    stored.load_state_dict(precious, strict=False)
    write_model(stored, run.tokenizer, directory)
    weights = (directory / "model.safetensors").read_bytes()
    return {
        "step": run.step,
        "tokens": run.step * recipe.tokens_per_step,
        "seconds": round(run.seconds, 1),
        "train_loss": round(float(np.mean(train_losses)), 4),
        "heldout_perplexity": {k: round(math.exp(v), 2) for k, v in losses.items()},
        "unigram_perplexity": {k: round(v, 1) for k, v in unigram.items()},
        "expert_use": divergence(use),
        "sha256": hashlib.sha256(weights).hexdigest(),
    }


def train_slice(
    work: Path, name: str, recipe: Recipe, steps: int, slice_steps: int, device: str = "cpu"
) -> bool:
    """Train one model for a slice; whether it is finished. Continues after an interruption."""
    run = Run(work, name, recipe, device)
    if run.step >= steps:
        return True
    interrupted, tokens, losses = interruptions(), load_tokens(work, "train"), []
    stop = min(steps, (run.step // slice_steps + 1) * slice_steps)
    saved = time.monotonic()
    for step in range(run.step, stop):
        losses.append(run.train_step(batch(tokens, step, recipe), steps))
        if interrupted or time.monotonic() - saved > 180:
            run.save()
            saved = time.monotonic()
        if interrupted:
            raise SystemExit(f"{name}: interrupted after step {run.step}; the same call continues")
    run.save()
    entry = report(run, work, losses)
    file = run.directory / "log.json"
    log = json.loads(file.read_text()) if file.exists() else []
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps([*log, entry], indent=1) + "\n")
    temporary.replace(file)
    _print(name, entry)
    if interrupted:
        raise SystemExit(f"{name}: interrupted after step {run.step}; the same call continues")
    return run.step >= steps


def _print(name: str, entry: dict[str, Any]) -> None:
    perplexity = "  ".join(f"{k} {v:.1f}" for k, v in entry["heldout_perplexity"].items())
    print(
        f"{name}: {entry['tokens'] / 1e6:.2f} M tokens, {entry['seconds'] / 60:.1f} min, "
        f"loss {entry['train_loss']:.3f}, held-out perplexity {perplexity}, "
        f"expert use apart by {entry['expert_use']['js_bits']:.3f} bits",
        flush=True,
    )


def turns(names: list[str], finished: set[str]) -> Iterator[str]:
    """The models in turn until all are finished."""
    while len(finished) < len(names):
        yield from (name for name in names if name not in finished)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path, help="directory for everything")
    parser.add_argument("--corpus", type=Path, help="directory with one NAME.jsonl.gz per domain")
    parser.add_argument("--models", nargs="+", choices=list(CONFIGS), default=list(FULL_SIZE))
    parser.add_argument("--tokens", type=int, default=6_000_000, help="of training, each model")
    parser.add_argument("--slice-tokens", type=int, default=400_000, help="a model's turn")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, help="torch threads (default: torch's choice)")
    parser.add_argument("--step-sequences", type=int, default=Recipe.sequences_per_step)
    parser.add_argument("--peak", type=float, default=Recipe.peak_learning_rate)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    recipe = Recipe(sequences_per_step=arguments.step_sequences, peak_learning_rate=arguments.peak)
    prepare(arguments.work, arguments.corpus, recipe)
    steps = arguments.tokens // recipe.tokens_per_step
    slice_steps = max(1, arguments.slice_tokens // recipe.tokens_per_step)
    finished: set[str] = set()
    for name in turns(arguments.models, finished):
        if train_slice(arguments.work, name, recipe, steps, slice_steps, arguments.device):
            finished.add(name)


if __name__ == "__main__":
    main()
