"""Sentencepiece tokenizers, and texts that are hard to tokenise."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

NASTY = (
    "Hello, world! It's 12345 o'clock; they'LL say \"don't\".\n\n\tdef f(x):\n        return x**2"
    "  # 3.14159\r\n\r\nNaïve café, Straße, ΑΒΓ αβγ, Привет мир, 中文字符测试，日本語テキスト。"
    "한국어 🦙🚀 \u00a0 trailing   spaces   \n  <b>&amp;</b> a_b-c/d\\e {1:[2,3]} $100 50% x²+y³ ½"
    " ٣٤ CamelCaseWord HTTPServer 2024-01-31T00:00:00Z a1b22c333d4444 ... !!! ?!\n \n   end"
)

# A line of every script that matters, with what makes it hard: marks, capitals, joiners, digits.
SCRIPTS = {
    "Latin": "Ça va, Straße! ÀÉÎ naïve coöperation ñandú Łódź İstanbul ıssız ﬁn Ａｂｃ ªº",
    "Latin, not composed": "cafe\u0301 man\u0303ana A\u030angstro\u0308m e\u0302\u0301",
    "Greek": "Καλημέρα κόσμε, ΑΒΓ αβγ ὦ ἄνδρες Ἀθηναῖοι ΚαλημέραΚόσμε",
    "Cyrillic": "Привет, мир! ПриветМир ЁЛКА й Ћирилица їжак",
    "Arabic": "مرحبا بالعالم، مُحَمَّدٌ ٣٤٥٦ ‏اللغة ـــ",
    "Hebrew": "שלום עולם שָׁלוֹם בְּרֵאשִׁית",
    "Devanagari": "नमस्ते दुनिया, हिन्दी १२३४५ क्षत्रिय।",
    "Bengali": "বাংলা ভাষা ১২৩ কোথায়",
    "Tamil": "தமிழ் மொழி கொடுக்கிறேன்",
    "Thai": "สวัสดีชาวโลก ภาษาไทย ๑๒๓๔ กำลัง",
    "Khmer": "ភាសាខ្មែរ សួស្តី ១២៣",
    "Myanmar": "မြန်မာဘာသာ ၁၂၃",
    "Georgian": "ქართული ენა ᲥᲐᲠᲗᲣᲚᲘ",
    "Armenian": "Հայերեն լեզու ԲԱՐԵՎ և",
    "Ethiopic": "አማርኛ ቋንቋ ፩፪፫",
    "Chinese": "简体中文字符测试，繁體中文測試。混合abc中文Def漢字 二〇二六年 人々 ⺀ 𠀀 x 中",
    "Japanese": "日本語テキスト、ひらがな カタカナ ー ヶ月 か\u3099",
    "Korean": "한국어 텍스트 ᄒᆞᆫ 1시간",
    "emoji": "🦙🚀👩‍👩‍👧‍👦👍🏽🇩🇪☺️ 5️⃣ 🏴\U000e0067\U000e0062\U000e007f",
    "numbers": "12345 1234567 ½ ² Ⅻ ① ٣٤ १२ 1,000.00 a1b22c333 0x1F ᠑᠒",
    "spaces": "a  b   c\td\t\te \u00a0 \u3000 \u2003x\u0085y\u200bz\n\n\nf \n  \n g\r\n\r\nh  \n",
    "contractions": "It's we'll THEY'RE I'M he'd 'tis don’t x's'S 'Ve 'T '' rock'n'roll o'clock",
    "code": "getElementById XMLHttpRequest iPhone14 a_b f(x)=>{a:[1]}; //c\n/* d */\n#!/bin/sh",
    "marks": '!!! ?! ... (a) [b] <c/> "d" `e` ~f^g| $5 50% a@b.c #h http://x.y/?q=1&r=2 — « » „x“',
}
HARD = NASTY + "".join(f"\n{line} " for line in SCRIPTS.values())
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def write_settings(directory: Path, settings: Mapping[str, Any]) -> None:
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


# Without the scripts that must fall back to bytes.
_FEW_SCRIPTS = NASTY.replace("🦙🚀", "").replace("한국어", "") * 4


def train_sentencepiece(
    directory: Path, text: str = _FEW_SCRIPTS, **options: Any
) -> sentencepiece.SentencePieceProcessor:
    """tokenizer.model, trained on the lines of ``text``, and its settings."""
    model, usual = io.BytesIO(), {"vocab_size": 520, "byte_fallback": True}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.splitlines()),
        model_writer=model,
        model_type="bpe",
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        character_coverage=1.0,
        hard_vocab_limit=False,
        minloglevel=2,
        **usual | options,
    )
    directory.mkdir(exist_ok=True)
    (directory / "tokenizer.model").write_bytes(model.getvalue())
    write_settings(directory, SPECIAL | {"add_bos_token": True})
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def sentencepiece_json(processor: sentencepiece.SentencePieceProcessor, directory: Path) -> None:
    """The model as transformers converts it: BPE with byte fallback, Mixtral's tokenizer.json."""
    vocab = {processor.id_to_piece(i): i for i in range(processor.get_piece_size())}
    merges = sorted(
        (-processor.get_score(number), left, piece[len(left) :])
        for piece, number in vocab.items()
        for left in (piece[:cut] for cut in range(1, len(piece)))
        if left in vocab and piece[len(left) :] in vocab and not processor.is_byte(number)
    )
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=[(left, right) for _, left, right in merges],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    directory.mkdir(exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    write_settings(directory, SPECIAL | {"add_bos_token": True})


def write_ernie(directory: Path) -> sentencepiece.SentencePieceProcessor:
    """ERNIE-4.5's files: tokenizer.model, no space in front, no BOS, a class that transformers does
    not have."""
    processor = train_sentencepiece(
        directory,
        HARD * 3,
        vocab_size=1400,
        add_dummy_prefix=False,
        control_symbols=["<|begin_of_sentence|>", "<|end_of_sentence|>"],
        user_defined_symbols=["<|im_start|>"],
    )
    settings = SPECIAL | {
        "cls_token": "<|begin_of_sentence|>",
        "tokenizer_class": "Ernie4_5_Tokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_ernie4_5.Ernie4_5_Tokenizer", None]},
        "added_tokens_decoder": {
            str(processor.get_piece_size()): {"content": "<|tool|>", "special": True}
        },
    }
    write_settings(directory, settings)
    (directory / "config.json").write_text(json.dumps({"model_type": "ernie4_5_moe"}))
    return processor


GEMMA_SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<|turn>", "<turn|>", "<|channel>"]


def write_gemma(directory: Path) -> Tokenizer:
    """Gemma 4's tokenizer.json: pieces with byte fallback, spaces written as low lines, no space in
    front, runs of line ends; its settings are those of a model for chat."""
    learned = Tokenizer(models.BPE())
    learned.normalizer = normalizers.Replace(" ", "▁")
    learned.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n+|▁+[^▁\n]*|[^▁\n]+"), "isolated")
    trainer = trainers.BpeTrainer(vocab_size=2000, show_progress=False)
    scripts = (line for script, line in SCRIPTS.items() if script not in ("emoji", "Ethiopic"))
    learned.train_from_iterator([*NASTY.splitlines(), "\n" * 9, "x\n\ny\n\n\n", *scripts], trainer)
    raw = json.loads(learned.to_str())["model"]
    names = [*GEMMA_SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *raw["vocab"]]
    model = models.BPE(
        vocab={text: number for number, text in enumerate(names)},
        merges=[tuple(merge) for merge in raw["merges"]],
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(GEMMA_SPECIAL)
    directory.mkdir(exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "add_bos_token": False,
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "tokenizer_class": "GemmaTokenizer",
    }
    write_settings(directory, settings)
    (directory / "chat_template.jinja").write_text("{{ bos_token }}{{ messages }}")
    return tokenizer
