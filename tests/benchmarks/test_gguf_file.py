"""Files of random blocks: what llama.cpp's own package reads in them. That it runs them: test_cases.py."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from benchmarks.models import config_of
from benchmarks.peers.gguf_file import BLOCKS, gguf_file, tensors

gguf = pytest.importorskip("gguf")
LLAMA = config_of("tiny").llama


@pytest.mark.parametrize("scheme", BLOCKS)
def test_weights_have_the_shapes_and_the_size_of_ours(scheme: str, tmp_path: Path) -> None:
    path = gguf_file(tmp_path, LLAMA, scheme)
    read = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    assert {name: tuple(t.shape[::-1].tolist()) for name, t in read.items()} == tensors(LLAMA)
    for name, tensor in read.items():
        weight = gguf.dequantize(tensor.data, tensor.tensor_type)
        if len(tensor.shape) == 1:
            assert (weight == 1).all()
        else:
            assert tensor.tensor_type.name == scheme, name
            assert weight.std() == pytest.approx(0.02, rel=0.1)
            assert abs(weight.mean()) < 0.004


def test_a_file_that_is_there_is_taken_as_it_is(tmp_path: Path) -> None:
    path = gguf_file(tmp_path, LLAMA, "Q4_0")
    first = path.stat().st_mtime_ns
    assert gguf_file(tmp_path, LLAMA, "Q4_0") == path
    assert path.stat().st_mtime_ns == first
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


def test_a_full_disk_is_noticed_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"0\.0 GB free; random-llama.*takes 0\.0 GB"):
        gguf_file(tmp_path, LLAMA, "Q4_0")
    assert not list(tmp_path.iterdir())


def test_two_blocks_are_never_the_same(tmp_path: Path) -> None:
    read = gguf.GGUFReader(gguf_file(tmp_path, LLAMA, "Q4_0")).tensors
    first, *_ = (tensor.data for tensor in read if len(tensor.shape) == 2)
    assert len(np.unique(first.reshape(-1, 18), axis=0)) == first.size // 18
