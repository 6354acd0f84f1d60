"""When pieces are done again: counted steps."""

from __future__ import annotations

from tinylm.kernels.crowding import CALM, CROWDED, PATIENCE, TWICE, Crowding


def steps(crowding: Crowding, count: int, crowded: float, helps: float) -> list[bool]:
    """Whether so many steps were helping, where a share of them is crowded and so many pieces of a step are late."""
    found = []
    for i in range(count):
        found.append(crowding.helping)
        is_crowded = int((i + 1) * crowded) > int(i * crowded)
        if crowding.helping:
            crowding.note(0, int((i + 1) * helps) - int(i * helps))
        else:
            crowding.note(CROWDED if is_crowded else CROWDED - 1, 0)
    return found


def test_nothing_is_done_again_while_nobody_waits() -> None:
    assert not any(steps(Crowding(), 5000, 0, 0))


def test_a_step_now_and_then_is_chance() -> None:
    assert not any(steps(Crowding(), 5000, 1 / PATIENCE, 0))


def test_it_begins_soon_and_lasts_while_threads_are_late() -> None:
    found = steps(Crowding(), 5000, 0.9, 1.5)
    assert found.index(True) <= TWICE + 1
    assert all(found[TWICE + 1 :])


def test_it_ends_where_they_are_not_any_more() -> None:
    crowding = Crowding()
    steps(crowding, 100, 1, 2)
    found = steps(crowding, 200, 0, CALM / PATIENCE)
    assert found[0]
    assert not any(found[2 * PATIENCE :])
