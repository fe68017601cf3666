"""Pictures through an exported ONNX file: the same answers, and the file must be the model's."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import onnxruntime
import pytest
import torch

from owl_fast import Engine, Video
from owl_fast.chat import arguments as chat_arguments
from owl_fast.checkpoints import load_model, open_source, save_model
from owl_fast.checkpoints.manifest import MANIFEST, write_manifest
from owl_fast.command_line import loading_options
from owl_fast.config import Quantization
from owl_fast.engine.onnx_vision import DATA, FILE, OnnxFile, OnnxTower, Session
from owl_fast.engine.plan import Setup
from owl_fast.errors import CheckpointError, ParameterError, UnsupportedError
from owl_fast.files import write_json
from owl_fast.serve import arguments as serve_arguments
from tests.engine.test_adapters import write_adapter
from tests.export.exports import EXAMPLES, MODELS
from tests.golden_data import Golden, image_files

Exported = Callable[[str, str, str], Path]
MICRO = Golden("micro")
ROWS = "vision+abstractor"
MOST_ERROR = 1e-4


def load(name: str, file: Path | None = None, **options: Any) -> Engine:
    vision = None if file is None else f"onnx:{file.parent}"
    options = {"device": "cpu", "dtype": "fp32", "max_context": 256, "max_batch": 2} | options
    return Engine.from_pretrained(MODELS[name].path, vision=vision, **options)


@pytest.fixture
def folder(exported: Exported, tmp_path: Path) -> Path:
    """A copy of micro's file, to be damaged."""
    return Path(shutil.copytree(exported("micro", "vision", "fp32").parent, tmp_path / "file"))


@pytest.mark.parametrize(("name", "part"), [("micro", "vision"), ("tiny", ROWS), ("owl-nano", ROWS)])
def test_rows_are_the_models(name: str, part: str, exported: Exported) -> None:
    engine = load(name, exported(name, part, "fp32"))
    rows = engine.encode_images(image_files())
    assert (rows - load(name).encode_images(image_files())).abs().max() <= MOST_ERROR
    assert rows.dtype == torch.float32


def test_rows_are_the_originals(exported: Exported) -> None:
    golden = Golden("tiny")
    model = load("tiny", exported("tiny", ROWS, "fp32")).model
    wanted = golden.tensors("vision")["visual_embeds"]
    assert (model.encode_images(golden.pixels(range(5))) - wanted).abs().max() <= MOST_ERROR


def test_a_model_in_half_precision_gets_rows_of_its_dtype(exported: Exported) -> None:
    engine = load("micro", exported("micro", "vision", "fp32"), dtype="bf16")
    rows = engine.encode_images(image_files()[:1])
    wanted = load("micro").encode_images(image_files()[:1])
    assert rows.dtype == torch.bfloat16
    assert torch.cosine_similarity(rows.float(), wanted, dim=-1).min() > 0.999


@pytest.mark.parametrize(("part", "gone"), [("vision", ("vision_model.",)), (ROWS, ("vision_model.", "abs"))])
def test_what_the_file_holds_takes_no_other_memory(
    part: str, gone: tuple[str, ...], exported: Exported
) -> None:
    path = exported("micro", part, "fp32")
    engine, plain = load("micro", path), load("micro")
    held = dict(engine.model.named_parameters())
    left = {name for name in dict(plain.model.named_parameters()) if not name.startswith(gone)}
    assert set(held) == left
    assert not any(weight.is_meta for weight in held.values())
    file = OnnxFile.open(f"onnx:{path.parent}")
    assert file.nbytes == path.stat().st_size
    assert engine.memory().weights == sum(weight.nbytes for weight in held.values()) + file.nbytes
    setup = Setup(torch.device("cpu"), torch.float32, 256, 2, onnx=file)
    assert setup.memory(engine.config).total == engine.memory().total


def test_a_language_model_held_otherwise_keeps_its_tower(exported: Exported, tmp_path: Path) -> None:
    """The file is known by the weights it was made of, in whatever files, dtype or company they are."""
    path = exported("micro", ROWS, "fp32")
    model = load_model(MICRO.checkpoint, dtype=torch.float32, quantization=Quantization("int8"))
    save_model(model, tmp_path / "int8", side_files=MICRO.checkpoint)
    for place, options in ((tmp_path / "int8", {}), (MICRO.checkpoint, {"quant": "int4"})):
        engine = Engine.from_pretrained(place, device="cpu", vision=f"onnx:{path.parent}", **options)
        wanted = load("micro").encode_images(image_files()[:2])
        assert (engine.encode_images(image_files()[:2]) - wanted).abs().max() <= MOST_ERROR


@pytest.mark.parametrize("part", ["vision", ROWS])
def test_a_weight_of_the_part_that_changed_is_noticed(part: str, exported: Exported, tmp_path: Path) -> None:
    """Another weight of the part is another model's file; another weight elsewhere is not."""
    vision = f"onnx:{exported('micro', part, 'fp32').parent}"
    for name, in_file in (
        ("language_model.model.norm.weight", False),
        ("vision_model.post_layernorm.bias", True),
        ("abstractor.visual_fc.bias", part == ROWS),
        ("query_tokens", part == ROWS),
    ):
        model = load_model(MICRO.checkpoint)
        dict(model.named_parameters())[name].view(-1)[0] += 1e-3
        save_model(model, tmp_path / name, side_files=MICRO.checkpoint)
        if in_file:
            with pytest.raises(
                CheckpointError, match=r"made of weights with part_sha256 .* export the model"
            ):
                Engine.from_pretrained(tmp_path / name, vision=vision)
        else:
            Engine.from_pretrained(tmp_path / name, vision=vision)


def test_heads_count_that_no_weight_shows(folder: Path) -> None:
    heads = open_source(MICRO.checkpoint).config.vision.num_attention_heads
    with pytest.raises(CheckpointError, match="made of weights"):
        Engine.from_pretrained(MICRO.checkpoint, vision_heads=2 * heads, vision=f"onnx:{folder}")


# --- what is no file of the model -------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["", "onnx", "onnx:", "torch", "file.onnx", "ONNX:x", 5, Path("onnx:x")])
def test_unknown_spellings(spec: Any) -> None:
    with pytest.raises(ParameterError, match='wanted "onnx:DIR"'):
        Engine.from_pretrained(MICRO.checkpoint, vision=spec)


def test_another_way_to_hold_the_tower_beside_it(folder: Path) -> None:
    with pytest.raises(ParameterError, match="quant_vision 'int8' came"):
        Engine.from_pretrained(MICRO.checkpoint, vision=f"onnx:{folder}", quant_vision="int8")
    Engine.from_pretrained(MICRO.checkpoint, vision=f"onnx:{folder}", quant_vision="none")


def edited(folder: Path, edit: Callable[[onnx.ModelProto], object]) -> None:
    """The file with a change, and a manifest that vouches for it."""
    model = onnx.load(folder / FILE, load_external_data=False)
    edit(model)
    replaced(folder / FILE, model.SerializeToString())


def replaced(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    (file.parent / MANIFEST).unlink()
    write_manifest(file.parent)


def told(key: str, value: str | None) -> Callable[[onnx.ModelProto], object]:
    def edit(model: onnx.ModelProto) -> None:
        props = {entry.key: entry.value for entry in model.metadata_props}
        del props[key]
        onnx.helper.set_model_props(model, props if value is None else props | {key: value})

    return edit


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda at: shutil.rmtree(at), "no such file; wanted a folder that"),
        (lambda at: (at / FILE).unlink(), "no such file; wanted a folder that"),
        (lambda at: (at / FILE).write_bytes(b""), r"0 bytes; owl_manifest.json says"),
        (lambda at: (at / FILE).write_bytes(bytes(at.joinpath(FILE).stat().st_size)), "SHA-256"),
        (lambda at: (at / MANIFEST).unlink(), "manifest.json is not there; copy the whole folder, or export"),
        (lambda at: write_json(at / MANIFEST, {"files": {}}), "model.onnx: not named by owl_manifest.json"),
        (lambda at: replaced(at / FILE, b"no graph"), "no ONNX file"),
        (lambda at: ((at / FILE).unlink(), (at / FILE).mkdir()), "no regular file"),
        (lambda at: edited(at, told("part", None)), "metadata does not say part, image_size and part_sha256"),
        (lambda at: edited(at, told("part", "language")), "metadata does not say"),
        (lambda at: edited(at, told("part_sha256", None)), "metadata does not say"),
        (lambda at: edited(at, told("image_size", "x")), "metadata does not say"),
        (lambda at: edited(at, told("image_size", "9" * 5000)), "metadata does not say"),
        (lambda at: edited(at, told("image_size", "١١٢")), "metadata does not say"),
        (lambda at: edited(at, told("image_size", "0")), "metadata does not say"),
        (lambda at: edited(at, told("image_size", "224")), "pictures of 224 pixels a side, the model of"),
        (lambda at: edited(at, lambda model: model.graph.node[0].input.append("x")), "cannot load it"),
    ],
)
def test_a_damaged_folder(damage: Callable[[Path], object], said: str, folder: Path) -> None:
    if "no ONNX" in said or "SHA" in said:
        assert OnnxFile.open(f"onnx:{folder}").part == "vision"
    damage(folder)
    with pytest.raises(CheckpointError, match=said) as caught:
        Engine.from_pretrained(MICRO.checkpoint, device="cpu", vision=f"onnx:{folder}")
    assert "\n" not in str(caught.value)


def renamed(value: str, name: str) -> Callable[[onnx.ModelProto], None]:
    def edit(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            for names in (node.input, node.output):
                names[:] = [name if n == value else n for n in names]
        for described in (*model.graph.input, *model.graph.output):
            described.name = name if described.name == value else described.name

    return edit


def one_more(where: str) -> Callable[[onnx.ModelProto], None]:
    """Another input, or the output a second time."""

    def edit(model: onnx.ModelProto) -> None:
        value = onnx.helper.make_tensor_value_info("more", 1, ["batch", 3])
        if where == "output":
            value = onnx.helper.make_tensor_value_info("more", *_shape(model.graph.output[0]))
            model.graph.node.append(onnx.helper.make_node("Identity", [model.graph.output[0].name], ["more"]))
        getattr(model.graph, where).append(value)

    return edit


def _shape(value: onnx.ValueInfoProto) -> tuple[int, list[Any]]:
    tensor = value.type.tensor_type
    return tensor.elem_type, [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]


def sized(where: str, place: int, size: int | str | None) -> Callable[[onnx.ModelProto], None]:
    def edit(model: onnx.ModelProto) -> None:
        dim = getattr(model.graph, where)[0].type.tensor_type.shape.dim[place]
        dim.Clear()
        if size is not None:
            setattr(dim, "dim_value" if isinstance(size, int) else "dim_param", size)

    return edit


def typed(where: str, kind: int) -> Callable[[onnx.ModelProto], None]:
    return lambda model: setattr(getattr(model.graph, where)[0].type.tensor_type, "elem_type", kind)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (renamed("pixels", "pictures"), "computes 'pictures float32"),
        (renamed("features", "out"), "-> out float32"),
        (renamed("features", "x\n" * 500), r"-> x\\nx"),
        (one_more("input"), r", more float32 \(N, 3\) -> "),
        (one_more("output"), ", more float32"),
        (lambda model: model.graph.ClearField("input"), "computes ' -> features"),
        (sized("input", 0, 1), r"'pixels float32 \(1, 3"),
        (sized("input", 1, 1), r"'pixels float32 \(N, 1"),
        (sized("input", 2, "side"), r"'pixels float32 \(N, 3, \?"),
        (sized("output", 1, 5), r"-> features float32 \(N, 5"),
        (sized("output", 2, None), r"-> features float32 \(N, \d+, \?\)'"),
        (lambda model: model.graph.output[0].type.Clear(), r"-> features type 0 \(\)'"),
        (typed("input", onnx.TensorProto.FLOAT16), "'pixels type 10"),
        (typed("output", onnx.TensorProto.DOUBLE), "-> features type 11"),
    ],
)
def test_a_graph_of_another_signature(
    edit: Callable[[onnx.ModelProto], object], said: str, folder: Path
) -> None:
    edited(folder, edit)
    wanted = r", and vision of .* is 'pixels float32 \(N, 3, (\d+), \1\) -> features float32 \(N, \d+, \d+\)'"
    with pytest.raises(CheckpointError, match=f"{said}.*{wanted}") as caught:
        Engine.from_pretrained(MICRO.checkpoint, device="cpu", vision=f"onnx:{folder}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("part", "other"), [("vision", ROWS), (ROWS, "vision")])
def test_the_graph_of_another_part(part: str, other: str, exported: Exported, tmp_path: Path) -> None:
    """With the metadata of this part, the hash of its weights among them."""
    at = Path(shutil.copytree(exported("micro", other, "fp32").parent, tmp_path / "file"))
    props = {e.key: e.value for e in onnx.load(exported("micro", part, "fp32")).metadata_props}
    edited(at, lambda model: onnx.helper.set_model_props(model, props))
    with pytest.raises(CheckpointError, match=rf"computes '.*', and {re.escape(part)} of .* is '"):
        Engine.from_pretrained(MICRO.checkpoint, device="cpu", vision=f"onnx:{at}")


@pytest.fixture
def beside(folder: Path) -> Path:
    """The same with its weights in a file of their own."""
    model = onnx.load(folder / FILE)
    shutil.rmtree(folder)
    folder.mkdir()
    onnx.save(model, folder / FILE, save_as_external_data=True, location=DATA, size_threshold=256)
    write_manifest(folder)
    return folder


def test_weights_in_a_file_of_their_own(beside: Path) -> None:
    rows = load("micro", beside / FILE).encode_images(image_files())
    assert (rows - load("micro").encode_images(image_files())).abs().max() <= MOST_ERROR
    assert OnnxFile.open(f"onnx:{beside}").nbytes == sum(
        (beside / name).stat().st_size for name in (FILE, DATA)
    )


def lies_at(location: str) -> Callable[[onnx.ModelProto], None]:
    def edit(model: onnx.ModelProto) -> None:
        entries = next(w.external_data for w in model.graph.initializer if w.external_data)
        next(entry for entry in entries if entry.key == "location").value = location

    return edit


def linked(at: Path, name: str) -> None:
    (at / name).rename(at.parent / name)
    (at / name).symlink_to(at.parent / name)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda at: edited(at, lies_at(f"../{DATA}")), "weights lie in '../model.onnx.data'"),
        (lambda at: edited(at, lies_at("/etc/passwd")), "weights lie in '/etc/passwd'"),
        (lambda at: edited(at, lies_at(f"./{DATA}")), "weights lie in"),
        (lambda at: edited(at, lies_at(f"a/../{DATA}")), "weights lie in"),
        (lambda at: edited(at, lies_at("")), "weights lie in ''"),
        (lambda at: edited(at, lies_at("other.data")), "weights lie in 'other.data'"),
        (lambda at: linked(at, DATA), "a link"),
        (lambda at: linked(at, FILE), "a link"),
        (lambda at: ((at / DATA).unlink(), (at / DATA).symlink_to("/dev/zero")), "a link"),
        (lambda at: (at / DATA).unlink(), "model.onnx.data: no such file"),
        (lambda at: (at / DATA).write_bytes(b"short"), "5 bytes"),
        (lambda at: replaced(at / DATA, b"short"), "cannot load it"),
    ],
)
def test_nothing_outside_the_folder_is_read(
    damage: Callable[[Path], object], said: str, beside: Path
) -> None:
    damage(beside)
    with pytest.raises(CheckpointError, match=said):
        Engine.from_pretrained(MICRO.checkpoint, device="cpu", vision=f"onnx:{beside}")


def test_weights_outside_are_found_wherever_they_hide(folder: Path) -> None:
    """In a constant of a function that the graph need not even call."""
    hidden = onnx.TensorProto(name="w", data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    hidden.external_data.add(key="location", value="../x")
    constant = onnx.helper.make_node("Constant", [], ["y"], value=hidden)
    opset = [onnx.helper.make_opsetid("", 18)]
    edited(
        folder,
        lambda m: m.functions.append(onnx.helper.make_function("d", "f", [], ["y"], [constant], opset)),
    )
    with pytest.raises(CheckpointError, match=r"weights lie in '\.\./x'"):
        OnnxFile.open(f"onnx:{folder}")


# --- what else an engine does -----------------------------------------------------------------------------


def test_adapters_of_what_is_not_in_the_file(exported: Exported, tmp_path: Path) -> None:
    """Those of the language model always; one with an abstractor of its own where the file ends before."""
    other = write_adapter(tmp_path / "other")
    prompt, images = "Human: <image>\nHuman: what?\nAI: ", image_files()[:1]
    plain, tower = load("micro"), load("micro", exported("micro", "vision", "fp32"))
    rows = load("micro", exported("micro", ROWS, "fp32"))
    for engine in (plain, tower, rows):
        engine.load_adapter("golden", MICRO.adapter)
    plain.load_adapter("other", other)
    tower.load_adapter("other", other)
    for engine, names in ((tower, ("golden", "other", "base")), (rows, ("golden", "base"))):
        for name in names:
            ours, wanted = (
                e.generate(prompt, images=images, adapter=name, max_tokens=8) for e in (engine, plain)
            )
            assert ours.token_ids == wanted.token_ids
            assert torch.tensor(ours.logprobs).sub(torch.tensor(wanted.logprobs)).abs().max() < 1e-3
    with pytest.raises(UnsupportedError, match=r"changes \S+ and 2 others of what lies in .*model.onnx"):
        rows.load_adapter("other", other)
    assert rows.adapters == ("golden",)


def test_videos_are_refused_before_anything_is_computed(exported: Exported) -> None:
    model, source = load("video").model, open_source(MODELS["video"].path)
    file = OnnxFile.open(f"onnx:{exported('micro', 'vision', 'fp32').parent}")
    session: Any = model.vision_model  # stands for the file's
    model.add_module("vision_model", OnnxTower(file, session, model.dtype))
    engine = Engine(model, source.tokenizer(), source.processor(), max_context=256)
    assert engine.encode_images(image_files()[:1]).isfinite().all()
    with pytest.raises(UnsupportedError, match="an ONNX file sees pictures alone"):
        engine.encode_images([Video([image_files()[0]])])
    part = {"type": "video", "video": [image_files()[0]]}
    with pytest.raises(UnsupportedError, match="an ONNX file sees pictures alone"):
        engine.generate([{"role": "user", "content": [part, {"type": "text", "text": "what?"}]}])


def test_a_model_without_its_tower_is_not_saved(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="load it without vision="):
        load("micro", folder / FILE).save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_caches_of_two_towers_are_told_apart(folder: Path) -> None:
    """Last bits differ: rows and keys of one must never be taken for the other's."""
    assert load("micro", folder / FILE)._make.held != load("micro")._make.held


def test_owl_nano_in_a_conversation(exported: Exported) -> None:
    path = exported("owl-nano", ROWS, "fp32")
    chats = [load("owl-nano", file).chat(temperature=0, max_tokens=40) for file in (path, None)]
    for text, images in (("What color is the star?", [EXAMPLES / "scene.png"]), ("Where is it?", [])):
        ours, wanted = (chat(text, images) for chat in chats)
        assert ours.text == wanted.text


def test_commands_take_it() -> None:
    for parser in (chat_arguments.build_parser(), serve_arguments.build_parser()):
        args = parser.parse_args(["model", "--vision", "onnx:DIR"])
        assert loading_options(args)["vision"] == "onnx:DIR"


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UnsupportedError, match=r"onnxruntime: not installed; pip install '\.\[onnx\]'"):
        Engine.from_pretrained(MICRO.checkpoint, vision="onnx:DIR")


# --- on a GPU ---------------------------------------------------------------------------------------------

CUDA = "CUDAExecutionProvider"


class FakeRuntime:
    """onnxruntime as it is where there are GPUs, as far as a session is made; it writes down what came."""

    def __init__(self, offered: list[str], runs: list[str]) -> None:
        self.offered, self.runs = offered, runs
        self.providers: list[Any] = []
        self.SessionOptions = onnxruntime.SessionOptions

    def get_available_providers(self) -> list[str]:
        return self.offered

    def InferenceSession(self, path: Path, options: Any, providers: list[Any]) -> Any:
        assert isinstance(options, onnxruntime.SessionOptions)
        self.providers = providers
        outputs = [SimpleNamespace(shape=["batch", 17, 8])]
        return SimpleNamespace(get_providers=lambda: self.runs, get_outputs=lambda: outputs)


CPU = "CPUExecutionProvider"


def test_on_a_gpu_the_cuda_provider_of_that_gpu_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRuntime([CUDA, CPU], [CUDA, CPU])
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    Session(Path("x"), "cuda:1")
    (name, options), rest = fake.providers
    assert (name, options["device_id"], options["use_tf32"], rest) == (CUDA, 1, 0, CPU)
    Session(Path("x"), "cpu")
    assert fake.providers == [CPU]


@pytest.mark.parametrize(
    ("offered", "runs", "said"),
    [([CPU], [CPU], "pip install onnxruntime-gpu in its place"), ([CUDA, CPU], [CPU], "CUDA or cuDNN")],
)
def test_a_gpu_that_onnx_runtime_cannot_use(
    offered: list[str], runs: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime itself would go on in silence on the CPU."""
    monkeypatch.setitem(sys.modules, "onnxruntime", FakeRuntime(offered, runs))
    with pytest.raises(UnsupportedError, match=said):
        Session(Path("x"), "cuda")


def test_features_are_written_into_torchs_memory(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way a GPU takes, with the real ONNX Runtime on the CPU's memory."""
    waited: list[torch.device] = []

    def stream(device: torch.device) -> Any:
        return SimpleNamespace(synchronize=lambda: waited.append(device))

    monkeypatch.setattr(torch.cuda, "current_stream", stream)
    session = Session(exported("micro", "vision", "fp32"))
    pixels = MODELS["micro"].pictures()[:3]
    assert torch.equal(session._bound(pixels), session(pixels))
    assert waited == [pixels.device]
