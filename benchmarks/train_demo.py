"""Train the bundled demo model: a small Qwen3-MoE that has read Python's standard library.

    python benchmarks/train_demo.py WORK --steps 5000            # about an hour on two idle cores
    python benchmarks/train_demo.py WORK --export DIRECTORY      # Hugging Face directory, any time
    python benchmarks/train_demo.py WORK --evaluate              # held-out perplexity by domain

The first call trains the tokenizer and encodes the text (a minute), then trains; it checkpoints
every few minutes and the same command continues after an interruption. The learning rate is flat
until the last quarter, so a run that is still in the flat part may be continued with another
`--steps` to end earlier or later. Batches depend on the seed and the step alone.

Text: `tenp_edge.calibration.text.standard_library`, calibration split (with Python's test suite
where it is installed). The held-out split is never read in training. Needs torch, transformers and
tokenizers.
"""

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path

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
from tokenizers import Tokenizer
from torch import Tensor, nn
from training_data import (
    CHAT_TEMPLATE,
    END_OF_TEXT,
    IM_END,
    IM_START,
    encode,
    load_tokenizer,
    train_tokenizer,
    write_model,
)
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from tenp_edge.calibration.text.standard_library import standard_library_texts


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


def as_chat(text: str) -> str:
    """A prose document as one ChatML exchange, so that the chat tokens are trained too."""
    question, _, answer = text.partition("\n")
    return (
        f"{IM_START}user\n{question.strip()}{IM_END}\n"
        f"{IM_START}assistant\n{answer.strip()}{IM_END}\n"
    )


def prepare(work: Path, recipe: Recipe) -> None:
    """Tokenizer and encoded text in `work`; done once, the tokenizer file last."""
    if (work / "tokenizer.json").exists():
        return
    work.mkdir(parents=True, exist_ok=True)
    texts = standard_library_texts("calibration")
    # Prose counts twice: there is a seventh as much of it as of code.
    tokenizer = train_tokenizer(texts["code"] + 2 * texts["prose"], recipe.vocab_size)
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


# --- training ---------------------------------------------------------------------------------


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

    interrupted = interruptions()
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
            save_state(
                work / "state.pt",
                model=model.state_dict(),
                optimizer=optimizer.state_dict(),
                step=step + 1,
                seconds=spent + now - start,
            )
            saved = now
        if interrupted:
            raise SystemExit(f"interrupted after step {step + 1}; the same command continues")


# --- results ----------------------------------------------------------------------------------


def load_model(work: Path, recipe: Recipe) -> Qwen3MoeForCausalLM:
    """The trained model, rounded to bfloat16 as it will be stored, computing in float32."""
    model = Qwen3MoeForCausalLM(model_config(recipe, load_tokenizer(work)))
    model.load_state_dict(torch.load(work / "state.pt", weights_only=True)["model"])
    return model.bfloat16().float().eval()


def evaluate(work: Path, recipe: Recipe) -> None:
    model = load_model(work, recipe)
    training, heldout = load_tokens(work, "train"), load_tokens(work, "heldout")
    for domain, tokens in heldout.items():
        unigram = unigram_perplexity(training[domain], tokens, recipe.vocab_size)
        loss = mean_loss(model, windows(tokens, recipe.sequence_length), recipe.sequences_per_step)
        print(
            f"{domain}: perplexity {math.exp(loss):.2f}, "
            f"unigram {unigram:.1f}, {len(tokens)} tokens"
        )


def export(work: Path, recipe: Recipe, directory: Path) -> None:
    model = load_model(work, recipe).bfloat16()
    write_model(model, load_tokenizer(work), directory, CHAT_TEMPLATE)


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
