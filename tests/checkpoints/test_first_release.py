"""Files of the first release: every tensor in its place, sizes read from them, misfits named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from owl_fast import Engine
from owl_fast.checkpoints import load_model, open_source, save_model
from owl_fast.checkpoints.first_release import FIRST, MARK
from owl_fast.checkpoints.tensorfile import read_tensors, write_tensors
from owl_fast.errors import CheckpointError, UnsupportedError
from tests.golden_data import FirstRelease, assert_same_weights, first_release_name

GOLDEN = FirstRelease()
TENSORS = read_tensors(GOLDEN.checkpoint)
DROPPED = ("position_ids", "inv_freq")
QUERY = "vision_model.encoder.layers.1.self_attn.q_proj.bias"
EXTRA = "abstractor.encoder.layers.0.crossattention.attention.bias_k"


def written(folder: Path, **changes: Tensor | None) -> Path:
    """The reference file with some tensors changed or, with None, left out."""
    tensors = TENSORS | {name: tensor for name, tensor in changes.items() if tensor is not None}
    path = folder / "changed.pth"
    write_tensors(path, {n: t for n, t in tensors.items() if n not in changes or changes[n] is not None})
    return path


def original_folder(folder: Path, **changes: Any) -> Path:
    """What the original's save_pretrained leaves: the same names, with a config.json of its own kind."""
    folder.mkdir()
    write_tensors(folder / "pytorch_model.bin", TENSORS)
    raw = json.loads((GOLDEN.folder / "finetune_config_example.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | changes))
    return folder


# --- tensors ----------------------------------------------------------------------------------------------


def test_every_tensor_is_in_its_place() -> None:
    model = GOLDEN.fresh_model()
    tower, heads = model.vision_model, 3
    head = TENSORS["vision_model.embeddings.class_embedding"]
    assert torch.equal(tower.embeddings.cls_token, head[None, None])
    # A patch's columns run over channel, row, column: colour c of pixel (y, x) is column 64 c + 8 y + x.
    columns = TENSORS["vision_model.embeddings.patch_embedding.weight"]
    assert torch.equal(tower.embeddings.patch_embed.weight[:, 2, 5, 3], columns[:, 2 * 64 + 5 * 8 + 3])
    for i, layer in enumerate(tower.encoder.layers):
        name = f"vision_model.encoder.layers.{i}.self_attn"
        for leaf in ("weight", "bias"):
            fused = layer.self_attn.query_key_value.get_parameter(leaf).unflatten(0, (heads, 3, -1))
            for k, part in enumerate("qkv"):
                wanted = TENSORS[f"{name}.{part}_proj.{leaf}"].unflatten(0, (heads, -1))
                assert torch.equal(fused[:, k], wanted), (i, part, leaf)
    extra = model.abstractor.encoder.layers[0].crossattention.attention
    assert torch.equal(extra.bias_k, TENSORS[EXTRA])
    assert sum(p.numel() for p in model.parameters()) == sum(
        t.numel() for n, t in TENSORS.items() if not n.endswith(DROPPED)
    )


def test_names_are_those_of_the_files() -> None:
    model = GOLDEN.fresh_model()
    source = GOLDEN.source()
    places = FIRST.places({n: p.detach() for n, p in model.named_parameters()}, model.config)
    mapped = {target: name for name, target in source.targets.items() if target is not None}
    visual = {n for n in places if n.startswith("vision_model.")}
    assert visual == {n for n in mapped if n.startswith("vision_model.")}
    for name in visual:
        assert first_release_name(name) == mapped[name]
        assert places[name].shape == tuple(TENSORS[mapped[name]].shape), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({QUERY: None}, r"1 tensors are missing .*query_key_value\.bias\[q\]"),
        ({EXTRA: None}, "1 tensors are missing .*bias_k"),
        ({"language_model.lm_head.weight": None}, r"lm_head\.weight"),
        ({"stray": torch.zeros(2)}, "tensor stray has no place"),
        ({QUERY: torch.zeros(7)}, rf"{QUERY} has shape \(7,\); the config asks for \(24,\)"),
        ({QUERY: torch.zeros(24, dtype=torch.int64)}, rf"{QUERY} has dtype torch.int64"),
        ({MARK: torch.zeros(23)}, r"has shape \(23,\); the config asks for \(24,\)"),
        ({"vision_model.embeddings.patch_embedding.weight": torch.zeros(24, 191)}, "patches of 191 numbers"),
        ({"vision_model.embeddings.position_embedding": torch.zeros(25, 24)}, "25 positions"),
        ({"query_tokens": torch.zeros(8, 24)}, r"query_tokens has shape \(8, 24\); wanted 3 dimensions"),
        ({"query_tokens": None}, "no tensor query_tokens; wanted a whole mPLUG-Owl"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_misfits_are_named(tmp_path: Path, changes: dict[str, Tensor | None], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_model(GOLDEN.source(written(tmp_path, **changes)))


def test_buffers_need_not_be_there(tmp_path: Path) -> None:
    """position_ids is read by nobody; without rotary frequencies the heads of LLaMA must be told."""
    gone = {name: None for name in TENSORS if name.endswith(DROPPED)}
    path = written(tmp_path, **gone)
    with pytest.raises(CheckpointError, match=r"text_config.hidden_size 40 is not a multiple of .*config="):
        GOLDEN.source(path)
    told = GOLDEN.source(path, config={"text_config": {"num_attention_heads": 2}})
    assert_same_weights(load_model(told), GOLDEN.fresh_model())


# --- config -----------------------------------------------------------------------------------------------


def test_sizes_come_from_the_tensors() -> None:
    config, values = GOLDEN.source().config, json.loads((GOLDEN.folder / "config_values.json").read_text())
    for part, section in (
        (config.vision, "vision_config"),
        (config.abstractor, "visual_abstractor_config"),
        (config.llama, "text_config"),
    ):
        for name, value in values[section].items():
            if name != "model_type":
                assert getattr(part, name) == value, name
    assert config.num_query_tokens == values["num_query_tokens"]
    assert (config.abstractor.intermediate_size, config.abstractor.bias_kv) == (256, True)
    assert config.first_release


def test_heads_are_eight_where_nobody_says(tmp_path: Path) -> None:
    config = open_source(GOLDEN.checkpoint).config
    assert (config.vision.num_attention_heads, config.abstractor.num_attention_heads) == (8, 8)
    other = load_model(open_source(GOLDEN.checkpoint))
    with pytest.raises(AssertionError):
        assert_same_weights(other, GOLDEN.fresh_model())
    with pytest.raises(CheckpointError, match=r"instruction_tuned\.pth: .*multiple of num_attention_heads 7"):
        open_source(GOLDEN.checkpoint, vision_heads=7)


@pytest.mark.parametrize("as_file", [True, False])
@pytest.mark.parametrize("file", ["config_values.json", "finetune_config_example.json"])
def test_what_the_file_cannot_tell_from_a_config(file: str, as_file: bool) -> None:
    path = GOLDEN.folder / file
    source = open_source(GOLDEN.checkpoint, config=path if as_file else json.loads(path.read_text()))
    assert source.config == GOLDEN.source().config
    told = open_source(GOLDEN.checkpoint, config=path, vision_heads=1).config
    assert (told.vision.num_attention_heads, told.abstractor.num_attention_heads) == (1, 2)


def test_a_part_of_a_config_is_enough() -> None:
    part = {"vision_config": {"layer_norm_eps": 1e-5}, "text_config": {"rms_norm_eps": 1e-5}}
    config = GOLDEN.source(config=part).config
    assert (config.vision.layer_norm_eps, config.llama.rms_norm_eps) == (1e-5, 1e-5)
    assert config.vision.num_attention_heads == 3
    with pytest.raises(CheckpointError, match=r"has shape \(512, 40\); the config asks for \(511, 40\)"):
        load_model(GOLDEN.source(config={"text_config": {"vocab_size": 511}}))


def test_another_activation_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"hidden_act is 'gelu'"):
        GOLDEN.source(config={"vision_config": {"hidden_act": "gelu"}})


def test_folder_the_original_wrote(tmp_path: Path) -> None:
    source = open_source(original_folder(tmp_path / "out"), tokenizer=GOLDEN.folder)
    assert source.config == GOLDEN.source().config
    assert_same_weights(load_model(source), GOLDEN.fresh_model())
    assert source.tokenizer().encode("</s>", literal=False) != [source.tokenizer().eos_id]


def test_folder_of_the_very_first_commit(tmp_path: Path) -> None:
    folder = original_folder(tmp_path / "out")
    raw = json.loads((folder / "config.json").read_text())
    raw["abstractor_config"] = raw.pop("visual_abstractor_config")
    (folder / "config.json").write_text(json.dumps(raw))
    assert open_source(folder).config == GOLDEN.source().config


def test_a_config_of_the_other_release_is_refused_in_a_folder(tmp_path: Path) -> None:
    folder = original_folder(tmp_path / "out", model_type="mplug-owl")
    with pytest.raises(UnsupportedError, match=r"model_type is 'mplug-owl'.*the first release"):
        open_source(folder)


def test_a_stray_config_beside_the_file_does_not_count(tmp_path: Path) -> None:
    """A .pth laid into a folder of the later release keeps its own sizes; its own kind of config counts."""
    path = written(tmp_path)
    shutil.copy(GOLDEN.folder.parents[1] / "micro/checkpoint/config.json", tmp_path)
    assert GOLDEN.source(path).config == GOLDEN.source().config
    shutil.copy(GOLDEN.folder / "finetune_config_example.json", tmp_path / "config.json")
    assert open_source(path).config == GOLDEN.source().config


# --- converted --------------------------------------------------------------------------------------------


def test_saved_as_a_folder_it_stays_what_it_is(tmp_path: Path) -> None:
    model = GOLDEN.fresh_model()
    save_model(model, tmp_path / "out", side_files=GOLDEN.folder)
    source = open_source(tmp_path / "out")
    assert source.config == model.config
    again = load_model(source)
    assert_same_weights(again, model)
    assert source.processor() == GOLDEN.source().processor()
    assert source.tokenizer().encode("a</s>", literal=False) == GOLDEN.source().tokenizer().encode(
        "a</s>", literal=True
    )


def test_the_engine_needs_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.model belongs beside .*tokenizer=FILE"):
        Engine.from_pretrained(written(tmp_path), device="cpu", **GOLDEN.HEADS)
    for tokenizer in (GOLDEN.folder, GOLDEN.folder / "tokenizer.model"):
        engine = Engine.from_pretrained(
            written(tmp_path), device="cpu", tokenizer=tokenizer, max_batch=1, **GOLDEN.HEADS
        )
        assert engine.generate("Hello", max_tokens=1).usage.completion_tokens == 1
