"""The paged cache by Triton: append, chunks against the pages, and the decode step in one launch."""

from __future__ import annotations

import math
import re
from itertools import accumulate

import pytest
import torch
from torch import Tensor

from owl_fast.kernels import decode_attention as decode_module
from owl_fast.kernels.decode_attention import (
    SPLIT,
    DecodeWorkspace,
    decode_attention_reference,
    decode_attention_triton,
)
from owl_fast.kernels.kv_append import (
    dequantize_heads,
    quantize_heads,
    rotary_append_reference,
    rotary_append_triton,
)
from owl_fast.kernels.launch import recording
from owl_fast.kernels.paged_attention import paged_attention_reference, paged_attention_triton
from owl_fast.kernels.rotary import rotary_reference, rotary_tables
from tests.kernels.pages import Pages, fused_qkv, make_pages
from tests.kernels.tensors import DTYPES, random
from tests.tolerances import assert_as_good_as_torch

HEADS = {"H2K2": (2, 2), "H6K2": (6, 2)}
CACHES = {"same": False, "int8": True}
slow = pytest.mark.slow
# (dtype, int8 cache): the others run in the slow suite.
KINDS = [
    pytest.param(dtype, quantized, id=f"{name}-{kind}", marks=[] if (name, kind) in often else [slow])
    for often in [{("fp32", "same"), ("bf16", "same"), ("bf16", "int8")}]
    for name, dtype in DTYPES.items()
    for kind, quantized in CACHES.items()
]


# --- int8 ---


def test_quantized_heads_are_symmetric_and_round_to_even() -> None:
    x = torch.tensor([[127.0, -127.0, 0.5, 1.5], [0.0, 0.0, 0.0, 0.0], [-254.0, 3.0, 5.0, 1.0]])
    quantized, scale = quantize_heads(x)
    assert quantized.tolist() == [[127, -127, 0, 2], [0, 0, 0, 0], [-127, 2, 2, 0]]
    assert scale.tolist() == [1.0, 2.0**-126, 2.0]
    assert dequantize_heads(quantized, scale, torch.float32)[2].tolist() == [-254.0, 4.0, 4.0, 0.0]


def test_quantization_error_is_half_a_step() -> None:
    x = random(50, 3, 64, device=torch.device("cpu"))
    quantized, scale = quantize_heads(x)
    assert (dequantize_heads(quantized, scale, torch.float64) - x).abs().le(scale[..., None] * 0.501).all()


# --- rotary + append ---


def append(function, pages: Pages, rows: tuple[Tensor, ...], cos: Tensor, sin: Tensor, slots: Tensor):
    return function(*rows, cos, sin, *pages.caches[:2], slots, *pages.scales)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("head_dim", [16, 24], ids=lambda d: f"D{d}")
@pytest.mark.usefixtures("poisoned")
def test_append_writes_its_slots_and_no_others(
    device: torch.device, head_dim: int, heads: tuple[int, int], dtype: torch.dtype
) -> None:
    """Padding rows (slot -1) write nothing; keys are as good as torch's, values are copied."""
    rows = fused_qkv(6, *heads, head_dim, dtype=dtype, device=device)
    cos, sin = rotary_tables(torch.arange(6, device=device) * 5, head_dim, 10000.0, dtype)
    pages = make_pages([9], heads[1], head_dim, dtype=dtype, device=device)
    mine, torchs = pages.copy(), pages.copy()
    slots = torch.tensor([3, -1, 40, 17, -1, 0], device=device)
    kept = slots >= 0
    query = append(rotary_append_triton, mine, rows, cos, sin, slots)
    args = tuple(x[kept] for x in rows), cos[kept], sin[kept], slots[kept]
    torch_query = append(rotary_append_reference, torchs, *args)
    angles = cos.double(), sin.double()
    exact = [rotary_reference(x.double(), *angles) for x in rows[:2]]
    assert_as_good_as_torch(query[kept], torch_query, exact[0][kept], "query")
    flat, torch_flat = (x.caches[0].flatten(0, 1) for x in (mine, torchs))
    assert_as_good_as_torch(flat[slots[kept]], torch_flat[slots[kept]], exact[1][kept], "key")
    assert torch.equal(mine.caches[1].nan_to_num(9.0), torchs.caches[1].nan_to_num(9.0))
    untouched = torch.ones(len(flat), dtype=torch.bool, device=device).index_fill_(0, slots[kept], False)
    before = pages.caches[0].flatten(0, 1)[untouched]
    assert torch.equal(flat[untouched].nan_to_num(9.0), before.nan_to_num(9.0))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_append_quantizes_as_the_reference(device: torch.device, dtype: torch.dtype) -> None:
    """At position 0 nothing turns, so that int8 values and scales must be the reference's to the bit."""
    query, key, value = fused_qkv(4, 6, 2, 24, dtype=dtype, device=device)
    key[1, 0], value[2, 1] = 0.0, torch.arange(24, device=device) - 11.5
    cos, sin = rotary_tables(torch.zeros(4, dtype=torch.int64, device=device), 24, 10000.0, dtype)
    pages = make_pages([9], 2, 24, dtype=dtype, device=device, quantized=True)
    slots = torch.tensor([3, 11, 40, 0], device=device)
    mine, torchs = pages.copy(), pages.copy()
    append(rotary_append_triton, mine, (query, key, value), cos, sin, slots)
    append(rotary_append_reference, torchs, (query, key, value), cos, sin, slots)
    for ours, reference in zip(mine.caches, torchs.caches, strict=True):
        assert torch.equal(ours.float().nan_to_num(9.0), reference.float().nan_to_num(9.0))


# --- chunks against the pages ---

# (rows, keys) of each sequence: whole prompts, chunks behind cached keys, single rows.
CHUNKS = {
    "N1of1": [(1, 1)],
    "whole": [(17, 17), (1, 1)],
    "chunks": [(5, 40), (1, 33), (17, 65)],
}


@pytest.mark.parametrize(("dtype", "quantized"), KINDS)
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)
@pytest.mark.usefixtures("poisoned")
def test_chunks_match_float64(
    device: torch.device,
    chunks: list[tuple[int, int]],
    heads: tuple[int, int],
    dtype: torch.dtype,
    quantized: bool,
) -> None:
    pages = make_pages([n for _, n in chunks], heads[1], 16, dtype=dtype, device=device, quantized=quantized)
    check_chunks(pages, [n for n, _ in chunks], heads[0], 16, dtype)


@pytest.mark.parametrize(("head_dim", "block_size"), [(8, 1), (24, 4), (64, 64), (128, 16)])
def test_chunks_of_other_widths_and_blocks(device: torch.device, head_dim: int, block_size: int) -> None:
    dtype = torch.bfloat16
    pages = make_pages([67, 5], 2, head_dim, dtype=dtype, device=device, block_size=block_size, width=70)
    check_chunks(pages, [4, 5], 4, head_dim, dtype)


def check_chunks(pages: Pages, rows: list[int], heads: int, head_dim: int, dtype: torch.dtype) -> None:
    device = pages.tables.device
    bounds = (0, *accumulate(rows))
    query, _, _ = fused_qkv(bounds[-1], heads, 1, head_dim, dtype=dtype, device=device)
    cu_seqlens = torch.tensor(bounds, dtype=torch.int32, device=device)
    caches, lengths = pages.caches[:2], pages.lengths.tolist()
    ours = paged_attention_triton(
        query, *caches, pages.tables, cu_seqlens, pages.lengths, max(rows), *pages.scales
    )
    plain = paged_attention_reference(query, *caches, pages.tables, bounds, lengths, *pages.scales)
    exact = paged_attention_reference(query.double(), *pages.exact(), pages.tables, bounds, lengths)
    assert_as_good_as_torch(ours, plain, exact)


@pytest.mark.usefixtures("poisoned")
def test_padding_sequences_of_a_chunk_are_zeros(device: torch.device) -> None:
    pages = make_pages([3, 0], 1, 16, dtype=torch.float32, device=device)
    query = random(5, 2, 16, device=device)
    bounds = torch.tensor([0, 2, 5], dtype=torch.int32, device=device)
    out = paged_attention_triton(query, *pages.caches, pages.tables, bounds, pages.lengths, 3)
    assert out[:2].isfinite().all()
    assert (out[:2] != 0).any()
    assert (out[2:] == 0).all()


# --- one new token ---

LENGTHS = {
    "one": [1],
    "blocks": [16, 17, 2],
    "splits": [SPLIT, SPLIT + 1, 1],
    "many": [2 * SPLIT + 3, SPLIT - 1],
}


def decode(
    function, pages: Pages, rows: tuple[Tensor, ...], theta: float = 10000.0, **options: object
) -> Tensor:
    """The new token of each sequence through function; the pages are changed."""
    dtype, device, head_dim = rows[0].dtype, rows[0].device, rows[0].shape[-1]
    cos, sin = rotary_tables(torch.arange(700, device=device), head_dim, theta, dtype)
    positions = (pages.lengths.long() - 1).clamp(min=0)
    return function(
        *rows,
        cos,
        sin,
        positions,
        *pages.caches[:2],
        pages.last_slots(),
        pages.tables,
        pages.lengths,
        *pages.scales,
        **options,
    )


def check_decode(pages: Pages, rows: tuple[Tensor, ...]) -> Tensor:
    mine, torchs = pages.copy(), pages.copy()
    for copy in (mine, torchs):  # the new token's slot is unused until it is written
        for cache in copy.scales or copy.caches:
            cache.flatten(0, 1)[copy.last_slots()] = math.nan
    ours, plain = (
        decode(decode_attention_triton, mine, rows),
        decode(decode_attention_reference, torchs, rows),
    )
    angles = rotary_tables(pages.lengths.long() - 1, rows[0].shape[-1], 10000.0, rows[0].dtype)
    query = rotary_reference(rows[0].double(), *(x.double() for x in angles))
    bounds, lengths = range(len(query) + 1), pages.lengths.tolist()
    exact = paged_attention_reference(query, *mine.exact(), pages.tables, bounds, lengths)
    assert_as_good_as_torch(ours, plain, exact)
    appended = pages.copy()
    append(rotary_append_triton, appended, rows, *angles, pages.last_slots())
    for cache, other in zip(mine.caches, appended.caches, strict=True):
        assert torch.equal(cache.float().nan_to_num(9.0), other.float().nan_to_num(9.0))
    return ours


@pytest.mark.parametrize(("dtype", "quantized"), KINDS)
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.usefixtures("poisoned")
def test_decode_matches_float64(
    device: torch.device, lengths: list[int], heads: tuple[int, int], quantized: bool, dtype: torch.dtype
) -> None:
    rows = fused_qkv(len(lengths), *heads, 16, dtype=dtype, device=device)
    check_decode(
        make_pages(lengths, heads[1], 16, dtype=dtype, device=device, quantized=quantized, width=20), rows
    )


@pytest.mark.parametrize(("head_dim", "block_size"), [(8, 1), (24, 128), (64, 4), (128, 16)])
def test_decode_of_other_widths_and_blocks(device: torch.device, head_dim: int, block_size: int) -> None:
    dtype = torch.bfloat16
    rows = fused_qkv(2, 4, 2, head_dim, dtype=dtype, device=device)
    check_decode(make_pages([67, 5], 2, head_dim, dtype=dtype, device=device, block_size=block_size), rows)


@pytest.mark.parametrize("quantized", CACHES.values(), ids=CACHES)
@pytest.mark.parametrize("heads", [(2, 2), (2, 1)], ids=["H2K2", "H2K1"])
def test_decode_bits_are_a_rows_own(
    device: torch.device, heads: tuple[int, int], quantized: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone or in a batch, twice on one workspace, dealt out to many programs or to few: the same bits."""
    lengths = [2 * SPLIT + 5, 7]
    dtype = torch.bfloat16
    pages = make_pages(lengths, heads[1], 16, dtype=dtype, device=device, quantized=quantized, width=16)
    rows = fused_qkv(len(lengths), *heads, 16, dtype=dtype, device=device)
    workspace = DecodeWorkspace.make(len(lengths) + 2, heads[0], 1024, pages.caches[0])
    together = decode(decode_attention_triton, pages.copy(), rows, workspace=workspace)
    assert torch.equal(decode(decode_attention_triton, pages.copy(), rows, workspace=workspace), together)
    assert (workspace.arrivals == 0).all()
    for row in range(len(lengths)):
        one = slice(row, row + 1)
        alone = Pages(
            [x.clone() for x in pages.caches], pages.tables[one], pages.lengths[one], pages.block_size
        )
        assert torch.equal(decode(decode_attention_triton, alone, tuple(x[one] for x in rows)), together[one])
    for programs in (1, 8):  # all splits by one program, and every second one
        monkeypatch.setattr(decode_module, "PROGRAMS", programs)
        assert torch.equal(decode(decode_attention_triton, pages.copy(), rows, workspace=workspace), together)


def test_decode_agrees_with_the_chunk(device: torch.device) -> None:
    """The last row of a prompt: as one new token, as a chunk and as the whole prompt."""
    length, heads, head_dim = SPLIT + 9, (2, 1), 16
    query, key, value = fused_qkv(length, *heads, head_dim, dtype=torch.float32, device=device)
    cos, sin = rotary_tables(torch.arange(length, device=device), head_dim, 10000.0, torch.float32)
    pages = make_pages([length], heads[1], head_dim, dtype=torch.float32, device=device)
    slots = pages.slots(torch.arange(length, device=device), 0)
    turned = append(rotary_append_triton, pages, (query, key, value), cos, sin, slots)

    def chunk(rows: int) -> Tensor:
        bounds = torch.tensor([0, rows], dtype=torch.int32, device=device)
        args = turned[-rows:], *pages.caches, pages.tables, bounds, pages.lengths, rows
        return paged_attention_triton(*args)[-1]

    new = decode(decode_attention_triton, pages, tuple(x[-1:] for x in (query, key, value)))[0]
    for other in (chunk(1), chunk(9), chunk(length)):
        torch.testing.assert_close(new, other, atol=2e-6, rtol=0)


@pytest.mark.parametrize("quantized", CACHES.values(), ids=CACHES)
def test_exact_rows_do_not_depend_on_the_chunk(device: torch.device, quantized: bool) -> None:
    """A position's bits, as a new token, in a chunk and in the whole prompt, alone or beside another one."""
    lengths, heads, dtype = [140, 30], (4, 2), torch.bfloat16
    pages = make_pages(lengths, heads[1], 16, dtype=dtype, device=device, quantized=quantized)
    query = random(sum(lengths), heads[0], 16, dtype=dtype, device=device)

    def attend(ends: list[tuple[int, int, int]]) -> list[Tensor]:
        """Of sequence, first and last + 1 position."""
        parts = [query[sum(lengths[:of]) :][first:end] for of, first, end in ends]
        bounds = [0, *accumulate(map(len, parts))]
        told = [torch.tensor(x, dtype=torch.int32, device=device) for x in (bounds, [e for *_, e in ends])]
        tables = pages.tables[[of for of, *_ in ends]].contiguous()
        args = torch.cat(parts), *pages.caches[:2], tables, *told, max(map(len, parts)), *pages.caches[2:]
        out = paged_attention_triton(*args, exact=True)
        return list(out.split([len(part) for part in parts]))

    whole = attend([(0, 0, 140), (1, 0, 30)])
    for of, first, end in ((0, 139, 140), (0, 64, 65), (0, 50, 83), (0, 0, 70), (1, 29, 30)):
        assert torch.equal(attend([(of, first, end)])[0], whole[of][first:end])


@pytest.mark.usefixtures("poisoned")
def test_padding_of_a_captured_batch(device: torch.device) -> None:
    """Sequences of context 0: zeros, nothing written, the neighbour's bits as without them."""
    pages = make_pages([0, 5, 0], 1, 16, dtype=torch.float32, device=device, width=20)
    rows = fused_qkv(3, 2, 1, 16, dtype=torch.float32, device=device)
    before = pages.copy()
    out = decode(decode_attention_triton, pages, rows)
    assert (out[[0, 2]] == 0).all()
    alone = Pages([x.clone() for x in before.caches], pages.tables[1:2], pages.lengths[1:2], 16)
    assert torch.equal(decode(decode_attention_triton, alone, tuple(x[1:2] for x in rows))[0], out[1])
    for cache, other in zip(pages.caches, alone.caches, strict=True):
        assert torch.equal(cache.nan_to_num(9.0), other.nan_to_num(9.0))


@pytest.mark.filterwarnings("ignore:invalid value")  # numpy's, in the interpreter: NaN is what is wanted
def test_a_position_without_angles_is_seen(device: torch.device) -> None:
    pages = make_pages([5], 1, 16, dtype=torch.float32, device=device)
    rows = fused_qkv(1, 2, 1, 16, dtype=torch.float32, device=device)
    cos, sin = rotary_tables(torch.arange(4, device=device), 16, 10000.0, torch.float32)
    out = decode_attention_triton(
        *rows,
        cos,
        sin,
        pages.lengths.long() - 1,
        *pages.caches,
        pages.last_slots(),
        pages.tables,
        pages.lengths,
    )
    assert out.isnan().all()


def test_decode_is_one_launch_of_a_grid_known_from_shapes() -> None:
    """On "meta" tensors nothing can be read: lengths and positions stay on the device."""
    meta = torch.device("meta")
    rows = fused_qkv_meta(64, 32, 128)
    caches = [torch.empty(9, 16, 32, 128, dtype=torch.bfloat16, device=meta)] * 2
    table = torch.empty(2048, 64, dtype=torch.bfloat16, device=meta)
    numbers = torch.empty(64, dtype=torch.int64, device=meta)
    blocks = torch.empty(64, 128, dtype=torch.int32, device=meta)
    workspace = DecodeWorkspace.make(64, 32, 2048, caches[0])
    with recording() as recorder:
        decode_attention_triton(
            *rows, table, table, numbers, *caches, numbers, blocks, numbers.int(), workspace=workspace
        )
    assert [(x.name, x.grid) for x in recorder.launches] == [("_decode_attention_kernel", (32, 64, 2))]


def fused_qkv_meta(rows: int, heads: int, head_dim: int) -> tuple[Tensor, ...]:
    qkv = torch.empty(rows, 3 * heads * head_dim, dtype=torch.bfloat16, device="meta")
    return tuple(x.unflatten(-1, (heads, head_dim)) for x in qkv.chunk(3, -1))


def test_refuses_what_does_not_fit(device: torch.device) -> None:
    pages = make_pages([5, 3], 2, 16, dtype=torch.float32, device=device)
    rows = fused_qkv(2, 4, 2, 16, dtype=torch.float32, device=device)
    good = dict(zip(("query", "key", "value"), rows, strict=True))
    cos, sin = rotary_tables(torch.arange(9, device=device), 16, 10000.0, torch.float32)
    good |= {"cos": cos, "sin": sin, "positions": torch.tensor([4, 2], device=device)}
    good |= {"key_cache": pages.caches[0], "value_cache": pages.caches[1], "slot_mapping": pages.last_slots()}
    good |= {"block_tables": pages.tables, "context_lens": pages.lengths}
    quantized, scales = quantize_heads(pages.caches[0])
    decode_attention_triton(**good)
    for change, words in (
        ({"query": rows[0].double()}, "float64 (2, 4, 16)"),
        ({"query": random(2, 3, 16, device=device)}, "float32 (5, 16, 2, 16)"),
        ({"key": rows[1][:1]}, "float32 (1, 2, 16)"),
        ({"value": rows[2].transpose(1, 2)}, "float32 (2, 16, 2)"),
        ({"cos": cos[:, :7]}, "float32 (9, 7)"),
        ({"positions": pages.lengths}, "int32 (2,)"),
        ({"key_cache": pages.caches[0][:, :12].contiguous()}, "float32 "),
        ({"value_cache": pages.caches[1].half()}, "float16 "),
        ({"key_cache": quantized, "value_cache": quantized}, "int8 "),
        ({"key_scale": scales}, "float32 "),
        ({"slot_mapping": pages.last_slots().int()}, "int32 (2,)"),
        ({"block_tables": pages.tables.long()}, "int64 (2, 1)"),
        ({"context_lens": pages.lengths[:1]}, "int32 (1,)"),
        ({"workspace": DecodeWorkspace.make(1, 4, 64, pages.caches[0])}, "float32 (1, 4, 1, 16)"),
    ):
        with pytest.raises(ValueError, match=re.escape(words) + ".* came; wanted"):
            decode_attention_triton(**(good | change))
    bounds = torch.tensor([0, 1, 2], device=device)
    with pytest.raises(ValueError, match=r"int64 \(3,\).* came; wanted"):
        paged_attention_triton(rows[0], *pages.caches, pages.tables, bounds, pages.lengths, 1)
