"""Settings and vocabularies with one to many things wrong, each a pure function of its seed.

The functions read one and are called in a process of their own (tests/sandbox.py). GOOD changes nothing.
"""

from __future__ import annotations

import copy
import functools
import json
import random
import shutil
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from owl_fast.checkpoints import load_model, open_source
from owl_fast.checkpoints.load import empty_model
from owl_fast.config import OwlConfig
from owl_fast.images import ImageProcessor
from owl_fast.lora import load_adapter
from owl_fast.tokenizer import StreamDecoder, Tokenizer
from tests.golden_data import FirstRelease

GOLDEN = Path(__file__).parent / "golden"
MICRO = GOLDEN / "micro/checkpoint_safetensors"
SETTINGS = GOLDEN / "micro/checkpoint"
ADAPTER = GOLDEN / "micro/lora_adapter"
EARLY = FirstRelease()
GOOD = "good"

# --- what is read -----------------------------------------------------------------------------------------


def read(case: str) -> str:
    """Read "KIND SEED"; GOOD reads one of each kind."""
    kinds = (config, index, preprocessor, adapter, tokenizer, first_release, told, wrapped)
    return " ".join(str(kind(case)) for kind in kinds if case == GOOD or kind.__name__ == case.split()[0])


def config(seed: str) -> object:
    """The micro model under a mutated config.json."""
    folder = _copy(MICRO)
    (folder / "config.json").write_bytes(_json_file(SETTINGS / "config.json", seed))
    return load_model(folder).config


def preprocessor(seed: str) -> object:
    folder = _copy(None)
    data = _json_file(SETTINGS / "preprocessor_config.json", seed)
    (folder / "preprocessor_config.json").write_bytes(data)
    return ImageProcessor.from_folder(folder)


def adapter(seed: str) -> object:
    """A mutated adapter_config.json; the model has no memory, which attaching does not need."""
    folder = _copy(ADAPTER)
    data = _json_file(ADAPTER / "adapter_config.json", seed)
    (folder / "adapter_config.json").write_bytes(data)
    return load_adapter(empty_model(OwlConfig.from_file(SETTINGS / "config.json")), folder)


def first_release(seed: str) -> object:
    """A file of the first release beside a mutated config.json of its own kind."""
    folder = _copy(None)
    shutil.copy(EARLY.checkpoint, folder)
    data = _json_file(EARLY.folder / "finetune_config_example.json", seed)
    (folder / "config.json").write_bytes(data)
    return load_model(open_source(folder / EARLY.checkpoint.name, **EARLY.HEADS)).config


def told(seed: str) -> object:
    """The same file without a config beside it, told a mutated one."""
    path = _copy(None) / "told.json"
    path.write_bytes(_json_file(EARLY.folder / "finetune_config_example.json", seed))
    return load_model(open_source(EARLY.checkpoint, config=path, **EARLY.HEADS)).config


def wrapped(seed: str) -> object:
    """A wrapped state dict with updates, merged as a mutated adapter_config.json beside it says."""
    folder = _copy(None)
    shutil.copy(EARLY.wrapped, folder)
    (folder / "adapter_config.json").write_bytes(_json_file(ADAPTER / "adapter_config.json", seed))
    return load_model(open_source(folder / EARLY.wrapped.name, **EARLY.HEADS)).config


def index(seed: str) -> object:
    """The micro model under a mutated index."""
    folder = _copy(MICRO)
    (name,) = (path.name for path in MICRO.glob("*.index.json"))
    (folder / name).write_bytes(_json_file(MICRO / name, seed))
    return load_model(folder).config


def tokenizer(seed: str) -> object:
    """A mutated tokenizer.model, used for a while; a vocabulary that is accepted keeps its promises."""
    rng = random.Random(seed)
    path = _copy(None) / "tokenizer.model"
    data = (SETTINGS / "tokenizer.model").read_bytes()
    path.write_bytes(data if seed == GOOD else _vocabulary(data, rng))
    vocabulary = Tokenizer.from_file(path)
    for text in TEXTS:
        for literal in (True, False):
            ids = vocabulary.encode(text, literal=literal)
            assert all(0 <= i < vocabulary.vocab_size for i in ids)
            assert not (literal and vocabulary.special_ids & set(ids))
            vocabulary.decode(ids)
    ids = [rng.randrange(-2, vocabulary.vocab_size + 3) for _ in range(50)]
    stream = StreamDecoder(vocabulary)
    return len("".join([stream.push(i) for i in ids]) + stream.flush() + vocabulary.decode(ids))


TEXTS = ("Hello", "a</s> <s><unk>b", "", "\n", "▁▁ x", "🦉\0\ud83e é ﬁ", "Human: " * 50, "x" * 3000, "ÀÀ１２")


@functools.cache
def _place() -> Path:
    return Path(tempfile.mkdtemp(prefix="mutations-"))


def _copy(source: Path | None) -> Path:
    """An empty folder, or a copy of `source`; always the same one."""
    shutil.rmtree(_place(), ignore_errors=True)
    if source is None:
        _place().mkdir()
    else:
        shutil.copytree(source, _place())
    return _place()


# --- JSON -------------------------------------------------------------------------------------------------

ODD: list[Any] = [
    *(None, True, False, 0, 1, -1, 7, 2**31, 2**63, 10**400, -(10**400), 0.5, -0.0, 1e308, 5e-324),
    *(float("nan"), float("inf"), -float("inf")),
    *("", "0", "x" * 5000, "\0", "\ud800", "../../etc/passwd", "(a+)+$", ".*.*.*.*.*.*x", "("),
    *([], {}, [1], ["a", 1], {"a": 1}, [[[[[[]]]]]]),
]


def _json_file(path: Path, seed: str) -> bytes:
    """The file with some values replaced, keys lost, renamed or doubled, or bytes changed."""
    if seed == GOOD:
        return path.read_bytes()
    rng = random.Random(seed)
    raw = json.loads(path.read_text(encoding="utf-8"))
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        _change(_inner(raw, rng), rng)
    data = json.dumps(raw).encode()
    kind = rng.randrange(8)
    if kind == 0:
        data = _bytes_changed(data, rng)
    elif kind == 1:
        data = data.replace(b"{", b'{"%s": 1, ' % rng.choice([*raw, "a"]).encode(), 1)
    elif kind == 2:
        data = rng.choice(
            [b"\xef\xbb\xbf" + data, data * 2, b"[" * 10**5 + data, data + b"\0", b" " * (5 << 20)]
        )
    return data


def _inner(raw: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """The object itself, or one inside it."""
    inner = [value for value in raw.values() if isinstance(value, dict) and value]
    return rng.choice(inner) if inner and rng.random() < 0.8 else raw


def _change(raw: dict[str, Any], rng: random.Random) -> None:
    if not raw:
        return
    key = rng.choice(sorted(raw))
    kind = rng.randrange(4)
    if kind == 0:
        del raw[key]
    elif kind == 1:
        raw[rng.choice([key.upper(), key + "x", "\0", ""])] = raw.pop(key)
    elif kind == 2 and isinstance(raw[key], (int, float)):
        raw[key] = rng.choice([raw[key] + 1, -raw[key], raw[key] * 2, raw[key] * 10**9])
    else:
        raw[key] = copy.deepcopy(rng.choice(ODD))


def _bytes_changed(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice([1, 3, 20])):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed[: rng.choice([len(changed), len(changed), rng.randrange(len(changed))])])


# --- the vocabulary, a protocol buffer ----------------------------------------------------------------------

Field = tuple[int, Any]  # number; int, bytes, or float for four bytes

PIECE, TRAINER, NORMALIZER, SELF_TEST, DENORMALIZER = 1, 2, 3, 4, 5


def _vocabulary(good: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.25:
        return _bytes_changed(good, rng)
    fields = _fields(good)
    change = rng.choice([_pieces, _scores, _types, _options, _charsmap, _order, _count])
    change(fields, rng)
    return _message(fields)


def _edit(fields: list[Field], kind: int, rng: random.Random, edit: Callable[[list[Field]], None]) -> None:
    """Change one of the inner messages of this number."""
    at = rng.choice([i for i, (number, _) in enumerate(fields) if number == kind])
    inner = _fields(fields[at][1])
    edit(inner)
    fields[at] = kind, _message(inner)


def _junk(rng: random.Random) -> bytes:
    some = rng.randbytes(rng.choice([1, 8, 4000]))
    return rng.choice(
        [b"", b"\xff\xfe", b"\0", b"\xe2\x96\x81" * 1000, some, b"a", b"b" * 10**5, b"<0x0A>", b"<s>", b"\n"]
    )


def _pieces(fields: list[Field], rng: random.Random) -> None:
    for _ in range(rng.choice([1, 10, 200])):
        _edit(fields, PIECE, rng, lambda inner: inner.__setitem__(0, (1, _junk(rng))))


def _scores(fields: list[Field], rng: random.Random) -> None:
    for _ in range(rng.choice([1, 10, 200])):
        score = rng.choice([float("nan"), float("inf"), -float("inf"), 3e38, -3e38, 0.0])
        _edit(fields, PIECE, rng, lambda inner, score=score: inner.append((2, score)))


def _types(fields: list[Field], rng: random.Random) -> None:
    for _ in range(rng.choice([1, 10, 200])):
        kind = rng.choice([0, 1, 2, 3, 4, 5, 6, 7, 1 << 40])
        _edit(fields, PIECE, rng, lambda inner, kind=kind: inner.append((3, kind)))


def _options(fields: list[Field], rng: random.Random) -> None:
    """Model type, byte fallback, special ids and names, white space."""
    if rng.random() < 0.5:
        number, texts, kind = (
            rng.choice([3, 24, 25, 26, 35, 40, 41, 42, 43, 45, 46, 47, 48]),
            (45, 46, 47, 48),
            TRAINER,
        )
    else:
        number, texts, kind = rng.choice([1, 3, 4, 5, 6]), (1, 6), NORMALIZER
    value = _junk(rng) if number in texts else rng.choice([0, 1, 2, 3, 4, 1 << 31, (1 << 64) - 1, 600])
    _edit(fields, kind, rng, lambda inner: inner.append((number, value)))


def _charsmap(fields: list[Field], rng: random.Random) -> None:
    """A table of replaced characters whose inner references lead anywhere."""
    size = rng.choice([4, 1024, 2048, 4096])
    units = [rng.choice([0, 1 << 9, 1 << 31, 1 << 10 | rng.randrange(256), rng.randrange(1 << 32)])]
    units += [rng.randrange(1 << 32) for _ in range(size // 4 - 1)]
    table = struct.pack("<I", rng.choice([size, size, size, 0, size * 2, 1 << 31]))
    table += struct.pack(f"<{len(units)}I", *units) + rng.choice(
        [b"", b"\0", b"ab\0", rng.randbytes(40) + b"\0"]
    )
    _edit(fields, NORMALIZER, rng, lambda inner: inner.append((2, table)))
    if rng.random() < 0.3:
        fields.append((DENORMALIZER, next(value for number, value in fields if number == NORMALIZER)))


def _order(fields: list[Field], rng: random.Random) -> None:
    rng.shuffle(fields)
    fields.append((SELF_TEST, _message([(1, _message([(1, b"abc"), (2, b"x y")]))])))


def _count(fields: list[Field], rng: random.Random) -> None:
    """Pieces twice, or only the first few."""
    keep = rng.choice([0, 1, 3, 100, 259, 512])
    pieces = [field for field in fields if field[0] == PIECE]
    rest = [field for field in fields if field[0] != PIECE]
    fields[:] = pieces[:keep] + pieces[: 512 - keep] * rng.randrange(2) + rest


def _fields(data: bytes) -> list[Field]:
    """The fields of a message; all of a vocabulary's floats are 32 bits wide."""
    fields: list[Field] = []
    at = 0
    while at < len(data):
        tag, at = _number(data, at)
        if tag & 7 == 0:
            value, at = _number(data, at)
            fields.append((tag >> 3, value))
        elif tag & 7 == 5:
            fields.append((tag >> 3, struct.unpack_from("<f", data, at)[0]))
            at += 4
        else:
            assert tag & 7 == 2
            size, at = _number(data, at)
            fields.append((tag >> 3, data[at : at + size]))
            at += size
    return fields


def _message(fields: list[Field]) -> bytes:
    parts = []
    for number, value in fields:
        if isinstance(value, float):
            parts.append(_varint(number << 3 | 5) + struct.pack("<f", value))
        elif isinstance(value, int):
            parts.append(_varint(number << 3) + _varint(value))
        else:
            parts.append(_varint(number << 3 | 2) + _varint(len(value)) + value)
    return b"".join(parts)


def _number(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            return value, at


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])
