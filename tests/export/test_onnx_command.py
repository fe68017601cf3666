"""`python -m owl_fast.export.onnx`: the folder it writes, whole or not at all, and its mistakes."""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

import owl_fast
from owl_fast import lora
from owl_fast.checkpoints import load_model, open_source
from owl_fast.checkpoints.fingerprint import part_sha256
from owl_fast.checkpoints.manifest import Manifest
from owl_fast.engine.onnx_vision import FILE, PARTS, Session
from owl_fast.export import onnx as command
from owl_fast.export import onnx_file
from owl_fast.export.onnx_file import OPSET, PACKAGES
from owl_fast.images import CLIP_MEAN, CLIP_STD
from tests.export.exports import MODELS

MICRO = MODELS["micro"].path


def run(out: Path, *flags: str, model: Path = MICRO) -> int:
    return command.main([str(model), "--out", str(out), "--plain", *flags])


@pytest.fixture(scope="module")
def programs() -> dict[str, Any]:
    return {}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, programs: dict[str, Any]) -> None:
    """Tracing is done once; everything behind it, in every test."""
    trace = torch.onnx.export

    def traced(part: torch.nn.Module, *args: Any, **options: Any) -> Any:
        if "micro" not in programs:
            programs["micro"] = trace(part, *args, **options)
        return programs["micro"]

    monkeypatch.setattr(torch.onnx, "export", traced)


def test_the_file_says_what_it_is(exported: Callable[[str, str, str], Path]) -> None:
    path = exported("micro", "vision", "fp32")
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [(op.domain, op.version) for op in model.opset_import] == [("", OPSET)]
    assert (model.producer_name, model.producer_version) == ("owl_fast", owl_fast.__version__)
    side = load_model(MICRO).config.vision.image_size
    assert {entry.key: entry.value for entry in model.metadata_props} == {
        "owl_fast": owl_fast.__version__,
        "part": "vision",
        "dtype": "fp32",
        "part_sha256": part_sha256(open_source(MICRO), PARTS["vision"]),
        "image_size": str(side),
        "resize": "squeeze",
        "resample": "bicubic",
        "rgb_before_resize": "false",
        "rescale_factor": "0.00392156862745098",
        "image_mean": json.dumps(CLIP_MEAN),
        "image_std": json.dumps(CLIP_STD),
    }
    (pixels,), (features,) = model.graph.input, model.graph.output
    for value, name in ((pixels, "pixels"), (features, "features")):
        assert (value.name, value.type.tensor_type.elem_type) == (name, onnx.TensorProto.FLOAT)
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert [dim.dim_value for dim in pixels.type.tensor_type.shape.dim[1:]] == [3, side, side]


def test_the_file_tells_nothing_of_the_machine(exported: Callable[[str, str, str], Path]) -> None:
    data = exported("micro", "vision", "fp32").read_bytes()
    for word in (b".py", str(Path(owl_fast.__file__).parent).encode(), b"stack_trace"):
        assert word not in data


def test_weights_of_half_precision(exported: Callable[[str, str, str], Path]) -> None:
    model = onnx.load(exported("owl-nano", "vision+abstractor", "fp16"))
    large = {weight.data_type for weight in model.graph.initializer if len(weight.dims) > 1}
    assert large == {onnx.TensorProto.FLOAT16}
    assert {v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)} == {
        onnx.TensorProto.FLOAT
    }


@pytest.mark.usefixtures("quick")
def test_the_folder_and_what_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "out"
    assert command.main([str(MICRO), "--out", str(out)]) == 0
    said, progress = capsys.readouterr()
    first, second = said.splitlines()
    assert first.startswith(f"{out / FILE}: vision in fp32, opset {OPSET}, ")
    assert second.startswith(f"ONNX Runtime {version('onnxruntime')} and torch in fp32, batches of 1, 2, 3 ")
    assert "writing the graph" in progress
    assert {file.name for file in out.iterdir()} == {FILE, "owl_manifest.json"}
    manifest = Manifest.read(out)
    assert manifest is not None
    manifest.check()
    assert run(tmp_path / "again") == 0
    assert capsys.readouterr().err == ""
    assert (tmp_path / "again" / FILE).read_bytes() == (out / FILE).read_bytes()


@pytest.mark.usefixtures("quick")
def test_large_weights_lie_beside_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = MODELS["micro"].pictures()[:2]
    assert run(tmp_path / "whole") == 0
    monkeypatch.setattr(onnx_file, "EXTERNAL_BYTES", 0)
    assert run(tmp_path / "out") == 0
    moved = (tmp_path / "out").rename(tmp_path / "moved")
    assert {file.name for file in moved.iterdir()} == {FILE, f"{FILE}.data", "owl_manifest.json"}
    stored = onnx.load(moved / FILE, load_external_data=False).graph.initializer
    places = {entry.value for w in stored for entry in w.external_data if entry.key == "location"}
    assert places == {f"{FILE}.data"}
    assert torch.equal(Session(moved / FILE)(pixels), Session(tmp_path / "whole" / FILE)(pixels))


def link(path: Path, target: str) -> Path:
    path.symlink_to(target)
    return path


def full_folder(path: Path) -> Path:
    path.mkdir()
    (path / "mine").write_text("mine")
    return path


def folder_of(path: Path, target: str) -> Path:
    path.mkdir()
    link(path / FILE, target)
    return path


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda at: link(at / "out", "empty"), "a link"),
        (lambda at: link(at / "out", "mine"), "a link"),
        (lambda at: link(at / "out", "nowhere"), "a link"),
        (lambda at: link(at / "out", "out"), "a link"),
        (lambda at: link(at / "out", "file"), "a link"),
        (lambda at: link(at / "out", "/etc"), "a link"),
        (lambda at: folder_of(at / "out", "../file"), "not an empty folder"),
        (lambda at: folder_of(at / "out", "nowhere"), "not an empty folder"),
        (lambda at: at / "mine", "not an empty folder"),
        (lambda at: at / "file", "not an empty folder"),
        (lambda at: at / "file" / "out", "cannot be written"),
    ],
)
@pytest.mark.usefixtures("quick")
def test_nothing_that_is_there_is_touched(
    make: Callable[[Path], Path], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    full_folder(tmp_path / "mine")
    (tmp_path / "file").write_text("mine")
    out = make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert run(out) == 1
    assert said in one_line(capsys)
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "file").read_text() == (tmp_path / "mine/mine").read_text() == "mine"


@pytest.fixture
def small_disk() -> Iterator[None]:
    """Files end after 64 KB, where the system refuses more as it does when a disk is full."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


@pytest.mark.parametrize("beside", [False, True], ids=["in the graph", "beside the graph"])
@pytest.mark.usefixtures("quick")
def test_a_full_disk_leaves_nothing(
    beside: bool,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(tmp_path / "out") == 0
    assert (tmp_path / "out" / FILE).stat().st_size > 64 << 10
    monkeypatch.setattr(onnx_file, "EXTERNAL_BYTES", 0 if beside else 1 << 30)
    capsys.readouterr()
    request.getfixturevalue("small_disk")
    assert run(tmp_path / "other") == 1
    assert f"{tmp_path / 'other'}: cannot be written" in one_line(capsys)
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


@pytest.mark.usefixtures("quick")
def test_ctrl_c_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(onnx.checker, "check_model", interrupt)
    assert run(tmp_path / "out") == 130
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("off", [2e-4, float("nan")])
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.usefixtures("quick")
def test_a_file_that_computes_something_else_is_not_kept(
    off: float,
    dtype: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    right = Session.__call__

    def wrong(self: Session, pixels: torch.Tensor) -> torch.Tensor:
        features = right(self, pixels)
        features[-1, -1, 0] += off * 2 * features.abs().max() if dtype == "fp32" else off * 1e5
        return features

    monkeypatch.setattr(Session, "__call__", wrong)
    assert run(tmp_path / "out", "--dtype", dtype) == 1
    assert "other features than torch" in one_line(capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_a_missing_package_is_named_with_its_extra(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert run(tmp_path / "out") == 1
    assert f"{package}: not installed; pip install '.[onnx]' in the checkout" in one_line(capsys)


def test_mistakes_get_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter = tmp_path / "adapter"
    model = load_model(MICRO)
    lora.attach(model, lora.LoraConfig())
    lora.save_adapter(model, adapter, lora.LoraConfig(), base=str(MICRO))
    empty = tmp_path / "empty"
    empty.mkdir()
    for path, said in (
        (tmp_path / "nowhere", "no such file or folder"),
        (empty, "no weights"),
        (adapter, "an adapter; merge it first"),
    ):
        assert run(tmp_path / "out", model=path) == 1
        assert said in one_line(capsys)
        assert not (tmp_path / "out").exists()


def test_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["m"], ["m", "--out", "x", "--part", "language"], ["m", "--out", "x", "--dtype", "bf16"]):
        with pytest.raises(SystemExit) as caught:
            command.main(argv)
        assert caught.value.code == 2
    with pytest.raises(SystemExit):
        command.main(["--help"])
    assert "examples:" in capsys.readouterr().out


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error
