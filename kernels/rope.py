"""Rotary position embedding, half-split: number i of a head is rotated with number i + half.

The interleaved convention (i with i + 1) of the original code is not used by any checkpoint in Hugging Face
form. Only the first `2 * half` numbers of a head turn (`rotary_pct`, `partial_rotary_factor`); the rest pass.
One unit of work is one token.
"""

import numpy as np

from tinylm.kernels.jit import njit, operation
from tinylm.kernels.operands import float32_2d, int64_1d


def rope_reference(x, positions, table, head_dim):
    """`(T, H * Dh), (T,), (S, 2 * half) -> (T, H * Dh)` (Su et al. 2021, arXiv:2104.09864).

    A row of `table` holds the cosines and then the sines of a position.
    """
    half = table.shape[1] // 2
    heads = x.reshape(x.shape[0], -1, head_dim)
    cosine, sine = table[positions, None, :half], table[positions, None, half:]
    first, second, rest = heads[..., :half], heads[..., half : 2 * half], heads[..., 2 * half :]
    turned = [first * cosine - second * sine, second * cosine + first * sine, rest]
    return np.concatenate(turned, axis=-1).reshape(x.shape)


@njit
def rope(x, positions, table, head_dim, out, begin, end):
    """Tokens `begin` to `end` of `rope_reference` into out (T, H * Dh), which may be x."""
    half = table.shape[1] // 2
    for token in range(begin, end):
        cosines, sines = table[positions[token], :half], table[positions[token], half:]
        for head in range(0, x.shape[1], head_dim):
            source, target = x[token, head : head + head_dim], out[token, head : head + head_dim]
            for i in range(half):
                first, second = source[i], source[half + i]
                target[i] = first * cosines[i] - second * sines[i]
                target[half + i] = second * cosines[i] + first * sines[i]
            rest, kept = source[2 * half :], target[2 * half :]
            for i in range(len(rest)):
                kept[i] = rest[i]


@operation
def rope_operation(operands, begin, end):
    """x (3), positions (2), table (3), head_dim (1), out (3)."""
    x, positions, table = float32_2d(operands, 0), int64_1d(operands, 3), float32_2d(operands, 5)
    rope(x, positions, table, operands[8], float32_2d(operands, 9), begin, end)


def frequencies(head_dim, theta):
    """(head_dim / 2,) float32 angles a position: theta ** (-2 i / head_dim), rounded as transformers rounds."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    # float32's own power is off by a bit here and there, which torch's is not: 3e-4 of the logits at 4,000 positions.
    powers = np.power(np.float64(np.float32(theta)), exponents.astype(np.float64)).astype(np.float32)
    return np.float32(1) / powers


def rope_table(inverse_frequencies, positions, scale=1.0):
    """`(half,), S -> (S, 2 * half)` float32: cosines and sines of every position below `positions`."""
    angles = np.arange(positions, dtype=np.float32)[:, None] * inverse_frequencies[None, :]
    table = np.concatenate([np.cos(angles), np.sin(angles)], axis=-1)
    return (table * np.float32(scale)).astype(np.float32)
