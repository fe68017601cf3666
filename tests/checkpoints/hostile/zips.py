"""Torch weight files that someone made up: the zip around the pickle, and the pickle itself."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

GOOD = bytes(range(16))  # four float32 numbers

Case = tuple[bytes, str]  # the file, and what the refusal says


class Call:
    """Pickled as a call of `function`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.function, self.arguments


class Stored:
    """Pickled as a reference to a storage."""

    def __init__(self, kind: Any, key: Any, numel: Any) -> None:
        self.identity = ("storage", kind, key, "cpu", numel)


class Pickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        return value.identity if isinstance(value, Stored) else None


def pickled(value: Any, protocol: int = 2) -> bytes:
    buffer = io.BytesIO()
    Pickler(buffer, protocol).dump(value)
    return buffer.getvalue()


def tensor(
    shape: Any = (4,),
    strides: Any = (1,),
    *,
    offset: Any = 0,
    kind: Any = torch.FloatStorage,
    key: Any = "0",
    numel: Any = 4,
) -> Call:
    """A tensor as torch.save describes it."""
    function = torch._utils._rebuild_tensor_v2
    return Call(function, Stored(kind, key, numel), offset, shape, strides, False, OrderedDict())


def zipped(content: Any, data: bytes = GOOD, extra: dict[str, bytes] | None = None, **options: Any) -> bytes:
    """A file as torch.save writes it; content: the pickled object, or the pickle's bytes."""
    members = {
        "x/data.pkl": content if isinstance(content, bytes) else pickled(content),
        "x/byteorder": b"little",
        "x/data/0": data,
        "x/version": b"3\n",
        **(extra or {}),
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as file:
        for name, body in members.items():
            file.writestr(name, body)
    return buffer.getvalue()


def patched(data: bytes, old: bytes, new: bytes, last: bool = False) -> bytes:
    """One occurrence replaced by as many bytes."""
    assert len(old) == len(new)
    at = data.rindex(old) if last else data.index(old)
    return data[:at] + new + data[at + len(new) :]


def archives() -> dict[str, Case]:
    """The zip is not what torch writes."""
    good = zipped({"a": tensor()})
    end = len(good) - 22
    start = struct.unpack_from("<I", good, end + 16)[0]  # of the list of members
    entry = good.index(b"PK\1\2")
    crc, method, flags, packed = entry + 16, entry + 10, entry + 8, entry + 20
    whole = zipped({"a": tensor()}, GOOD * 1000)
    twice = good[:start] + good[start:end] * 2
    twice += struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 8, 8, 2 * (end - start), start, 0)
    many = good[:end] + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, end - start, start, 0)

    def changed(at: int, new: bytes) -> bytes:
        return good[:at] + new + good[at + len(new) :]

    big_endian = zipped({"a": tensor()}, extra={"x/byteorder": b"big"})
    return {
        "cut": (good[:-1], "cut short"),
        "cut in the middle": (whole[: len(whole) // 2], "cut short"),
        "bytes in front": (b"#!/bin/sh\n" + good, "damaged"),
        "bytes behind": (good + b"\n", "cut short"),
        "comment": (good[:-2] + b"\3\0abc", "cut short"),
        "deflated bomb": (
            zipped({"a": tensor(numel=1 << 24, shape=(1 << 24,))}, bytes(1 << 26), compression=8),
            "compressed",
        ),
        "deflated pickle": (zipped({"a": tensor()}, compression=zipfile.ZIP_DEFLATED), "compressed"),
        "encrypted": (changed(flags, b"\1"), "encrypted"),
        "unknown method": (changed(method, b"\x63"), "compressed"),
        "sizes differ": (changed(packed, struct.pack("<I", 7)), "compressed"),
        "size beyond the file": (changed(packed, struct.pack("<II", 1 << 30, 1 << 30)), "another part"),
        "zip64 size without a value": (changed(packed, b"\xff" * 8), "another part|damaged"),
        "wrong CRC": (changed(crc, b"abcd"), r"x/data\.pkl' is damaged \(CRC-32"),
        "a flipped bit in a weight": (
            patched(good, GOOD, b"\1" + GOOD[1:]),
            "tensor a, member 'x/data/0' is",
        ),
        "a flipped bit in the pickle": (patched(good, b"collections", b"collectionr"), "is damaged"),
        "member twice": (twice, "is there twice"),
        "members in each other": (_nested(), "reaches into another part"),
        "a member elsewhere": (changed(entry + 42, struct.pack("<I", 5)), "not where the list says"),
        "a member far away": (changed(entry + 42, struct.pack("<I", 0xFFFFFFFE)), "not where the list says"),
        "another name in its place": (patched(good, b"x/data.pkl", b"y/data.pkl"), "another name"),
        "a name that is no text": (
            patched(good, b"x/data.pkl", b"\xff/data.pkl", last=True),
            "no plain torch",
        ),
        "list longer than said": (changed(end + 10, b"\2\0"), "damaged"),
        "list shorter than said": (many, "damaged"),
        "list elsewhere": (changed(end + 16, struct.pack("<I", start - 1)), "damaged"),
        "zip64 end elsewhere": (
            good[:end] + struct.pack("<4sIQI", b"PK\6\7", 0, 1 << 63, 1) + good[end:],
            "damaged",
        ),
        "zip64 giants": (
            good[:end]
            + struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1 << 62, 1 << 62, 1 << 62, 1 << 62)
            + struct.pack("<4sIQI", b"PK\6\7", 0, end, 1)
            + good[end:],
            "damaged",
        ),
        "10^6 members": (_many_members(200_000, 1_000_000), "lists 1000000 members"),
        "no pickle": (
            patched(good, b"x/data.pkl", b"x/data.pkx").replace(b".pkl", b".pkx"),
            "0 members data",
        ),
        "two pickles": (zipped({"a": tensor()}, extra={"y/data.pkl": b"."}), "2 members data"),
        "big-endian": (big_endian, "not little-endian"),
        "empty zip": (zipped({"a": tensor()})[end:].replace(b"x", b"y")[-22:], "damaged"),
    }


def _nested() -> bytes:
    """A member that lies in the bytes of another one."""
    inner = zipped({"a": tensor()})
    inner_start = struct.unpack_from("<I", inner, len(inner) - 6)[0]
    outer = zipped({"a": tensor((len(inner),), numel=len(inner))}, inner)
    start = struct.unpack_from("<I", outer, len(outer) - 6)[0]
    line = bytearray(inner[inner_start : inner.index(b"PK\1\2", inner_start + 4)])
    line[42:46] = struct.pack("<I", outer.index(inner))
    lines = outer[start:-22] + bytes(line).replace(b"x/data.pkl", b"y/data.pkl")
    outer = outer[:start].replace(inner, inner.replace(b"x/data.pkl", b"y/data.pkl"))
    return outer + lines + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 5, 5, len(lines), start, 0)


def _many_members(real: int, said: int) -> bytes:
    """A list of so many members that reading it would take seconds and the memory."""
    line = struct.pack("<4s6H3I5H2I", b"PK\1\2", 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"x"
    end = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, said, said, real * len(line), 0)
    place = struct.pack("<4sIQI", b"PK\6\7", 0, real * len(line), 1)
    return line * real + end + place + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0, 0, 0)


def pickles() -> dict[str, Case]:
    """The zip is right, what the pickle says is not."""
    deep: Any = ()
    for _ in range(10_000):
        deep = (deep,)
    itself: dict[str, Any] = {"a": tensor()}
    itself["b"] = itself
    sparse = torch.eye(3).to_sparse()
    head = b"\x80\x02"
    named = "tensor a "
    steps = "more than 500000 steps"
    return {
        "stride 0 giant": (zipped({"a": tensor((1 << 40,), (0,))}), named + "is a strided view"),
        "stride 0, two dimensions": (
            zipped({"a": tensor((1 << 20, 4), (0, 1))}),
            named + "is a strided view",
        ),
        "transposed": (zipped({"a": tensor((2, 2), (1, 2))}), named + "is a strided view"),
        "negative stride": (zipped({"a": tensor((4,), (-1,))}), "TypeError"),
        "longer than its storage": (zipped({"a": tensor((5,), (1,))}), named + "reaches beyond"),
        "offset beyond": (zipped({"a": tensor(offset=1)}), named + "reaches beyond"),
        "negative offset": (zipped({"a": tensor(offset=-1)}), "TypeError"),
        "storage not there": (
            zipped({"a": tensor(key="7")}),
            named[:-1] + ": its storage 7 is not in the file",
        ),
        "storage elsewhere": (zipped({"a": tensor(key="../version")}), "is not in the file"),
        "storage too short": (zipped({"a": tensor((1 << 40,), numel=1 << 40)}), "has 16 bytes"),
        "storage too long": (zipped({"a": tensor((2,), numel=2)}), "has 16 bytes"),
        "endless number": (zipped({"a": tensor(numel=1 << 100_000)}), "TypeError"),
        "endless stride": (zipped({"a": tensor((4,), (1 << 100_000,))}), "TypeError"),
        "escape codes in a name": (zipped({"\x1b[2J": tensor()}), r"named '\\x1b\[2J'; wanted printable"),
        "escape codes in a kind": (
            zipped(b"\x80\x02}X\1\0\0\0ac\x1b[2J\nx\n)Rs."),
            r"is \\x1b\[2J\.x; wanted",
        ),
        "giant shape": (zipped({"a": tensor((1 << 62, 1 << 62), (1 << 62, 1))}), "or more than"),
        "giant and empty": (zipped({"a": tensor((0, 1 << 62), (1, 1))}), "or more than"),
        "10^5 dimensions": (zipped({"a": tensor((1,) * 100_000, (1,) * 100_000)}), "100000 dimensions"),
        "fewer strides": (zipped({"a": tensor((2, 2), (1,))}), "TypeError"),
        "shape of texts": (zipped({"a": tensor(("4",), (1,))}), "TypeError"),
        "storage number as key": (zipped({"a": tensor(key=0)}), "TypeError"),
        "many tensors in one storage": (
            zipped({f"t{i}": tensor((1 << 16,), numel=1 << 16) for i in range(2000)}, bytes(1 << 18)),
            "lie over each other",
        ),
        "complex": (zipped({"a": tensor(kind=torch.ComplexFloatStorage)}), named + "is a torch.ComplexFloat"),
        "double": (zipped({"a": tensor(kind=torch.DoubleStorage)}), named + "is a torch.DoubleStorage"),
        "bool": (zipped({"a": tensor(kind=torch.BoolStorage)}), named + "is a torch.BoolStorage"),
        "no storage type": (zipped({"a": tensor(kind=os.system)}), named + "is a .*system"),
        "sparse": (_saved({"a": sparse}), named + r"is torch\._utils\._rebuild_sparse_tensor"),
        "sparse rows": (_saved({"a": torch.eye(3).to_sparse_csr()}), named + "is torch.*sparse"),
        "quantized": (zipped({"a": Call(torch._utils._rebuild_qtensor, 1)}), named + "is .*_rebuild_qtensor"),
        "meta": (_saved({"a": torch.zeros(2, device="meta")}), named + "is .*meta"),
        "unsigned": (_saved({"a": torch.zeros(2, dtype=torch.uint16)}), named + "is .*_rebuild_tensor_v3"),
        "numpy": (zipped({"a": Call(torch._utils._rebuild_device_tensor_from_numpy, 1)}), "from_numpy"),
        "tensor in a list": (zipped({"a": [tensor()]}), "entry 'a' is a list"),
        "training state": (zipped({"model": {"a": tensor()}}), "'model' is a dict"),
        "itself": (zipped(itself), "'b' is a dict"),
        "number as name": (zipped({1: tensor()}), "entry 1 "),
        "list": (zipped([tensor()]), "holds a list"),
        "tensor alone": (zipped(tensor()), "holds a StoredTensor"),
        "an object": (zipped(Call(Path, "a")), "holds pathlib"),
        "deep tuple as name": (zipped(head + b")" + b"\x85" * 200_000 + b"}\x86."), "holds a tuple"),
        "hash of a deep tuple": (zipped(head + b"})" + b"\x85" * 200_000 + b"Ns."), "TypeError"),
        "deep lists": (zipped(head + b"]" + b"]a" * 200_000 + b"."), "holds a list"),
        "10^6 names": (zipped(_many_names(1_000_000)), "no plain torch weight file"),
        "200,000 names": (zipped(_many_names(200_000)), steps),
        "10^7 steps": (zipped(head + b"N" * 10_000_000 + b"."), steps),
        "far memo": (zipped(head + b"Nr\xff\xff\xff\xff."), "holds a NoneType"),
        "long number": (
            zipped(head + b"\x8b" + struct.pack("<i", 1 << 20) + b"\xff" * (1 << 20) + b"."),
            "int",
        ),
        "text longer than the file": (zipped(head + b"X\xff\xff\xff\x7f."), "no plain torch"),
        "huge pickle": (zipped(bytes(17 << 20)), "bytes; at most"),
        "unknown opcode": (zipped(head + b"\xff."), "no plain torch"),
        "no end": (zipped(head + b"N"), "no plain torch"),
        "nothing on the stack": (zipped(head + b"."), "IndexError"),
        "no mark": (zipped(head + b"NNt."), "IndexError"),
        "memo never set": (zipped(head + b"h\7."), "KeyError"),
        "item of a number": (zipped(head + b"K\1K\2K\3s."), "TypeError"),
        "odd items": (zipped(head + b"}(Nu."), "TypeError"),
        "call of a number": (zipped(head + b"K\1)R."), "TypeError"),
        "text persistent id": (zipped(head + b"Pstorage\n."), "opcode PERSID"),
        "extension": (zipped(head + b"\x82\1."), "opcode EXT1"),
        "old instance": (zipped(b"(ios\nsystem\n."), "opcode INST"),
    }


def _saved(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _many_names(count: int) -> bytes:
    """`count` names for one tensor."""
    one = pickled({"a": tensor()})
    names = b"".join(b"X\7\0\0\0%07dj\xff\0\0\0s" % i for i in range(count))
    return one[: one.rindex(b"s.")] + b"r\xff\0\0\0s" + names + b"."


def payloads(victim: Path) -> dict[str, bytes]:
    """Files that create `victim` when they are unpickled, in every dress that some reader opens."""
    command = f"touch {victim}"
    calls = {
        "os.system": Call(os.system, command),
        "eval": Call(eval, f"__import__('os').system({command!r})"),
        "exec": Call(exec, f"open({str(victim)!r}, 'w')"),
        "open": Call(open, str(victim), "w"),
        "Path.touch": Call(Path.touch, victim),
    }
    files = {f"zip {name}": zipped({"a": tensor(), "b": call}) for name, call in calls.items()}
    call = calls["os.system"]
    files["zip, alone"] = zipped(call)
    files["zip, protocol 4"] = zipped(pickled({"a": call}, 4))
    files["zip, in a tensor"] = zipped(
        {"a": Call(torch._utils._rebuild_parameter, call, False, OrderedDict())}
    )
    files["zip, storage type"] = zipped({"a": tensor(kind=call)})
    files["zip, attributes"] = zipped(pickled(OrderedDict(a=1))[:-1] + pickled(call)[2:-1] + b"b.")
    files["zip, second pickle"] = zipped({"a": tensor()}, extra={"y/data.pkl": pickled(call)})
    files["zip, first of two"] = _first_of_two(pickled(call), pickled({"a": tensor()}))
    files["plain"] = pickle.dumps(call)
    legacy = io.BytesIO()
    torch.save({"a": torch.zeros(2), "b": call}, legacy, _use_new_zipfile_serialization=False)
    files["legacy"] = legacy.getvalue()
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w", format=tarfile.USTAR_FORMAT) as file:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            info = tarfile.TarInfo(name)
            body = pickle.dumps(call)
            info.size = len(body)
            file.addfile(info, io.BytesIO(body))
    files["tar"] = tar.getvalue()
    return files


def _first_of_two(first: bytes, second: bytes) -> bytes:
    """Two members of one name: readers differ in which they take."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("x/data.pkl", first)
        file.writestr("x/data.pkx", second)
        file.writestr("x/data/0", GOOD)
    return buffer.getvalue().replace(b".pkx", b".pkl")
