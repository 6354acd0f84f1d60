"""Added tokens are found leftmost-longest, however many there are and whatever they share."""

from __future__ import annotations

import json
import random
import re
import sys

import pytest

from tinylm.tokenizer import Tokenizer
from tinylm.tokenizer.added_tokens import AddedToken, Cutter, longest_of


def cutter_of(contents: list[str], **flags: bool) -> Cutter:
    names = ("single_word", "lstrip", "rstrip", "normalized", "special")
    tokens = [
        AddedToken(id, content, **{name: flags.get(name, False) for name in names})
        for id, content in enumerate(contents)
    ]
    return Cutter((token.content, token) for token in tokens)


def leftmost_longest(contents: list[str], text: str) -> list[str]:
    """The definition, one place after the other."""
    found = []
    place = 0
    while place < len(text):
        here = [content for content in contents if text.startswith(content, place)]
        if here:
            found.append(max(here, key=len))
        place += len(found[-1]) if here else 1
    return found


@pytest.mark.parametrize("seed", range(40))
def test_the_pattern_finds_the_longest(seed: int) -> None:
    choose = random.Random(seed)
    alphabet = choose.choice(["ab", "a\n ", "ab .*+?()[]|^$\\{}-#", "é日😀a"])
    contents = [
        "".join(choose.choices(alphabet, k=choose.randrange(1, 8))) for _ in range(choose.randrange(1, 60))
    ]
    contents += [choose.choice(alphabet) * choose.randrange(1, 50) for _ in range(choose.randrange(20))]
    contents = [*dict.fromkeys(contents)]
    cutter = cutter_of(contents)
    for _ in range(50):
        text = "".join(choose.choices(alphabet, k=choose.randrange(60)))
        expected = leftmost_longest(contents, text)
        assert cutter.split(text)[1::2] == expected
        assert "".join(cutter.split(text)) == text
        assert [text[slice(*span)] for token, span in cutter.cut(text) if token] == expected


def test_runs_of_hundreds_do_not_nest() -> None:
    contents = [" " * length for length in (*range(1, 171), 200, 400)] + [
        "\n" * length for length in range(1, 500)
    ]
    contents += [" \n", "\n\t", " a", "  a" * 20]
    pattern = re.compile(longest_of(contents))
    for length in (1, 170, 171, 199, 200, 201, 399, 400, 401):
        longest = max(run for run in (*range(1, 171), 200, 400) if run <= length)
        found = pattern.match(" " * length)
        assert found is not None
        assert len(found[0]) == longest
    assert pattern.findall("\n" * 700 + "\t") == ["\n" * 499, "\n" * 201]
    assert pattern.findall("\n\tx \n") == ["\n\t", " \n"]


def test_tokens_that_share_long_beginnings_do_not_exhaust_the_compiler() -> None:
    contents = ["ab" * length for length in range(1, 300)]
    assert cutter_of(contents).split("ab" * 350) == ["", "ab" * 299, "", "ab" * 51, ""]
    long = "x" * 1_000_000
    assert cutter_of([long + "y", long]).split(long + long) == ["", long, "", long, ""]


@pytest.mark.parametrize("flags", [{"rstrip": True}, {"lstrip": True}, {"lstrip": True, "rstrip": True}])
def test_spaces_that_are_tokens_and_stripped_are_looked_at_once(flags: dict[str, bool]) -> None:
    parts = cutter_of([" "], **flags).cut(" " * 100_000 + "a")
    assert parts[-1] == (None, (100_000, 100_001))


def test_importing_the_tokenizer_loads_neither_numpy_nor_numba(tmp_path: object) -> None:
    import subprocess

    document = {"model": {"vocab": {"a": 0}, "merges": []}}
    code = (
        "import sys; from tinylm.tokenizer import Tokenizer;"
        f"t = Tokenizer.from_json({json.dumps(document)!r}); assert t.decode(t.encode('a' * 50)).startswith('a');"
        "print(sorted({'numpy', 'numba', 'jinja2', 'tokenizers'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_two_threads_may_use_one_tokenizer() -> None:
    from concurrent.futures import ThreadPoolExecutor

    vocab = {chr(97 + letter): letter for letter in range(26)} | {"ab": 26, "abc": 27}
    document = {
        "model": {"vocab": vocab, "merges": ["a b", "ab c"]},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "Removed",
            "invert": False,
        },
    }
    ours = Tokenizer.from_json(json.dumps(document))
    choose = random.Random(5)
    cases = [" ".join("".join(choose.choices("abcd", k=3)) for _ in range(200)) for _ in range(200)]
    expected = [ours.encode(case) for case in cases]
    again = Tokenizer.from_json(json.dumps(document))
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(again.encode, cases * 4)) == expected * 4
