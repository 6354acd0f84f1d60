"""Attention of 30 layers: one token after some positions, with its cache in memory, and chunks of a prompt.

python -m bench.kernels.attention
"""

from __future__ import annotations

import numpy as np

from bench.measure import Bench, row
from tinylm.cache import KeyValueCache
from tinylm.formats.key_values import KV_DTYPES, KeyValueFormat, key_value_format, position_bytes
from tinylm.kernels.attention import combine_operation, part_size
from tinylm.step import make_step

H, HKV, HEAD_DIM = 9, 3, 64
SCALE = HEAD_DIM**-0.5


def layers_of_attention(
    bench: Bench, kv_format: KeyValueFormat, layers: int, used: list[int], count: int
) -> list[list[int]]:
    """The rows of all layers of a step: `count` tokens each of some texts that have so many positions."""
    parts = []
    for length in used:
        cache = KeyValueCache(layers, HKV, HEAD_DIM, kv_format)
        cache.reserve(length + count, 0)
        numbers = bench.numbers(2, length + count, HKV, HEAD_DIM)
        for layer, records in enumerate(cache.records):
            bench.keep(records)
            cache.write(layer, np.arange(length + count), *numbers)
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
            row(kv_format.store, T, T // (4 * bench.team.threads), k, v, step.positions, step.rows, caches,
                layer, HKV, HEAD_DIM),
            row(kv_format.attention, len(results), 1, q, step.positions, step.tasks, caches, layer, HKV,
                HEAD_DIM, SCALE, results),
            row(combine_operation, len(step.tiles) * HKV, 1, step.tiles, HKV, HEAD_DIM, results, out),
        ]  # fmt: skip
    return rows


def main() -> None:
    """Measure and print; JSON on the last line."""
    bench = Bench("attention", __doc__)
    layers = 2 if bench.quick else 30
    for name in KV_DTYPES:
        kv_format = key_value_format(name)
        for texts, length in ((1, 16), (1, 1024), (1, 4096), (8, 1024)):
            rows = layers_of_attention(bench, kv_format, layers, [length] * texts, 1)
            read = position_bytes(name, layers, HKV, HEAD_DIM) * texts * length
            bench.add(f"{name}, {texts} x 1 token after {length}", rows, read=read if length > 16 else 0)
        for used, count in ((0, 256), (1792, 256)):
            rows = layers_of_attention(bench, kv_format, layers, [used], count)
            pairs = count * used + count * (count + 1) // 2
            work = 4.0 * layers * H * HEAD_DIM * pairs
            bench.add(f"{name}, {count} tokens after {used}", rows, multiply=work)
    bench.run()


if __name__ == "__main__":
    main()
