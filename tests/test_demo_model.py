"""The bundled model: small enough to ship, loadable by everyone, and worth pruning."""

import math
from itertools import islice
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from tenp_edge.calibration.text.standard_library import standard_library_texts

DEMO = Path(__file__).parents[1] / "tenp_edge" / "demo_model"
TEXT = "def main(argv=None):\r\n\treturn 'été 日本 12345'  # don't\n\n\n    x = [1, 2]\n"


def test_size_on_disk_and_in_the_experts() -> None:
    files = [path for path in DEMO.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 16_000_000
    model = AutoModelForCausalLM.from_pretrained(DEMO)
    experts = sum(p.numel() for n, p in model.named_parameters() if ".experts." in n)
    assert experts > 0.85 * sum(p.numel() for p in model.parameters())
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_tokenizer_alone_and_through_transformers_agree() -> None:
    alone = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    ids = alone.encode(TEXT).ids
    assert tokenizer(TEXT).input_ids == ids
    assert alone.decode(ids) == TEXT
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello"}], tokenize=False, add_generation_prompt=True
    )
    assert chat == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert alone.encode("".join(special)).ids == [alone.token_to_id(token) for token in special]


def test_heldout_perplexity_is_far_below_a_unigram_models() -> None:
    tokenizer = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    model = AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32)
    for domain, documents in standard_library_texts("heldout").items():
        encoded = (tokenizer.encode(text).ids[:512] for text in documents)
        rows = torch.tensor([*islice((ids for ids in encoded if len(ids) == 512), 8)])
        with torch.no_grad():
            loss = model(input_ids=rows, labels=rows).loss.item()
        # Unigram models reach about 940 in both domains.
        assert math.exp(loss) < 100, domain
