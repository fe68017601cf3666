"""One repair of Triton's interpreter, which multiplies the bit patterns of bfloat16 matrices (3.6 to 3.9)."""

from __future__ import annotations

import functools
from typing import Any


@functools.cache
def repair() -> None:
    """tl.dot takes bfloat16 as float32 from now on; their products are exact there, as they are on a GPU."""
    import numpy as np
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    plain = InterpreterBuilder.create_dot

    def wide(x: Any) -> Any:
        if x.dtype.scalar != tl.bfloat16:
            return x
        return TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return plain(self, wide(a), wide(b), *rest)

    InterpreterBuilder.create_dot = create_dot
