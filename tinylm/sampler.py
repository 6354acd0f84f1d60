"""From logits to a token: penalties, temperature, cuts, draw."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import DTypeLike, NDArray

from tinylm.candidates import (
    SORTED,
    Floats,
    Places,
    draw_place,
    min_p_places,
    top_k_places,
    top_p_places,
    typical_p_places,
)
from tinylm.errors import ParameterError, TinylmError
from tinylm.logits_processors import Logits, logits_processors
from tinylm.parameters import GenerationParameters

# Beyond this a division by the temperature would leave float32; differences of logits are lost in
# it long before.
LARGEST_SCALE = 1e30


def draw_seed() -> int:
    """A fresh seed, short enough to be typed again."""
    return secrets.randbits(32)


class RandomStream:
    """Uniform numbers in [0, 1), the same on every machine and for any number of threads.

    A counter-based generator (Philox) with the seed and the index of the answer as its key, so that
    the answers of a call have independent streams. The raw words are used, whose sequence NumPy
    guarantees for all versions.
    """

    def __init__(self, seed: int, index: int = 0) -> None:
        self._words = np.random.Philox(key=np.array([seed, index], np.uint64))

    def uniform(self) -> float:
        """The next number: 53 random bits."""
        return float(int(self._words.random_raw()) >> 11) * 2.0**-53


class Sampler:
    """Chooses the tokens of one answer; it remembers what the penalties need.

    `Sampler(parameters, vocab_size, prompt_ids, stream)`, then one call for each token, in order:
    logits (V,) float32, which are left as they are, -> token id.

    Raises `ParameterError` where sampling is asked for without a stream, and `TinylmError` for
    logits that are no numbers or when every token is banned.
    """

    def __init__(
        self,
        parameters: GenerationParameters,
        vocab_size: int,
        prompt_ids: Sequence[int] = (),
        stream: RandomStream | None = None,
    ) -> None:
        if parameters.do_sample and stream is None:
            raise ParameterError("do_sample is True: a sampler needs a RandomStream for its draws")
        self.parameters = parameters
        self._processors = logits_processors(parameters, vocab_size, prompt_ids)
        self._cuts = _cuts(parameters)
        self._stream = stream
        self._scratch: Logits = np.empty((2, 0), np.float32)

    def __call__(self, logits: Logits) -> int:
        """Logits (V,) float32 after the last token -> the id of the next."""
        if self._stream is not None and self.parameters.do_sample:
            ids, weights = self._candidates(logits)
            place = draw_place(weights, self._stream.uniform())
            token = place if ids is None else int(ids[place])
        else:
            processed = self.processed(logits)
            token = int(processed.argmax())
            self._check(logits, float(processed[token]))
        self.accept(token)
        return token

    def accept(self, token: int) -> None:
        """Take notice that this token follows; a call does so itself."""
        for processor in self._processors:
            processor.accept(token)

    def probabilities(self, logits: Logits) -> tuple[Places, NDArray[np.float64]]:
        """Logits (V,) float32 -> the ids (ascending) that a draw may give and their probabilities."""
        ids, weights = self._candidates(logits)
        places = np.flatnonzero(weights)
        exact = weights[places].astype(np.float64)
        return places if ids is None else ids[places], exact / exact.sum()

    def processed(self, logits: Logits) -> Logits:
        """Logits (V,) float32 -> the same after penalties and bans; a copy where there are any."""
        if self._processors:
            logits = logits.copy()
            for processor in self._processors:
                processor(logits)
        return logits

    def _candidates(self, logits: Logits) -> tuple[Places | None, Floats]:
        """Logits (V,) -> ids (ascending; None for all) and weights, in transformers' order of cuts."""
        parameters = self.parameters
        processed = self.processed(logits)
        best = processed[processed.argmax()]
        self._check(logits, float(best))
        scale = min(1 / parameters.temperature, LARGEST_SCALE)
        ids: Places | None = None
        depths: Floats
        weights: Floats
        if 0 < parameters.top_k < processed.size:
            ids = top_k_places(processed, parameters.top_k)
            # Few are left, so float64 costs nothing.
            precision: DTypeLike = np.float64 if ids.size <= SORTED else np.float32
            depths = float(best) - processed[ids].astype(precision)
            depths *= scale
            weights = np.exp(-depths)
        else:
            # Memory that is used again: fresh pages from the system cost more than the arithmetic.
            if self._scratch.shape[1] != processed.size:
                self._scratch = np.empty((2, processed.size), np.float32)
            depths, weights = self._scratch
            np.subtract(best, processed, out=depths)
            with np.errstate(over="ignore"):
                depths *= np.float32(scale)
            np.exp(np.negative(depths, out=weights), out=weights)
        for cut in self._cuts:
            places = cut(depths, weights)
            ids = places if ids is None else ids[places]
            depths, weights = depths[places], weights[places]
        return ids, weights

    def _check(self, logits: Logits, best: float) -> None:
        if math.isfinite(best):
            return
        if np.isnan(logits).any() or np.isposinf(logits).any() or np.isneginf(logits).all():
            found = (
                "NaN"
                if np.isnan(logits).any()
                else "inf"
                if np.isposinf(logits).any()
                else "nothing but -inf"
            )
            raise TinylmError(
                f"the model's logits hold {found}: its weights are damaged (a training run that diverged, a "
                "download that went wrong) or too large for the number format; try dtype='float32'"
            )
        if best == math.inf:
            raise TinylmError("a logit overflows float32 after logit_bias or a penalty: give smaller numbers")
        raise TinylmError(
            "no token is left to choose from: logit_bias, no_repeat_ngram_size, min_new_tokens ban them all"
        )


def _cuts(parameters: GenerationParameters) -> list[Callable[[Floats, Floats], Places]]:
    """The cuts after top_k that some parameters ask for: depths and weights (K,) -> places to keep."""
    cuts: list[Callable[[Floats, Floats], Places]] = []
    if parameters.top_p < 1:
        cuts.append(lambda depths, weights: top_p_places(depths, weights, parameters.top_p))
    if parameters.min_p > 0:
        cuts.append(lambda depths, _: min_p_places(depths, parameters.min_p))
    if parameters.typical_p < 1:
        cuts.append(lambda depths, weights: typical_p_places(depths, weights, parameters.typical_p))
    return cuts


class LogProbabilities:
    """The log-softmax of some logits (V,), evaluated where it is asked for.

    It is the model's own distribution: before penalties, temperature and cuts.
    """

    def __init__(self, logits: Logits) -> None:
        self._logits = logits
        best = logits.max()
        self._normalizer = float(best) + math.log(float(np.exp(logits - best).sum(dtype=np.float64)))

    def of(self, token: int) -> float:
        """The natural logarithm of a token's probability."""
        return float(self._logits[token]) - self._normalizer

    def top(self, count: int) -> list[tuple[int, float]]:
        """The likeliest tokens, best first (of equal ones the lower id), with their logarithms."""
        places = top_k_places(self._logits, count)
        order = places[np.argsort(-self._logits[places], kind="stable")][:count]
        return [(int(token), self.of(int(token))) for token in order]
