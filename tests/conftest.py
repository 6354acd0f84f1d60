"""Programs of random parts, for whoever runs programs, and work that goes on meanwhile."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from tinylm.formats import Matrix
from tinylm.formats.bfloat16 import BFloat16Matrix, narrow
from tinylm.formats.float32 import Float32Matrix
from tinylm.formats.table import QUANTIZED
from tinylm.kernels.rope import frequencies
from tinylm.kernels.team import Team
from tinylm.program import Program

V = 37

# A shell has what it starts in the background ignore Ctrl-C, which is tested all the same.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


class Maker:
    """Writes programs of random parts: the parts of all architectures, in orders that none of them has."""

    def __init__(self, seed: int, format: str = "float32") -> None:
        self.random = np.random.default_rng(seed)
        self.format = format

    def choose(self, *options: Any) -> Any:
        return options[self.random.integers(len(options))]

    def matrix(self, N: int, K: int) -> Matrix:
        weights = (self.random.standard_normal((N, K)) * 1.5 / K**0.5).astype(np.float32)
        if self.format in QUANTIZED:
            return QUANTIZED[self.format].quantize(weights, Team(1))
        return BFloat16Matrix(narrow(weights)) if self.format == "bfloat16" else Float32Matrix(weights)

    def vector(self, size: int, middle: float = 0.0) -> np.ndarray:
        return (middle + 0.3 * self.random.standard_normal(size)).astype(np.float32)

    def norm(self, program: Program, name: str, x: str) -> str:
        D = program.width(x)
        if self.choose(True, False):
            return program.rmsnorm(name, x, self.vector(D, 1), 1e-5)
        return program.layernorm(name, x, self.vector(D, 1), self.vector(D), 1e-5)

    def linear(self, program: Program, name: str, x: str, N: int) -> str:
        bias = self.vector(N) if self.choose(True, False) else None
        return program.matmul(name, x, self.matrix(N, program.width(x)), bias)

    def attention(self, program: Program, block: str, h: str) -> str:
        Q, KV = program.heads * program.head_dim, program.key_value_heads * program.head_dim
        if program.heads == program.key_value_heads and self.choose(True, False):
            fused = self.linear(program, f"{block}.qkv", h, 3 * Q)
            Dh = program.head_dim
            q, k, v = (
                program.part_of_heads(f"{block}.{name}", fused, i * Dh, Dh, 3 * Dh)
                for i, name in enumerate("qkv")
            )
        else:
            q, k, v = (
                self.linear(program, f"{block}.{name}", h, N) for name, N in (("q", Q), ("k", KV), ("v", KV))
            )
        if self.choose(True, False):
            q = program.rmsnorm(f"{block}.norm_q", q, self.vector(program.head_dim, 1), 1e-6)
            k = program.rmsnorm(f"{block}.norm_k", k, self.vector(program.head_dim, 1), 1e-6)
        q, k = program.rope(f"{block}.rot_q", q), program.rope(f"{block}.rot_k", k)
        z = program.attention(f"{block}.z", q, k, v)
        return self.linear(program, f"{block}.attn_out", z, program.width("embed"))

    def feed_forward(self, program: Program, block: str, h: str) -> str:
        F = int(self.choose(13, 48, 172))
        kind = self.choose("silu", "gelu", "gelu_tanh", "relu")
        up = self.linear(program, f"{block}.up", h, F)
        if self.choose(True, False):
            up = program.gate(f"{block}.gate", self.linear(program, f"{block}.pre", h, F), up, kind)
        else:
            up = program.activation(f"{block}.act", up, kind)
        return self.linear(program, f"{block}.mlp_out", up, program.width("embed"))

    def program(self) -> Program:
        heads, key_value_heads = self.choose((1, 1), (4, 4), (4, 2), (6, 1), (9, 3), (3, 3))
        head_dim = int(self.choose(6, 8, 20))
        D = int(self.choose(12, 23, 48))
        rotary = int(self.choose(2, head_dim))
        program = Program(
            vocab_size=V,
            heads=heads,
            key_value_heads=key_value_heads,
            head_dim=head_dim,
            inverse_frequencies=frequencies(rotary, 100.0),
            rope_scale=float(self.choose(1.0, 1.2)),
        )
        embedding = self.matrix(V, D)
        x = program.embed("embed", embedding)
        for layer in range(int(self.choose(1, 2, 3))):
            block = f"blocks.{layer}"
            h = self.norm(program, f"{block}.ln1", x)
            a = self.attention(program, block, h)
            if self.choose(True, False):  # a parallel residual
                m = self.feed_forward(program, block, self.norm(program, f"{block}.ln2", x))
                x = program.add(f"{block}.resid", program.add(f"{block}.both", a, m), x)
            else:
                x = program.add(f"{block}.resid_mid", x, a)
                m = self.feed_forward(program, block, self.norm(program, f"{block}.ln2", x))
                x = program.add(f"{block}.resid_post", x, m)
        x = self.norm(program, "ln_final", program.chosen_rows("chosen", x))
        program.matmul("logits", x, embedding if self.choose(True, False) else self.matrix(V, D))
        return program


@pytest.fixture
def random_program() -> Callable[..., Program]:
    """The program of a seed, with weights in a format (float32 if none is given); ids are less than its V, 37."""
    return lambda seed, format="float32": Maker(seed, format).program()


@contextmanager
def _meanwhile(work: Callable[[], None]) -> Iterator[None]:
    over = threading.Event()

    def again() -> None:
        while not over.is_set():
            work()

    worker = threading.Thread(target=again)
    worker.start()
    try:
        yield
    finally:
        over.set()
        worker.join()


@pytest.fixture
def meanwhile() -> Callable[..., Any]:
    """`with meanwhile(work):` another thread does that work over and over."""
    return _meanwhile
