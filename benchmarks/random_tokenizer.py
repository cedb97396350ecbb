"""A tokenizer for random checkpoints: real files that every runtime reads, without training."""

from __future__ import annotations

from itertools import islice, product
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

# Character for character the expression of Qwen2's tokenizer.json, which llama.cpp implements
# under the pre-tokenizer name `qwen2`.
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def write_full_tokenizer(directory: Path, size: int, merged: str | None = None) -> None:
    """A byte-level BPE tokenizer in Qwen2's style with ``size`` tokens, longer ones made of the
    letters ``merged`` (None: of any byte): with those alone every token can be typed."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<|endoftext|>": 0} | {text: 1 + place for place, text in enumerate(letters)}
    merges: list[tuple[str, str]] = []
    level = joined = letters if merged is None else list(merged)
    while len(vocabulary) < size:
        pairs = list(islice(product(level, joined), size - len(vocabulary)))
        merges += pairs
        level = [left + right for left, right in pairs]
        vocabulary |= {text: len(vocabulary) + place for place, text in enumerate(level)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    split = pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    fast.save_pretrained(directory)
