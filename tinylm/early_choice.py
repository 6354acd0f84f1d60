"""Leaving out what nobody asks for: the last layer's work on tokens whose logits are not wanted.

A model chooses those tokens after its last layer. What that layer makes of each token alone, from the output of
attention on, need not be made of the others: of a long prompt all but one, in one of 30 layers 1/35 of the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tinylm.program import Buffer, Operation

OF_EACH_TOKEN = {"rmsnorm", "layernorm", "matmul", "gate", "activate", "add"}
"""Kinds whose rows hang on the same rows of their inputs alone."""


def choose_early(operations: Sequence[Operation]) -> list[Operation]:
    """The same operations, the choice of rows moved up to where rows begin to be only what is made of each token."""
    choices = [i for i, one in enumerate(operations) if one.kind == "chosen_rows"]
    if len(choices) != 1 or choices[0] == len(operations) - 1:
        return list(operations)
    choice = operations[choices[0]]
    users: dict[Buffer, set[int]] = {}
    for i, one in enumerate(operations):
        for buffer in one.inputs:
            users.setdefault(buffer, set()).add(i)
    early = {choices[0]}  # operations that need make nothing but chosen rows
    for i in range(choices[0] - 1, -1, -1):
        one = operations[i]
        if one.kind in OF_EACH_TOKEN and users.get(one.output, {-1}) <= early:
            early.add(i)

    chosen: dict[Buffer, Buffer] = {
        operations[i].output: replace(operations[i].output, rows="L") for i in early
    }
    result: list[Operation] = []
    for i, one in enumerate(operations):
        if one is choice and one.inputs[0] in chosen:
            chosen[one.output] = chosen[one.inputs[0]]  # chosen already
            continue
        if i in early and one is not choice:
            for buffer in one.inputs:
                if buffer not in chosen:
                    chosen[buffer] = Buffer(f"{buffer.name}.chosen", "L", buffer.width)
                    result.append(Operation("chosen_rows", chosen[buffer], (buffer,)))
            inputs = tuple(chosen[buffer] for buffer in one.inputs)
            result.append(replace(one, output=chosen[one.output], inputs=inputs))
        elif i > choices[0]:
            result.append(replace(one, inputs=tuple(chosen.get(buffer, buffer) for buffer in one.inputs)))
        else:
            result.append(one)
    return result
