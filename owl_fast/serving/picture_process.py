"""A process that turns encoded pictures into squares; picture_workers.py starts it and talks to it.

What decodes strangers' bytes holds no model, no key and no open file. It needs Pillow and no torch. Its
standard input is a socket, both ways: a head and content for each picture, the same for each answer.
"""

from __future__ import annotations

import io
import os
import resource
import signal
import socket
import struct
import sys
import warnings
from pathlib import Path

from PIL import Image

from owl_fast.errors import ImageError
from owl_fast.picture_files import data_uri_bytes, decode, square

HEAD = struct.Struct(">cI")  # a kind below, bytes of the content
ENCODED, DATA_URI = b"e", b"u"  # what is asked
READY, SQUARE, REFUSED = b"r", b"s", b"n"  # what is answered
MAX_TEXT = 400  # bytes of a refusal
BROKEN = "the picture cannot be decoded; save it anew"


def main() -> None:
    size, rgb_first, crop, memory = map(int, sys.argv[1:5])
    seconds = float(sys.argv[5])
    Image.init()  # every decoder is in memory before the first picture
    warnings.simplefilter("ignore")
    _confine(memory)
    try:
        with socket.socket(fileno=0) as channel, channel.makefile("rwb") as stream:
            _serve(stream, size, bool(rgb_first), bool(crop), seconds)
    except (BrokenPipeError, ConnectionResetError):
        pass  # the server is gone


def _confine(memory: int) -> None:
    """Bytes of address space beyond those in use now, no core dumps, no files, no words."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 2)  # the decoders' libraries print what they think of a file
    os.close(silence)


def _serve(stream: io.BufferedRWPair, size: int, rgb_first: bool, crop: bool, seconds: float) -> None:
    """Answer until the other side closes. A picture that takes longer is the end: SIGPROF kills the process,
    also inside a decoder."""
    _send(stream, READY, b"")
    while len(head := stream.read(HEAD.size)) == HEAD.size:
        kind, length = HEAD.unpack(head)
        content = stream.read(length)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            data = data_uri_bytes(content.decode("ascii")) if kind == DATA_URI else content
            answer = SQUARE, square(decode(data, "picture"), size, rgb_first, crop).tobytes()
        except ImageError as error:
            answer = REFUSED, str(error).encode()[:MAX_TEXT]
        except Exception:  # MemoryError, and whatever a decoder may still come up with
            answer = REFUSED, BROKEN.encode()
        signal.setitimer(signal.ITIMER_PROF, 0)
        _send(stream, *answer)


def _send(stream: io.BufferedRWPair, kind: bytes, content: bytes) -> None:
    stream.write(HEAD.pack(kind, len(content)) + content)
    stream.flush()


if __name__ == "__main__":
    main()
