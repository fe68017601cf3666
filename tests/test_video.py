"""Frames of videos: which ones are taken, from every kind of source, and what is refused."""

from __future__ import annotations

import builtins
import io
import json
import zlib
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from owl_fast import video as video_module
from owl_fast.errors import ImageError, UnsupportedError
from owl_fast.video import Video, load_frames, sample_indices

GOLDEN = Path(__file__).parent / "golden/video_tiny/golden/manifest.json"
SIZE = (32, 24)


def grey(index: int) -> int:
    return 6 * index


def pictures(count: int) -> list[Image.Image]:
    return [Image.new("RGB", SIZE, (grey(i),) * 3) for i in range(count)]


def shades(frames: list[Any]) -> list[int]:
    return [frame.convert("RGB").getpixel((9, 9))[0] for frame in frames]


def animation(form: str, count: int) -> bytes:
    first, *rest = pictures(count)
    buffer = io.BytesIO()
    first.save(buffer, form, save_all=True, append_images=rest, duration=100, **LOSSLESS.get(form, {}))
    return buffer.getvalue()


LOSSLESS: dict[str, dict[str, Any]] = {"WEBP": {"lossless": True}}


def encoded(form: str, codec: str, count: int = 40, audio: bool = False) -> bytes:
    """A small video whose frames get lighter, with keyframes 12 apart."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=form) as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height = SIZE
        stream.pix_fmt, stream.gop_size = "yuv420p", 12
        for i in range(count):
            array = np.full((SIZE[1], SIZE[0], 3), grey(i), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def sound() -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def closed() -> io.BytesIO:
    file = io.BytesIO(b"x")
    file.close()
    return file


def test_frames_are_chosen_by_the_originals_rule() -> None:
    rule = json.loads(GOLDEN.read_text())["frame_index_rule"]
    assert len(rule) == 4
    for name, wanted in rule.items():
        total, _, _, count = name.split("_")
        assert sample_indices(int(total), int(count)) == wanted, name
    assert sample_indices(1, 4) == [0, 0, 0, 0]
    for total in range(1, 40):
        for count in range(1, 9):
            indices = sample_indices(total, count)
            assert len(indices) == count
            assert indices == sorted(indices)
            assert 0 <= indices[0] <= indices[-1] < total


def test_frames_given_as_pictures() -> None:
    frames = pictures(10)
    assert load_frames(Video(frames)) == [frames[i] for i in (1, 3, 5, 8)]
    assert load_frames(Video(tuple(frames[:3]))) == frames[:3]
    array = np.stack([np.asarray(frame) for frame in frames])
    for source in (array, torch.from_numpy(array.copy())):
        assert [int(frame[0, 0, 0]) for frame in load_frames(Video(source))] == [
            grey(i) for i in (1, 3, 5, 8)
        ]
        assert len(load_frames(Video(source[:2]))) == 2


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP"])
def test_animations(form: str, tmp_path: Path) -> None:
    data = animation(form, 10)
    path = tmp_path / "clip"
    path.write_bytes(data)
    for source in (data, path, str(path), io.BytesIO(data)):
        assert shades(load_frames(Video(source))) == [grey(i) for i in (1, 3, 5, 8)]
    assert shades(load_frames(Video(data, 2))) == [grey(i) for i in sample_indices(10, 2)]


@pytest.mark.parametrize(
    ("form", "codec"),
    [("mp4", "mpeg4"), ("matroska", "mpeg4"), ("mpegts", "mpeg2video"), ("avi", "mpeg4")],
)
def test_video_files(form: str, codec: str, tmp_path: Path) -> None:
    """mpegts has no index: seeking lands behind the mark there."""
    data = encoded(form, codec)
    (tmp_path / "clip").write_bytes(data)
    for source in (data, tmp_path / "clip"):
        for found, index in zip(shades(load_frames(Video(source))), (4, 14, 24, 33), strict=True):
            assert abs(found - grey(index)) <= 3, index  # lossy; the next frame is 6 away


BROKEN = {
    "empty": b"",
    "text": b"hello" * 100,
    "GIF": b"GIF89a and no more",
    "WEBP": b"RIFF\0\0\0\0WEBPjunk",
    "half a GIF": animation("GIF", 10)[:120],
    "half an mp4": encoded("mp4", "mpeg4")[:800],
    "playlist": b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:9/x.ts\n#EXT-X-ENDLIST\n",
    "list of files": b"ffconcat version 1.0\nfile '/etc/hostname'\n",
    "sound": sound(),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_videos_are_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.mp4"
    path.write_bytes(BROKEN[kind])
    with pytest.raises(ImageError, match=r"bad\.mp4") as caught:
        load_frames(Video(path))
    assert "0x" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "without frames"),
        (np.zeros((0, 4, 4, 3), np.uint8), "without frames"),
        (np.zeros((4, 4, 3), np.uint8), r"frames of shape \(4, 4, 3\): wanted uint8 \(T, H, W, 3\)"),
        (7, "a int is no video"),
        (io.StringIO("x"), "a str is no video"),
        (closed(), "cannot be read; open it"),
        ("nowhere.mp4", "no such file"),
        (".", "not a regular file"),
        ("a\0b", "cannot be read"),
        ("https://example.org/a.mp4", "download it"),
        (Video([1]), "a Video came inside a Video"),
    ],
    ids=[
        "no frames",
        "empty array",
        "one picture",
        "number",
        "text",
        "closed",
        "absent",
        "folder",
        "nul",
        "url",
        "twice",
    ],
)
def test_other_sources_are_named(source: object, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        load_frames(Video(source))


@pytest.mark.parametrize("count", [0, -1, 65, True, 2.5, "4", None])
def test_number_of_frames(count: Any) -> None:
    with pytest.raises(ImageError, match="num_frames"):
        Video([], count)


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    gif, mp4 = animation("GIF", 10), encoded("mp4", "mpeg4")
    with monkeypatch.context() as patch:
        patch.setattr(video_module, "MAX_BYTES", 100)
        with pytest.raises(ImageError, match="more than 0 MiB"):
            load_frames(Video(gif))
    with monkeypatch.context() as patch:
        patch.setattr(video_module, "MAX_COMPOSED", SIZE[0] * SIZE[1] * 8)
        with pytest.raises(ImageError, match="too long or too large"):
            load_frames(Video(gif))
    with monkeypatch.context() as patch:
        patch.setattr(video_module, "MAX_FRAMES", 8)
        for data in (gif, mp4):
            with pytest.raises(ImageError, match="cut it"):
                load_frames(Video(data))
    with monkeypatch.context() as patch:
        patch.setattr("owl_fast.picture_files.MAX_SIDE", 16)
        for data in (gif, mp4):
            with pytest.raises(ImageError, match="32 x 24 pixels"):
                load_frames(Video(data))


def test_animations_of_countless_chunks_are_refused() -> None:
    """Each costs a step in Python before the first frame is there."""
    chunk = b"\0\0\0\0tEXt" + zlib.crc32(b"tEXt").to_bytes(4, "big")
    start = 8 + 25  # signature and IHDR
    good = animation("PNG", 3)
    assert len(load_frames(Video(good[:start] + 9_000 * chunk + good[start:]))) == 4
    with pytest.raises(ImageError, match="more than 10000 chunks"):
        load_frames(Video(good[:start] + 10_000 * chunk + good[start:]))


def test_without_pyav_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: Any) -> Any:
        if name == "av":
            raise ImportError(name)
        return real(name, *rest)

    data = encoded("mp4", "mpeg4")
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UnsupportedError, match=r"pip install '\.\[video\]'"):
        load_frames(Video(data))
    assert len(load_frames(Video(animation("GIF", 5)))) == 4
