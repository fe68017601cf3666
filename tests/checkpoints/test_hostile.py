"""Weight files made to harm: refused by name, without side effect, crash, hang or much memory."""

from __future__ import annotations

import os
import random
import re
from pathlib import Path

import pytest
import torch

from owl_fast.checkpoints.tensorfile import read_tensors, write_tensors
from owl_fast.errors import CheckpointError
from tests.checkpoints.hostile import safetensors, zips
from tests.sandbox import watch

MAX_GROWTH = 200 << 20


def read(path: str) -> int:
    return len(read_tensors(path))


def write_cases(folder: Path) -> dict[Path, str]:
    """Every case as a file or something else of its name -> what the refusal must say."""
    wanted = {}
    for cases, ending in (
        (zips.archives(), ".bin"),
        (zips.pickles(), ".pth"),
        (safetensors.headers(), ".safetensors"),
    ):
        for name, (data, text) in cases.items():
            path = folder / f"{re.sub('[^a-z0-9]+', '-', name.lower())}{ending}"
            path.write_bytes(data)
            assert path not in wanted
            wanted[path] = text
    os.mkfifo(folder / "pipe.bin")
    (folder / "folder.safetensors").mkdir()
    (folder / "device.bin").symlink_to("/dev/zero")
    (folder / "loop.bin").symlink_to("loop.bin")
    (folder / "lost.bin").symlink_to("nowhere")
    (folder / "nothing.bin").touch()
    others = {
        "pipe.bin": "not a regular",
        "folder.safetensors": "not a regular",
        "device.bin": "not a regular",
    }
    others |= {"loop.bin": "cannot be read", "lost.bin": "no such file", "nothing.bin": "empty"}
    return wanted | {folder / name: text for name, text in others.items()}


@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_made_up_files_are_refused(tmp_path: Path) -> None:
    wanted = write_cases(tmp_path)
    assert len(wanted) > 100
    good = tmp_path / "good.safetensors"
    write_tensors(good, {"a": torch.ones(4)})
    outcomes = watch("tests.checkpoints.test_hostile:read", list(wanted), good)
    assert [o for o in outcomes if o.kind != "refused" or o.grown > MAX_GROWTH] == []
    assert [o for o in outcomes if Path(o.case).name not in o.text or len(o.text) > 800] == []
    assert [o for o in outcomes if not re.search(wanted[Path(o.case)], o.text)] == []


def test_the_cases_differ_from_a_good_file_in_one_thing(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(zips.zipped({"a": zips.tensor()}))
    (tmp_path / "a.safetensors").write_bytes(safetensors.file({"a": safetensors.entry()}))
    numbers = torch.frombuffer(bytearray(zips.GOOD), dtype=torch.float32)
    for ending in (".bin", ".safetensors"):
        assert torch.equal(read_tensors(tmp_path / f"a{ending}")["a"], numbers)


def test_payloads_are_never_run(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    files = zips.payloads(victim)
    assert len(files) >= 12
    for name, data in files.items():
        (tmp_path / "x.pth").write_bytes(data)
        with pytest.raises(CheckpointError, match=r"x\.pth"):
            read_tensors(tmp_path / "x.pth")
        assert not victim.exists(), name


@pytest.mark.filterwarnings("ignore")
def test_the_payloads_would_work(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    (tmp_path / "x.pth").write_bytes(zips.payloads(victim)["zip os.system"])
    torch.load(tmp_path / "x.pth", weights_only=False)
    assert victim.exists()


def flipped(data: bytes, bit: int) -> bytes:
    return data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]


def check_flips(tmp_path: Path, count: int) -> None:
    """A bit flipped anywhere in a foreign torch file: refused, or without effect on what is read."""
    rng = random.Random(0)
    tensors = {f"t{i}": torch.randn(40 * i + 1) for i in range(5)}
    write_tensors(tmp_path / "x.pth", tensors)
    data = (tmp_path / "x.pth").read_bytes()
    values = b"".join(tensor.numpy().tobytes() for tensor in tensors.values())
    refused = 0
    for _ in range(count):
        (tmp_path / "y.pth").write_bytes(flipped(data, rng.randrange(8 * len(data))))
        try:
            read_back = read_tensors(tmp_path / "y.pth")
        except CheckpointError:
            refused += 1
        else:
            assert all(torch.equal(read_back[name], tensors[name]) for name in tensors)
    assert refused > count * len(values) / len(data) / 2
    for tensor in tensors.values():
        at = data.index(tensor.numpy().tobytes())
        for _ in range(count // 5):
            (tmp_path / "y.pth").write_bytes(flipped(data, 8 * at + rng.randrange(8 * tensor.nbytes)))
            with pytest.raises(CheckpointError, match=r"y\.pth: tensor t\d, member .* is damaged \(CRC-32"):
                read_tensors(tmp_path / "y.pth")


def check_cuts(tmp_path: Path, count: int) -> None:
    rng = random.Random(0)
    for ending in (".safetensors", ".bin"):
        path = tmp_path / f"x{ending}"
        write_tensors(path, {f"t{i}": torch.randn(100) for i in range(5)})
        data = path.read_bytes()
        for keep in [*range(9), *(rng.randrange(len(data)) for _ in range(count))]:
            path.write_bytes(data[:keep])
            with pytest.raises(CheckpointError, match=path.name):
                read_tensors(path)


def test_flipped_bits_of_a_foreign_file(tmp_path: Path) -> None:
    check_flips(tmp_path, 50)


def test_cut_files(tmp_path: Path) -> None:
    check_cuts(tmp_path, 20)


@pytest.mark.slow
def test_many_flipped_bits_of_a_foreign_file(tmp_path: Path) -> None:
    check_flips(tmp_path, 2000)


@pytest.mark.slow
def test_many_cut_files(tmp_path: Path) -> None:
    check_cuts(tmp_path, 500)
