"""A piece of text under change that remembers where each of its characters came from."""

from __future__ import annotations

from collections.abc import Iterable

Span = tuple[int, int]
"""First and one past the last character of the original text."""


class Aligned:
    """A normalized piece: `spans[i]` is the place in the original text that character `i` stands for.

    `origin` is where the piece itself begins in the original text.
    """

    __slots__ = ("origin", "spans", "text")

    def __init__(self, text: str, spans: list[Span], origin: int = 0) -> None:
        self.text = text
        self.spans = spans
        self.origin = origin

    @classmethod
    def whole(cls, text: str) -> Aligned:
        """An original text: every character stands for itself."""
        return cls(text, [(place, place + 1) for place in range(len(text))])

    def cut(self, start: int, end: int) -> Aligned:
        """The characters `start` to `end`."""
        origin = self.spans[start][0] if start < end else self.origin
        return Aligned(self.text[start:end], self.spans[start:end], origin)

    def mapped(self, characters: Iterable[str]) -> Aligned:
        """Each character replaced by a string, which may be empty."""
        spans = []
        texts = []
        for span, text in zip(self.spans, characters, strict=True):
            texts.append(text)
            spans += [span] * len(text)
        return Aligned("".join(texts), spans, self.origin)

    def prepended(self, text: str) -> Aligned:
        """A text put in front; it stands for the first character. Nothing goes in front of nothing.

        As in the library, a character that an empty text was put in front of has lost its place.
        """
        if not self.text:
            return self
        if not text:
            return Aligned(self.text, [(self.origin, self.origin), *self.spans[1:]], self.origin)
        return Aligned(text + self.text, [self.spans[0]] * len(text) + self.spans, self.origin)

    def replaced(self, matches: Iterable[Span], content: str) -> Aligned:
        """The matches replaced; the content stands for the last character before the end of its match."""
        text = ""
        spans: list[Span] = []
        done = 0
        for start, end in matches:
            text += self.text[done:start] + content
            spans += self.spans[done:start]
            spans += [self.spans[end - 1] if end else (self.origin, self.origin)] * len(content)
            done = end
        return Aligned(text + self.text[done:], spans + self.spans[done:], self.origin)

    def by_byte(self) -> list[Span]:
        """The span of each byte of the text's UTF-8 form."""
        if self.text.isascii():
            return self.spans
        return [
            span
            for character, span in zip(self.text, self.spans, strict=True)
            for _ in range(len(character.encode()))
        ]
