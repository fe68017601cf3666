"""What the kernels of a linear layer on few rows share: inputs normed on the way, what follows the sums.

Shapes: x (M, K), W (N, K), B (adapters, N, R) -> y (M, N), or (M, N / 2) after SwiGLU.
"""

from __future__ import annotations

from owl_fast.kernels.launch import jit, tl


@jit
def load_gain(norm_weight, k, INPUTS: tl.constexpr):
    """The norm's weight at columns k; without a norm 0, for Triton 3.6 has no function that gives None."""
    if norm_weight is not None:
        return tl.load(norm_weight + k, mask=k < INPUTS, other=0.0)
    else:
        return 0.0


@jit
def load_inputs(x, gain, scale, x_stride, m, k, rows, INPUTS: tl.constexpr):
    """x in its dtype at rows m and columns k (shapes that broadcast), RMS-normed where there is a scale.

    scale: 1 / rms of each row; gain: of each column. Rounded twice on the way, as rms_norm does.
    """
    values = tl.load(x + m.to(tl.int64) * x_stride + k, mask=(m < rows) & (k < INPUTS), other=0.0)
    if scale is not None:
        normed = (values.to(tl.float32) * scale).to(values.dtype).to(tl.float32)
        return (normed * gain.to(tl.float32)).to(values.dtype)
    else:
        return values


@jit
def output_rows(block, outputs, ACTIVATION: tl.constexpr, BLOCK_N: tl.constexpr):
    """Rows of W behind a block of sums; SwiGLU's gate and up take turns. Past the end: the last row again."""
    lane = tl.arange(0, BLOCK_N)
    if ACTIVATION == "swiglu":
        width = outputs // 2
        return (lane % 2) * width + tl.minimum(block * (BLOCK_N // 2) + lane // 2, width - 1)
    return tl.minimum(block * BLOCK_N + lane, outputs - 1)


@jit
def finish(
    sums, block, m, bias, residual, y, residual_stride, rows, outputs,
    ACTIVATION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Store rows m of one block of sums (BLOCK_M, BLOCK_N); rounded after linear, activation and residual."""
    dtype: tl.constexpr = y.dtype.element_ty
    n = output_rows(block, outputs, ACTIVATION, BLOCK_N)
    if bias is not None:
        sums += tl.load(bias + n).to(tl.float32)[None, :]
    sums = sums.to(dtype).to(tl.float32)
    width = outputs
    if ACTIVATION == "swiglu":
        width = outputs // 2
        gate, up = tl.split(sums.reshape(BLOCK_M, BLOCK_N // 2, 2))
        sums = gate / (1.0 + tl.exp(-gate)) * up
        columns = block * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
    else:
        if ACTIVATION == "quick_gelu":
            sums = sums / (1.0 + tl.exp(-1.702 * sums))
        columns = block * BLOCK_N + tl.arange(0, BLOCK_N)
    m = m.to(tl.int64)[:, None]
    inside = (m < rows) & (columns < width)[None, :]
    if residual is not None:
        added = tl.load(residual + m * residual_stride + columns[None, :], mask=inside, other=0.0)
        sums = sums.to(dtype).to(tl.float32) + added.to(tl.float32)
    tl.store(y + m * width + columns[None, :], sums.to(dtype), mask=inside)
