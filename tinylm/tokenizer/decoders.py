"""Decoders: how the strings of the tokens become text again, all at once or one by one.

Each decoder maps a list of strings to a list of strings; the text is what the last gives, joined. So that
text can be streamed, each is a machine with a memory: `feed` gives what is certain by now, `finish` the rest.
The pieces joined are always what all tokens at once would give.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable
from typing import Protocol, TypeVar

from .byte_alphabet import from_alphabet
from .fields import Fields
from .patterns import Pattern
from .pre_tokenizers import read_scheme

Value = TypeVar("Value")


class Stage(Protocol):
    """One decoder at work on one text."""

    def feed(self, tokens: list[str]) -> list[str]:
        """What these tokens make certain."""

    def finish(self) -> list[str]:
        """What was held back."""


Decoder = Callable[[], Stage]
"""Begins a text."""


class Remembered(dict[str, Value]):
    """What a function makes of tokens, each worked out once."""

    def __init__(self, function: Callable[[str], Value]) -> None:
        super().__init__()
        self._function = function

    def __missing__(self, token: str) -> Value:
        value = self[token] = self._function(token)
        return value


class BytesOfTokens:
    """ByteLevel: the bytes that all tokens stand for, read as UTF-8; what is no UTF-8 becomes U+FFFD."""

    def __init__(self, bytes_of: Callable[[str], bytes] = from_alphabet) -> None:
        self._bytes_of = bytes_of
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, tokens: list[str]) -> list[str]:
        """Whole characters only."""
        return [self._decoder.decode(b"".join(map(self._bytes_of, tokens)))]

    def finish(self) -> list[str]:
        """A character that was never completed, as U+FFFD."""
        return [self._decoder.decode(b"", final=True)]


def byte_of_token(token: str) -> int | None:
    """`<0x0A>` -> 10; None where a token is no such form."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return int(token[3:5], 16)
        except ValueError:
            return None
    return None


class ByteFallback:
    """Tokens such as `<0x0A>` are bytes; a run of them that is no UTF-8 becomes one U+FFFD a byte."""

    def __init__(self, byte_of: Callable[[str], int | None] = byte_of_token) -> None:
        self._byte_of = byte_of
        self._run = bytearray()

    def feed(self, tokens: list[str]) -> list[str]:
        """A run is certain only when it ends: one wrong byte at its end spoils all of it."""
        done: list[str] = []
        for token, byte in zip(tokens, map(self._byte_of, tokens), strict=True):
            if byte is not None:
                self._run.append(byte)
                continue
            if self._run:
                done += self.finish()
            done.append(token)
        return done

    def finish(self) -> list[str]:
        """The run that the text ends with."""
        run = bytes(self._run)
        self._run.clear()
        if not run:
            return []
        try:
            return [run.decode()]
        except UnicodeDecodeError:
            return ["\ufffd"] * len(run)


class Each:
    """A decoder that changes every token for itself."""

    def __init__(self, change: Callable[[str], str]) -> None:
        self._change = change

    def feed(self, tokens: list[str]) -> list[str]:
        """The changed tokens."""
        return [*map(self._change, tokens)]

    def finish(self) -> list[str]:
        """Nothing: nothing is held back."""
        return []


class StripEnds:
    """Strip, where the whole text is one string: some characters off its beginning and its end."""

    def __init__(self, character: str, start: int, stop: int) -> None:
        self._character = character
        self._start = start
        self._stop = stop
        self._held = ""

    def feed(self, tokens: list[str]) -> list[str]:
        """All but the characters at the end that may have to go."""
        text = "".join(tokens)
        while self._start and text:
            if text[0] != self._character:
                self._start = 0
                break
            text = text[1:]
            self._start -= 1
        text = self._held + text
        ending = min(len(text) - len(text.rstrip(self._character)), self._stop)
        self._held = text[len(text) - ending :]
        return [text[: len(text) - ending]]

    def finish(self) -> list[str]:
        """Nothing: what is held back at the end is what goes."""
        return []


class Unspace:
    """Metaspace: its character becomes a space, and nothing in the first token if it was put in front."""

    def __init__(self, space: str, prepended: bool, fused: bool) -> None:
        self._space = space
        self._first = prepended
        self._fused = fused

    def feed(self, tokens: list[str]) -> list[str]:
        """The changed tokens."""
        changed = []
        for token in tokens:
            changed.append(token.replace(self._space, "" if self._first else " "))
            self._first = self._first and self._fused
        return changed

    def finish(self) -> list[str]:
        """Nothing: nothing is held back."""
        return []


class Hold:
    """A change of the whole text that cannot be made before all of it is there."""

    def __init__(self, change: Callable[[str], str]) -> None:
        self._change = change
        self._text = ""

    def feed(self, tokens: list[str]) -> list[str]:
        """Nothing yet."""
        self._text += "".join(tokens)
        return []

    def finish(self) -> list[str]:
        """The changed text."""
        return [self._change(self._text)]


class Chain:
    """Decoders one after the other."""

    def __init__(self, stages: list[Stage]) -> None:
        self._stages = stages

    def feed(self, tokens: list[str]) -> list[str]:
        """Through all of them."""
        for stage in self._stages:
            tokens = stage.feed(tokens)
        return tokens

    def finish(self) -> list[str]:
        """What each held back, through those that follow."""
        rest: list[str] = []
        for stage in self._stages:
            rest = [*stage.feed(rest), *stage.finish()]
        return rest


def strip(token: str, character: str, start: int, stop: int) -> str:
    """Up to `start` and `stop` characters off the ends of a token."""
    beginning = min(len(token) - len(token.lstrip(character)), start)
    token = token[beginning:]
    ending = min(len(token) - len(token.rstrip(character)), stop)
    return token[: len(token) - ending]


class Spaced:
    """What the library does without a decoder: tokens with a space between."""

    def __init__(self) -> None:
        self._first = True

    def feed(self, tokens: list[str]) -> list[str]:
        """A space before every token but the first."""
        spaced = [token if self._first and not place else f" {token}" for place, token in enumerate(tokens)]
        self._first = self._first and not tokens
        return spaced

    def finish(self) -> list[str]:
        """Nothing: nothing is held back."""
        return []


KINDS = ("ByteFallback", "ByteLevel", "Fuse", "Metaspace", "Replace", "Sequence", "Strip")


def read(fields: Fields | None) -> Decoder:
    """The decoder of a tokenizer.json, None for one without."""
    if fields is None:
        return Spaced
    stages: list[Decoder] = []
    fused = False
    for part in flat(fields):
        match part.text("type"):
            case "ByteLevel":
                stages.append(whole(BytesOfTokens) if fused else remembering(BytesOfTokens, from_alphabet))
                fused = True
            case "ByteFallback":
                stages.append(whole(ByteFallback) if fused else remembering(ByteFallback, byte_of_token))
            case "Fuse":
                fused = True
            case "Strip":
                stages.append(read_strip(part, fused))
            case "Metaspace":
                stages.append(read_metaspace(part, fused))
            case "Replace":
                stages.append(read_replace(part, fused))
            case _:
                raise part.unsupported("decoder", KINDS)
    return lambda: Chain([stage() for stage in stages])


def remembering(
    stage: Callable[[Callable[[str], Value]], Stage], function: Callable[[str], Value]
) -> Decoder:
    """A decoder that looks at what a token is made of, once for all texts."""
    known = Remembered(function).__getitem__
    return lambda: stage(known)


def whole(decoder: Decoder) -> Decoder:
    """A decoder that looks at what a token is made of, where the whole text is one token."""

    def change(text: str) -> str:
        stage = decoder()
        return "".join([*stage.feed([text]), *stage.finish()])

    return lambda: Hold(change)


def flat(fields: Fields) -> list[Fields]:
    """The decoders of a sequence and of the sequences in it."""
    if fields.text("type") != "Sequence":
        return [fields]
    return [inner for part in fields.parts("decoders") for inner in flat(part)]


def read_strip(fields: Fields, fused: bool) -> Decoder:
    """Strip, of every token or of the whole text."""
    character, start, stop = fields.character("content"), fields.count("start"), fields.count("stop")
    if fused:
        return lambda: StripEnds(character, start, stop)
    return lambda: Each(lambda token: strip(token, character, start, stop))


def read_replace(fields: Fields, fused: bool) -> Decoder:
    """Replace, in every token or in the whole text."""
    pattern, content = Pattern.read(fields), fields.text("content")

    def change(token: str) -> str:
        return pattern.replace(token, content)

    if fused and len(pattern.literal) != 1:
        return lambda: Hold(change)
    known = Remembered(change).__getitem__
    return lambda: Each(change if fused else known)


def read_metaspace(fields: Fields, fused: bool) -> Decoder:
    """Metaspace, in every token or in the whole text."""
    space, scheme, _ = read_scheme(fields)
    return lambda: Unspace(space, scheme != "never", fused)
