"""Loading: every layout fills the model exactly, what is saved loads bit-equal, misfits are named."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from owl_fast.checkpoints import copy_side_files, load_model, save_model, writer
from owl_fast.checkpoints.first_release import FIRST
from owl_fast.checkpoints.layout import LATER, Layout
from owl_fast.checkpoints.load import empty_model
from owl_fast.checkpoints.names import HF_NAMES, map_name, views
from owl_fast.checkpoints.peft import PREFIX
from owl_fast.checkpoints.tensorfile import read_tensors, write_tensors
from owl_fast.checkpoints.writer import whole_folder
from owl_fast.config import OwlConfig, Quantization
from owl_fast.errors import CheckpointError, UnsupportedError
from tests.golden_data import assert_same_weights, first_release_name

GOLDEN = Path(__file__).parents[1] / "golden"
FOLDERS = [GOLDEN / "tiny/checkpoint", GOLDEN / "micro/checkpoint", GOLDEN / "micro/checkpoint_safetensors"]
MICRO = FOLDERS[2]
INV_FREQ = "language_model.model.layers.0.self_attn.rotary_emb.inv_freq"


def file_tensors(folder: Path) -> dict[str, Tensor]:
    files = [*folder.glob("*.bin"), *folder.glob("*.safetensors")]
    return {name: tensor for file in files for name, tensor in read_tensors(file).items()}


@pytest.fixture
def micro(tmp_path: Path) -> Path:
    """A copy of the micro model in one safetensors file, to be spoilt."""
    folder = tmp_path / "micro"
    folder.mkdir()
    shutil.copy(MICRO / "config.json", folder)
    write_tensors(folder / "model.safetensors", file_tensors(MICRO))
    return folder


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f"{f.parent.name}-{f.name}")
def test_every_tensor_of_the_files_is_in_its_place(folder: Path) -> None:
    model = load_model(folder)
    tensors = {k: v for k, v in file_tensors(folder).items() if not k.endswith("rotary_emb.inv_freq")}
    assert sum(p.numel() for p in model.parameters()) == sum(t.numel() for t in tensors.values())
    parameters = dict(model.named_parameters())
    for i, layer in enumerate(model.language_model.model.layers):
        head = f"language_model.model.layers.{i}"
        for fused, parts in (("self_attn.qkv", "qkv"), ("mlp.gate_up", ("gate", "up"))):
            owner = fused.split(".")[0]
            wanted = torch.cat([tensors.pop(f"{head}.{owner}.{p}_proj.weight") for p in parts])
            assert torch.equal(layer.get_parameter(f"{fused}_proj.weight"), wanted)
    for i, layer in enumerate(model.abstractor.encoder.layers):
        head = f"abstractor.encoder.layers.{i}.crossattention"
        for leaf in ("weight", "bias"):
            for fused, parts in (
                ("attention.key_value", ("attention.key", "attention.value")),
                ("output.mlp.w13", ("output.mlp.w1", "output.mlp.w3")),
            ):
                wanted = torch.cat([tensors.pop(f"{head}.{part}.{leaf}") for part in parts])
                assert torch.equal(layer.get_parameter(f"crossattention.{fused}.{leaf}"), wanted)
    for name, tensor in tensors.items():
        assert torch.equal(parameters[name], tensor), name


def test_a_loaded_model_is_ready_to_run() -> None:
    model = load_model(MICRO)
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(t.is_meta for t in (*model.parameters(), *model.buffers()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_weights_are_rounded_once_to_the_dtype_asked_for(dtype: torch.dtype) -> None:
    for exact, parameter in zip(
        load_model(MICRO).parameters(), load_model(MICRO, dtype=dtype).parameters(), strict=True
    ):
        assert torch.equal(parameter, exact.to(dtype))


@pytest.mark.parametrize("quantization", [None, Quantization("int4", "int8")], ids=str)
def test_a_model_without_its_language_model(micro: Path, quantization: Quantization | None) -> None:
    """The same but for memory: files are checked as ever."""
    whole = load_model(micro, quantization=quantization)
    model = load_model(micro, quantization=quantization, without=("language_model",))
    for name, wanted in whole.state_dict().items():
        found = model.state_dict()[name]
        assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype), name
        assert found.is_meta if name.startswith("language_model.") else torch.equal(found, wanted), name
    tensors = file_tensors(micro)
    del tensors["language_model.lm_head.weight"]
    write_tensors(micro / "model.safetensors", tensors)
    with pytest.raises(CheckpointError, match="1 tensors are missing"):
        load_model(micro, without=("language_model",))


def test_progress_counts_the_bytes_of_the_files() -> None:
    calls: list[tuple[int, int]] = []
    load_model(MICRO, progress=lambda done, total: calls.append((done, total)))
    total = sum(tensor.nbytes for tensor in file_tensors(MICRO).values())
    assert calls == sorted(calls)
    assert {wanted for _, wanted in calls} == {total}
    assert calls[-1][0] == total


@pytest.mark.parametrize("format", ["safetensors", "bin"])
@pytest.mark.parametrize("shard_bytes", [1 << 30, 100_000], ids=["single", "sharded"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_save_and_load_is_bit_equal(
    tmp_path: Path, format: str, shard_bytes: int, dtype: torch.dtype
) -> None:
    model = load_model(FOLDERS[0], dtype=dtype)
    save_model(model, tmp_path / "out", format=format, shard_bytes=shard_bytes)
    files = [file for file in (tmp_path / "out").iterdir() if file.suffix in (".bin", ".safetensors")]
    assert (len(files) == 1) == (shard_bytes == 1 << 30)
    back = load_model(tmp_path / "out")
    assert back.config == model.config
    assert_same_weights(model, back)


def test_saved_names_and_values_are_the_released_ones(tmp_path: Path) -> None:
    save_model(load_model(MICRO), tmp_path / "out", shard_bytes=100_000)
    released = {n: t for n, t in file_tensors(MICRO).items() if map_name(HF_NAMES, n) is not None}
    saved = file_tensors(tmp_path / "out")
    assert saved.keys() == released.keys()
    assert all(torch.equal(saved[name], released[name]) for name in saved)
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == saved.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in saved.values())
    for file in (tmp_path / "out").glob("*.safetensors"):
        held = read_tensors(file)
        assert len(held) == 1 or sum(tensor.nbytes for tensor in held.values()) <= 100_000


def test_side_files_come_along(tmp_path: Path) -> None:
    save_model(load_model(MICRO), tmp_path / "out", side_files=MICRO.parent / "checkpoint")
    for name in ("tokenizer.model", "preprocessor_config.json", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (MICRO.parent / "checkpoint" / name).read_bytes()
    assert "config.json" not in copy_side_files(MICRO, tmp_path)


def test_nothing_half_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(path: Path, value: object) -> None:
        raise OSError(28, "No space left on device")

    model = load_model(MICRO)
    monkeypatch.setattr(writer, "write_json", full_disk)
    with pytest.raises(CheckpointError, match="No space left"):
        save_model(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    def write(fail: bool) -> None:
        with whole_folder(tmp_path / "a/out") as staging:
            (staging / "x").touch()
            assert not (tmp_path / "a/out").exists()
            if fail:
                raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        write(fail=True)
    assert list((tmp_path / "a").iterdir()) == []
    write(fail=False)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["out"]
    with pytest.raises(CheckpointError, match="not an empty folder"):
        write(fail=False)


def test_a_filled_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(CheckpointError, match="not an empty folder"):
        save_model(load_model(MICRO), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]


def test_a_model_with_foreign_parameters_is_not_saved(tmp_path: Path) -> None:
    model = load_model(MICRO)
    model.language_model.register_parameter("extra", torch.nn.Parameter(torch.zeros(1)))
    with pytest.raises(CheckpointError, match=r"language_model\.extra"):
        save_model(model, tmp_path / "out")


def spoil(folder: Path, **changes: Tensor | None) -> None:
    tensors = read_tensors(folder / "model.safetensors")
    for name, tensor in changes.items():
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor
    write_tensors(folder / "model.safetensors", tensors)


NORM, KEY = (
    "language_model.model.norm.weight",
    "abstractor.encoder.layers.0.crossattention.attention.key.weight",
)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({NORM: None}, f"1 tensors are missing .*{NORM}"),
        ({KEY: None}, f"1 tensors are missing .*{KEY}"),
        ({"language_model.lm_head.weight": None}, r"lm_head\.weight"),
        ({"stray": torch.zeros(2)}, r"model\.safetensors: tensor stray has no place"),
        ({NORM: torch.zeros(3)}, rf"tensor {NORM} has shape \(3,\); the config asks for \(\d+,\)"),
        ({KEY: torch.zeros(3, 4)}, rf"tensor {KEY} has shape \(3, 4\); the config asks for"),
        ({NORM: torch.zeros(())}, rf"tensor {NORM} has shape \(\)"),
    ],
    ids=["missing", "missing-part", "missing-head", "unused", "shape", "part-shape", "scalar"],
)
def test_tensors_that_do_not_fit_the_config(
    micro: Path, changes: dict[str, Tensor | None], message: str
) -> None:
    spoil(micro, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_model(micro)


def test_integer_weights_are_refused_and_dropped_buffers_are_not_looked_at(micro: Path) -> None:
    width = load_model(micro).config.llama.hidden_size
    spoil(micro, **{INV_FREQ: torch.zeros(3, dtype=torch.int64)})
    load_model(micro)
    spoil(micro, **{NORM: torch.zeros(width, dtype=torch.int64)})
    with pytest.raises(CheckpointError, match=rf"tensor {NORM} has dtype torch.int64"):
        load_model(micro)


def test_a_config_of_another_size_is_noticed(micro: Path) -> None:
    raw = json.loads((micro / "config.json").read_text())
    raw["text_config"]["num_hidden_layers"] += 1
    (micro / "config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match=r"9 tensors are missing .*, \.\.\."):
        load_model(micro)


def test_several_dtypes_need_a_choice(micro: Path) -> None:
    width = load_model(micro).config.llama.hidden_size
    spoil(micro, **{NORM: torch.ones(width, dtype=torch.bfloat16)})
    with pytest.raises(CheckpointError, match="say which dtype"):
        load_model(micro)
    assert load_model(micro, dtype=torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("name", [NORM, KEY])
def test_weights_that_are_no_numbers_are_refused_unless_allowed(micro: Path, name: str, value: str) -> None:
    tensor = read_tensors(micro / "model.safetensors")[name]
    tensor.view(-1)[-1] = float(value)
    spoil(micro, **{name: tensor})
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: tensor {name} holds NaN or infinity"):
        load_model(micro)
    assert load_model(micro, allow_nonfinite=True).dtype == torch.float32


def test_weights_beyond_the_dtype_are_refused(micro: Path) -> None:
    tensor = read_tensors(micro / "model.safetensors")[NORM]
    tensor[0] = 1e5
    spoil(micro, **{NORM: tensor})
    assert load_model(micro, dtype=torch.bfloat16).dtype == torch.bfloat16
    with pytest.raises(CheckpointError, match=rf"{NORM} holds NaN or infinity as torch\.float16"):
        load_model(micro, dtype=torch.float16)


def test_a_weight_like_a_flipped_exponent_is_said(micro: Path, caplog: pytest.LogCaptureFixture) -> None:
    load_model(micro)
    assert caplog.messages == []
    tensor = read_tensors(micro / "model.safetensors")[KEY]
    tensor[0, 0] = -1e30
    spoil(micro, **{KEY: tensor})
    load_model(micro)
    assert len(caplog.messages) == 1
    assert f"{KEY} holds a weight of 1e+30" in caplog.messages[0]


def test_arguments_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="int8"):
        load_model(MICRO, dtype=torch.int8)
    with pytest.raises(CheckpointError, match="no weights"):
        load_model(tmp_path)
    with pytest.raises(UnsupportedError, match="gguf"):
        save_model(load_model(MICRO), tmp_path / "out", format="gguf")


MEASURE = """
import sys, torch
from owl_fast.checkpoints import load_model
from owl_fast.config import Quantization
from benchmarks.memory import MemoryPeak, resident_bytes
load_model({warm!r})
before = resident_bytes()
with MemoryPeak(interval=0.0005) as peak:
    model = load_model({folder!r}, dtype=torch.bfloat16, quantization={quantization!r})
assert "transformers" not in sys.modules
print(peak.value - before, sum(t.nbytes for t in (*model.parameters(), *model.buffers())))
"""


@pytest.mark.parametrize(
    ("layout", "quantization", "least"),
    [
        ("later", None, 80_000_000),
        ("first, wrapped", None, 80_000_000),
        ("later", Quantization("int4"), 40_000_000),
        ("first, wrapped", Quantization("int8", "int8"), 45_000_000),
    ],
    ids=str,
)
def test_loading_costs_the_model_as_it_is_held_and_little_more(
    tmp_path: Path, layout: str, quantization: Quantization | None, least: int
) -> None:
    """A float32 file of 170 MB loaded as bfloat16; a float32 copy of it, or of one shard, would be seen."""
    raw = json.loads((FOLDERS[1] / "config.json").read_text())
    raw["text_config"] |= {"hidden_size": 384, "intermediate_size": 4096, "num_hidden_layers": 6}
    raw["vision_config"] |= {"hidden_size": 384, "intermediate_size": 2048, "num_hidden_layers": 6}
    raw["visual_abstractor_config"] |= {"hidden_size": 384, "encoder_hidden_size": 384}
    if layout == "later":
        tensors = zeros(LATER, OwlConfig.from_dict(raw))
    else:
        raw["visual_abstractor_config"]["bias_kv"] = True
        tensors = zeros(FIRST, OwlConfig.from_dict(raw))
        for i in range(6):
            module = f"{PREFIX}language_model.model.layers.{i}.mlp.down_proj"
            tensors[f"{module}.lora_A.default.weight"] = torch.zeros(8, 4096)
            tensors[f"{module}.lora_B.default.weight"] = torch.zeros(384, 8)
        raw["model_type"] = FIRST.model_type
    (tmp_path / "config.json").write_text(json.dumps(raw))
    write_tensors(tmp_path / "pytorch_model.bin", tensors)
    script = MEASURE.format(warm=str(MICRO), folder=str(tmp_path), quantization=quantization)
    command = [sys.executable, "-c", script]
    runs = [
        subprocess.run(command, capture_output=True, text=True, check=True, cwd=GOLDEN.parents[1])
        for _ in range(3)
    ]
    # The least of them: what malloc keeps besides differs by 5 MB from run to run.
    grown, size = min(tuple(map(int, run.stdout.split())) for run in runs)
    assert size > least
    largest = max(tensor.nbytes // 2 for tensor in tensors.values())
    assert grown <= size + 2 * largest + (8 << 20)


def zeros(layout: Layout, config: OwlConfig) -> dict[str, Tensor]:
    """A state dict of a release with tensors of the right names and shapes, the first's wrapped by PEFT."""
    places = layout.places(views(empty_model(config)), config)
    if layout is LATER:
        return {name: torch.zeros(place.shape) for name, place in places.items()}
    return {PREFIX + first_release_name(name): torch.zeros(place.shape) for name, place in places.items()}
