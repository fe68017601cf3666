"""What runs inside a block, counted without a clock."""

from __future__ import annotations

import ctypes
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from owl_fast import native
from owl_fast.models.layers import Linear, RMSNorm
from owl_fast.models.owl import Owl

# Operators that make room or look at the same memory in another way: nothing that a device computes.
FREE = {
    *("alias", "as_strided", "detach", "empty", "empty_like", "empty_strided", "expand", "flatten"),
    *("new_empty", "new_empty_strided", "select", "slice", "unflatten"),
    *("split", "split_with_sizes", "squeeze", "t", "transpose", "permute", "unbind", "unsqueeze", "view"),
    "_unsafe_view",
}


class Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """seen: names of torch's own operators, in order."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))

    @property
    def computing(self) -> int:
        return sum(name not in FREE for name in self.seen)


@contextmanager
def native_calls() -> Iterator[Counter[str]]:
    """Calls into libowl_cpu by the names of its functions, from any thread; it must be there."""
    library = native.library()
    assert library is not None
    native.pool()  # its start is not counted
    calls: Counter[str] = Counter()
    before, counted = native.library, _Counted(library, calls)
    native.library = lambda: counted  # type: ignore[assignment]
    try:
        yield calls
    finally:
        native.library = before


class _Counted:
    """Stands for a loaded library."""

    def __init__(self, library: ctypes.CDLL, calls: Counter[str]) -> None:
        self._library, self._calls = library, calls

    def __getattr__(self, name: str) -> _Function:
        function = _Function(getattr(self._library, name), name, self._calls)
        setattr(self, name, function)
        return function


class _Function:
    """Its types are those of the function it stands for."""

    _function: Any
    _name: str
    _calls: Counter[str]

    def __init__(self, function: Any, name: str, calls: Counter[str]) -> None:
        self.__dict__.update(_function=function, _name=name, _calls=calls)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self._function, name, value)

    def __call__(self, *args: object) -> object:
        self._calls[self._name] += 1
        return self._function(*args)


def python_calls(work: Callable[[], object]) -> int:
    """Calls of Python functions and of those written in C that work() makes in this thread."""
    count = 0

    def seen(frame: FrameType, event: str, arg: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(seen)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count - 1  # setprofile(None) itself


def nbytes(values: Iterable[object]) -> int:
    """Of the tensors among values, as far as they are looked at: a view counts its own elements."""
    return sum(value.nbytes for value in tree_leaves(list(values)) if isinstance(value, Tensor))


def weight_bytes(model: Owl, values: Iterable[object]) -> int:
    """Of those tensors among values that are weights of the language model, each as often as it is named; the
    embedding, of which a step reads single rows, is none of them."""
    read = (m for m in model.language_model.modules() if isinstance(m, Linear | RMSNorm))
    own = {t.untyped_storage()._cdata for m in read for t in (*m.parameters(), *m.buffers())}
    tensors = [value for value in tree_leaves(list(values)) if isinstance(value, Tensor)]
    return nbytes(tensor for tensor in tensors if tensor.untyped_storage()._cdata in own)
