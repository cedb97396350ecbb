"""GPT-2's alphabet: a printable character for every byte, in which byte-level vocabularies are
written."""

from __future__ import annotations


def _characters() -> dict[int, str]:
    """Printable bytes stand for themselves, the other 68 for the characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {byte: chr(byte) for byte in printable}
    return table | {byte: chr(0x100 + number) for number, byte in enumerate(others)}


CHARACTER_OF = _characters()
BYTE_OF = {character: byte for byte, character in CHARACTER_OF.items()}


def spelled(raw: bytes) -> str:
    """``raw``, one character a byte."""
    return raw.decode("latin-1").translate(CHARACTER_OF)
