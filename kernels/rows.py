"""Moving whole rows and parts of rows: embedding look-up, chosen rows, biases, the heads of a fused matrix.

One unit of work is one row of the output.
"""

from tinylm.kernels.jit import njit, operation
from tinylm.kernels.operands import float32_1d, float32_2d, int64_1d, uint16_2d
from tinylm.kernels.simd import to_float32


def take_reference(table, indices):
    """`(N, K), (R,) -> (R, K)`: the rows of these indices."""
    return table[indices]


@njit
def take(table, indices, out, begin, end):
    """Rows `begin` to `end` of `take_reference` into out (R, K); the table as `to_float32` reads it."""
    for row in range(begin, end):
        found, target = table[indices[row]], out[row]
        for k in range(table.shape[1]):
            target[k] = to_float32(found[k])


def add_bias_reference(x, bias):
    """`(R, N) + (N,) -> (R, N)`."""
    return x + bias


@njit
def add_bias(x, bias, begin, end):
    """Rows `begin` to `end` of `add_bias_reference`, in place."""
    for row in range(begin, end):
        for n in range(x.shape[1]):
            x[row, n] += bias[n]


def heads_reference(x, offset, size, stride):
    """`(R, H * stride) -> (R, H * size)`: of each stretch of `stride` numbers, `size` from `offset` on."""
    parts = x.reshape(x.shape[0], -1, stride)[:, :, offset : offset + size]
    return parts.reshape(x.shape[0], -1)


@njit
def heads(x, offset, size, stride, out, begin, end):
    """Rows `begin` to `end` of `heads_reference` into out (R, H * size)."""
    for row in range(begin, end):
        for head in range(x.shape[1] // stride):
            first = head * stride + offset
            part, target = x[row, first : first + size], out[row, head * size : (head + 1) * size]
            for i in range(size):
                target[i] = part[i]


@operation
def take_operation(operands, begin, end):
    """table float32 (3), indices (2), out (3)."""
    take(float32_2d(operands, 0), int64_1d(operands, 3), float32_2d(operands, 5), begin, end)


@operation
def take_bfloat16_operation(operands, begin, end):
    """table bfloat16 (3), indices (2), out (3)."""
    take(uint16_2d(operands, 0), int64_1d(operands, 3), float32_2d(operands, 5), begin, end)


@operation
def add_bias_operation(operands, begin, end):
    """x (3), bias (2)."""
    add_bias(float32_2d(operands, 0), float32_1d(operands, 3), begin, end)


@operation
def heads_operation(operands, begin, end):
    """x (3), offset, size, stride (1 each), out (3)."""
    x, out = float32_2d(operands, 0), float32_2d(operands, 6)
    heads(x, operands[3], operands[4], operands[5], out, begin, end)
