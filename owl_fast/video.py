"""Videos -> a few of their frames, evenly spread.

A video is a file or bytes (GIF, APNG and WebP animations; anything else through PyAV, the extra `video`), a
list of pictures, or uint8 frames in one array or tensor. Only the frames that are used become pictures.
"""

from __future__ import annotations

import io
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image
from torch import Tensor

from owl_fast.errors import ImageError, UnsupportedError
from owl_fast.picture_files import check_size
from owl_fast.picture_parts import parts_trouble

FRAMES = 4  # what the video release was trained with
MAX_SAMPLED = 64
MAX_FRAMES = 100_000  # in a file
MAX_BYTES = 64 << 20  # of an animation, or of a video that is not a file
MAX_COMPOSED = 4_000_000_000  # pixels an animation puts together on the way to its last used frame

ANIMATIONS = ("GIF", "PNG", "WEBP")
# Demuxers of self-contained files: playlists and the like would open other files and addresses.
CONTAINERS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg"


@dataclass(frozen=True)
class Video:
    """A video among pictures, and how many of its frames are looked at."""

    source: Any
    num_frames: int = FRAMES

    def __post_init__(self) -> None:
        if isinstance(self.num_frames, bool) or not isinstance(self.num_frames, int):
            raise ImageError(f"num_frames {self.num_frames!r:.40}: wanted a number of 1..{MAX_SAMPLED}")
        if not 1 <= self.num_frames <= MAX_SAMPLED:
            raise ImageError(f"num_frames {self.num_frames}: wanted 1..{MAX_SAMPLED}")


def sample_indices(total: int, count: int) -> list[int]:
    """Which of `total` frames stand for the whole: the rule of the original, numbers may repeat.

    The video is cut into `count` parts of (total - 1) / count frames; the middle of the first part, rounded
    down, and from there on by rounded multiples of a part.
    """
    part = (total - 1) / count
    return [int(part / 2) + round(part * i) for i in range(count)]


def load_frames(video: Video) -> list[object]:
    """The used frames, each something images.load_image takes, in order.

    Frames that come as pictures are all used when there are at most num_frames. ImageError: no video, broken,
    or beyond the limits. UnsupportedError: the file needs PyAV and it is not installed.
    """
    source = video.source
    if isinstance(source, Video):
        raise ImageError("a Video came inside a Video; wanted a path, bytes, a list of pictures or an array")
    if isinstance(source, (list, tuple)):
        return _pick(source, len(source), video.num_frames)
    if isinstance(source, Tensor) or hasattr(source, "__array_interface__"):
        shape = tuple(source.shape)
        if len(shape) != 4:
            raise ImageError(f"frames of shape {shape}: wanted uint8 (T, H, W, 3)")
        return _pick(source, shape[0], video.num_frames)
    with _opened(source) as (file, label):
        return list(_read(file, label, video.num_frames))


def _pick(frames: Any, total: int, count: int) -> list[object]:
    if total < 1:
        raise ImageError("a video without frames; wanted at least one")
    indices = range(total) if total <= count else sample_indices(total, count)
    return [frames[i] for i in indices]


# --- files ------------------------------------------------------------------------------------------------


@contextmanager
def _opened(source: object) -> Iterator[tuple[BinaryIO, str]]:
    """The bytes of a source as a file that can be searched in, and its name for messages."""
    if isinstance(source, str) and source.startswith(("http:", "https:", "data:")):
        raise ImageError("a URL came where a video was wanted; download it and pass the path or the bytes")
    if isinstance(source, (str, Path)):
        label = f"{str(source)!r:.200}"
        with _open_path(Path(source), label) as file:
            try:
                yield file, label
            except OSError:
                raise ImageError(f"{label}: cannot be read") from None
        return
    if hasattr(source, "read"):
        source = read_video(source)
    if not isinstance(source, (bytes, bytearray, memoryview)):
        raise ImageError(
            f"a {type(source).__name__} is no video; wanted a path, bytes, a binary file, a list of pictures "
            "or uint8 frames (T, H, W, 3)"
        )
    if len(source) > MAX_BYTES:
        raise ImageError(f"video of more than {MAX_BYTES >> 20} MiB in memory; pass a path")
    yield io.BytesIO(source), f"video of {len(source)} bytes"


def read_video(file: Any) -> object:
    """What is in an open file, up to a byte more than is taken."""
    try:
        return file.read(MAX_BYTES + 1)
    except (OSError, ValueError):
        raise ImageError("the file object cannot be read; open it for reading in binary mode") from None


def _open_path(path: Path, label: str) -> BinaryIO:
    try:
        regular = stat.S_ISREG(path.stat().st_mode)  # before opening: a pipe would wait for its writer
        file = path.open("rb") if regular else None
    except FileNotFoundError:
        raise ImageError(f"{label}: no such file") from None
    except (OSError, ValueError):
        raise ImageError(f"{label}: cannot be read") from None
    if file is None:
        raise ImageError(f"{label}: not a regular file")
    return file


def _read(file: BinaryIO, label: str, count: int) -> Sequence[Image.Image]:
    head = file.read(12)
    file.seek(0)
    if head.startswith((b"GIF8", b"\x89PNG")) or (head[:4], head[8:]) == (b"RIFF", b"WEBP"):
        return _animation(file, label, count)
    return _container(file, label, count)


def _animation(file: BinaryIO, label: str, count: int) -> list[Image.Image]:
    data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ImageError(f"{label}: an animation of more than {MAX_BYTES >> 20} MiB; make it smaller")
    if trouble := parts_trouble(data):
        raise ImageError(f"{label}: {trouble}; save it anew")
    try:
        image = Image.open(io.BytesIO(data), formats=ANIMATIONS)
        check_size(image.width, image.height, label)
        total = getattr(image, "n_frames", 1)
        indices = sample_indices(total, count)
        if image.width * image.height * (indices[-1] + 1) > MAX_COMPOSED or total > MAX_FRAMES:
            raise ImageError(f"{label}: an animation too long or too large; cut it or scale it down")
        frames = []
        for index in indices:
            image.seek(index)
            frames.append(image.convert("RGB"))
        return frames
    except ImageError:
        raise
    # Pillow's decoders raise a dozen unrelated types, with memory addresses in the text.
    except Exception:
        raise ImageError(f"{label}: the animation is broken or cut off; save it anew") from None


def _container(file: BinaryIO, label: str, count: int) -> list[Image.Image]:
    try:
        import av
    except ImportError:
        raise UnsupportedError(
            f"{label}: no GIF, PNG or WebP animation, and other videos need PyAV, which is not installed: "
            "pip install '.[video]' in the checkout, or pass the frames as pictures"
        ) from None
    try:
        # A file object, not a name, and nothing to follow: what is read is what was given.
        options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "none"}
        with av.open(file, options=options) as container:
            return _sampled(container, label, count)
    except ImageError:
        raise
    except (av.FFmpegError, OSError, ValueError) as error:
        raise ImageError(f"{label}: no readable video ({type(error).__name__})") from None


def _sampled(container: Any, label: str, count: int) -> list[Image.Image]:
    if not container.streams.video:
        raise ImageError(f"{label}: there is no picture track in it")
    stream = container.streams.video[0]
    check_size(stream.width, stream.height, label)
    times: list[int] = []
    for packet in container.demux(stream):  # without decoding: an empty packet ends it
        if packet.pts is not None:
            times.append(packet.pts)
        if len(times) > MAX_FRAMES:
            raise ImageError(f"{label}: more than {MAX_FRAMES} frames; cut it")
    if not times:
        raise ImageError(f"{label}: a video without frames")
    times.sort()  # packets come in the order of decoding
    return [_frame_at(container, stream, times[i], label) for i in sample_indices(len(times), count)]


def _frame_at(container: Any, stream: Any, time: int, label: str) -> Image.Image:
    """The first frame from `time` on, or the last there is; decoded from the keyframe before it."""
    for start in (time, 0):
        container.seek(start, stream=stream)
        first = frame = None
        for frame in container.decode(stream):
            first = frame if first is None else first
            if frame.pts is not None and frame.pts >= time:
                break
        # Some containers have no index and seek past the mark: then once more, from the beginning.
        if start == 0 or (first is not None and first.pts is not None and first.pts <= time):
            break
    if frame is None:
        raise ImageError(f"{label}: its pictures cannot be decoded")
    image: Image.Image = frame.to_image()
    return image
