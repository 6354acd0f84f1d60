"""What several architectures are made of, written into a program with the weights it takes."""

from __future__ import annotations

from tinylm.errors import CheckpointError
from tinylm.formats import Matrix
from tinylm.program import Program
from tinylm.weights import Weights


class Layers:
    """Layers that read their tensors from `weights` and append their operations to `program`.

    `here` is how the names of a block's tensors begin (`model.layers.3`), `block` how those of its buffers do
    (`blocks.3`).
    """

    def __init__(self, program: Program, weights: Weights) -> None:
        self.program, self.weights = program, weights

    def rmsnorm(self, name: str, x: str, tensor: str, size: int, eps: float) -> str:
        """`(T, D) -> (T, D)`: RMSNorm by `tensor`.weight (size,) of each row, or of each stretch as long."""
        return self.program.rmsnorm(name, x, self.weights.vector(f"{tensor}.weight", size), eps)

    def layernorm(self, name: str, x: str, tensor: str, size: int, eps: float) -> str:
        """`(T, D) -> (T, D)`: LayerNorm of each row by `tensor`.weight and `tensor`.bias (size,)."""
        weight = self.weights.vector(f"{tensor}.weight", size)
        bias = self.weights.vector(f"{tensor}.bias", size)
        return self.program.layernorm(name, x, weight, bias, eps)

    def linear(self, name: str, x: str, tensor: str, shape: tuple[int, int], bias: bool = False) -> str:
        """`(T, K) -> (T, N)` by `tensor`.weight of `shape` (N, K), and `tensor`.bias (N,) if there is one."""
        matrix = self.weights.matrix(f"{tensor}.weight", shape)
        vector = self.weights.vector(f"{tensor}.bias", shape[0]) if bias else None
        return self.program.matmul(name, x, matrix, vector)

    def swiglu(self, block: str, x: str, here: str, F: int, activation: str, *, bias: bool = False) -> str:
        """`(T, D) -> (T, D)`: down(activation(gate(x)) * up(x)), F wide inside (Shazeer 2020, arXiv:2002.05202)."""
        D = self.program.width(x)
        gate = self.linear(f"{block}.mlp.pre", x, f"{here}.mlp.gate_proj", (F, D), bias)  # (T, F)
        up = self.linear(f"{block}.mlp.pre_linear", x, f"{here}.mlp.up_proj", (F, D), bias)
        h = self.program.gate(f"{block}.mlp.post", gate, up, activation)
        return self.linear(f"{block}.mlp_out", h, f"{here}.mlp.down_proj", (D, F), bias)

    def head(self, x: str, tensor: str, tied: bool, embedding: Matrix, embedding_name: str) -> str:
        """`(L, D) -> (L, V)`: the logits, by `tensor`, or by the embedding where the config ties them.

        A checkpoint that ties them and still holds `tensor` must hold the same numbers there.
        """
        if not tied:
            return self.program.matmul("logits", x, self.weights.matrix(tensor, embedding.shape))
        if tensor in self.weights:
            if not self.weights.same(tensor, embedding_name):
                raise CheckpointError(
                    f"config.json says 'tie_word_embeddings', but {tensor!r} differs from {embedding_name!r}; "
                    "if the head is its own, set it to false"
                )
            self.weights.ignore(tensor)
        return self.program.matmul("logits", x, embedding)
