"""Preprocessing against the reference pixels; every kind of source; what is refused, and when."""

from __future__ import annotations

import base64
import io
import json
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
from PIL import Image, ImageFile, WebPImagePlugin
from safetensors.torch import load_file

from owl_fast import images
from owl_fast.errors import CheckpointError, ImageError, UnsupportedError
from owl_fast.images import ImageProcessor, load_image
from owl_fast.picture_files import FORMATS, MAX_BYTES

GOLDEN = Path(__file__).parent / "golden"
FILES = sorted((GOLDEN / "images").glob("*.png"))
WIDE = FILES[0]
# Pillow before 13 resizes tall pictures in another order of passes.
GREY_LEVEL = 0.0 if int(PIL.__version__.split(".")[0]) >= 13 else 1.001 / 255 / min(images.CLIP_STD)


def _png(image: Image.Image, **options: object) -> bytes:
    return _saved(image, "PNG", **options)


def _saved(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _noise(mode: str = "RGB", size: tuple[int, int] = (50, 40)) -> Image.Image:
    bands = len(Image.new(mode, (1, 1)).getbands())
    return Image.frombytes(mode, size, random.Random(0).randbytes(size[0] * size[1] * bands))


@pytest.mark.parametrize("model", ["tiny", "micro"])
def test_reference_pixels(model: str) -> None:
    processor = ImageProcessor.from_folder(GOLDEN / model / "checkpoint")
    reference = load_file(GOLDEN / model / "golden/preprocess.safetensors")
    assert len(FILES) == len(reference) == 5
    for i, path in enumerate(FILES):
        pixels, wanted = processor(path), reference[f"pixel_values.{i}"]
        assert pixels.dtype == torch.float32
        if "img4" in path.name and GREY_LEVEL:
            assert (pixels - wanted).abs().max() <= GREY_LEVEL
        else:
            assert torch.equal(pixels, wanted), path.name


@pytest.mark.parametrize("model", ["tiny", "micro"])
def test_training_pixels(model: str) -> None:
    processor = ImageProcessor.from_folder(GOLDEN / model / "checkpoint")
    wanted = load_file(GOLDEN / model / "golden/train_loss.safetensors")["pixel_values"]
    assert torch.equal(processor(WIDE, training=True)[None], wanted)
    for path in FILES:
        rgb = Image.open(path).convert("RGB")
        assert torch.equal(processor(path, training=True), processor(rgb)), path.name
    palette = next(path for path in FILES if "_p_" in path.name)
    assert not torch.equal(processor(palette, training=True), processor(palette))


def test_every_kind_of_source_gives_the_same_pixels(tmp_path: Path) -> None:
    data, pil = WIDE.read_bytes(), Image.open(WIDE)
    array = np.asarray(pil)
    tensor = torch.from_numpy(array.copy())
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    sources = {
        "path": str(WIDE),
        "Path": WIDE,
        "bytes": data,
        "bytearray": bytearray(data),
        "memoryview": memoryview(data),
        "file": io.BytesIO(data),
        "data URI": uri,
        "PIL": pil,
        "array": array,
        "strided array": np.concatenate([array, array], axis=1)[:, : pil.width],
        "reversed array": array[::-1][::-1],
        "tensor HWC": tensor,
        "tensor CHW": tensor.permute(2, 0, 1),
        "contiguous CHW": tensor.permute(2, 0, 1).contiguous(),
    }
    processor = ImageProcessor(size=32)
    wanted = processor(pil)
    for kind, source in sources.items():
        assert torch.equal(processor(source), wanted), kind
    grey = np.asarray(_noise("L"))
    for kind in (grey, grey[..., None], torch.from_numpy(grey.copy()), torch.from_numpy(grey.copy())[None]):
        assert load_image(kind).tobytes() == grey.tobytes()
    assert load_image(np.asarray(_noise("RGBA"))).mode == "RGBA"


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("size", [(1, 1), (1, 37), (37, 1), (3, 200), (50, 40)])
def test_odd_but_legal_pictures(mode: str, size: tuple[int, int]) -> None:
    picture = Image.effect_noise((max(size), max(size)), 80).crop((0, 0, *size))
    picture = picture.convert("RGBA").convert("CMYK") if mode == "CMYK" else picture.convert(mode)
    data = _saved(picture, "JPEG" if mode == "CMYK" else "PNG")
    for training in (False, True):
        pixels = ImageProcessor(size=24)(data, training=training)
        assert pixels.shape == (3, 24, 24)
        assert pixels.isfinite().all()


@pytest.mark.filterwarnings("ignore:Palette images")
def test_formats_frames_and_orientation() -> None:
    first, second = _noise(), Image.new("RGB", (50, 40), "red")
    for form in ("PNG", "WEBP", "BMP"):
        options = {"lossless": True} if form == "WEBP" else {}
        assert load_image(_saved(first, form, **options)).convert("RGB").tobytes() == first.tobytes()
    for form in ("PNG", "GIF"):
        animated = _saved(second, form, save_all=True, append_images=[first])
        assert load_image(animated).convert("RGB").getpixel((3, 3)) == (255, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = 6
    assert load_image(_saved(first, "JPEG", exif=exif)).size == first.size
    transparent = _saved(first.quantize(8), "PNG", transparency=bytes(range(8)))
    assert ImageProcessor(size=8)(transparent).isfinite().all()


@pytest.mark.parametrize("size", [(96, 40), (40, 96), (64, 64), (71, 37), (33, 50), (17, 400), (225, 224)])
def test_crop_is_the_middle_of_the_scaled_picture(size: tuple[int, int]) -> None:
    """The video release: the shorter side to the size, the longer one rounded down, then the centre."""
    picture, side = _noise(size=size), 32
    width, height = (int(side * x / min(size)) for x in size)
    left, top = (width - side) // 2, (height - side) // 2
    scaled = picture.resize((width, height), Image.Resampling.BICUBIC)
    wanted = ImageProcessor(side)(scaled.crop((left, top, left + side, top + side)))
    processor = ImageProcessor(side, rgb_first=True, crop=True)
    assert torch.equal(processor(picture), wanted)
    assert torch.equal(processor.frame(picture), ImageProcessor(side)(picture))


@pytest.mark.parametrize("size", [(1, 8192), (8192, 1), (1, 1), (3, 7000)])
def test_ribbons_are_cropped_without_unrolling_them(size: tuple[int, int]) -> None:
    """1 x 8192 scaled to a width of 224 would have 411 million pixels."""
    half = Image.new("RGB", size, "red")
    half.paste("blue", (0, 0, size[0] // 2, size[1] // 2))
    pixels = ImageProcessor(224, rgb_first=True, crop=True)(half)
    assert pixels.shape == (3, 224, 224)
    assert pixels.isfinite().all()


def _closed() -> io.BytesIO:
    file = io.BytesIO(b"x")
    file.close()
    return file


def _broken() -> dict[str, object]:
    png, jpeg = _png(_noise()), _saved(_noise(), "JPEG")
    text = base64.b64encode(png).decode()
    return {
        "empty": b"",
        "text": b"hello",
        "cut png": png[: len(png) // 2],
        "cut jpeg": jpeg[: len(jpeg) // 2],
        "png signature": png[:8],
        "flipped png": png[:60] + bytes(255 - b for b in png[60:]),
        "tiff": _saved(_noise(), "TIFF"),
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
        "no file": "no/such/file.png",
        "nul path": "a\x00b.png",
        "surrogate path": "a\ud800.png",
        "long path": "x" * 5000,
        "folder": GOLDEN,
        "device": "/dev/zero",
        "url": "https://example.com/a.png",
        "uri not base64": "data:image/png,abc",
        "uri bad base64": "data:image/png;base64,@@@@",
        "uri without comma": "data:image/png;base64",
        "uri with text": "data:image/png;base64," + text[:40] + "\ud800" + text[40:],
        "text file object": io.StringIO("x"),
        "closed file object": _closed(),
        "none": None,
        "number": 3,
        "list": [[1, 2], [3, 4]],
        "float array": np.zeros((4, 4, 3), np.float32),
        "two channels": np.zeros((4, 4, 2), np.uint8),
        "no channels": np.zeros((4, 4, 0), np.uint8),
        "empty array": np.zeros((0, 4, 3), np.uint8),
        "line array": np.zeros(4, np.uint8),
        "float tensor": torch.zeros(3, 4, 4),
        "batch tensor": torch.zeros(1, 3, 4, 4, dtype=torch.uint8),
        "empty tensor": torch.zeros(3, 0, 4, dtype=torch.uint8),
        "empty PIL": Image.new("RGB", (0, 3)),
    }


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.filterwarnings("ignore")
def test_mutated_files_give_a_picture_or_an_image_error(form: str) -> None:
    rng, good = random.Random(form), _saved(_noise().quantize(16) if form == "GIF" else _noise(), form)
    messages: list[str] = []
    for _ in range(150):
        data = bytearray(good)
        for _ in range(rng.choice([1, 3, 20])):
            data[rng.randrange(min(len(data), rng.choice([40, 400, 10_000])))] = rng.randrange(256)
        try:
            pixels = ImageProcessor(size=8)(bytes(data[: rng.choice([len(data), rng.randrange(len(data))])]))
        except ImageError as error:
            messages.append(str(error))
        else:
            assert pixels.isfinite().all()
    assert len(messages) > 10
    assert "0x" not in " ".join(messages)


@pytest.mark.parametrize("kind", _broken())
def test_broken_sources_are_image_errors(kind: str) -> None:
    with pytest.raises(ImageError) as caught:
        load_image(_broken()[kind])
    message = str(caught.value)
    assert message
    assert "0x" not in message
    assert len(message) < 400
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def _declared_png(width: int, height: int) -> bytes:
    """A PNG whose header declares a size that its tiny data does not have."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"\0" * 100)),
        (b"IEND", b""),
    ]
    body = b"".join(
        struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def _declared_webp(side: int) -> bytes:
    good = _saved(_noise(), "WEBP", save_all=True, append_images=[Image.new("RGB", (50, 40))])
    at = good.index(b"VP8X") + 12
    return good[:at] + (side - 1).to_bytes(3, "little") * 2 + good[at + 6 :]


@pytest.mark.parametrize(
    "source",
    [
        _declared_png(8193, 1),
        _declared_png(1, 8193),
        _declared_png(4001, 4000),
        _declared_png(60_000, 60_000),
        _declared_png(2**31 - 1, 2**31 - 1),
        _declared_webp(16_383),
        _saved(_noise(), "BMP")[:18] + struct.pack("<ii", 30_000, 30_000) + _saved(_noise(), "BMP")[26:],
        _saved(Image.new("P", (9000, 1)), "GIF"),
        np.lib.stride_tricks.as_strided(np.zeros(1, np.uint8), (9000, 9000, 3), (0, 0, 0)),
        torch.zeros(1, dtype=torch.uint8).expand(3, 9000, 9000),
        b"\x89PNG" + bytes(MAX_BYTES),
        "data:image/png;base64," + "A" * (MAX_BYTES // 3 * 4 + 100),
    ],
    ids=[
        *(
            "wide",
            "high",
            "pixels",
            "huge",
            "largest",
            "webp",
            "bmp",
            "gif",
            "array",
            "tensor",
            "bytes",
            "uri",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_oversized_pictures_are_refused_before_decoding(
    source: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[object] = []
    for plugin in (ImageFile.ImageFile, WebPImagePlugin.WebPImageFile):
        monkeypatch.setattr(plugin, "load", lambda self: decoded.append(self.size))
    monkeypatch.setattr(images.Image, "frombytes", lambda *a: decoded.append(a))
    with pytest.raises(ImageError, match=r"at most 8192 a side|more than"):
        load_image(source)
    assert decoded == []
    load_image(WIDE)
    assert decoded == [(96, 40)]


def test_oversized_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "big.png"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    for source in (path, path.open("rb")):
        with pytest.raises(ImageError, match="more than 8 MiB"):
            load_image(source)
    with pytest.raises(ImageError, match="8193 x 1 pixels; at most 8192 a side"):
        load_image(Image.new("L", (8193, 1)))


def test_the_largest_allowed_picture_is_read() -> None:
    assert load_image(_png(Image.new("1", (8192, 1953)))).size == (8192, 1953)


def test_augmentation_is_a_function_of_the_random_state() -> None:
    processor, picture = ImageProcessor(size=16), _noise(size=(60, 40))
    draws = [processor.augment(picture, random.Random(seed)) for seed in range(40)]
    assert torch.equal(draws[7], processor.augment(picture, random.Random(7)))
    assert all(d.shape == (3, 16, 16) and d.isfinite().all() for d in draws)
    assert len({d.numpy().tobytes() for d in draws}) > 30


def test_augmentation_crops_half_to_all_and_mirrors_half() -> None:
    rng = random.Random(1)
    boxes = [images._random_box(100, 80, rng) for _ in range(400)]
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= 100
        assert 0 <= top < bottom <= 80
        assert 0.49 <= (right - left) * (bottom - top) / 8000 <= 1.0
        assert 0.73 <= (right - left) / (bottom - top) <= 1.36
    assert images._random_box(1000, 1, rng) == (0, 0, 1000, 1)
    # Left half black, right half white: the mirrored draws have the bright side left.
    picture = Image.new("L", (64, 64))
    picture.paste(255, (32, 0, 64, 64))
    draws = [ImageProcessor(size=8).augment(picture, random.Random(seed)) for seed in range(200)]
    mirrored = sum(bool(d[..., 0].mean() > d[..., -1].mean()) for d in draws)
    assert 70 < mirrored < 130


def test_settings_are_read_and_written(tmp_path: Path) -> None:
    assert ImageProcessor.from_folder(tmp_path) == ImageProcessor(224)
    assert ImageProcessor.from_folder(tmp_path, default_size=112).size == 112
    for model, size in (("tiny", 56), ("micro", 32)):
        processor = ImageProcessor.from_folder(GOLDEN / model / "checkpoint")
        assert processor == ImageProcessor(size)
        file = GOLDEN / model / "checkpoint/preprocessor_config.json"
        assert processor.to_dict() == json.loads(file.read_text())
    mine = ImageProcessor(40, (0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(mine.to_dict()))
    assert ImageProcessor.from_folder(tmp_path) == mine
    (tmp_path / "preprocessor_config.json").write_text('{"size": 48}')
    assert ImageProcessor.from_folder(tmp_path) == ImageProcessor(48)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("not json", CheckpointError),
        ("[1]", CheckpointError),
        ('{"size": 0}', CheckpointError),
        ('{"size": true}', CheckpointError),
        ('{"size": {}}', CheckpointError),
        ('{"size": {"shortest_edge": 1e9}}', CheckpointError),
        ('{"size": {"height": 3, "width": 4}}', CheckpointError),
        ('{"image_mean": [0, 0]}', CheckpointError),
        ('{"image_mean": [0, 0, NaN]}', CheckpointError),
        ('{"image_std": [1, 1, 0]}', CheckpointError),
        ('{"image_std": "abc"}', CheckpointError),
        ('{"crop_size": 100}', UnsupportedError),
        ('{"do_normalize": false}', UnsupportedError),
        ('{"rescale_factor": 1.0}', UnsupportedError),
    ],
)
def test_nonsense_settings(content: str, error: type[Exception], tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(content)
    with pytest.raises(error, match=r"preprocessor_config\.json"):
        ImageProcessor.from_folder(tmp_path)
