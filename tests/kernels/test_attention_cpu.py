"""Attention in libowl_cpu: each instruction set against float64, and one order of sums for all its uses."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator
from functools import partial
from itertools import accumulate

import pytest
import torch
from torch import Tensor

from owl_fast import native, ops
from owl_fast.kernels.cross_attention import cross_attention_cpu, cross_attention_reference
from owl_fast.kernels.decode_attention import decode_attention_cpu, decode_attention_reference
from owl_fast.kernels.dense_attention import dense_attention_cpu, dense_attention_reference
from owl_fast.kernels.kv_append import rotary_append_cpu, rotary_append_reference
from owl_fast.kernels.paged_attention import paged_attention_cpu, paged_attention_reference
from owl_fast.kernels.rotary import rotary_reference, rotary_tables
from owl_fast.kernels.varlen_attention import varlen_attention_cpu, varlen_attention_reference
from tests.kernels.pages import Pages, fused_qkv, make_pages
from tests.kernels.tensors import CPU_DTYPES, strided
from tests.kernels.tensors import random as random_on
from tests.tolerances import assert_as_good_as_torch

CPU = torch.device("cpu")
random = partial(random_on, device=CPU)
HEADS = {"H2K2": (2, 2), "H6K2": (6, 2), "H25K5": (25, 5)}
CACHES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}
pytestmark = pytest.mark.usefixtures("cpu_library")


@pytest.fixture(scope="module")
def pools(cpu_library: ctypes.CDLL) -> Iterator[list[int | None]]:
    made = [native.Pool(cpu_library, threads) for threads in (2, 3)]
    yield [None, *(pool.handle for pool in made)]
    for pool in made:
        pool.close()


def pages_of(
    lengths: list[int], kv_heads: int, head_dim: int, kind: torch.dtype, block_size: int = 16
) -> Pages:
    dtype = torch.float32 if kind == torch.int8 else kind
    int8 = kind == torch.int8
    return make_pages(
        lengths, kv_heads, head_dim, dtype=dtype, device=CPU, quantized=int8, block_size=block_size
    ).by_heads()


# --- exp ---


def test_exp_is_within_two_ulp(cpu_library: ctypes.CDLL, path: int) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.cat((
        torch.empty(200_000).uniform_(-104, 89, generator=generator),
        torch.empty(20_000).uniform_(-1, 1, generator=generator),
        torch.tensor([0.0, -0.0, 88.72, 88.73, 1e30, math.inf, math.nan]),
        -torch.tensor([87.4, 103.9, 104.1, 1e30, math.inf]),
    ))  # fmt: skip
    y = torch.empty_like(x)
    function = cpu_library.owl_exp
    function.argtypes = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
    function(x.data_ptr(), y.data_ptr(), len(x), path)
    exact = x.double().exp()
    rounded = exact.float()
    assert torch.equal(y.isnan(), x.isnan())
    assert torch.equal(y.isinf(), rounded.isinf())
    kept = rounded.isfinite()
    ulp = (rounded.nextafter(torch.full((), math.inf)) - rounded).double()[kept]
    assert ((y.double() - exact)[kept].abs() / ulp).max().item() <= 2


# --- rotary + append ---


@pytest.mark.parametrize("kind", CACHES.values(), ids=CACHES)
@pytest.mark.parametrize("dtype", CPU_DTYPES.values(), ids=CPU_DTYPES)
@pytest.mark.parametrize("head_dim", [16, 26, 128], ids=lambda d: f"D{d}")
@pytest.mark.usefixtures("poisoned")
def test_append_writes_its_slots_and_no_others(
    cpu_library: ctypes.CDLL, path: int, head_dim: int, dtype: torch.dtype, kind: torch.dtype
) -> None:
    rows = fused_qkv(6, 6, 2, head_dim, dtype=dtype, device=CPU)
    cos, sin = rotary_tables(torch.arange(6) * 5, head_dim, 10000.0, dtype)
    pages = pages_of([9], 2, head_dim, kind)
    slots = torch.tensor([3, -1, 40, 17, -1, 0])
    kept = slots >= 0
    mine, torchs = pages.copy(), pages.copy()
    query = rotary_append_cpu(cpu_library, *rows, cos, sin, *mine.caches[:2], slots, *mine.scales, path=path)
    args = tuple(x[kept] for x in rows), cos[kept], sin[kept]
    plain = rotary_append_reference(*args[0], *args[1:], *torchs.caches[:2], slots[kept], *torchs.scales)
    angles = cos.double(), sin.double()
    exact = [rotary_reference(x.double(), *angles)[kept] for x in rows[:2]]
    assert_as_good_as_torch(query[kept], plain, exact[0], "query")
    for ours, reference, before in zip(mine.caches, torchs.caches, pages.caches, strict=True):
        flat, flat_reference, flat_before = (x.flatten(0, 1) for x in (ours, reference, before))
        others = torch.ones(len(flat), dtype=torch.bool).index_fill_(0, slots[kept], False)
        assert torch.equal(flat[others].float().nan_to_num(9.0), flat_before[others].float().nan_to_num(9.0))
        if dtype == torch.float32:  # the same operations in the same order
            assert torch.equal(flat[slots[kept]], flat_reference[slots[kept]])
    if kind in CPU_DTYPES.values():
        assert torch.equal(mine.caches[1].nan_to_num(9.0), torchs.caches[1].nan_to_num(9.0))
        turned = (x.caches[0].flatten(0, 1)[slots[kept]] for x in (mine, torchs))
        assert_as_good_as_torch(*turned, exact[1], "key")


def test_append_quantizes_as_the_reference(cpu_library: ctypes.CDLL, path: int) -> None:
    """At position 0 nothing turns; zeros, ties and small values among them."""
    for dtype in CPU_DTYPES.values():
        query, key, value = fused_qkv(4, 6, 2, 24, dtype=dtype, device=CPU)
        key[1, 0], value[2, 1], value[3, 0] = 0.0, torch.arange(24) - 11.5, 1e-38
        cos, sin = rotary_tables(torch.zeros(4, dtype=torch.int64), 24, 10000.0, dtype)
        pages, slots = pages_of([9], 2, 24, torch.int8), torch.tensor([3, 11, 40, 0])
        mine, torchs = pages.copy(), pages.copy()
        new = query, key, value, cos, sin
        rotary_append_cpu(cpu_library, *new, *mine.caches[:2], slots, *mine.scales, path=path)
        rotary_append_reference(*new, *torchs.caches[:2], slots, *torchs.scales)
        for ours, reference in zip(mine.caches, torchs.caches, strict=True):
            assert torch.equal(ours.float().nan_to_num(9.0), reference.float().nan_to_num(9.0))


# --- against float64 ---

CHUNKS = {
    "N1of1": [(1, 1)],
    "whole": [(17, 17), (1, 1), (131, 131)],
    "chunks": [(5, 40), (1, 63), (1, 64), (1, 65), (17, 200), (70, 129)],
}


def chunk(
    library: ctypes.CDLL, query: Tensor, pages: Pages, rows: list[int], **options: int | None
) -> Tensor:
    bounds = torch.tensor((0, *accumulate(rows)), dtype=torch.int32)
    args = query, *pages.caches[:2], pages.tables, bounds, pages.lengths, *pages.scales
    return paged_attention_cpu(library, *args, **options)


@pytest.mark.parametrize("kind", CACHES.values(), ids=CACHES)
@pytest.mark.parametrize("dtype", CPU_DTYPES.values(), ids=CPU_DTYPES)
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)
@pytest.mark.usefixtures("poisoned")
def test_chunks_match_float64(
    cpu_library: ctypes.CDLL,
    path: int,
    chunks: list[tuple[int, int]],
    heads: tuple[int, int],
    dtype: torch.dtype,
    kind: torch.dtype,
) -> None:
    check_chunks(cpu_library, path, chunks, heads, 16, dtype, kind)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.int8], ids=["bf16", "int8"])
@pytest.mark.parametrize(
    ("head_dim", "block_size"), [(1, 1), (7, 3), (48, 4), (80, 64), (128, 16), (256, 16)]
)
def test_chunks_of_other_widths_and_blocks(
    cpu_library: ctypes.CDLL, path: int, head_dim: int, block_size: int, kind: torch.dtype
) -> None:
    check_chunks(
        cpu_library, path, [(4, 67), (5, 5), (1, 130)], (4, 2), head_dim, torch.bfloat16, kind, block_size
    )


def check_chunks(
    library: ctypes.CDLL,
    path: int,
    chunks: list[tuple[int, int]],
    heads: tuple[int, int],
    head_dim: int,
    dtype: torch.dtype,
    kind: torch.dtype,
    block_size: int = 16,
) -> None:
    rows, lengths = ([pair[i] for pair in chunks] for i in range(2))
    pages = pages_of(lengths, heads[1], head_dim, kind, block_size)
    bounds = (0, *accumulate(rows))
    query, _, _ = fused_qkv(bounds[-1], heads[0], 1, head_dim, dtype=dtype, device=CPU)
    ours = chunk(library, query, pages, rows, path=path)
    plain = paged_attention_reference(query, *pages.caches[:2], pages.tables, bounds, lengths, *pages.scales)
    exact = paged_attention_reference(query.double(), *pages.exact(), pages.tables, bounds, lengths)
    assert_as_good_as_torch(ours, plain, exact)


@pytest.mark.parametrize("dtype", CPU_DTYPES.values(), ids=CPU_DTYPES)
@pytest.mark.parametrize("width", [24, 64, 80])
@pytest.mark.parametrize("length", [1, 17, 65, 257])
@pytest.mark.usefixtures("poisoned")
def test_dense_matches_float64(
    cpu_library: ctypes.CDLL, path: int, length: int, width: int, dtype: torch.dtype
) -> None:
    """query, key and value of the vision tower: views of one tensor; the queries fewer than the keys, too."""
    q, k, v = strided(random(2, length, 3, 3 * width, dtype=dtype)).unflatten(-1, (3, width)).unbind(3)
    for query in (q, q[:, : length // 2]):
        ours = dense_attention_cpu(cpu_library, query, k, v, path=path)
        plain = dense_attention_reference(query, k, v)
        assert_as_good_as_torch(
            ours, plain, dense_attention_reference(query.double(), k.double(), v.double())
        )


@pytest.mark.parametrize("dtype", CPU_DTYPES.values(), ids=CPU_DTYPES)
@pytest.mark.parametrize("extra", [False, True], ids=["plain", "extra"])
@pytest.mark.parametrize(("queries", "rows"), [(1, 1), (5, 62), (64, 257)])
def test_cross_matches_float64(
    cpu_library: ctypes.CDLL, path: int, queries: int, rows: int, extra: bool, dtype: torch.dtype
) -> None:
    inputs = [random(2, queries, 3, 16, dtype=dtype)]
    inputs += [random(2, n, 2, 3, 16, dtype=dtype, seed=n) for n in (queries, rows)]
    more = random(2, 3, 16, dtype=dtype) if extra else None
    ours = cross_attention_cpu(cpu_library, *inputs, more, path=path)
    plain = cross_attention_reference(*inputs, 0.0, more)
    exact = cross_attention_reference(
        *(x.double() for x in inputs), 0.0, None if more is None else more.double()
    )
    assert_as_good_as_torch(ours, plain, exact)


def test_large_scores_and_equal_scores(cpu_library: ctypes.CDLL, path: int) -> None:
    for dtype in CPU_DTYPES.values():
        for scale in (0.0, 1e3, 1e15):
            q, k, v = (random(1, 70, 2, 32, dtype=dtype, seed=i) for i in range(3))
            q = q * scale
            ours = dense_attention_cpu(cpu_library, q, k, v, path=path)
            exact = dense_attention_reference(q.double(), k.double(), v.double())
            if scale < 1e10 or dtype == torch.bfloat16:
                assert_as_good_as_torch(ours, dense_attention_reference(q, k, v), exact)
            assert ours.isfinite().all()


# --- one order of sums ---


@pytest.mark.parametrize("kind", CACHES.values(), ids=CACHES)
@pytest.mark.parametrize("dtype", CPU_DTYPES.values(), ids=CPU_DTYPES)
@pytest.mark.parametrize("heads", [(2, 2), (6, 2)], ids=["H2K2", "H6K2"])
@pytest.mark.parametrize("head_dim", [16, 80])
def test_a_rows_bits_are_its_own(
    cpu_library: ctypes.CDLL,
    path: int,
    pools: list[int | None],
    head_dim: int,
    heads: tuple[int, int],
    dtype: torch.dtype,
    kind: torch.dtype,
) -> None:
    """As a decode step, in chunks of any size, in the whole prompt, beside neighbours, by 1 to 3 threads."""
    length = 149
    query, key, value = fused_qkv(length, *heads, head_dim, dtype=dtype, device=CPU)
    angles = rotary_tables(torch.arange(length), head_dim, 10000.0, dtype)
    pages = pages_of([33, length], heads[1], head_dim, kind)
    slots = pages.slots(torch.arange(length), 1)
    caches, scales = pages.caches[:2], pages.scales
    turned = rotary_append_cpu(cpu_library, query, key, value, *angles, *caches, slots, *scales, path=path)
    table = pages.tables[1:]

    def rows(start: int, end: int, pool: int | None = None) -> Tensor:
        bounds = torch.tensor([0, end - start], dtype=torch.int32)
        args = turned[start:end], *caches, table, bounds, torch.tensor([end], dtype=torch.int32), *scales
        return paged_attention_cpu(cpu_library, *args, pool=pool, path=path)

    whole = rows(0, length)
    for pool in pools:
        assert torch.equal(rows(0, length, pool), whole)
    for size in (1, 2, 7, 64, 100):
        parts = [rows(start, min(start + size, length)) for start in range(0, length, size)]
        assert torch.equal(torch.cat(parts), whole), size
    for place in (0, 1, 63, 64, 148):
        one = slice(place, place + 1)
        for pool in pools:
            again = decode_attention_cpu(
                cpu_library, query[one], key[one], value[one], *angles, torch.tensor([place]), *caches,
                slots[one], table, torch.tensor([place + 1], dtype=torch.int32), *scales,
                pool=pool, path=path,
            )  # fmt: skip
            assert torch.equal(again[0], whole[place]), place
    neighbour = random(5, *query.shape[1:], dtype=dtype)
    beside = chunk(cpu_library, torch.cat((neighbour, turned)), pages, [5, length], path=path, pool=pools[-1])
    assert torch.equal(beside[5:], whole)
    if kind == dtype:  # the same values, packed beside each other
        k, v = (cache.flatten(0, 1)[slots] for cache in caches)
        starts = torch.tensor([0, 5, 5 + length], dtype=torch.int32)
        more = [torch.cat((x[:5], x)) for x in (turned, k, v)]
        assert torch.equal(varlen_attention_cpu(cpu_library, *more, starts, path=path)[5:], whole)
        kv = (x.repeat_interleave(heads[0] // heads[1], 1)[None] for x in (k, v))
        last = dense_attention_cpu(cpu_library, turned[None, -1:], *kv, path=path)
        assert torch.equal(last[0, 0], whole[-1])


@pytest.mark.parametrize("dtype", CPU_DTYPES.values(), ids=CPU_DTYPES)
def test_what_is_not_finite_reaches_the_rows_that_see_it(
    cpu_library: ctypes.CDLL, path: int, dtype: torch.dtype
) -> None:
    """A NaN in a query, key or value; an infinite value: later rows have it, earlier ones keep their bits."""
    for head_dim in (16, 20):
        inputs = [random(80, 2, head_dim, dtype=dtype, seed=i) for i in range(3)]
        starts = torch.tensor([0, 80], dtype=torch.int32)
        clean = varlen_attention_cpu(cpu_library, *inputs, starts, path=path)
        for which, bad in ((0, math.nan), (1, math.nan), (2, math.nan), (2, math.inf)):
            for place in (66, 67):
                spoilt = [x.clone() for x in inputs]
                spoilt[which][place, 0, 3] = bad
                found = varlen_attention_cpu(cpu_library, *spoilt, starts, path=path)
                end = place + 1 if which == 0 else 80
                assert torch.equal(found[:place], clean[:place])
                assert torch.equal(found[:, 1], clean[:, 1])
                hit = found[place:end, 0, 3] if which == 2 else found[place:end, 0].flatten()
                assert not hit.isfinite().any(), (which, place)
                assert torch.equal(found[end:], clean[end:])


# --- one new token ---


@pytest.mark.parametrize("kind", CACHES.values(), ids=CACHES)
@pytest.mark.parametrize("dtype", CPU_DTYPES.values(), ids=CPU_DTYPES)
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
@pytest.mark.usefixtures("poisoned")
def test_decode_matches_float64(
    cpu_library: ctypes.CDLL, path: int, heads: tuple[int, int], dtype: torch.dtype, kind: torch.dtype
) -> None:
    lengths, head_dim = [1, 17, 64, 129, 0], 24
    pages = pages_of(lengths, heads[1], head_dim, kind)
    rows = fused_qkv(len(lengths), *heads, head_dim, dtype=dtype, device=CPU)
    slots, positions = pages.last_slots(), (pages.lengths.long() - 1).clamp(min=0)
    for cache in pages.scales or pages.caches:
        cache[slots[:4] // 16, slots[:4] % 16] = math.nan
    mine, torchs = pages.copy(), pages.copy()
    angles = rotary_tables(torch.arange(150), head_dim, 10000.0, dtype)

    def decode(function, pages: Pages, count: int) -> Tensor:  # type: ignore[no-untyped-def]
        return function(
            *(x[:count] for x in rows), *angles, positions[:count], *pages.caches[:2], slots[:count],
            pages.tables[:count], pages.lengths[:count], *pages.scales,
        )  # fmt: skip

    ours = decode(partial(decode_attention_cpu, cpu_library, path=path), mine, 5)
    plain = decode(decode_attention_reference, torchs, 4)
    turned = [
        rotary_reference(x.double(), *(a[positions].double() for a in angles)).to(dtype) for x in rows[:2]
    ]
    exact = paged_attention_reference(
        turned[0][:4].double(), *mine.exact(), pages.tables, range(5), lengths[:4]
    )
    assert_as_good_as_torch(ours[:4], plain, exact)
    assert (ours[4] == 0).all()


@pytest.mark.parametrize("kind", CACHES.values(), ids=CACHES)
def test_the_order_of_the_cache_changes_no_bit(
    cpu_library: ctypes.CDLL, path: int, kind: torch.dtype
) -> None:
    lengths = [1, 17, 129]
    by_heads = pages_of(lengths, 2, 24, kind)
    by_rows = Pages([x.contiguous() for x in by_heads.caches], *(by_heads.tables, by_heads.lengths, 16))
    query, *rows = fused_qkv(3, 6, 2, 24, dtype=torch.bfloat16, device=CPU)
    angles = rotary_tables(torch.arange(150), 24, 10000.0, torch.bfloat16)
    found = []
    for pages in (by_heads, by_rows):
        place = pages.lengths.long() - 1, *pages.caches[:2], pages.last_slots(), pages.tables, pages.lengths
        step = decode_attention_cpu(cpu_library, query, *rows, *angles, *place, *pages.scales, path=path)
        found.append([step, chunk(cpu_library, query, pages, [1, 1, 1], path=path), *pages.caches])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one.float().nan_to_num(9.0), other.float().nan_to_num(9.0))
    assert by_heads.caches[0].stride() != by_rows.caches[0].stride()


def test_a_position_without_angles_is_seen(cpu_library: ctypes.CDLL) -> None:
    for dtype in CPU_DTYPES.values():
        pages = pages_of([5], 1, 16, dtype)
        rows = fused_qkv(1, 2, 1, 16, dtype=dtype, device=CPU)
        angles = rotary_tables(torch.arange(4), 16, 10000.0, dtype)
        place = pages.lengths.long() - 1, *pages.caches, pages.last_slots(), pages.tables, pages.lengths
        assert decode_attention_cpu(cpu_library, *rows, *angles, *place).isnan().all()


# --- who uses it ---


def test_varlen_matches_float64(cpu_library: ctypes.CDLL, path: int) -> None:
    bounds = (0, 3, 3, 70, 71)
    for dtype in CPU_DTYPES.values():
        q, k, v = fused_qkv(71, 6, 2, 40, dtype=dtype, device=CPU)
        starts = torch.tensor(bounds, dtype=torch.int32)
        ours = varlen_attention_cpu(cpu_library, q, k, v, starts, path=path)
        plain = varlen_attention_reference(q, k, v, bounds)
        assert_as_good_as_torch(
            ours, plain, varlen_attention_reference(*(x.double() for x in (q, k, v)), bounds)
        )


def test_ops_use_it(cpu_library: ctypes.CDLL) -> None:
    """With gradients, too, whose backward is torch's (test_attention_torch.py)."""
    q, k, v = (random(1, 20, 2, 16, seed=i) for i in range(3))
    assert torch.equal(ops.dense_attention(q, k, v), dense_attention_cpu(cpu_library, q, k, v))
    q.requires_grad_()
    attended = ops.dense_attention(q, k, v)
    assert attended.requires_grad
    assert torch.equal(attended, dense_attention_cpu(cpu_library, q.detach(), k, v))
    with ops.kernels(False):
        assert torch.equal(ops.dense_attention(q, k, v), dense_attention_reference(q, k, v))
    with torch.no_grad():
        assert torch.equal(ops.dense_attention(q, k, v), dense_attention_cpu(cpu_library, q, k, v))
        assert ops.decodes_at_once(q)
    wide = torch.zeros(1, 3, 2, 300), torch.zeros(1, 3, 2, 16, dtype=torch.float16), torch.ones(1, 3, 0, 8)
    for x in wide:
        assert ops.dense_attention(x, x, x).shape == x.shape
    assert not ops.decodes_at_once(q)


def test_sizes_of_zero(cpu_library: ctypes.CDLL) -> None:
    starts = torch.tensor([0], dtype=torch.int32)
    none = random(0, 2, 16)
    assert varlen_attention_cpu(cpu_library, none, none, none, starts).shape == none.shape
    assert (
        varlen_attention_cpu(cpu_library, none, none, none, torch.zeros(3, dtype=torch.int32)).shape
        == none.shape
    )
    q, k = random(2, 0, 2, 16), random(2, 3, 2, 16)
    assert dense_attention_cpu(cpu_library, q, k, k).shape == q.shape
    pages = pages_of([], 2, 16, torch.float32)
    assert chunk(cpu_library, none, pages, []).shape == none.shape
