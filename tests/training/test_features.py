"""The vision tower's outputs on disk: what comes back, what is not trusted, what is bounded."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from owl_fast.errors import UnsupportedError
from owl_fast.models.owl import Owl
from owl_fast.training import EncodedSample, Source, Trainer, TrainSettings, pack, stage2
from owl_fast.training.features import FeatureCache, tower_sha256
from tests.training.owls import ROWS, made_up, small_owl, weights

LARGE = 1 << 30
FILE_BYTES = 5 * 16 * 4 + 49  # features of small_owl in float32, and the header


def frozen_owl(seed: int = 0) -> Owl:
    model = small_owl(seed)
    model.vision_model.requires_grad_(False)
    return model


def cache_of(folder: Path, model: Owl | None = None, limit: int = LARGE) -> FeatureCache:
    return FeatureCache(folder, tower_sha256(model or small_owl()), "fp32", limit)


def pixels_of(index: int) -> Tensor:
    return made_up(index, 1).visual[0]


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_what_is_put_comes_back(tmp_path: Path, dtype: torch.dtype) -> None:
    features = torch.randn(5, 16).to(dtype)
    cache_of(tmp_path).put(pixels_of(0), features)
    found = cache_of(tmp_path).get(pixels_of(0))
    assert found is not None
    assert found.dtype == dtype
    assert torch.equal(found, features)
    assert cache_of(tmp_path).get(pixels_of(1)) is None


def test_another_tower_has_features_of_its_own(tmp_path: Path) -> None:
    cache_of(tmp_path).put(pixels_of(0), torch.randn(5, 16))
    assert cache_of(tmp_path, small_owl(seed=1)).get(pixels_of(0)) is None
    assert tower_sha256(small_owl()) == tower_sha256(small_owl())


@pytest.mark.parametrize("length", [0, 10, FILE_BYTES - 1, FILE_BYTES])
def test_a_file_that_is_not_whole_is_as_none(tmp_path: Path, length: int) -> None:
    cache = cache_of(tmp_path)
    cache.put(pixels_of(0), torch.randn(5, 16))
    (path,) = files(tmp_path)
    raw = bytearray(path.read_bytes())
    assert len(raw) == FILE_BYTES
    raw[-1] ^= 1
    path.write_bytes(raw[:length])
    assert cache.get(pixels_of(0)) is None
    assert files(tmp_path) == []


def test_it_takes_no_more_than_its_limit(tmp_path: Path) -> None:
    limit = 3 * FILE_BYTES
    cache = cache_of(tmp_path, limit=limit)
    for index in range(5):
        cache.put(pixels_of(index), torch.randn(5, 16))
    assert sum(path.stat().st_size for path in files(tmp_path)) == limit
    cache_of(tmp_path, limit=limit).put(pixels_of(9), torch.randn(5, 16))  # counts what is there
    assert len(files(tmp_path)) == 3


def test_a_disk_that_fails_is_said_once_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = cache_of(tmp_path)

    def full(*args: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    for index in range(3):
        cache.put(pixels_of(index), torch.randn(5, 16))
    assert [record.message.rpartition(": ")[2] for record in caplog.records] == [
        "[Errno 28] No space left on device"
    ]
    assert files(tmp_path) == []


def _write(folder: Path, start: int) -> None:
    cache = cache_of(folder)
    for index in range(start, start + 20):
        cache.put(pixels_of(index), torch.full((5, 16), float(index)))


def test_processes_share_it(tmp_path: Path) -> None:
    """Both write the middle ten."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_write, args=(tmp_path, start)) for start in (0, 10)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    cache = cache_of(tmp_path)
    for index in range(30):
        found = cache.get(pixels_of(index))
        assert found is not None
        assert found[0, 0] == index
    assert len(files(tmp_path)) == 30


def test_a_batch_is_filled_up(tmp_path: Path) -> None:
    """Pictures that were seen before come as features and are not computed again."""
    model, samples = frozen_owl(), [made_up(0, 2), made_up(1), made_up(2, 1)]
    cache, whole = cache_of(tmp_path, model), pack(samples, ROWS)
    expected = cache.fill(model, whole)
    assert expected.pixels is None
    look = cache.look(lambda picture: picture)
    samples[1] = made_up(7, 1)  # new
    mixed = [replace(sample, visual=[look(v) for v in sample.visual]) for sample in samples]
    batch = pack(mixed, ROWS)
    assert batch.from_pixels is not None
    assert batch.from_pixels.tolist() == [False, False, True, False]
    filled = cache.fill(model, batch)
    assert filled.features is not None
    assert expected.features is not None
    assert torch.equal(filled.features[[0, 1, 3]], expected.features)
    torch.testing.assert_close(filled.features, model.vision_model(torch.stack(
        [v for sample in samples for v in sample.visual]
    )))  # fmt: skip


def test_a_tower_that_trains_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="the vision tower trains"):
        cache_of(tmp_path).fill(small_owl(), pack([made_up(0, 1)], ROWS))


def test_training_is_the_same_with_and_without(tmp_path: Path) -> None:
    def trained(folder: str, cache: FeatureCache | None) -> Owl:
        model = small_owl()
        look = (lambda v: v) if cache is None else cache.look(lambda v: v)

        def get(index: int) -> EncodedSample:
            sample = made_up(index % 3, 1)
            return replace(sample, visual=[look(v) for v in sample.visual])

        settings = TrainSettings(4, 2, progress=False)
        Trainer(model, stage2(), [Source("made up", get)], settings, tmp_path / folder, features=cache).run()
        return model

    expected = weights(trained("without", None))
    found = weights(trained("with", cache_of(tmp_path / "cache")))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6)
    assert len(files(tmp_path / "cache")) == 3
