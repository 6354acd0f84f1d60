"""Text in, text out: many answers written together, or one as a stream."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from typing import TYPE_CHECKING

from tinylm.completion import Completion
from tinylm.continuation import Continuation, Progress, Prompt, Request

if TYPE_CHECKING:
    from tinylm.engine import Engine
    from tinylm.tokenizer import Tokenizer


STEP_TOKENS = 31
"""Tokens of a step, guesses included: more guesses would cost more than they gain, and a step of more queries adds
up attention otherwise, so that the last bits would hang on the guesses."""


def continuations(request: Request, tokenizer: Tokenizer, vocab_size: int) -> list[Continuation]:
    """All answers to a request; they share one reading of the prompt."""
    prompt = Prompt(request)
    count = request.parameters.num_return_sequences
    return [Continuation(request, prompt, tokenizer, vocab_size, index) for index in range(count)]


def write(
    engine: Engine,
    answers: list[Continuation],
    batch_size: int = 1,
    progress: Progress | None = None,
) -> Generator[tuple[Continuation, str], None, None]:
    """Write answers to their ends, at most `batch_size` at a time: each step reads the weights once for all.

    Yields after every token the answer that it belongs to and the text that it makes certain. An answer
    that ends makes room for the next that waits. Where tokens are guessed (`prompt_lookup_num_tokens`), those
    that are written at a time share the STEP_TOKENS of a step. Whoever stops iterating leaves nothing behind.
    """
    waiting = deque(answers)
    writing: list[Continuation] = []
    while waiting or writing:
        while waiting and len(writing) < batch_size:
            answer = waiting.popleft()
            yield answer, answer.begin(engine, progress)
            if answer.finish_reason is None:
                writing.append(answer)
        if writing:
            most = max(0, STEP_TOKENS // len(writing) - 1)
            proposed = [answer.propose(most) for answer in writing]
            sequences = [answer.sequence for answer in writing if answer.sequence is not None]
            for answer, rows in zip(writing, engine.advance(sequences, proposed), strict=True):
                for piece in answer.take(rows):
                    yield answer, piece
            writing = [answer for answer in writing if answer.finish_reason is None]


class Stream:
    """The text of an answer, piece by piece, as it is written: an iterator of strings that are not empty.

    `completion` is the answer so far, and the whole of it once the iteration has ended. Nothing is
    computed between two pieces; a stream that is left early, by `close` or by forgetting it, stops.
    """

    def __init__(self, engine: Engine, answer: Continuation, progress: Progress | None = None) -> None:
        self._answer = answer
        self._pieces = write(engine, [answer], progress=progress)

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> str:
        for _, piece in self._pieces:
            if piece:
                return piece
        raise StopIteration

    def close(self) -> None:
        """Stop writing; the answer counts as interrupted, unless it had come to its end."""
        self._pieces.close()

    @property
    def completion(self) -> Completion:
        """The answer so far."""
        return self._answer.completion()
