"""How many threads: what the system grants, read from what the system writes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tinylm.kernels import cores
from tinylm.kernels.team import Team


def test_the_default_is_between_one_and_all() -> None:
    assert 1 <= cores.default_threads() <= (os.cpu_count() or 1)
    assert Team().threads == cores.default_threads()
    assert Team(3).threads == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max 100000\n", None),
        ("200000 100000\n", 2),
        ("150000 100000\n", 2),  # a core and a half: two threads, of which one is held back at times
        ("5000 100000\n", 1),
        ("-1 100000", None),
        ("0 0", None),
        ("", None),
        ("nonsense", None),
    ],
)
def test_quotas_of_control_groups_version_2(tmp_path: Path, text: str, expected: int | None) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert cores._cgroup_quota(tmp_path) == expected


@pytest.mark.parametrize(
    ("quota", "expected"), [("-1", None), ("300000", 3), ("250000", 3), ("1", 1), ("?", None)]
)
def test_quotas_of_control_groups_version_1(tmp_path: Path, quota: str, expected: int | None) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota)
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert cores._cgroup_quota(tmp_path) == expected


def test_no_control_groups_no_limit(tmp_path: Path) -> None:
    assert cores._cgroup_quota(tmp_path) is None


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity masks")
def test_an_affinity_mask_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5})
    monkeypatch.setattr(cores, "_cgroup_quota", lambda: None)
    assert cores.default_threads() == 3
    monkeypatch.setattr(cores, "_cgroup_quota", lambda: 2)
    assert cores.default_threads() == 2


def test_a_mac_counts_its_performance_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(cores, "_darwin_performance_cores", lambda: 4)
    assert cores.default_threads() == 4
    monkeypatch.setattr(cores, "_darwin_performance_cores", lambda: None)
    assert cores.default_threads() == os.cpu_count()


@pytest.mark.skipif(sys.platform != "darwin", reason="asks macOS")
def test_the_performance_cores_of_this_mac() -> None:
    assert 1 <= (cores._darwin_performance_cores() or 1) <= (os.cpu_count() or 1)
