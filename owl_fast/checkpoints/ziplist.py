"""The list of members of a zip file as torch.save writes them: stored, not packed, one behind the other.

What another zip may hold (packed or encrypted members, names twice, members inside each other) is refused, so
that a file means the same to every reader and never grows in memory. Format: PKWARE's APPNOTE 6.3.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from owl_fast.checkpoints.manifest import CHUNK

MAX_MEMBERS = 100_000  # a 7B checkpoint has about 600

_END = struct.Struct("<4s4H2IH")
_END64_PLACE = struct.Struct("<4sIQI")
_END64 = struct.Struct("<4sQ2H2I4Q")
_ENTRY = struct.Struct("<4s6H3I5H2I")
_HEADER = struct.Struct("<4s5H3I2H")


class Member(NamedTuple):
    """Where a member's bytes are in the file, and their CRC-32."""

    start: int
    size: int
    crc: int


def members(data: memoryview) -> dict[str, Member]:
    """Members by name; ValueError says what is wrong with the file."""
    count, start, size = _directory_place(data)
    if count > MAX_MEMBERS:
        raise ValueError(f"it lists {count} members; at most {MAX_MEMBERS} are read")
    found: dict[str, Member] = {}
    place, end = start, start + size
    for _ in range(count):
        name, member, place = _entry(data, place, end)
        if name in found:
            raise ValueError(f"member {name!r:.120} is there twice")
        found[name] = member
    if place != end:
        raise ValueError("the list of its members is damaged")
    _check_apart(found, start)
    return found


def checking(data: memoryview, name: str, member: Member) -> Iterator[None]:
    """Add up a member's CRC-32, pausing after each chunk; ValueError in the end if another one is listed."""
    crc = 0
    for start in range(member.start, member.start + member.size, CHUNK):
        crc = zlib.crc32(data[start : min(start + CHUNK, member.start + member.size)], crc)
        yield
    if crc != member.crc:
        raise ValueError(f"member {name!r:.120} is damaged (CRC-32 {crc:08x}, listed is {member.crc:08x})")


def _directory_place(data: memoryview) -> tuple[int, int, int]:
    """(members, start, bytes) of the list at the file's end."""
    end = len(data) - _END.size
    if not _marked(data, end, b"PK\5\6"):
        raise ValueError(
            f"its {len(data)} bytes do not end as a zip does: it is cut short, or something else"
        )
    _, _, _, _, count, size, start, _ = _END.unpack_from(data, end)
    place = end - _END64_PLACE.size
    if _marked(data, place, b"PK\6\7"):
        end = _END64_PLACE.unpack_from(data, place)[2]
        if end > place - _END64.size or not _marked(data, end, b"PK\6\6"):
            raise ValueError("the list of its members is damaged")
        *_, count, size, start = _END64.unpack_from(data, end)
    if start + size != end:
        raise ValueError("the list of its members is damaged")
    return count, start, size


def _marked(data: memoryview, place: int, mark: bytes) -> bool:
    return place >= 0 and bytes(data[place : place + len(mark)]) == mark


def _entry(data: memoryview, place: int, end: int) -> tuple[str, Member, int]:
    """One line of the list -> name, member, place of the next line."""
    if place + _ENTRY.size > end:
        raise ValueError("the list of its members is damaged")
    head = _ENTRY.unpack_from(data, place)
    mark, _, _, flags, method, _, _, crc, packed, size, named, extra, comment, _, _, _, start = head
    place += _ENTRY.size
    after = place + named + extra + comment
    if mark != b"PK\1\2" or after > end:
        raise ValueError("the list of its members is damaged")
    name = bytes(data[place : place + named]).decode("utf-8")
    size, packed, start = _long_fields(data[place + named : place + named + extra], size, packed, start)
    if method != 0 or flags & 1 or packed != size:
        raise ValueError(f"member {name!r:.120} is compressed or encrypted; wanted plain bytes")
    header = _HEADER.unpack_from(data, start) if start + _HEADER.size <= len(data) else (b"",)
    if header[0] != b"PK\3\4":
        raise ValueError(f"member {name!r:.120} is not where the list says")
    bytes_at = start + _HEADER.size + header[9] + header[10]
    if bytes(data[start + _HEADER.size :][: header[9]]) != name.encode():
        raise ValueError(f"member {name!r:.120} has another name where it stands")
    return name, Member(bytes_at, size, crc), after


def _long_fields(extra: memoryview, *fields: int) -> list[int]:
    """Fields that are full (2^32 - 1) have their value in the extra field of zip64, in this order."""
    values = list(fields)
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        body, extra = extra[4 : 4 + length], extra[4 + length :]
        if kind == 1:
            full = [i for i, value in enumerate(values) if value == 0xFFFFFFFF]
            if len(body) < 8 * len(full):
                raise ValueError("the list of its members is damaged")
            for i, value in zip(full, struct.unpack_from(f"<{len(full)}Q", body), strict=True):
                values[i] = value
    return values


def _check_apart(found: dict[str, Member], limit: int) -> None:
    """Members lie one behind the other, before the list."""
    free = 0
    for name, member in sorted(found.items(), key=lambda item: item[1].start):
        if member.start < free or member.start + member.size > limit:
            raise ValueError(f"member {name!r:.120} reaches into another part of the file")
        free = member.start + member.size
