"""The measurement of bandwidth reads all that it says it reads, and in registers as wide as the kernels'."""

import re

import numpy as np
import pytest

from tinylm.kernels.bandwidth import BLOCK, Bandwidth, block_sums, block_sums_operation, block_sums_reference
from tinylm.kernels.team import Team


def test_every_word_is_read_once() -> None:
    words = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 3 * BLOCK, np.int64)
    words.flags.writeable = False
    sums = np.zeros(3, np.int64)
    block_sums(words, sums, 0, 1)
    block_sums(words, sums, 1, 3)
    np.testing.assert_array_equal(sums, block_sums_reference(words))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_team_reads_the_whole_buffer(threads: int) -> None:
    bandwidth = Bandwidth(Team(threads), size=2**23)
    assert bandwidth.measure() > 0
    assert bandwidth._sums.sum() * 8 == 2**23


def test_a_word_at_a_time_is_no_limit() -> None:
    """A loop that took single words gave 21 GB/s from the second cache, and vectors 58: no limit of any memory."""
    from tinylm.kernels.compiler import operation_module

    code = str(operation_module(block_sums_operation.function))
    assert len(re.findall(r"= load <\d+ x i64>", code)) >= 2
