"""Weight files: what they hold is what comes out, and anything but dense tensors is refused by name."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from owl_fast.checkpoints.tensorfile import open_tensors, read_tensors, write_tensors
from owl_fast.errors import CheckpointError

ENDINGS = [".safetensors", ".bin"]


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64], ids=str)
def test_round_trip_is_bit_equal(tmp_path: Path, ending: str, dtype: torch.dtype) -> None:
    whole = torch.randn(6, 5).mul(100).to(dtype)
    other = whole.clone()
    tensors = {
        "first": whole[:2],
        "second": whole[2:],
        "transposed": other.T,
        "empty": whole[:0],
        "scalar": whole[0, 0].clone(),
    }
    write_tensors(tmp_path / f"x{ending}", tensors)
    back = read_tensors(tmp_path / f"x{ending}")
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == dtype
        assert torch.equal(back[name], tensor), name


def test_a_slice_is_written_without_the_weight_it_belongs_to(tmp_path: Path) -> None:
    write_tensors(tmp_path / "x.bin", {"row": torch.zeros(1000, 1000)[3]})
    assert (tmp_path / "x.bin").stat().st_size < 10_000


@pytest.mark.parametrize("ending", ENDINGS)
def test_files_have_the_rights_of_any_new_file(tmp_path: Path, ending: str) -> None:
    (tmp_path / "plain").touch()
    write_tensors(tmp_path / f"x{ending}", {"a": torch.zeros(2)})
    assert (tmp_path / f"x{ending}").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("ending", ENDINGS)
def test_infos_come_before_the_values(tmp_path: Path, ending: str) -> None:
    write_tensors(tmp_path / f"x{ending}", {"a": torch.zeros(3, 4, dtype=torch.bfloat16)})
    with open_tensors(tmp_path / f"x{ending}") as file:
        assert file.infos["a"] == ((3, 4), torch.bfloat16)
        assert file.infos["a"].nbytes == 24


@pytest.mark.parametrize("ending", ENDINGS)
def test_read_tensors_does_not_depend_on_the_file_afterwards(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"x{ending}"
    write_tensors(path, {"a": torch.ones(2048)})
    tensor = read_tensors(path)["a"]
    path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(tensor, torch.ones(2048))


class Touch:
    """Unpickled without care, creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


def test_a_pickle_never_runs_code(tmp_path: Path) -> None:
    victim = tmp_path / "ran"
    torch.save({"a": torch.zeros(2), "b": Touch(victim)}, tmp_path / "x.bin")
    with pytest.raises(CheckpointError, match=r"x\.bin"):
        read_tensors(tmp_path / "x.bin")
    (tmp_path / "y.bin").write_bytes(pickle.dumps(Touch(victim)))
    with pytest.raises(CheckpointError, match=r"y\.bin"):
        read_tensors(tmp_path / "y.bin")
    assert not victim.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(2)], "holds a list"),
        ({"model": {"a": torch.zeros(2)}}, "'model' is a dict"),
        ({1: torch.zeros(2)}, "entry 1"),
        ({"a": torch.zeros(2, dtype=torch.complex64)}, "tensor a is a torch.ComplexFloatStorage"),
        ({"a": torch.zeros(2, dtype=torch.float64)}, "tensor a is a torch.DoubleStorage"),
        ({"a": torch.eye(3).to_sparse()}, "tensor a is .*sparse"),
        ({"a": torch.zeros(2, device="meta")}, "tensor a is .*meta"),
        ({"a": torch.zeros(1).expand(1_000_000)}, "tensor a is a strided view"),
    ],
    ids=["list", "nested", "number-key", "complex", "double", "sparse", "meta", "expanded"],
)
def test_pickled_content_that_is_refused(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "x.bin")
    with pytest.raises(CheckpointError, match=message):
        read_tensors(tmp_path / "x.bin")


def test_parameters_are_tensors(tmp_path: Path) -> None:
    torch.save({"a": nn.Parameter(torch.ones(2))}, tmp_path / "x.bin")
    back = read_tensors(tmp_path / "x.bin")["a"]
    assert type(back) is torch.Tensor
    assert not back.requires_grad


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("keep", [0, 5, 300, -1])
def test_a_cut_file_is_refused(tmp_path: Path, ending: str, keep: int) -> None:
    path = tmp_path / f"x{ending}"
    write_tensors(path, {"a": torch.randn(64, 64)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="x" + ending):
        read_tensors(path)


def test_the_legacy_pickle_format_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "x.bin", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"before 1\.6"):
        read_tensors(tmp_path / "x.bin")


def test_safetensors_of_another_dtype_is_refused(tmp_path: Path) -> None:
    write_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(2, dtype=torch.int16)})
    with pytest.raises(CheckpointError, match="tensor a has dtype I16"):
        read_tensors(tmp_path / "x.safetensors")


@pytest.mark.parametrize("name", ["absent.bin", "absent.safetensors"])
def test_no_such_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        read_tensors(tmp_path / name)


def test_unknown_ending(tmp_path: Path) -> None:
    (tmp_path / "x.npz").touch()
    with pytest.raises(CheckpointError, match="unknown weight format"):
        read_tensors(tmp_path / "x.npz")
    with pytest.raises(CheckpointError, match="unknown weight format"):
        write_tensors(tmp_path / "y.npz", {})
