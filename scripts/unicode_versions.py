"""Writes tinylm/tokenizer/unicode_ranges.py: what the `tokenizers` library knows of Unicode.

    python scripts/unicode_versions.py

Needs the `tokenizers` library and a `regex` that knows a newer Unicode than it. Its regular expressions
(Oniguruma) know Unicode 16.0, its normalization forms an older one.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

import regex
from tokenizers import Regex, normalizers

TARGET = Path(__file__).resolve().parent.parent / "tinylm" / "tokenizer" / "unicode_ranges.py"

# The parts of canonical compositions that came with Unicode 13 (Dives Akuru) and 16 (Todhri, Tulu-Tigalari,
# Gurung Khema, Kirat Rai), which have no other property that would show them.
PARTS = [
    *(0x11930, 0x11935),
    *(0x105D2, 0x105DA),
    *(0x11382, 0x11384, 0x1138B, 0x11390, 0x113B8, 0x113BB, 0x113C2, 0x113C9),
    *(0x1611E, 0x1611F, 0x16120, 0x16129),
    *(0x16D63, 0x16D67),
]

CHARACTERS = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]


def unassigned() -> set[int]:
    """The code points that the library's regular expressions call unassigned."""
    removed = normalizers.Replace(Regex(r"\p{Cn}"), "")
    kept = set(removed.normalize_str("".join(CHARACTERS)))
    return {ord(character) for character in CHARACTERS if character not in kept}


def left_alone() -> set[int]:
    """The code points that the library's normalization forms do not know."""
    nfd, nfkd = normalizers.NFD(), normalizers.NFKD()
    decomposes = regex.compile(r"[^\p{Decomposition_Type=None}]")
    combines = regex.compile(r"[^\p{Canonical_Combining_Class=0}]")
    found = set(PARTS)
    for character in CHARACTERS:
        if decomposes.match(character) and nfkd.normalize_str(character) == character:
            found.add(ord(character))
        # Class 1 would move in front of it, and it in front of class 240.
        orders = [f"a{character}\u0334", f"a\u0345{character}"]
        if combines.match(character) and all(nfd.normalize_str(order) == order for order in orders):
            found.add(ord(character))
    return found


def ranges(codes: set[int]) -> str:
    """Code points as `gap+length` in hexadecimal."""
    words = []
    done = 0
    for code in sorted(codes):
        if code - 1 in codes:
            continue
        end = code
        while end in codes:
            end += 1
        words.append(f"{code - done:X}+{end - code:X}")
        done = end
    return " ".join(words)


TEMPLATE = '''"""Code points as ranges in hexadecimal, `gap+length`, each gap counted from the end of the range before.

Written by scripts/unicode_versions.py, which says how they were found.
"""

UNASSIGNED = """
{unassigned}
"""
"""What Unicode 16.0 leaves unassigned."""

LEFT_ALONE = """
{left_alone}
"""
"""What is assigned and what the library's normalization forms leave alone, although Unicode today gives it a
decomposition, a combining class or a part in a composition."""
'''


def main() -> None:
    """Write the file."""
    missing = unassigned()
    text = TEMPLATE.format(
        unassigned=textwrap.fill(ranges(missing), 110),
        left_alone=textwrap.fill(ranges(left_alone() - missing), 110),
    )
    TARGET.write_text(text, encoding="ascii", newline="\n")


if __name__ == "__main__":
    main()
