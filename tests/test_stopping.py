"""Stop strings against a search in the whole text, however it is divided."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinylm.stopping import StopStrings


def divide(text: str, cuts: list[int]) -> list[str]:
    borders = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[start:end] for start, end in pairwise(borders)]


def cut_by_search(text: str, stops: list[str]) -> tuple[str, bool]:
    """The text before the stop string that is complete first; of several, before the longest."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))], True
    return text, False


letters = st.text(alphabet="ab\n", max_size=30)


@given(
    text=letters,
    stops=st.lists(st.text(alphabet="ab\n", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(0, 30)),
)
def test_any_division_gives_what_a_search_gives(text: str, stops: list[str], cuts: list[int]) -> None:
    expected, stopped = cut_by_search(text, stops)
    stop = StopStrings(stops)
    shown = ""
    for piece in divide(text, cuts):
        shown += stop.push(piece)
        assert expected.startswith(shown), "a part of a stop string, or what follows one, was shown"
    shown += stop.finish()
    assert (shown, stop.stopped) == (expected, stopped)


def test_only_what_may_become_a_stop_string_is_held_back() -> None:
    stop = StopStrings(["\n\n", "User:"])
    assert [stop.push(piece) for piece in ("Hi", "\n", "U", "ser", ".", "\n", "\n", "more")] == [
        "Hi", "", "\n", "", "User.", "", "", "",
    ]  # fmt: skip
    assert stop.stopped
    assert stop.finish() == ""


@pytest.mark.parametrize("text", ["", "anything"])
def test_without_stop_strings_nothing_is_held_back(text: str) -> None:
    stop = StopStrings([])
    assert stop.push(text) == text
    assert not stop.stopped
