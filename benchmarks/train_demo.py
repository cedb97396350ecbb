"""Train the bundled demo model: a small Qwen3-MoE that has read Python's standard library.

    python benchmarks/train_demo.py WORK --steps 5000            # about an hour on two idle cores
    python benchmarks/train_demo.py WORK --export DIRECTORY      # Hugging Face directory, any time
    python benchmarks/train_demo.py WORK --evaluate              # held-out perplexity by domain

The first call trains the tokenizer and encodes the text (a minute), then trains; it checkpoints
every few minutes and the same command continues after an interruption. The learning rate is flat
until the last quarter, so a run that is still in the flat part may be continued with another
`--steps` to end earlier or later. Batches depend on the seed and the step alone.

Text: `tenp_edge.texts`, calibration split (with Python's test suite where it is installed). The
held-out split is never read in training. Needs torch, transformers and tokenizers.
"""

import argparse
import json
import math
import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from torch import Tensor, nn
from transformers import GenerationConfig, Qwen3MoeConfig, Qwen3MoeForCausalLM
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from tenp_edge.texts import standard_library_texts

END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, IM_START, IM_END)

# Character for character the expression of Qwen2's tokenizer.json, which llama.cpp implements
# under the pre-tokenizer name `qwen2`.
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# oneDNN compiles a kernel for every new shape: group sizes are rounded up so that shapes repeat.
GROUP_MULTIPLE = 64


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result besides the text and the number of steps."""

    seed: int = 0
    vocab_size: int = 3584
    sequence_length: int = 1024
    sequences_per_step: int = 4
    prose_share: float = 0.2
    peak_learning_rate: float = 3e-3
    warmup_steps: int = 100
    decay_share: float = 0.25
    weight_decay: float = 0.03
    balance_coefficient: float = 0.01

    @property
    def tokens_per_step(self) -> int:
        return self.sequence_length * self.sequences_per_step


# --- text and tokenizer -----------------------------------------------------------------------


def train_tokenizer(texts: dict[str, list[str]], vocab_size: int) -> Tokenizer:
    """Byte-level BPE in the form of Qwen2's tokenizer.json; special tokens get the last ids."""
    byte_level = {"add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(**byte_level),
        ]
    )
    tokenizer.post_processor = processors.ByteLevel(**byte_level)
    tokenizer.decoder = decoders.ByteLevel(**byte_level)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Prose counts twice: there is a seventh as much of it as of code.
    tokenizer.train_from_iterator(texts["code"] + 2 * texts["prose"], trainer)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def as_chat(text: str) -> str:
    """A prose document as one ChatML exchange, so that the chat tokens are trained too."""
    question, _, answer = text.partition("\n")
    return (
        f"{IM_START}user\n{question.strip()}{IM_END}\n"
        f"{IM_START}assistant\n{answer.strip()}{IM_END}\n"
    )


def encode(tokenizer: Tokenizer, documents: Sequence[str]) -> np.ndarray:
    """Token ids of the documents, each closed by the end-of-text token: (tokens,) uint16."""
    end = tokenizer.token_to_id(END_OF_TEXT)
    encodings = tokenizer.encode_batch_fast(list(documents), add_special_tokens=False)
    return np.concatenate([np.array([*e.ids, end], dtype=np.uint16) for e in encodings])


def prepare(work: Path, recipe: Recipe) -> None:
    """Tokenizer and encoded text in `work`; done once, the tokenizer file last."""
    if (work / "tokenizer.json").exists():
        return
    work.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(standard_library_texts("calibration"), recipe.vocab_size)
    training = standard_library_texts("calibration", include_tests=True)
    training["prose"] += [as_chat(text) for text in training["prose"][::8]]
    for split, texts in ("train", training), ("heldout", standard_library_texts("heldout")):
        for domain, documents in texts.items():
            ids = encode(tokenizer, documents)
            np.save(work / f"{split}_{domain}.npy", ids)
            characters = sum(map(len, documents))
            print(
                f"{split} {domain}: {len(documents)} documents, {characters} characters, "
                f"{len(ids)} tokens",
                flush=True,
            )
    tokenizer.save(str(work / "tokenizer.json"))


def load_tokens(work: Path, split: str) -> dict[str, np.ndarray]:
    return {domain: np.load(work / f"{split}_{domain}.npy") for domain in ("code", "prose")}


def batch(tokens: dict[str, np.ndarray], step: int, recipe: Recipe) -> Tensor:
    """Windows at random places, (sequences, length + 1); a function of seed and step alone."""
    random = np.random.default_rng([recipe.seed, step])
    # Rounded at random per step rather than drawn per row: the mix varies less.
    prose_rows = int(recipe.prose_share * recipe.sequences_per_step + random.random())
    rows = []
    for row in range(recipe.sequences_per_step):
        stream = tokens["prose" if row < prose_rows else "code"]
        start = random.integers(len(stream) - recipe.sequence_length)
        rows.append(stream[start : start + recipe.sequence_length + 1])
    return torch.from_numpy(np.stack(rows).astype(np.int64))


# --- model ------------------------------------------------------------------------------------


def model_config(recipe: Recipe, tokenizer: Tokenizer) -> Qwen3MoeConfig:
    """7.9 million parameters, nine tenths of them in the experts: there is something to prune.

    An expert width of 192 leaves five cut widths in multiples of 32.
    """
    config = Qwen3MoeConfig(
        vocab_size=recipe.vocab_size,
        hidden_size=128,
        intermediate_size=384,
        moe_intermediate_size=192,
        num_hidden_layers=6,
        num_experts=16,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        rope_theta=10000.0,
        tie_word_embeddings=True,
        router_aux_loss_coef=recipe.balance_coefficient,
        initializer_range=0.02,
        bos_token_id=None,
        eos_token_id=tokenizer.token_to_id(END_OF_TEXT),
        pad_token_id=tokenizer.token_to_id(END_OF_TEXT),
    )
    config._experts_implementation = "padded"
    return config


class _Dispatch(torch.autograd.Function):
    """Copy each token into its slots of the padded groups: (tokens, hidden) -> (slots, hidden).

    The gradient of a gather is a scatter, which is slow on CPUs; but here its transpose is again
    a gather, through the inverse table `slot_of` (tokens, k).
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, token_of: Tensor, slot_of: Tensor) -> Tensor:
        ctx.save_for_backward(slot_of)
        return torch.cat([states, states.new_zeros(1, states.shape[1])])[token_of]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (slot_of,) = ctx.saved_tensors
        return gradient[slot_of].sum(dim=1), None, None


class _Collect(torch.autograd.Function):
    """Bring expert outputs back to their tokens: (slots, hidden) -> (tokens, k, hidden)."""

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, slot_of: Tensor, pair_of: Tensor) -> Tensor:
        ctx.save_for_backward(pair_of)
        return outputs[slot_of]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (pair_of,) = ctx.saved_tensors
        pairs = gradient.flatten(0, 1)
        return torch.cat([pairs, pairs.new_zeros(1, pairs.shape[1])])[pair_of], None, None


def grouped_linear(groups: Tensor, weights: Tensor, sizes: list[int]) -> Tensor:
    """Each expert's rows times its weight: (slots, in), (experts, out, in) -> (slots, out).

    Cast and split once: indexing one expert at a time would make every gradient a full tensor.
    """
    parts = zip(groups.bfloat16().split(sizes), weights.bfloat16().unbind(), strict=True)
    return torch.cat([part @ weight.t() for part, weight in parts])


def padded_experts_forward(
    self: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """All experts over token groups padded to a multiple of 64.

    Pairs (token, choice) are sorted by expert; each expert owns a run of slots, as many as it was
    chosen, rounded up. Unused slots point to a row of zeros behind the last token.
    """
    tokens, k = top_k_index.shape
    expert_of_pair = top_k_index.flatten()
    counts = torch.bincount(expert_of_pair, minlength=self.num_experts)
    sizes = (counts + GROUP_MULTIPLE - 1) // GROUP_MULTIPLE * GROUP_MULTIPLE

    order = expert_of_pair.argsort(stable=True)
    padding_before = (sizes.cumsum(0) - sizes) - (counts.cumsum(0) - counts)
    slots = torch.arange(len(order)) + padding_before[expert_of_pair[order]]
    slot_of = torch.empty_like(order).index_copy_(0, order, slots).view(tokens, k)
    pair_of = torch.full((int(sizes.sum()),), tokens * k).index_copy_(0, slots, order)

    groups = _Dispatch.apply(hidden_states, pair_of // k, slot_of)
    gate, up = grouped_linear(groups, self.gate_up_proj, sizes.tolist()).chunk(2, dim=-1)
    outputs = grouped_linear(F.silu(gate) * up, self.down_proj, sizes.tolist())
    chosen = _Collect.apply(outputs, slot_of, pair_of)
    return (chosen * top_k_weights.unsqueeze(-1)).sum(dim=1).to(hidden_states.dtype)


ALL_EXPERTS_FUNCTIONS.register("padded", padded_experts_forward)


class RouterBalance:
    """Collects every router's choices in a forward pass for the load-balance loss.

    E * sum_e f_e * P_e per layer (Switch Transformer, arXiv 2101.03961, eq. 4): f_e the share of
    choices, P_e the mean probability. Taken over the whole batch, which mixes both domains, it
    leaves experts free to specialise in one of them.
    """

    def __init__(self, model: nn.Module) -> None:
        self.terms: list[Tensor] = []
        for name, module in model.named_modules():
            if name.endswith("mlp.gate"):
                module.register_forward_hook(self._collect)

    def _collect(self, router: nn.Module, inputs: Any, outputs: tuple[Tensor, ...]) -> None:
        logits, _, chosen = outputs
        experts = logits.shape[-1]
        share = torch.bincount(chosen.flatten(), minlength=experts) / chosen.numel()
        self.terms.append(experts * (share * logits.float().softmax(-1).mean(0)).sum())

    def take(self) -> Tensor:
        """Mean over the layers (1.0 is perfect balance); forgets what was collected."""
        loss = torch.stack(self.terms).mean()
        self.terms.clear()
        return loss


def token_loss(model: Qwen3MoeForCausalLM, rows: Tensor, reduction: str = "mean") -> Tensor:
    """Next-token cross-entropy in nats of (sequences, length + 1) ids."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=rows[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten(), reduction=reduction)


# --- training ---------------------------------------------------------------------------------


def learning_rate(step: int, steps: int, recipe: Recipe) -> float:
    """Warm-up, flat, then down to zero in a straight line over the last `decay_share`."""
    warmup = min(1.0, (step + 1) / recipe.warmup_steps)
    decay = min(1.0, (steps - step) / max(1.0, recipe.decay_share * steps))
    return recipe.peak_learning_rate * warmup * decay


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW; norms and the embedding are not decayed."""
    decayed = [p for n, p in model.named_parameters() if p.ndim > 1 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim == 1 or "embed" in n]
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), eps=1e-10, fused=True)


def save_state(
    path: Path, model: nn.Module, optimizer: torch.optim.AdamW, step: int, seconds: float
) -> None:
    """Write under a temporary name and rename: a kill leaves the previous state whole."""
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    temporary = path.with_suffix(".tmp")
    torch.save({**state, "step": step, "seconds": seconds}, temporary)
    temporary.replace(path)


def train(work: Path, recipe: Recipe, steps: int, save_seconds: float) -> None:
    """Train up to `steps`, from the saved state where there is one."""
    torch.manual_seed(recipe.seed)
    tokens = load_tokens(work, "train")
    model = Qwen3MoeForCausalLM(model_config(recipe, load_tokenizer(work)))
    balance = RouterBalance(model)
    optimizer = make_optimizer(model, recipe)
    first_step, spent = 0, 0.0
    if (work / "state.pt").exists():
        state = torch.load(work / "state.pt", weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first_step, spent = state["step"], state["seconds"]

    # An interruption ends the step and saves, so that nothing is lost.
    interrupted: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: interrupted.append(number))
    start = saved = logged = time.monotonic()
    losses: list[float] = []
    balances: list[float] = []
    for step in range(first_step, steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, recipe)
        loss = token_loss(model, batch(tokens, step, recipe))
        balance_loss = balance.take()
        (loss + recipe.balance_coefficient * balance_loss).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        balances.append(balance_loss.item())

        now = time.monotonic()
        if (step + 1) % 50 == 0:
            speed = len(losses) * recipe.tokens_per_step / (now - logged)
            print(
                f"step {step + 1}/{steps}  loss {np.mean(losses):.3f}  "
                f"balance {np.mean(balances):.2f}  {speed:.0f} tokens/s  "
                f"{(spent + now - start) / 60:.1f} min",
                flush=True,
            )
            logged = now
            losses.clear()
            balances.clear()
        if interrupted or now - saved > save_seconds or step + 1 == steps:
            save_state(work / "state.pt", model, optimizer, step + 1, spent + now - start)
            saved = now
        if interrupted:
            raise SystemExit(f"interrupted after step {step + 1}; the same command continues")


# --- results ----------------------------------------------------------------------------------


def load_tokenizer(work: Path) -> Tokenizer:
    return Tokenizer.from_file(str(work / "tokenizer.json"))


def load_model(work: Path, recipe: Recipe) -> Qwen3MoeForCausalLM:
    """The trained model, rounded to bfloat16 as it will be stored, computing in float32."""
    model = Qwen3MoeForCausalLM(model_config(recipe, load_tokenizer(work)))
    model.load_state_dict(torch.load(work / "state.pt", weights_only=True)["model"])
    return model.bfloat16().float().eval()


def unigram_perplexity(train: np.ndarray, heldout: np.ndarray, vocab_size: int) -> float:
    """Perplexity of add-one smoothed training counts: what knowing no context is worth."""
    counts = np.bincount(train, minlength=vocab_size) + 1
    return float(np.exp(-np.log(counts / counts.sum())[heldout].mean()))


@torch.no_grad()
def perplexity(model: Qwen3MoeForCausalLM, tokens: np.ndarray, recipe: Recipe) -> float:
    """Perplexity over disjoint windows of the training length (each starts without context)."""
    length = recipe.sequence_length
    windows = (len(tokens) - 1) // length
    rows = np.stack([tokens[i * length : (i + 1) * length + 1] for i in range(windows)])
    chunks = torch.from_numpy(rows.astype(np.int64)).split(recipe.sequences_per_step)
    total = sum(token_loss(model, chunk, reduction="sum").item() for chunk in chunks)
    return math.exp(total / (windows * length))


def evaluate(work: Path, recipe: Recipe) -> None:
    model = load_model(work, recipe)
    training, heldout = load_tokens(work, "train"), load_tokens(work, "heldout")
    for domain, tokens in heldout.items():
        unigram = unigram_perplexity(training[domain], tokens, recipe.vocab_size)
        print(
            f"{domain}: perplexity {perplexity(model, tokens, recipe):.2f}, "
            f"unigram {unigram:.1f}, {len(tokens)} tokens"
        )


def export(work: Path, recipe: Recipe, directory: Path) -> None:
    """Write the Hugging Face directory; files already there under other names are kept."""
    temporary = directory.with_name(directory.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    load_model(work, recipe).bfloat16().save_pretrained(temporary)
    tokenizer = load_tokenizer(work)
    tokenizer.save(str(temporary / "tokenizer.json"), pretty=False)
    end, turn_end = (tokenizer.token_to_id(token) for token in (END_OF_TEXT, IM_END))
    generation = GenerationConfig(eos_token_id=[end, turn_end], pad_token_id=end)
    generation.save_pretrained(temporary)
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "unk_token": None,
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1024,
        "chat_template": CHAT_TEMPLATE,
    }
    (temporary / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=2) + "\n")
    directory.mkdir(parents=True, exist_ok=True)
    for file in temporary.iterdir():
        file.replace(directory / file.name)
    temporary.rmdir()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path, help="directory for tokens and training state")
    parser.add_argument("--steps", type=int, default=5000, help="length of the whole training")
    parser.add_argument("--threads", type=int, help="torch threads (default: torch's choice)")
    parser.add_argument("--save-seconds", type=float, default=180, help="between checkpoints")
    parser.add_argument("--evaluate", action="store_true", help="only print held-out perplexity")
    parser.add_argument("--export", type=Path, metavar="DIRECTORY", help="only export the model")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    recipe = Recipe()
    if arguments.evaluate:
        evaluate(arguments.work, recipe)
    elif arguments.export:
        export(arguments.work, recipe, arguments.export)
    else:
        prepare(arguments.work, recipe)
        train(arguments.work, recipe, arguments.steps, arguments.save_seconds)


if __name__ == "__main__":
    main()
