"""Attention of 30 layers: one token after some positions, with its cache in memory, and chunks of a prompt.

python -m bench.kernels.attention
"""

from __future__ import annotations

import numpy as np

from bench.measure import Bench, row
from tinylm.cache import KeyValueCache
from tinylm.kernels.attention import attention_operation, combine_operation, part_size, store_operation
from tinylm.step import make_step

H, HKV, HEAD_DIM = 9, 3, 64
SCALE = HEAD_DIM**-0.5


def layers_of_attention(bench: Bench, layers: int, used: list[int], count: int) -> list[list[int]]:
    """The rows of all layers of a step: `count` tokens each of some texts that have so many positions."""
    parts = []
    for length in used:
        cache = KeyValueCache(layers, HKV, HEAD_DIM)
        cache.reserve(length + count, 0)
        for array in (*cache.keys, *cache.values):
            bench.keep(array)[:] = 0.5
        parts.append((cache, length, np.zeros(count, np.int64)))
    step = make_step(parts, H // HKV)
    T = len(step.ids)
    q, out = bench.numbers(T, H * HEAD_DIM), bench.numbers(T, H * HEAD_DIM)
    k, v = bench.numbers(T, HKV * HEAD_DIM), bench.numbers(T, HKV * HEAD_DIM)
    caches = bench.keep(np.array([cache.row() for cache in step.caches], np.int64))
    results = bench.keep(np.zeros((len(step.tasks) * HKV, part_size(HEAD_DIM)), np.float32))
    for array in (step.positions, step.rows, step.tasks, step.tiles):
        bench.keep(array)
    rows = []
    for layer in range(layers):
        rows += [
            row(store_operation, T, T // (4 * bench.team.threads), k, v, step.positions, step.rows, caches,
                layer, HKV, HEAD_DIM),
            row(attention_operation, len(results), 1, q, step.positions, step.tasks, caches, layer, HKV,
                HEAD_DIM, SCALE, results),
            row(combine_operation, len(step.tiles) * HKV, 1, step.tiles, HKV, HEAD_DIM, results, out),
        ]  # fmt: skip
    return rows


def main() -> None:
    """Measure and print; JSON on the last line."""
    bench = Bench("attention", __doc__)
    layers = 2 if bench.quick else 30
    for texts, length in ((1, 16), (1, 1024), (1, 4096), (8, 1024)):
        rows = layers_of_attention(bench, layers, [length] * texts, 1)
        read = 2 * 4 * layers * texts * length * HKV * HEAD_DIM
        name = f"{texts} x 1 token after {length}"
        bench.add(name, rows, read=read if length > 16 else 0)
    for used, count in ((0, 256), (1792, 256)):
        rows = layers_of_attention(bench, layers, [used], count)
        pairs = count * used + count * (count + 1) // 2
        bench.add(f"{count} tokens after {used}", rows, multiply=4.0 * layers * H * HEAD_DIM * pairs)
    bench.run()


if __name__ == "__main__":
    main()
