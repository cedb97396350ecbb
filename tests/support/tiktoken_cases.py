"""A tiktoken vocabulary as Moonlight and Kimi publish one, and tiktoken's own way with it."""

from __future__ import annotations

import base64
from itertools import pairwise
from pathlib import Path

import regex
from support.byte_level_cases import KIMI_PARTS, TO_BYTES, splits, words_in_pairs
from support.tokenizer_cases import write_settings
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from tenp_edge.runtime.byte_alphabet import BYTE_OF

PATTERN = "|".join(KIMI_PARTS)
NAMED = {0: "[BOS]", 1: "[EOS]", 2: "<|im_end|>", 4: "<|tool_calls_section_begin|>"}
CODE = f'''"""A tokenizer of the model's own."""
import this_is_not_installed
raise SystemExit("this file is read, not run")


class TikTokenTokenizer(Base):
    """What the model's own code holds."""

    num_reserved_special_tokens = 256
    pat_str = "|".join(
        [
{"".join(f'            r"""{part}""",{chr(10)}' for part in KIMI_PARTS)}        ]
    )
'''


def write_tiktoken(directory: Path, text: str) -> dict[bytes, int]:
    """tiktoken.model, trained on the words of ``text``, alone and in pairs, with its settings and
    its code. Returns its ranks."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = TO_BYTES
    trainer = trainers.BpeTrainer(
        vocab_size=20000,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    splitter = pre_tokenizers.Sequence([*splits(PATTERN), TO_BYTES])
    tokenizer.train_from_iterator(words_in_pairs(splitter, text), trainer)
    ranks = {
        bytes(BYTE_OF[letter] for letter in token): rank
        for token, rank in tokenizer.get_vocab().items()
    }
    lines = (
        f"{base64.b64encode(token).decode()} {rank}\n"
        for token, rank in sorted(ranks.items(), key=lambda item: item[1])
    )
    directory.mkdir(exist_ok=True)
    (directory / "tiktoken.model").write_text("".join(lines))
    (directory / "tokenization_moonshot.py").write_text(CODE)
    named = {
        str(len(ranks) + number): {"content": text, "special": number != 4}
        for number, text in NAMED.items()
    }
    settings = {
        "added_tokens_decoder": named,
        "auto_map": {"AutoTokenizer": ["tokenization_moonshot.TikTokenTokenizer", None]},
        "bos_token": "[BOS]",
        "eos_token": "[EOS]",
        "tokenizer_class": "TikTokenTokenizer",
        "chat_template": "{{ messages[0]['content'] }}",
    }
    write_settings(directory, settings)
    return ranks


def encode(ranks: dict[bytes, int], text: str) -> list[int]:
    """tiktoken's algorithm: a word that is a token is that token; else the two neighbours that make
    the token of the lowest rank are joined, until none make one."""
    found = []
    for word in regex.findall(PATTERN, text, flags=regex.V1):
        raw = word.encode()
        parts = [raw] if raw in ranks else [bytes([byte]) for byte in raw]
        while len(parts) > 1:
            joined = [ranks.get(left + right, len(ranks)) for left, right in pairwise(parts)]
            at = joined.index(min(joined))
            if joined[at] == len(ranks):
                break
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        found += [ranks[part] for part in parts]
    return found
