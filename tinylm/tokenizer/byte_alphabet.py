"""The byte-level alphabet of GPT-2: each of the 256 bytes as one printable character.

Printable Latin-1 bytes stand for themselves, the others for the characters from U+0100 on, in order: the
space (0x20) is U+0120, the newline (0x0A) is U+010A.
Source: https://github.com/openai/gpt-2/blob/master/src/encoder.py, `bytes_to_unicode`.
"""

from __future__ import annotations


def _alphabet() -> str:
    own = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return "".join(chr(byte if byte in own else next(others)) for byte in range(256))


ALPHABET = _alphabet()
"""The character of each byte."""

_TO_CHARACTERS = dict(enumerate(ALPHABET))
_TO_BYTES = {ord(character): byte for byte, character in enumerate(ALPHABET)}
_LATIN_1 = {character: chr(byte) for character, byte in _TO_BYTES.items()}
_CHARACTERS = frozenset(ALPHABET)


def to_alphabet(text: str) -> str:
    """The UTF-8 bytes of a text, one character each: `"é "` -> `"Ã©Ġ"`."""
    return text.encode().decode("latin-1").translate(_TO_CHARACTERS)


def from_alphabet(token: str) -> bytes:
    """The bytes that a token stands for: those of `é` and a space for `"Ã©Ġ"`.

    A token with a character outside the alphabet, as added tokens have, stands for its own UTF-8 bytes.
    """
    if _CHARACTERS.issuperset(token):
        return token.translate(_LATIN_1).encode("latin-1")
    return token.encode()
