"""The reference executor: the program in plain NumPy, one operation at a time, every value by its name.

It judges the compiled executor in the tests, and it is where a student looks inside: `values` holds every
intermediate, and a hook may replace one before the next operation reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinylm.kernels.activation import activate_reference, add_reference, gate_reference
from tinylm.kernels.attention import attention_reference
from tinylm.kernels.matmul import matmul_reference
from tinylm.kernels.norm import layernorm_reference, rmsnorm_reference
from tinylm.kernels.rope import rope_reference, rope_table
from tinylm.kernels.rows import add_bias_reference, heads_reference, take_reference
from tinylm.program import Operation, Program
from tinylm.step import Step

Values = dict[str, NDArray[np.float32]]
Hook = Callable[[NDArray[np.float32]], "NDArray[np.float32] | None"]


def run_reference(program: Program, step: Step, hooks: Mapping[str, Hook] | None = None) -> Values:
    """Run a program over a step; returns every buffer by name, shapes as `Program` says, float32.

    An attention operation `blocks.3.attn.z` leaves its weights (H, T, S) beside it as `blocks.3.attn.pattern`
    where the step has one sequence. A hook gets the value of its name and returns what shall take its place,
    or None to keep it. The caches of the step are filled as by the compiled executor.
    """
    hooks = hooks or {}
    positions = int(step.positions.max()) + 1
    table = rope_table(program.inverse_frequencies, positions, program.rope_scale)
    values: Values = {}

    def keep(name: str, value: NDArray[np.float32]) -> NDArray[np.float32]:
        if name in hooks:
            changed = hooks[name](value)
            if changed is not None:
                value = np.asarray(changed, np.float32).reshape(value.shape)
        values[name] = value
        return value

    for operation in program.operations:
        inputs = [values[buffer.name] for buffer in operation.inputs]
        if operation.kind == "attention":
            keep(operation.output.name, _attention(program, operation, inputs, step, keep))
        else:
            keep(operation.output.name, _compute_in_step(program, operation, inputs, step, table))
    return values


def _compute_in_step(
    program: Program, operation: Operation, inputs: list[Any], step: Step, table: Any
) -> Any:
    """One operation, whatever it is but attention."""
    if operation.kind == "embed":
        assert operation.matrix is not None
        return take_reference(operation.matrix.dequantize(), step.ids)
    if operation.kind == "rope":
        return rope_reference(inputs[0], step.positions, table, program.head_dim)
    if operation.kind == "chosen_rows":
        return take_reference(inputs[0], step.chosen)
    return compute(operation, inputs)


def compute(operation: Operation, inputs: list[Any]) -> Any:
    """One operation that depends on its inputs alone, and not on where in a text they stand."""
    kind, vectors, numbers = operation.kind, operation.vectors, operation.numbers
    x = inputs[0]
    if kind == "rmsnorm":
        parts = x.reshape(-1, len(vectors["weight"]))
        return rmsnorm_reference(parts, vectors["weight"], numbers["eps"]).reshape(x.shape)
    if kind == "layernorm":
        return layernorm_reference(x, vectors["weight"], vectors["bias"], numbers["eps"])
    if kind == "matmul":
        assert operation.matrix is not None
        product = matmul_reference(operation.matrix.rounded(x), operation.matrix.dequantize())
        return add_bias_reference(product, vectors["bias"]) if "bias" in vectors else product
    if kind == "heads":
        return heads_reference(x, int(numbers["offset"]), int(numbers["size"]), int(numbers["stride"]))
    if kind == "activate":
        return activate_reference(int(numbers["kind"]), x)
    if kind == "gate":
        return gate_reference(int(numbers["kind"]), x, inputs[1])
    if kind == "add":
        return add_reference(x, inputs[1])
    raise AssertionError(f"no reference for {kind}")


def _attention(program: Program, operation: Operation, inputs: list[Any], step: Step, keep: Any) -> Any:
    """Store the keys and values of each sequence, then let its tokens attend to all that it has."""
    q, k, v = inputs
    layer = int(operation.numbers["layer"])
    out = np.empty_like(q)
    begin = 0
    for cache, count in zip(step.caches, step.counts, strict=True):
        here = slice(begin, begin + count)
        positions = step.positions[here]
        new = [one[here].reshape(count, -1, program.head_dim) for one in (k, v)]
        cache.write(layer, positions, *new)
        keys, values = cache.read(layer, int(positions[-1]) + 1)
        heads = q[here].reshape(count, -1, program.head_dim)
        z, pattern = attention_reference(heads, keys, values, positions, program.head_dim**-0.5)
        if len(step.caches) == 1:
            # Where a hook changes the pattern, the values are weighted anew.
            name = operation.output.name.removesuffix(".z") + ".pattern"
            changed = keep(name, pattern)
            if changed is not pattern:
                group = program.heads // program.key_value_heads
                z = np.einsum("hts,shd->thd", changed, np.repeat(values, group, axis=1))
        out[here] = z.reshape(count, -1)
        begin += count
    return out
