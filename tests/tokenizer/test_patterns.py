"""Regular expressions and characters mean what they mean in the `tokenizers` library."""

from __future__ import annotations

import random
import unicodedata
from typing import Any

import pytest
import tokenizers
from tokenizers import normalizers as library_normalizers
from tokenizers import pre_tokenizers as library_pre_tokenizers

from tinylm.tokenizer import normalizers, pre_tokenizers
from tinylm.tokenizer.expressions import Translation
from tinylm.tokenizer.fields import Fields
from tinylm.tokenizer.patterns import GPT2, Pattern

CHARACTERS = "".join(chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000)

LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT_4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"

EXPRESSIONS = [
    *(GPT2, LLAMA_3, GPT_4O, DEEPSEEK, BLOOM),
    *(
        r"\w",
        r"\W+",
        r"[\w]",
        r"[^\w\s]+",
        r"[^\W\d]+",
        r"\b",
        r"\B",
        r"\h+",
        r"[\h_]",
        r"\H",
        r"\d+",
        r"\D",
        r"\s+",
        r"\S",
    ),
    *(
        r"^.",
        r"^",
        r"$",
        r"\s+$",
        r"\A.",
        r".\z",
        r".\Z",
        r".",
        r"(?m:a.)",
        r"(?i)ab",
        r"(?i:S)",
        r"(?i:k)",
        r"a++b?",
    ),
    *(
        r"[a-c&&[^b]]+",
        r"[[a-c][x-z]]",
        r"[a||b]",
        r"[a~~b]",
        r"[+--]",
        r"[]a]",
        r"[^]a]",
        r"[a\]]",
        r"[[:alpha:]]+",
    ),
    *(
        r"[[:punct:]]+",
        r"[^[:space:]]",
        r"[[:word:]]",
        r"[[:^digit:]]",
        r"\x41",
        r"\x{1F600}",
        r"\u0041",
        r"\t|\n",
    ),
    *(
        r"(?<=a)b",
        r"(?<!a)b",
        r"(?=b)",
        r"(?!b).",
        r"(?>a|ab)c",
        r"(a)(b)?",
        r"(?<x>a)b",
        r"a{2}",
        r"a{1,2}?",
        r"a{,2}b",
    ),
    *(
        r"\p{L}+",
        r"\p{Lu}",
        r"\p{^L}",
        r"\P{L}",
        r"[\p{L}\p{M}]+",
        r"\p{Han}",
        r"\p{Hiragana}+",
        r"[一-龥぀-ゟ゠-ヿ]+",
    ),
    *(
        r"\s?[A-Za-zµÀ-ÖØ-öø-ƺ]+",
        r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
        r"\p{N}{1,3}",
        r"[0-9][0-9][0-9]",
        r"a*",
        r"(?:ab)*",
    ),
]

PIECES = [
    *(
        "a",
        "b",
        "ab",
        "aab",
        "c",
        "x",
        "S",
        "s",
        "ſ",
        "K",
        "K",
        "é",
        "e\u0301",
        "ß",
        "ʕ",
        "ǅ",
        "ﬆ",
        "½",
        "²",
        "٣",
        "Ⅷ",
        "日本",
    ),
    *(
        "ひ",
        "カ",
        " ",
        "  ",
        "\n",
        "\r\n",
        "\t",
        "\xa0",
        "\u2028",
        "\u200d",
        "_",
        "-",
        "|",
        "~",
        "[",
        "]",
        "'s",
        "'ll",
        "'S",
        "'",
    ),
    *(
        "1",
        "123",
        "0xFF",
        ".",
        ",",
        "!",
        "…",
        "😀",
        "Ⓐ",
        "€",
        "/",
        "\u0378",
        "\u088f",
        "\U00011de0",
        "\U000323b0",
        "A",
    ),
]


def spans_by_the_library(expression: str, text: str) -> list[tuple[int, int]]:
    """Where the words are when a text is cut around the matches, each a word of its own."""
    split = library_pre_tokenizers.Split(tokenizers.Regex(expression), "isolated")
    return [span for _, span in split.pre_tokenize_str(text)]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_expressions_cut_where_the_library_s_do(expression: str) -> None:
    choose = random.Random(len(expression))
    ours = pre_tokenizers.Split(Pattern(expression, "here"), "Isolated")
    for _ in range(120):
        text = "".join(choose.choices(PIECES, k=choose.randrange(1, 12)))
        expected = spans_by_the_library(expression, text)
        assert ours.spans(text) == expected, text
        assert ours.words(text) == [text[start:end] for start, end in expected], text


CLASSES = [
    *(
        r"\p{L}",
        r"\p{N}",
        r"\p{P}",
        r"\p{S}",
        r"\p{M}",
        r"\p{Z}",
        r"\p{C}",
        r"\p{Lu}",
        r"\p{Ll}",
        r"\p{Lm}",
        r"\p{Lo}",
    ),
    *(
        r"\s",
        r"\d",
        r"\w",
        r"\W",
        r"[\w]",
        r"[^\w]",
        r"[[:alpha:]]",
        r"[[:punct:]]",
        r"\p{Han}",
        r"\p{Katakana}",
        r"(?i:s)",
    ),
]


@pytest.mark.parametrize("expression", CLASSES)
def test_classes_hold_the_same_characters(expression: str) -> None:
    # On another Python and another `regex` module too, which know a newer Unicode or an older one.
    ours = Pattern(expression, "here")
    library = library_normalizers.Replace(tokenizers.Regex(expression), "")
    for start in range(0, len(CHARACTERS), 4096):
        chunk = CHARACTERS[start : start + 4096]
        assert ours.replace(chunk, "") == library.normalize_str(chunk), f"from U+{ord(chunk[0]):04X} on"


@pytest.mark.parametrize("kind", ["NFC", "NFD", "NFKC", "NFKD", "Lowercase"])
def test_characters_are_normalized_alike(kind: str) -> None:
    ours = normalizers.read(Fields({"type": kind}, "normalizer"))
    library = getattr(library_normalizers, kind)()
    for character in CHARACTERS:
        if not character.isascii() and not "\u4e00" <= character <= "\u9fa5":
            assert ours.apply(character) == library.normalize_str(character), f"U+{ord(character):04X}"


@pytest.mark.parametrize("kind", ["NFC", "NFD", "NFKC", "NFKD"])
def test_marks_are_ordered_and_composed_alike(kind: str) -> None:
    ours = normalizers.read(Fields({"type": kind}, "normalizer"))
    library = getattr(library_normalizers, kind)()
    marks = [character for character in CHARACTERS if unicodedata.category(character)[0] == "M"]
    bases = [
        *"aeouAEOU ",
        *"가갸ᄀ가각ᄒ",
        *"\u0958\u09dcक\u1fb3ΑΩ",
        *"\U00011935\U00011930\U000105d2\U0001611e\U00016d63",
    ]
    choose = random.Random(3)
    for _ in range(4_000):
        text = "".join(
            choose.choice(bases) + "".join(choose.choices(marks, k=choose.randrange(4))) for _ in range(3)
        )
        assert ours.apply(text) == library.normalize_str(text), ascii(text)


@pytest.mark.parametrize(
    ("kind", "parts", "library"),
    [
        ("Digits", {"individual_digits": True}, library_pre_tokenizers.Digits(True)),
        ("Digits", {"individual_digits": False}, library_pre_tokenizers.Digits(False)),
        ("Punctuation", {}, library_pre_tokenizers.Punctuation()),
        ("Whitespace", {}, library_pre_tokenizers.Whitespace()),
        ("ByteLevel", {"add_prefix_space": False}, library_pre_tokenizers.ByteLevel(add_prefix_space=False)),
    ],
)
def test_every_character_is_cut_alike(kind: str, parts: dict[str, Any], library: Any) -> None:
    ours = pre_tokenizers.read(Fields({"type": kind, **parts}, "pre_tokenizer"))
    # Of ideographs, Hangul syllables and what follows, which are alike, one in a hundred.
    text = "".join(
        f"a{c}1{c}" for c in CHARACTERS[:0x20000] if ord(c) % 100 == 0 or not "\u3400" <= c < "\uf900"
    )
    for start in range(0, len(text), 4096):
        piece = text[start : start + 4096]
        assert ours.words(piece) == [word for word, _ in library.pre_tokenize_str(piece)]


def test_strip_takes_what_the_library_takes() -> None:
    ours = normalizers.read(Fields({"type": "Strip", "strip_left": True, "strip_right": True}, "normalizer"))
    for character in (*CHARACTERS[:0x3100], "\ufeff", "\U000e0020"):
        text = f"{character}a{character}"
        assert ours.apply(text) == library_normalizers.Strip().normalize_str(text), ascii(text)


def test_the_expressions_of_models_are_not_slowed_by_a_clock() -> None:
    for expression in (GPT2, LLAMA_3, GPT_4O, DEEPSEEK, BLOOM):
        assert not Translation(expression).may_run_away, expression
    for expression in (
        "(a+)+b",
        "(a|b)*",
        "(?:a{2}){3,}",
        r"(a)\1",
        "a*a*a*a*a*b",
        r"\s+$",
        r"a+\z",
        "(?:a+){9}",
    ):
        assert Translation(expression).may_run_away, expression
