"""What a torch pickle says of its tensors, read as data: nothing in it is imported, called or allocated.

torch.save describes a tensor as a call of torch._utils._rebuild_tensor_v2 on a numbered storage, with
offset, shape and strides. That name and a few others are understood here; every other one becomes a Foreign,
which the caller refuses by its name. Opcodes: the documentation of Python's pickletools.
"""

from __future__ import annotations

import pickletools
from typing import Any, NamedTuple

from owl_fast.checkpoints.mapped import is_size, is_sizes

MAX_OPCODES = 500_000  # a 7B checkpoint has about 25,000

_MARK = object()
_NUMBERS = {"BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"}
_TEXTS = {"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING"}
_LITERALS = {"NONE", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"} | _NUMBERS | _TEXTS
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PARAMETERS = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")


class Storage(NamedTuple):
    """kind: the type's name, such as torch.FloatStorage; key: its member below data/; numel: elements."""

    kind: str
    key: str
    numel: int


class StoredTensor(NamedTuple):
    """A tensor as the pickle describes it; offset and strides in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Foreign(NamedTuple):
    """Something that is neither plain data nor a tensor, by the name the pickle gives it."""

    name: str


def read_pickle(data: bytes) -> Any:
    """The object: plain containers, numbers, texts, StoredTensor and Foreign. ValueError if it is broken."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if opcode.name == "STOP":
                return stack.pop()
            if count == MAX_OPCODES:
                raise ValueError(f"more than {MAX_OPCODES} steps")
            _step(opcode.name, argument, stack, memo)
    except (IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"no whole pickle: {type(error).__name__}") from None
    raise ValueError("no whole pickle")


def _step(name: str, argument: Any, stack: list[Any], memo: dict[int, Any]) -> None:
    """What one opcode does to the stack and the memo."""
    if name in _LITERALS:
        stack.append(argument)
    elif name in ("NEWTRUE", "NEWFALSE"):
        stack.append(name == "NEWTRUE")
    elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
        memo[len(memo) if argument is None else argument] = stack[-1]
    elif name in ("BINGET", "LONG_BINGET"):
        stack.append(memo[argument])
    elif name in _TUPLES:
        stack.append(tuple(_take(stack, _TUPLES[name])))
    elif name == "TUPLE":
        stack.append(tuple(_take_to_mark(stack)))
    elif name == "MARK":
        stack.append(_MARK)
    elif name in ("EMPTY_DICT", "EMPTY_LIST"):
        stack.append({} if name == "EMPTY_DICT" else [])
    elif name in ("SETITEM", "SETITEMS"):
        _set_items(_take(stack, 2) if name == "SETITEM" else _take_to_mark(stack), stack[-1])
    elif name in ("APPEND", "APPENDS"):
        _append(_take(stack, 1) if name == "APPEND" else _take_to_mark(stack), stack[-1])
    elif name in ("GLOBAL", "STACK_GLOBAL"):
        parts = argument.split(" ") if argument else _take(stack, 2)
        stack.append(Foreign(".".join(parts)))
    elif name in ("REDUCE", "NEWOBJ"):
        stack.append(_call(*_take(stack, 2)))
    elif name == "BUILD":
        stack.pop()  # attributes of the object below, such as the module versions of a state dict
    elif name == "BINPERSID":
        stack.append(_storage(stack.pop()))
    elif name not in ("PROTO", "FRAME"):
        raise ValueError(f"opcode {name}")


def _take(stack: list[Any], count: int) -> list[Any]:
    if len(stack) < count:
        raise IndexError
    place = len(stack) - count
    found = stack[place:]
    del stack[place:]
    return found


def _take_to_mark(stack: list[Any]) -> list[Any]:
    found = []
    while (item := stack.pop()) is not _MARK:
        found.append(item)
    return found[::-1]


def _set_items(items: list[Any], target: Any) -> None:
    if isinstance(target, Foreign):
        return
    if not isinstance(target, dict) or len(items) % 2:
        raise TypeError
    for key, value in zip(items[::2], items[1::2], strict=True):
        # Hashing a tuple descends into it, however deep it was built.
        if not isinstance(key, (str, int, float, bytes, type(None))):
            raise TypeError
        target[key] = value


def _append(items: list[Any], target: Any) -> None:
    if isinstance(target, list):
        target.extend(items)
    elif not isinstance(target, Foreign):
        raise TypeError


def _call(callee: Any, arguments: Any) -> Any:
    """The result of calling one of the few known names, else the Foreign itself."""
    if not isinstance(callee, Foreign) or not isinstance(arguments, tuple):
        raise TypeError
    if callee.name == "collections.OrderedDict" and not arguments:
        return {}
    if callee.name == "torch._utils._rebuild_tensor_v2":
        storage, offset, shape, strides = arguments[:4]
        if not isinstance(storage, Storage) or not is_sizes((offset,)):
            raise TypeError
        if not is_sizes(shape) or not is_sizes(strides) or len(shape) != len(strides):
            raise TypeError
        return StoredTensor(storage, offset, tuple(shape), tuple(strides))
    return arguments[0] if callee.name in _PARAMETERS else callee


def _storage(identity: Any) -> Storage:
    word, kind, key, _, numel = identity
    if word != "storage" or not isinstance(kind, Foreign) or not isinstance(key, str) or not is_size(numel):
        raise TypeError
    return Storage(kind.name, key, numel)
