"""Handing an object with large tensors to another process, which reads them where they were written.

The object lies in a memory file without a name (memfd), whose descriptor goes through a socket: whoever
dies, nothing has to be cleaned up; and /dev/shm, which is small in containers, is not needed.

    number of parts, length of each | the pickled object | one part per tensor, each at a multiple of ALIGN
"""

from __future__ import annotations

import array
import io
import mmap
import os
import pickle
import socket
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

ALIGN = 64


class Gone(Exception):
    """The other process has closed its end."""


def send(channel: socket.socket, value: object) -> None:
    """Write the object, its tensors on the CPU as bytes, and send where it is."""
    buffers: list[pickle.PickleBuffer] = []
    stream = io.BytesIO()
    _Pickler(stream, protocol=5, buffer_callback=buffers.append).dump(value)
    parts = [stream.getbuffer(), *(buffer.raw() for buffer in buffers)]
    head = array.array("Q", [len(parts), *map(len, parts)]).tobytes()
    descriptor = os.memfd_create("update", os.MFD_CLOEXEC)
    try:
        place = 0
        for part in (memoryview(head), *parts):
            _write(descriptor, part, place)
            place += _padded(len(part))
        os.ftruncate(descriptor, place)
        socket.send_fds(channel, [b"."], [descriptor])
    finally:
        os.close(descriptor)


def receive(channel: socket.socket) -> Any:
    """The next object; Gone when the other end is closed."""
    try:
        message, descriptors, _, _ = socket.recv_fds(channel, 1, 1)
    except ConnectionError:
        raise Gone from None
    if not message:
        raise Gone
    try:
        # A private copy: of pages that are written to alone.
        data = memoryview(mmap.mmap(descriptors[0], 0, access=mmap.ACCESS_COPY))
    finally:
        os.close(descriptors[0])
    (count,) = data[:8].cast("Q")
    lengths = data[8 : 8 * (count + 1)].cast("Q")
    place, parts = _padded(8 * (count + 1)), []
    for length in lengths:
        parts.append(data[place : place + length])
        place += _padded(length)
    return pickle.loads(parts[0], buffers=parts[1:])


class _Pickler(pickle.Pickler):
    """Takes the values of tensors out of the stream."""

    def reducer_override(self, value: object) -> Any:
        if type(value) is not Tensor or not value.numel():
            return NotImplemented
        flat = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
        return _tensor, (pickle.PickleBuffer(flat), value.dtype, tuple(value.shape))


def _tensor(values: memoryview, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    return torch.frombuffer(values, dtype=dtype).view(shape)


def _write(descriptor: int, part: memoryview, place: int) -> None:
    while part:
        written = os.pwrite(descriptor, part, place)
        part, place = part[written:], place + written


def _padded(length: int) -> int:
    return -(-length // ALIGN) * ALIGN
