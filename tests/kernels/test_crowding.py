"""Who is invited where cores are shared: simulated steps."""

from __future__ import annotations

import random

from tinylm.kernels.crowding import CROWDED, MOST_PATIENCE, PATIENCE, TRIAL, Crowding


def steps(crowding: Crowding, count: int, cores: int, gain: float = 0.2) -> list[int]:
    """Invited workers of so many steps, on so many free cores beside the caller's.

    A worker takes a share of `gain` off the time, one without a core of its own adds as much.
    """
    found = []
    for _ in range(count):
        found.append(crowding.invited)
        beyond = max(0, crowding.invited - cores)
        seconds = 1 - gain * min(crowding.invited, cores) + gain * beyond
        crowding.note(CROWDED if beyond else 0, seconds)
    return found


def test_all_are_invited_while_nobody_waits() -> None:
    assert steps(Crowding(3), 5000, 3) == [3] * 5000


def test_waiting_alone_is_no_reason_to_leave_one_out() -> None:
    crowding, chance = Crowding(1), random.Random(0)
    found = []
    for _ in range(20_000):
        found.append(crowding.invited)
        crowding.note(chance.choice([0, CROWDED]), 0.8 if crowding.invited else 1.0)
    assert found.count(0) <= TRIAL * (20_000 / MOST_PATIENCE + 6)


def test_as_many_as_there_is_room_for_and_others_are_tried_ever_more_rarely() -> None:
    for cores in (0, 1, 2):
        crowding = Crowding(3)
        found = steps(crowding, 20_000, cores)
        assert found[:TRIAL] == [3] * TRIAL
        assert set(found[200:]) <= {cores, cores + 1}
        assert sum(number > cores for number in found[-10_000:]) <= TRIAL * (10_000 / MOST_PATIENCE + 1)


def test_they_come_back_when_there_is_room_again() -> None:
    crowding = Crowding(2)
    steps(crowding, 3000, 0)
    assert crowding.invited == 0
    found = steps(crowding, 2 * MOST_PATIENCE, 2)
    assert found[-PATIENCE:] == [2] * PATIENCE


def test_nobody_is_left_to_leave_out() -> None:
    crowding = Crowding(0)
    assert steps(crowding, 1000, 0) == [0] * 1000
