"""Ids in, logits out: the golden texts of the story model, and every way of running them gives the same."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinylm.checkpoint import Checkpoint
from tinylm.engine import CHUNK, LOGIT_ROWS, LONG_CHUNK, Engine, Sequence
from tinylm.errors import CheckpointError, ContextError, ParameterError
from tinylm.kernels.attention import BLOCK, SPLIT
from tinylm.sources.catalog import BUNDLED

FIXTURES = Path(__file__).resolve().parent / "fixtures"
STORIES = BUNDLED["stories260k"]
GOLDEN = json.loads((FIXTURES / "stories260k" / "golden.json").read_text(encoding="utf-8"))["cases"]
V = 512
CONTEXT = 512

TOLERANCE = 1e-5
"""Of the largest logit: what float32 rounding comes to over five layers, and no more."""


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.load(STORIES, threads=2)


@pytest.fixture(scope="module")
def text(engine: Engine) -> list[int]:
    """A story that fills the context, as the model itself goes on."""
    sequence = engine.new_sequence()
    logits = engine.prefill(sequence, GOLDEN[0]["prompt_ids"])
    while len(sequence) < CONTEXT:
        logits = engine.decode([sequence], [int(np.argsort(logits)[-1 - len(sequence) % 3])])[0]
    return sequence.ids


@pytest.fixture(scope="module")
def expected(engine: Engine, text: list[int]) -> np.ndarray:
    """(T, V): what the reference executor, plain NumPy, makes of it."""
    return engine.trace(text)["logits"]


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["prompt"] or "empty")
def test_the_golden_texts(case: dict[str, Any], threads: int) -> None:
    engine = Engine.load(STORIES, threads=threads)
    sequence = engine.new_sequence()
    logits = engine.prefill(sequence, case["prompt_ids"])
    np.testing.assert_allclose(logits, case["last_prompt_logits"], atol=1e-4)
    chosen = []
    while len(chosen) < len(case["greedy_ids"]):
        chosen.append(int(logits.argmax()))
        logits = engine.decode([sequence], chosen[-1:])[0]
    assert chosen == case["greedy_ids"]
    assert sequence.ids == case["prompt_ids"] + chosen


def test_compiled_equals_reference(engine: Engine, text: list[int], expected: np.ndarray) -> None:
    assert_close(engine.logits(text), expected)


def test_step_by_step_equals_whole_prompt(engine: Engine, text: list[int], expected: np.ndarray) -> None:
    sequence = engine.new_sequence()
    found = [engine.decode([sequence], [token])[0] for token in text]
    assert_close(np.array(found), expected)


@pytest.fixture(autouse=True)
def _short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinylm.engine.WORKING_BYTES", 0)


def test_chunks_are_long_where_their_memory_is_small(
    text: list[int], expected: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = Engine.load(STORIES, threads=1).executor.bytes_of(LONG_CHUNK)
    for bytes_, steps in ((needed - 1, [CHUNK, 400]), (needed, [400])):
        monkeypatch.setattr("tinylm.engine.WORKING_BYTES", bytes_)
        long = Engine.load(STORIES, threads=1)
        told: list[int] = []
        found = long.prefill(long.new_sequence(), text[:400], lambda done, _, told=told: told.append(done))
        assert told == steps
        assert_close(found, expected[399])
    assert long.executor.nbytes >= long.executor.bytes_of(400)


@pytest.mark.parametrize(
    "length",
    sorted({1, 2, LOGIT_ROWS, BLOCK, BLOCK + 1, CHUNK - 1, CHUNK, CHUNK + 1, CHUNK + 2, SPLIT + 1, CONTEXT}),
)
def test_a_prompt_is_read_in_chunks(
    engine: Engine, text: list[int], expected: np.ndarray, length: int
) -> None:
    told: list[tuple[int, int]] = []
    sequence = engine.new_sequence()
    found = engine.prefill(sequence, text[:length], lambda done, total: told.append((done, total)))
    assert_close(found, expected[length - 1])
    assert sequence.ids == text[:length]
    assert told == [(min(done, length), length) for done in range(CHUNK, length + CHUNK, CHUNK)]


@pytest.mark.parametrize("cuts", [[5], [1, 2, 3], [CHUNK], [CHUNK - 1, CHUNK + 7], [300, 301, 400]], ids=str)
def test_a_text_may_come_in_parts(
    engine: Engine, text: list[int], expected: np.ndarray, cuts: list[int]
) -> None:
    sequence = engine.new_sequence()
    for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        if (begin + end) % 2:
            found = engine.prefill(sequence, text[begin:end])
        else:
            found = engine.extend(sequence, text[begin:end])[-1]
        assert_close(found, expected[end - 1])


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_any_number_of_threads_gives_the_same_bits(engine: Engine, text: list[int], threads: int) -> None:
    def results(engine: Engine) -> list[np.ndarray]:
        one, two = engine.new_sequence(), engine.new_sequence()
        first = [engine.prefill(one, text[:300]), engine.prefill(two, text[:40])]
        return [
            *first,
            engine.decode([one, two], [5, 6]),
            engine.decode([one], [7]),
            engine.logits(text[:90]),
        ]

    other = Engine.load(STORIES, threads=threads)
    assert other.threads == threads
    for mine, theirs in zip(results(engine), results(other), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_several_sequences_in_a_step_are_as_alone(
    engine: Engine, text: list[int], expected: np.ndarray
) -> None:
    lengths = [1, 3, 40, BLOCK, 200, 500]
    together = [engine.new_sequence() for _ in lengths]
    for sequence, length in zip(together, lengths, strict=True):
        engine.prefill(sequence, text[:length])
    for step in range(4):
        found = engine.decode(together, [text[length + step] for length in lengths])
        assert_close(found, expected[[length + step for length in lengths]])
        if step == 1:  # one leaves, and the others change places
            together, lengths = together[:0:-1], lengths[:0:-1]


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "int4"])
def test_other_formats_are_run_in_every_way_too(text: list[int], expected: np.ndarray, dtype: str) -> None:
    # keys and values as they are: rounded, they would decide where a number falls between two
    one, many = (Engine.load(STORIES, dtype=dtype, kv_dtype="float32", threads=threads) for threads in (1, 5))
    np.testing.assert_array_equal(one.logits(text[:100]), many.logits(text[:100]))
    whole = one.logits(text[:31])
    # where an activation has to be rounded in the middle between two, the last bit of attention decides
    room = (1e-5 if dtype == "bfloat16" else 0.01) * np.abs(whole).max()
    sequence = one.new_sequence()
    steps = np.concatenate([one.decode([sequence], [token]) for token in text[:31]])
    np.testing.assert_allclose(steps, whole, atol=room, rtol=0)
    # NumPy's last bit is another on every processor, and one number rounded the other way shifts all that follow it
    noise = np.abs(whole - expected[:31]).max()
    assert noise < (0.3 if dtype == "int4" else 0.05) * np.abs(whole).max()
    np.testing.assert_allclose(
        one.trace(text[:31])["logits"], whole, atol=room if dtype == "bfloat16" else noise, rtol=0
    )
    several = [many.new_sequence() for _ in range(9)]
    together = [many.decode(several, [token] * 9) for token in text[:31]]
    for place in range(9):
        found = np.array([step[place] for step in together])
        np.testing.assert_allclose(found, whole, atol=room, rtol=0)
        if dtype != "bfloat16":
            np.testing.assert_array_equal(found, steps, "a sequence in company is as it is alone")


def test_more_sequences_than_lanes(engine: Engine, text: list[int], expected: np.ndarray) -> None:
    sequences = [engine.new_sequence() for _ in range(45)]
    for position in range(3):
        found = engine.decode(sequences, [text[position]] * 45)
        assert_close(found, np.repeat(expected[position : position + 1], 45, axis=0))


def test_a_fork_goes_its_own_way(engine: Engine, text: list[int], expected: np.ndarray) -> None:
    trunk = engine.new_sequence()
    engine.prefill(trunk, text[:70])
    branch = engine.fork(trunk)
    assert branch.ids == trunk.ids
    other = engine.decode([branch], [(text[70] + 1) % V])
    engine.decode([branch], [3])
    assert_close(engine.decode([trunk], [text[70]])[0], expected[70])
    assert_close(engine.decode([trunk], [text[71]])[0], expected[71])
    assert np.abs(other[0] - expected[70]).max() > 0.1
    assert len(branch) == len(trunk) == 72


def test_a_fork_has_its_room_from_the_beginning(
    engine: Engine, text: list[int], expected: np.ndarray
) -> None:
    trunk = engine.new_sequence()
    engine.prefill(trunk, text[:70])
    branch = engine.fork(trunk, room=300)
    place = branch.cache.row()[0]
    assert 300 <= branch.cache.capacity < CONTEXT
    assert_close(engine.prefill(branch, text[70:300]), expected[299])
    assert branch.cache.row()[0] == place
    assert engine.fork(trunk).cache.capacity < 300
    assert engine.fork(trunk, room=10**9).cache.capacity < 2 * CONTEXT
    assert_close(engine.decode([engine.fork(trunk, room=1)], [text[70]])[0], expected[70])


def test_truncating_goes_back(engine: Engine, text: list[int], expected: np.ndarray) -> None:
    sequence = engine.new_sequence()
    engine.prefill(sequence, text[:300])
    engine.decode([sequence], [9])
    for length in (301, 300, 260, 100, 99, 1, 0):
        sequence.truncate(length)
        assert sequence.ids == [*text[:300], 9][:length]
        engine.decode([sequence], [11])  # what stood there is written over
        sequence.truncate(length)
        if length < 300:
            assert_close(engine.prefill(sequence, text[length:300]), expected[299])
            sequence.truncate(length)
    sequence.truncate(-1)
    assert sequence.ids == []


def test_room_may_be_made_beforehand(engine: Engine, text: list[int], expected: np.ndarray) -> None:
    sequence = engine.new_sequence()
    engine.prefill(sequence, text[:10])
    engine.reserve(sequence, 10**9)
    place = sequence.cache.row()[0]
    assert sequence.cache.capacity < 2 * CONTEXT
    assert_close(engine.prefill(sequence, text[10:400]), expected[399])
    assert sequence.cache.row()[0] == place


def test_a_result_is_the_callers(engine: Engine, text: list[int]) -> None:
    logits = engine.prefill(engine.new_sequence(), text[:5])
    before = logits.copy()
    engine.prefill(engine.new_sequence(), text[5:9])
    np.testing.assert_array_equal(logits, before)
    logits[:] = 0


# What goes wrong


WRONG_IDS: list[tuple[Any, str]] = [
    ([1, V], "id 512 is not in the vocabulary of 512"),
    ([-1], "id -1 is not"),
    ([2**70], "flat list of integers"),
    ([1.0], "not float64"),
    (["a"], "flat list of integers"),
    ([[1, 2]], r"shape \(1, 2\)"),
    ([[1], [2, 3]], "flat list of integers"),
    ([True], "not bool"),
    ([None], "flat list of integers"),
    (3, "flat list of integers"),
]


@pytest.mark.parametrize(("ids", "message"), WRONG_IDS, ids=str)
def test_wrong_ids_are_named_and_change_nothing(engine: Engine, ids: Any, message: str) -> None:
    sequence = engine.new_sequence()
    engine.prefill(sequence, [1, 2, 3])
    calls: list[Callable[[], Any]] = [
        lambda: engine.prefill(sequence, ids),
        lambda: engine.extend(sequence, ids),
        lambda: engine.advance([engine.new_sequence(), sequence], [[1], ids]),
        lambda: engine.decode([sequence] * (len(ids) if isinstance(ids, list) else 1), ids),
        lambda: engine.logits(ids),
        lambda: engine.trace(ids),
    ]
    for call in calls:
        with pytest.raises(ParameterError, match=message):
            call()
    assert sequence.ids == [1, 2, 3]


@pytest.mark.parametrize("kind", [np.int32, np.uint8, np.uint64, np.int64])
def test_ids_of_any_integer_type(engine: Engine, kind: Any) -> None:
    ids = np.array([1, 7, 200], kind)
    found = engine.prefill(engine.new_sequence(), ids[::-1])
    np.testing.assert_array_equal(found, engine.prefill(engine.new_sequence(), [200, 7, 1]))


def test_no_ids(engine: Engine) -> None:
    sequence = engine.new_sequence()
    for call in (
        lambda: engine.prefill(sequence, []),
        lambda: engine.decode([], []),
        lambda: engine.decode([sequence], []),
        lambda: engine.decode([sequence], [1, 2]),
        lambda: engine.advance([], []),
        lambda: engine.advance([sequence], []),
        lambda: engine.advance([sequence], [[]]),
        lambda: engine.advance([sequence], [[1], [2]]),
        lambda: engine.advance([sequence, engine.new_sequence()], [[1], []]),
        lambda: engine.trace([]),
    ):
        with pytest.raises(ParameterError):
            call()
    assert engine.logits([]).shape == (0, V)
    assert engine.extend(sequence, []).shape == (0, V)
    assert len(sequence) == 0


def test_a_sequence_stands_in_a_step_once(engine: Engine) -> None:
    sequence = engine.new_sequence()
    with pytest.raises(ParameterError, match="twice"):
        engine.decode([sequence, engine.new_sequence(), sequence], [1, 2, 3])
    with pytest.raises(ParameterError, match="twice"):
        engine.advance([sequence, sequence], [[1], [2, 3]])
    assert len(sequence) == 0


def test_more_than_the_context_is_refused_with_the_counts(engine: Engine, text: list[int]) -> None:
    full, sequence = engine.new_sequence(), engine.new_sequence()
    engine.prefill(full, text)
    engine.prefill(sequence, text[:500])
    with pytest.raises(ContextError, match=r"513 positions \(500 so far and 13 more\).*context of 512"):
        engine.prefill(sequence, text[:13])
    with pytest.raises(ContextError):
        engine.extend(sequence, text[:13])
    with pytest.raises(ContextError, match="513 positions"):
        engine.decode([sequence, full], [1, 2])
    with pytest.raises(ContextError, match=r"513 positions \(500 so far and 13 more\)"):
        engine.advance([engine.new_sequence(), sequence], [[1], text[:13]])
    with pytest.raises(ContextError):
        engine.logits([*text, 1])
    with pytest.raises(ContextError):
        engine.trace([*text, 1])
    assert (len(sequence), len(full)) == (500, 512)
    engine.prefill(sequence, text[:12])


@pytest.mark.parametrize("threads", [0, -1])
def test_no_threads(threads: int) -> None:
    with pytest.raises(ParameterError, match=f"threads is {threads}"):
        Engine.load(STORIES, threads=threads)


def test_a_format_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="'int3': expected one of auto, float32"):
        Engine.load(STORIES, dtype="int3")
    with pytest.raises(CheckpointError):
        Engine.load(tmp_path)


def test_the_checkpoint_may_be_closed(text: list[int], expected: np.ndarray) -> None:
    with Checkpoint(STORIES) as checkpoint:
        engine = Engine.load(checkpoint, threads=1)
    assert_close(engine.logits(text[:50]), expected[:50])


# Interrupts and threads


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_error_in_progress_leaves_what_was_done(
    engine: Engine, text: list[int], expected: np.ndarray, error: type[BaseException]
) -> None:
    sequence = engine.new_sequence()

    def stop(done: int, total: int) -> None:
        raise error

    with pytest.raises(error):
        engine.prefill(sequence, text, stop)
    assert sequence.ids == text[:CHUNK]
    assert_close(engine.prefill(sequence, text[CHUNK:400]), expected[399])


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timers")
def test_ctrl_c_at_any_moment_leaves_the_engine_usable(text: list[int], expected: np.ndarray) -> None:
    engine = Engine.load(STORIES, threads=3)
    engine.compile()
    old = signal.signal(signal.SIGALRM, signal.default_int_handler)
    caught = 0
    try:
        for moment in range(60):
            sequence = engine.new_sequence()
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-4 + 2e-4 * moment)
                for begin in range(0, CONTEXT, 7):
                    engine.prefill(sequence, text[begin : begin + 7])
                while True:
                    sequence.truncate(200)
                    engine.decode([sequence], [text[200]])
            except KeyboardInterrupt:
                caught += 1
            length = len(sequence)
            assert sequence.ids == text[:length]
            if length < CONTEXT:
                assert_close(engine.prefill(sequence, text[length:]), expected[-1])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert caught == 60


def in_threads(work: Callable[[int], None], count: int) -> None:
    """Run `work(place)` in several threads at once; raises what one of them raised."""
    errors: list[BaseException] = []

    def guarded(place: int) -> None:
        try:
            work(place)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(place,)) for place in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_two_threads_at_once_get_their_own_answers(
    engine: Engine, text: list[int], expected: np.ndarray
) -> None:
    def work(place: int) -> None:
        sequence = engine.new_sequence()
        for end in range(10 + 20 * place, 200, 23):
            assert_close(engine.prefill(sequence, text[len(sequence) : end]), expected[end - 1])
            assert_close(engine.decode([sequence], [text[end]])[0], expected[end])

    in_threads(work, 4)


def test_two_engines_at_once(text: list[int], expected: np.ndarray) -> None:
    def work(place: int) -> None:
        engine = Engine.load(STORIES, threads=1 + place)
        for _ in range(3):
            assert_close(engine.logits(text[:100]), expected[:100])

    in_threads(work, 3)


# Looking inside


def test_a_hook_changes_what_follows(engine: Engine, text: list[int], expected: np.ndarray) -> None:
    seen: dict[str, tuple[int, ...]] = {}

    def look(value: np.ndarray) -> None:
        seen["embed"] = value.shape

    values = engine.trace(text[:20], {"embed": look})
    assert seen == {"embed": (20, 64)}
    assert_close(values["logits"], expected[:20])

    def nothing(value: np.ndarray) -> np.ndarray:
        return np.zeros_like(value)

    changed = engine.trace(text[:20], {"blocks.2.mlp_out": nothing})
    np.testing.assert_array_equal(changed["blocks.2.resid_post"], changed["blocks.2.resid_mid"])
    np.testing.assert_array_equal(changed["blocks.1.resid_post"], values["blocks.1.resid_post"])
    assert np.abs(changed["logits"] - values["logits"]).max() > 0.01


def test_the_pattern_of_attention_can_be_seen_and_changed(engine: Engine, text: list[int]) -> None:
    values = engine.trace(text[:20])
    pattern = values["blocks.0.attn.pattern"]
    assert pattern.shape == (8, 20, 20)
    np.testing.assert_allclose(pattern.sum(axis=-1), 1, rtol=1e-5)

    def only_itself(pattern: np.ndarray) -> np.ndarray:
        return np.broadcast_to(np.eye(20, dtype=np.float32), pattern.shape)

    changed = engine.trace(text[:20], {"blocks.0.attn.pattern": only_itself})
    own = np.repeat(changed["blocks.0.attn.v"].reshape(20, 4, 8), 2, axis=1).reshape(20, 64)
    np.testing.assert_allclose(changed["blocks.0.attn.z"], own, atol=1e-6)


def test_sequences_know_their_length() -> None:
    engine = Engine.load(STORIES, threads=1)
    sequence: Sequence = engine.new_sequence()
    assert (len(sequence), sequence.ids) == (0, [])
    assert (engine.vocab_size, engine.context_length, engine.threads) == (512, 512, 1)
