"""Ids in, logits out: sequences with their caches, prompts in chunks, many sequences in one step."""

from __future__ import annotations

import threading
from collections.abc import Callable
from collections.abc import Sequence as ListOf
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from tinylm.cache import KeyValueCache
from tinylm.checkpoint import Checkpoint
from tinylm.errors import ContextError, ParameterError
from tinylm.executor import Executor
from tinylm.formats.key_values import automatic, key_value_format
from tinylm.kernels.team import Team
from tinylm.models import load_program
from tinylm.program import Program
from tinylm.reference import Hook, Values, run_reference
from tinylm.step import Step, make_step
from tinylm.tensor_names import TensorNames

CHUNK, LONG_CHUNK = 256, 512
"""Tokens of a prompt a step: enough that weights are read rarely, few enough that Ctrl-C is heard soon. The second
where such a step's working memory is no more than WORKING_BYTES."""

WORKING_BYTES = 15 * 2**20
"""Buffers of a step for which twice the tokens are worth twice the memory: 3 % of the time of SmolLM2's prompts,
and 1 % of its peak in float32 at 1,024 positions."""

LOGIT_ROWS = 32
"""Rows of logits that are held at a time when all of a text are asked for."""

Ids = ListOf[int] | NDArray[np.int64]


def _team(threads: int | Team | None) -> Team:
    """A team of so many threads; None for as many as are worth having."""
    if isinstance(threads, Team):
        return threads
    if threads is not None and threads < 1:
        raise ParameterError(f"threads is {threads}; expected 1 or more")
    return Team(threads)


class Sequence:
    """A text in the making: its ids so far, and the keys and values of all their positions."""

    def __init__(self, cache: KeyValueCache) -> None:
        self.ids: list[int] = []
        self.cache = cache
        self.step: Step | None = None
        """The step that this sequence has been the first in, of one token each: the next needs little new."""

    def __len__(self) -> int:
        return len(self.ids)

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` positions."""
        del self.ids[max(0, length) :]


class Engine:
    """A loaded model. Calls from several threads are safe: each step waits for the one before it.

    vocab_size, context_length: V and the largest number of positions; threads: the size of the team; kv_dtype: how
    keys and values are stored, one of KV_DTYPES.
    """

    def __init__(
        self,
        program: Program,
        context_length: int,
        threads: int | Team | None = None,
        kv_dtype: str = "auto",
    ) -> None:
        self.program = program
        self.context_length = context_length
        self.vocab_size = program.vocab_size
        matrices = [matrix.format for matrix in program.matrices]
        self.kv_dtype = automatic(matrices) if kv_dtype == "auto" else kv_dtype
        self.executor = Executor(program, _team(threads), key_value_format(self.kv_dtype))
        self._group = program.heads // program.key_value_heads
        self._lock = threading.Lock()

    @classmethod
    def load(
        cls,
        folder: str | Path | Checkpoint,
        *,
        dtype: str = "auto",
        kv_dtype: str = "auto",
        threads: int | None = None,
        architecture: str | None = None,
        tensor_names: TensorNames | None = None,
    ) -> Engine:
        """The model of a folder. Raises CheckpointError, naming what does not fit.

        `architecture` stands in for an unknown `model_type`, `tensor_names` for names that are not its own.
        """
        checkpoint = folder if isinstance(folder, Checkpoint) else Checkpoint(folder)
        team = _team(threads)
        if kv_dtype != "auto":
            key_value_format(kv_dtype)  # before the weights are read
        program, context_length = load_program(checkpoint, dtype, architecture, tensor_names, team)
        return cls(program, context_length, team, kv_dtype)

    @property
    def threads(self) -> int:
        """Threads that compute, the caller included."""
        return self.executor.team.threads

    @cached_property
    def chunk(self) -> int:
        """Tokens of a prompt a step."""
        return LONG_CHUNK if self.executor.bytes_of(LONG_CHUNK) <= WORKING_BYTES else CHUNK

    def compile(self) -> None:
        """Compile, or load from the cache, every kernel this model needs."""
        with self._lock:
            self.executor.compile()

    def new_sequence(self) -> Sequence:
        """An empty sequence."""
        program, kv_format = self.program, self.executor.kv_format
        return Sequence(KeyValueCache(program.layers, program.key_value_heads, program.head_dim, kv_format))

    def fork(self, sequence: Sequence, room: int = 0) -> Sequence:
        """A copy that shares nothing, with room for `room` positions, so that it need not move to grow."""
        copy = self.new_sequence()
        self.reserve(copy, max(room, len(sequence)))
        copy.cache.copy_from(sequence.cache, len(sequence))
        copy.ids = list(sequence.ids)
        return copy

    def reserve(self, sequence: Sequence, length: int) -> None:
        """Make room for `length` positions at once, where it is known how long the text will be."""
        sequence.cache.reserve(min(length, self.context_length), len(sequence))

    def prefill(
        self, sequence: Sequence, ids: Ids, progress: Callable[[int, int], None] | None = None
    ) -> NDArray[np.float32]:
        """Append ids (at least one); returns the logits (V,) after the last.

        Runs in chunks of `chunk` tokens and calls `progress(done, total)` after each. Raises ParameterError
        for ids that the vocabulary does not have, ContextError for more positions than the model has.
        """
        new = self._check(ids)
        if not len(new):
            raise ParameterError("there are no ids to begin with")
        self._make_room(sequence, len(new))
        logits: NDArray[np.float32] = np.zeros((1, 0), np.float32)
        step = CHUNK if len(new) <= CHUNK else self.chunk
        for begin in range(0, len(new), step):
            end = min(begin + step, len(new))
            logits = self._step([sequence], [new[begin:end]], "last" if end == len(new) else "none")
            if progress is not None:
                progress(end, len(new))
        last_row: NDArray[np.float32] = logits[0]
        return last_row

    def decode(self, sequences: ListOf[Sequence], ids: Ids) -> NDArray[np.float32]:
        """Append one id to each of several sequences: the logits (B, V) after them."""
        new = self._check(ids)
        if len(new) != len(sequences) or not len(new):
            raise ParameterError(f"{len(new)} ids for {len(sequences)} sequences; expected one each")
        return self._together(sequences, [[token] for token in new])

    def advance(self, sequences: ListOf[Sequence], parts: ListOf[Ids]) -> list[NDArray[np.float32]]:
        """Append some ids to each of several sequences, in one step: for each the logits (T, V) after every id."""
        new = [self._check(ids) for ids in parts]
        if len(new) != len(sequences) or not new or not all(len(ids) for ids in new):
            counts = [len(ids) for ids in new]
            raise ParameterError(f"{counts} ids for {len(sequences)} sequences; expected one or more each")
        rows = self._together(sequences, new)
        ends = accumulate(len(ids) for ids in new)
        return [rows[end - len(ids) : end] for ids, end in zip(new, ends, strict=True)]

    def extend(self, sequence: Sequence, ids: Ids) -> NDArray[np.float32]:
        """Append ids; returns the logits (T, V) after each of them."""
        new = self._check(ids)
        self._make_room(sequence, len(new))
        parts = [np.zeros((0, self.vocab_size), np.float32)]
        for begin in range(0, len(new), LOGIT_ROWS):
            parts.append(self._step([sequence], [new[begin : begin + LOGIT_ROWS]], "all"))
        return np.concatenate(parts)

    def logits(self, ids: Ids) -> NDArray[np.float32]:
        """The logits (T, V) after each of the ids of a text."""
        return self.extend(self.new_sequence(), ids)

    def trace(self, ids: Ids, hooks: dict[str, Hook] | None = None) -> Values:
        """Every intermediate value by its name, by the reference executor; see `run_reference`."""
        new = self._check(ids)
        if not len(new):
            raise ParameterError("there are no ids to trace")
        sequence = self.new_sequence()
        self._make_room(sequence, len(new))
        return run_reference(self.program, make_step([(sequence.cache, 0, new)], self._group, "all"), hooks)

    def _check(self, ids: Ids) -> list[int]:
        if isinstance(ids, list) and len(ids) == 1 and type(ids[0]) is int and 0 <= ids[0] < self.vocab_size:
            return [ids[0]]  # a token as it was drawn: what follows takes 30 us between two steps
        try:
            array: npt.NDArray[Any] = np.asarray(ids)
        except ValueError:
            raise ParameterError("ids must be a flat list of integers") from None
        if array.size == 0:
            return []
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise ParameterError(
                f"ids must be a flat list of integers, not {array.dtype} of shape {array.shape}"
            )
        if array.min() < 0 or array.max() >= self.vocab_size:
            wrong = array[(array < 0) | (array >= self.vocab_size)][0]
            raise ParameterError(f"id {wrong} is not in the vocabulary of {self.vocab_size}")
        return [int(one) for one in array.tolist()]

    def _together(self, sequences: ListOf[Sequence], parts: list[list[int]]) -> NDArray[np.float32]:
        """Append the parts to their sequences: the logits after every id, those of a sequence together."""
        if len(sequences) > 1 and len({id(sequence) for sequence in sequences}) < len(sequences):
            raise ParameterError("a sequence stands twice in one step; fork it to go on in two ways")
        for sequence, new in zip(sequences, parts, strict=True):
            self._make_room(sequence, len(new))
        return self._step(sequences, parts, "all")

    def _make_room(self, sequence: Sequence, more: int) -> None:
        needed = len(sequence) + more
        if needed > self.context_length:
            raise ContextError(
                f"{needed} positions ({len(sequence)} so far and {more} more) do not fit into "
                f"the model's context of {self.context_length}"
            )
        if needed > sequence.cache.capacity:
            sequence.cache.reserve(needed, len(sequence))

    def _step(self, sequences: ListOf[Sequence], ids: list[list[int]], logits: str) -> NDArray[np.float32]:
        with self._lock:
            step = self._following(sequences, ids)
            if step is None:
                parts = [(one.cache, len(one.ids), new) for one, new in zip(sequences, ids, strict=True)]
                step = make_step(parts, self._group, logits)
            result: NDArray[np.float32] = self.executor.run(step).copy()
            if logits == "all" and len(step.ids) == len(sequences):
                sequences[0].step = step
        for sequence, new in zip(sequences, ids, strict=True):
            sequence.ids.extend(new)
        return result

    def _following(self, sequences: ListOf[Sequence], ids: list[list[int]]) -> Step | None:
        """The step of these sequences before, made the next, if it was so and each had one token and has one now."""
        step, sequences[0].step = sequences[0].step, None  # an interrupt may leave it half changed
        if step is None or len(step.caches) != len(sequences):
            return None
        for sequence, cache, length, new in zip(sequences, step.caches, step.lengths, ids, strict=True):
            if sequence.cache is not cache or len(sequence.ids) != length or len(new) != 1:
                return None
        return step if step.follow([new[0] for new in ids]) else None
