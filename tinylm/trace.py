"""Seeing inside a model: every intermediate value of a text by its name, and hooks that change one.

Names are those of TransformerLens, with or without its `hook_`: `embed`, `blocks.3.attn.pattern`,
`blocks.3.hook_resid_post`, `ln_final.hook_normalized`. The reference executor computes them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tinylm.errors import ContextError, ParameterError
from tinylm.reference import compute

if TYPE_CHECKING:
    from tinylm.engine import Engine
    from tinylm.program import Program

Array = NDArray[np.float32]
Hook = Callable[[Array], "Array | None"]

MOST_BYTES = 4 * 2**30
"""A trace keeps every value; one that would need more memory than this is refused."""

HEADS = re.compile(r"blocks\.\d+\.attn\.(q|k|v|z|rot_q|rot_k|q_norm|k_norm)")
"""What has an axis of heads: (T, H, Dh)."""


class Trace(Mapping[str, Array]):
    """The values of a text by name, all float32; iterating gives the names in the order of computation.

    `embed`, `blocks.N.resid_post` and the like are (T, D); `blocks.N.attn.q` and others that heads share,
    (T, H, Dh); `blocks.N.attn.pattern`, (H, T, S); `logits`, (T, V). `ids` (T,) are the text's, and `tokens`
    their texts.
    """

    def __init__(
        self, program: Program, ids: list[int], tokens: list[str], values: Mapping[str, Array]
    ) -> None:
        self.ids, self.tokens = ids, tokens
        self._program = program
        self._values = {name: shaped(program, name, value) for name, value in values.items()}

    def __getitem__(self, name: str) -> Array:
        found = canonical(name)
        if found not in self._values:
            raise KeyError(unknown_name(name, self._values))
        return self._values[found]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    @property
    def logits(self) -> Array:
        """(T, V): after each token, the next one's."""
        return self._values["logits"]

    @property
    def layers(self) -> int:
        """The number of blocks."""
        return self._program.layers

    def pattern(self, layer: int) -> Array:
        """(H, T, S): how much token t of a head looks at position s; each row sums to 1."""
        return self[f"blocks.{layer}.attn.pattern"]

    @property
    def residuals(self) -> Array:
        """(layers + 1, T, D): the residual stream before the first block, and after each."""
        return np.stack([self[residual_name(layer)] for layer in range(self.layers + 1)])

    def unembed(self, residual: Array) -> Array:
        """`(..., D) -> (..., V)`: logits of any residual, through the final norm and the head."""
        x = np.asarray(residual, np.float32)
        D = self["embed"].shape[-1]
        if x.shape[-1:] != (D,):
            raise ParameterError(f"a residual of shape {x.shape}; expected (..., {D})")
        rows = x.reshape(-1, D)
        operations = self._program.operations
        first = next(i for i, one in enumerate(operations) if one.kind == "chosen_rows")
        for operation in operations[first + 1 :]:
            rows = compute(operation, [rows])
        return rows.reshape(*x.shape[:-1], -1)

    def logit_lens(self, position: int = -1) -> Array:
        """(layers + 1, V): what the model would say next at a position, if it ended after each block.

        The logit lens (nostalgebraist 2020): row 0 is the embedding alone, the last row the model's own logits.
        """
        return self.unembed(self.residuals[:, position])


def trace(
    engine: Engine, ids: Sequence[int], tokens: list[str], hooks: Mapping[str, Hook] | None = None
) -> Trace:
    """Run a text and keep every value; a hook gets the value of its name before the next operation reads it.

    A hook may change the array that it gets, or return another of the same shape. Raises ParameterError for
    a hook of an unknown name or one that returns another shape, ContextError for a text too long to keep.
    """
    program = engine.program
    needed = nbytes(program, len(ids))
    if needed > MOST_BYTES:
        raise ContextError(
            f"the values of {len(ids):,} tokens take {needed / 1e9:.1f} GB, over the {MOST_BYTES / 1e9:.1f} GB "
            "that a trace may keep; trace a shorter text"
        )
    names = [one.output.name for one in program.operations]
    names += [
        name.removesuffix(".z") + ".pattern"
        for name in names
        if HEADS.fullmatch(name) and name.endswith(".z")
    ]
    wrapped: dict[str, Hook] = {}
    for name, hook in (hooks or {}).items():
        found = canonical(name)
        if found not in names:
            raise ParameterError(f"hook {unknown_name(name, names)}")
        if found in wrapped:
            raise ParameterError(f"two hooks for {found!r}")
        wrapped[found] = wrap(program, found, hook)
    return Trace(program, list(ids), tokens, engine.trace(ids, wrapped))


def canonical(name: str) -> str:
    """Our name of a value: TransformerLens' without `hook_`, and what a block reads by who wrote it."""
    name = name.replace("hook_", "")
    name = re.sub(r"(ln1|ln2|ln_final)\.normalized", r"\1", name)
    block = re.fullmatch(r"blocks\.(\d+)\.resid_pre", name)
    return residual_name(int(block[1])) if block else name


def residual_name(layer: int) -> str:
    """The name of the residual stream that block `layer` reads."""
    return "embed" if layer == 0 else f"blocks.{layer - 1}.resid_post"


def unknown_name(name: str, names: Any) -> str:
    """What is said of a name that no value has."""
    close = difflib.get_close_matches(canonical(name), names, n=3)
    return f"{name!r} is no value of this model; " + (
        f"the closest are {', '.join(close)}" if close else "list(trace) shows their names"
    )


def shaped(program: Program, name: str, value: Array) -> Array:
    """A value as a student wants it: with an axis of heads where it has heads."""
    return value.reshape(len(value), -1, program.head_dim) if HEADS.fullmatch(name) else value


def wrap(program: Program, name: str, hook: Hook) -> Hook:
    """A hook as the executor calls it: on a copy in the value's own shape."""

    def changed(value: Array) -> Array:
        given = shaped(program, name, value.copy())
        result = hook(given)
        result = given if result is None else np.asarray(result, np.float32)
        if result.shape != given.shape:
            raise ParameterError(
                f"the hook {name!r} returns shape {result.shape}, where {given.shape} is expected"
            )
        return result

    return changed


def nbytes(program: Program, T: int) -> int:
    """Bytes of all the values of a text of T tokens."""
    widths = sum(one.output.width for one in program.operations)
    return 4 * T * (widths + program.layers * program.heads * T)
