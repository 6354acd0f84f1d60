"""Perplexity: how well a model foresees a text, by token and by byte, with a sliding window."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tinylm.errors import ParameterError

if TYPE_CHECKING:
    from tinylm.engine import Engine
    from tinylm.language_model import LanguageModel

LONGEST_WINDOW = 2048
"""Tokens of a window where none is asked for, if the model's context is not shorter."""

ROWS_BYTES = 32 * 2**20
"""Bytes of logits that are held at a time."""

FIRST_CHARACTERS = 64
"""Enough of a text to see with which token it begins."""

BOS = ("auto", "yes", "no")
"""The token that begins a text: as the tokenizer does by itself, always, or never."""


@dataclass(frozen=True)
class Window:
    """Tokens `begin` to `end` of a text; those from `scored` on are foreseen from what precedes them in it.

    `new` tokens of it were in no window before. Of these the first is not scored where nothing precedes it.
    """

    begin: int
    scored: int
    end: int
    new: int


@dataclass(frozen=True)
class Perplexity:
    """What was found, and how.

    tokens: of the text; scored_tokens and scored_bytes: those that were foreseen (the first of a text has nothing
    before it, nor has the first of a window where windows do not overlap); nll: their negative log-likelihood,
    in nats, summed up. context, stride, bos: the protocol. recipe: see `transformers_recipe`.
    """

    tokens: int
    scored_tokens: int
    scored_bytes: int
    nll: float
    context: int
    stride: int
    bos: bool
    recipe: tuple[float, int] = (0.0, 0)

    @property
    def perplexity(self) -> float:
        """exp of the mean nll of a token: as if the model chose among so many tokens at each step."""
        return exponential(self.nll, self.scored_tokens)

    @property
    def byte_perplexity(self) -> float:
        """exp of the nll a byte of UTF-8; models with different tokenizers can be compared by it."""
        return exponential(self.nll, self.scored_bytes)

    @property
    def bits_per_byte(self) -> float:
        """The nll in bits a byte: what the text could be compressed to."""
        return self.nll / math.log(2) / self.scored_bytes if self.scored_bytes else math.nan

    @property
    def transformers_recipe(self) -> float:
        """The perplexity as the sliding-window recipe of transformers' documentation weights the windows.

        It counts one token too few in every window after the first, where `perplexity` counts each token once;
        without overlap (a stride as long as the window) both are the same.
        """
        return exponential(*self.recipe)

    def as_dict(self) -> dict[str, Any]:
        """The figures by their names; these stay as they are."""
        names = ("tokens", "scored_tokens", "scored_bytes", "nll", "perplexity", "byte_perplexity", "bits_per_byte",
                 "transformers_recipe")  # fmt: skip
        return {name: getattr(self, name) for name in names}

    def __add__(self, other: Perplexity) -> Perplexity:
        """Two texts together, which must have been measured in the same way."""
        if (self.context, self.stride, self.bos) != (other.context, other.stride, other.bos):
            raise ParameterError("perplexities of different protocols cannot be added")
        return Perplexity(
            self.tokens + other.tokens,
            self.scored_tokens + other.scored_tokens,
            self.scored_bytes + other.scored_bytes,
            self.nll + other.nll,
            self.context,
            self.stride,
            self.bos,
            (self.recipe[0] + other.recipe[0], self.recipe[1] + other.recipe[1]),
        )


def perplexity(
    model: LanguageModel,
    text: str,
    *,
    context: int | None = None,
    stride: int | None = None,
    bos: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> Perplexity:
    """The perplexity of a text, in windows of `context` tokens that begin `stride` tokens apart.

    In each window the tokens that no window before has scored are scored, so that, but in the first, each has
    at least `context - stride` tokens before it. By default the window is the model's context, or 2,048
    tokens where that is longer, and the stride half of it. `bos` is one of BOS. `progress(done, total)` counts
    the tokens of all windows. Raises ParameterError for a protocol that makes no sense, or a text with nothing
    to score.
    """
    context, stride = protocol(model.engine.context_length, context, stride)
    ids, has_bos = read(model, text, bos)
    plan = list(windows(len(ids), context, stride))
    done, total = 0, sum(window.end - window.begin for window in plan)
    scored_bytes = len(text.encode("utf-8")) - unscored_bytes(model, text, plan, has_bos)
    nll, scored, recipe_nll, recipe_tokens = 0.0, 0, 0.0, 0
    for window in plan:

        def report(part: int, before: int = done) -> None:
            if progress is not None:
                progress(before + part, total)

        found = window_nll(model.engine, ids, window, report)
        done += window.end - window.begin
        nll += float(found.sum())
        scored += len(found)
        if len(found):
            # The recipe takes one token of every window for its first, though only that of the first is unscored
            recipe_nll += float(found.mean()) * (window.new - 1)
            recipe_tokens += window.new - 1
    recipe = (recipe_nll, recipe_tokens)
    return Perplexity(len(ids), scored, scored_bytes, nll, context, stride, has_bos, recipe)


def protocol(context_length: int, context: int | None, stride: int | None) -> tuple[int, int]:
    """(context, stride) as they are asked for, or by default. Raises ParameterError."""
    context = min(context_length, LONGEST_WINDOW) if context is None else context
    if not 2 <= context <= context_length:
        raise ParameterError(f"context is {context}; expected 2 to the model's {context_length}")
    stride = max(1, context // 2) if stride is None else stride
    if not 1 <= stride <= context:
        raise ParameterError(f"stride is {stride}; expected 1 to the context of {context}")
    return context, stride


def read(model: LanguageModel, text: str, bos: str) -> tuple[list[int], bool]:
    """(ids (n,), whether a token of its own begins the text). Raises ParameterError."""
    if bos not in BOS:
        raise ParameterError(f"bos is {bos!r}; expected one of {', '.join(BOS)}")
    ids = model.tokenizer.encode(text, add_special_tokens=bos != "no")
    # Only a token that stands for nothing of the text was put there, and not written by its author.
    start = model.tokenizer.encode_with_offsets(text[:FIRST_CHARACTERS], add_special_tokens=bos != "no")
    begins = bool(ids) and ids[0] == model.bos_token_id and start.offsets[0][0] == start.offsets[0][1]
    if bos == "yes" and not begins:
        if model.bos_token_id is None:
            raise ParameterError("the model has no token that begins a text")
        ids, begins = [model.bos_token_id, *ids], True
    if len(ids) < 2:
        raise ParameterError(f"a text of {len(ids)} tokens has nothing to foresee; give a longer one")
    return ids, begins


def unscored_bytes(model: LanguageModel, text: str, plan: Sequence[Window], has_bos: bool) -> int:
    """Bytes of the tokens that nothing foresees: the first of every window that shares none with another."""
    first = [window.begin for window in plan if window.new == window.end - window.begin]
    if has_bos:
        first = [place - 1 for place in first if place]  # the places of the text's own tokens
    if not first:
        return 0
    spans = byte_counts(text, model.tokenizer.encode_with_offsets(text, add_special_tokens=False).offsets)
    return sum(spans[place] for place in first if place < len(spans))


def byte_counts(text: str, offsets: Sequence[tuple[int, int]]) -> list[int]:
    """How many bytes of UTF-8 each token adds to those before it; together they are all of the text.

    What no token stands for (a space that a tokenizer drops) counts for the next; tokens that share a character
    count it once.
    """
    counts, reached = [], 0
    for _, end in offsets:
        counts.append(len(text[reached:end].encode("utf-8")))
        reached = max(reached, end)
    counts[-1] += len(text[reached:].encode("utf-8"))
    return counts


def windows(tokens: int, context: int, stride: int) -> Iterator[Window]:
    """The windows of a text: each scores what none before it has."""
    reached = 0
    for begin in range(0, tokens, stride):
        end = min(begin + context, tokens)
        yield Window(begin, max(reached, begin + 1), end, end - reached)
        reached = end
        if end == tokens:
            return


def window_nll(
    engine: Engine, ids: Sequence[int], window: Window, report: Callable[[int], None]
) -> NDArray[np.float64]:
    """(n,) nats: the negative log-likelihood of each scored token of a window."""
    sequence = engine.new_sequence()
    engine.reserve(sequence, window.end - window.begin)
    first = window.scored - 1  # its logits foresee the first scored token
    if first > window.begin:
        engine.prefill(sequence, ids[window.begin : first], lambda done, _: report(done))
    rows = max(1, ROWS_BYTES // (4 * engine.vocab_size))
    parts = [np.zeros(0)]
    for begin in range(first, window.end - 1, rows):
        end = min(begin + rows, window.end - 1)
        logits = engine.extend(sequence, ids[begin:end])
        parts.append(token_nll(logits, np.asarray(ids[begin + 1 : end + 1])))
        report(end + 1 - window.begin)
    return np.concatenate(parts)


def token_nll(logits: NDArray[np.float32], targets: NDArray[np.int64]) -> NDArray[np.float64]:
    """`(n, V), (n,) -> (n,)` nats: -log softmax(logits)[target], summed in float64."""
    highest = logits.max(axis=-1, keepdims=True)
    sums = np.exp(logits - highest).sum(axis=-1, dtype=np.float64)
    chosen = np.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    return np.asarray(np.log(sums) - (chosen - highest[:, 0]), np.float64)


def exponential(nll: float, count: int) -> float:
    """exp(nll / count); infinite where that is beyond a float, NaN for no tokens."""
    if not count:
        return math.nan
    try:
        return math.exp(nll / count)
    except OverflowError:
        return math.inf
