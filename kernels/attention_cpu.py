"""What the attention operations of libowl_cpu share: the description of a task (kernels/cpu/owl_cpu.h), typed
functions, and which tensors they take.

A row's bits depend on the path, the row and its own keys alone: the same as a decode step, in a chunk of any
size, in a whole prompt, beside any neighbours, on any number of threads.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from ctypes import c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from owl_fast.kernels.cpu_calls import TYPES

WIDEST, TASK_VALUES = 256, 12288  # kWidestHead and kTaskValues in kernels/cpu/vectors.h
CACHE_TYPES = {**TYPES, torch.int8: 2}


def _fields(names: str) -> list[tuple[str, type]]:
    """Of a struct, in order, all of eight bytes: *NAME a pointer, NAME a number."""
    return [(name.lstrip("*"), c_void_p if name[0] == "*" else c_int64) for name in names.split()]


class Task(ctypes.Structure):
    """owl_attention_task."""

    _fields_ = _fields(
        "type rows sequences heads kv_heads width *query *key *value query_row query_head key_row key_head "
        "value_row value_head *out *bounds *cos *sin *positions angles cache_type *key_cache *value_cache "
        "*key_scale *value_scale block_size cache_row cache_head *slots *tables table_row *lengths "
        "length_step"
    )


class KeyPart(ctypes.Structure):
    """owl_key_part."""

    _fields_ = _fields("*key *value count key_picture key_row key_head value_picture value_row value_head")


class WholeTask(ctypes.Structure):
    """owl_whole_attention_task."""

    _fields_ = [
        *_fields("type pictures queries heads width *query query_picture query_row query_head *out"),
        ("parts", KeyPart * 3),
    ]


def heads_fit(x: Tensor, like: Tensor) -> bool:
    """x (..., heads, D), channels side by side, as `like`, which is fp32 or bf16 on the CPU."""
    return x.dtype == like.dtype and x.device.type == "cpu" and x.stride(-1) == 1


def query_fits(query: Tensor, kv_heads: int) -> bool:
    """query (..., H, D) of a kind the library runs."""
    heads, width = query.shape[-2:]
    return (
        query.device.type == "cpu"
        and query.dtype in TYPES
        and query.stride(-1) == 1
        and 0 < width <= WIDEST
        and 0 < kv_heads <= heads
        and heads % kv_heads == 0
        and heads // kv_heads * (-(-width // 32) * 32) <= TASK_VALUES
    )


def cache_fits(
    query: Tensor, key_cache: Tensor, value_cache: Tensor, scales: tuple[Tensor | None, ...]
) -> bool:
    """Caches (blocks, block_size, K, D) of one kind in one order, int8 with scales and others without."""
    order = cache_order(key_cache)
    return (
        key_cache.dtype in CACHE_TYPES
        and key_cache.dtype == value_cache.dtype
        and key_cache.shape == value_cache.shape
        and key_cache.shape[3] == query.shape[-1]
        and order is not None
        and order == cache_order(value_cache)
        and all((s is not None) == (key_cache.dtype == torch.int8) for s in scales)
        and all(s is None or (s.dtype == torch.float32 and cache_order(s) == order) for s in scales)
        and query_fits(query, key_cache.shape[2])
    )


def cache_order(cache: Tensor) -> tuple[int, int] | None:
    """Vectors from one row of a block to the next, and from head to head; None where blocks have gaps."""
    _, rows, heads = cache.shape[:3]
    if cache.is_contiguous():
        return heads, 1
    return (1, rows) if cache.transpose(1, 2).is_contiguous() else None


def put_cache(
    task: Task, key_cache: Tensor, value_cache: Tensor, key_scale: Tensor | None, value_scale: Tensor | None
) -> None:
    order = cache_order(key_cache)
    assert order is not None, key_cache.stride()
    task.cache_type, task.block_size = CACHE_TYPES[key_cache.dtype], key_cache.shape[1]
    task.cache_row, task.cache_head = order
    task.key_cache, task.value_cache = key_cache.data_ptr(), value_cache.data_ptr()
    if key_scale is not None and value_scale is not None:
        task.key_scale, task.value_scale = key_scale.data_ptr(), value_scale.data_ptr()


def put_tables(task: Task, block_tables: Tensor, context_lens: Tensor) -> None:
    task.tables, task.table_row = block_tables.data_ptr(), block_tables.stride(0)
    task.lengths, task.length_step = context_lens.data_ptr(), context_lens.stride(0)


def put_new(task: Task, key: Tensor, value: Tensor) -> None:
    """New keys and values (N, K, D)."""
    task.key, (task.key_row, task.key_head, _) = key.data_ptr(), key.stride()
    task.value, (task.value_row, task.value_head, _) = value.data_ptr(), value.stride()


def task_of(query: Tensor, kv_heads: int, sequences: int) -> tuple[Task, Tensor]:
    """A task for query (N, H, D), and its result."""
    out = torch.empty(query.shape, dtype=query.dtype)
    rows, heads, width = query.shape
    row, head, _ = query.stride()
    task = Task(TYPES[query.dtype], rows, sequences, heads, kv_heads, width, query.data_ptr())
    task.query_row, task.query_head, task.out = row, head, out.data_ptr()
    return task, out


def whole_attention_cpu(
    library: ctypes.CDLL, query: Tensor, parts: Sequence[Sequence[Tensor]], pool: int | None, path: int
) -> Tensor:
    """query (N, Q, H, D) over up to three parts of keys and values (N, S, H, D), in order -> (N, Q, H, D)."""
    out = torch.empty(query.shape, dtype=query.dtype)
    given = [
        KeyPart(k.data_ptr(), v.data_ptr(), k.shape[1], *k.stride()[:3], *v.stride()[:3]) for k, v in parts
    ]
    sizes = TYPES[query.dtype], *query.shape, query.data_ptr(), *query.stride()[:3]
    task = WholeTask(*sizes, out.data_ptr(), (KeyPart * 3)(*given))
    function(library, "whole_attention")(pool, task, path)
    return out


@functools.cache
def function(library: ctypes.CDLL, name: str) -> Callable[..., None]:
    """owl_<name>(pool, task, path)."""
    found = getattr(library, f"owl_{name}")
    kind = WholeTask if name == "whole_attention" else Task
    found.argtypes, found.restype = (c_void_p, ctypes.POINTER(kind), c_int32), None
    return found


@functools.cache
def paths(library: ctypes.CDLL) -> tuple[str, ...]:
    """The instruction sets that library and machine have in common, best first."""
    function = library.owl_vector_paths
    function.argtypes, function.restype = (), ctypes.c_char_p
    return tuple(function().decode().split(","))
