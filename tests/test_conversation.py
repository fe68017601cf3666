"""Conversations: turns, the file form, and pictures that survive it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from owl_fast.conversation import Conversation, keep_picture, load_messages, picture_uri, user_message
from owl_fast.errors import DataError, ImageError, PromptError
from owl_fast.images import ImageProcessor, load_image
from owl_fast.picture_files import MAX_BYTES
from owl_fast.prompts import chat_pieces
from owl_fast.video import Video, load_frames
from tests.golden_data import image_files

IMAGES = image_files()


def talk() -> Conversation:
    conversation = Conversation(system="Be brief.")
    conversation.add(user_message("What is it?", [IMAGES[0]]), "A star.")
    conversation.add(user_message("And its colour?"), "Red.")
    return conversation


def test_turns_are_taken_back_one_by_one() -> None:
    conversation = talk()
    roles = [message["role"] for message in conversation.messages]
    assert roles == ["system", "user", "assistant", "user", "assistant"]
    assert conversation.undo() == {"role": "user", "content": "And its colour?"}
    first = conversation.undo()
    assert first is not None
    assert first["content"][-1] == {"type": "text", "text": "What is it?"}
    assert conversation.undo() is None
    assert conversation.messages == [{"role": "system", "content": "Be brief."}]


def test_clear_keeps_the_system_message_and_set_system_keeps_the_turns() -> None:
    conversation = talk()
    turns = conversation.messages[1:]
    conversation.set_system("Be long.")
    assert conversation.messages == [{"role": "system", "content": "Be long."}, *turns]
    conversation.set_system(None)
    assert conversation.messages == turns
    conversation.set_system("")
    conversation.clear()
    assert conversation.messages == [{"role": "system", "content": ""}]


def test_pictures_stand_in_front_of_the_text() -> None:
    message = user_message("both?", IMAGES[:2])
    _, pictures = chat_pieces([message])
    assert pictures == [str(path) for path in IMAGES[:2]]
    assert user_message("", IMAGES[:1])["content"] == [{"type": "image", "image": str(IMAGES[0])}]


def sources() -> dict[str, object]:
    picture = Image.open(IMAGES[1])
    rgb = np.asarray(Image.open(IMAGES[0]).convert("RGB"))
    return {
        "path": IMAGES[0],
        "palette": Image.open(IMAGES[3]),
        "rgba": picture,
        "bytes": IMAGES[2].read_bytes(),
        "file": io.BytesIO(IMAGES[4].read_bytes()),
        "array": rgb,
        "tensor": torch.from_numpy(rgb.copy()).permute(2, 0, 1),
        "data uri": picture_uri(IMAGES[1]),
        "16 bit": Image.fromarray(np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000),
        "url": "https://example.org/a.png",
    }


@pytest.mark.parametrize("embed", [False, True])
def test_every_kind_of_picture_survives_the_file(tmp_path: Path, embed: bool) -> None:
    kinds = sources()
    conversation = Conversation([user_message("What is it?", list(kinds.values()))])
    conversation.save(tmp_path / "c.json", embed=embed)
    again = Conversation.load(tmp_path / "c.json")
    _, before = chat_pieces(conversation.messages)
    _, after = chat_pieces(again.messages)
    assert after.pop() == before.pop() == "https://example.org/a.png"
    assert (after[0] == str(IMAGES[0])) is not embed
    for name, ours, other in zip(kinds, before, after, strict=False):
        one, two = load_image(ours), load_image(other)
        assert (one.mode, one.size, one.tobytes()) == (two.mode, two.size, two.tobytes()), name
    Conversation(again.messages).save(tmp_path / "d.json")
    assert (tmp_path / "d.json").read_text() == (tmp_path / "c.json").read_text()


def test_the_file_is_the_messages(tmp_path: Path) -> None:
    talk().save(tmp_path / "c.json")
    raw = json.loads((tmp_path / "c.json").read_text())
    assert list(raw) == ["messages"]
    assert raw["messages"][0] == {"role": "system", "content": "Be brief."}
    assert raw["messages"][1]["content"][0] == {"type": "image", "image": str(IMAGES[0])}
    (tmp_path / "list.json").write_text(json.dumps(raw["messages"]))
    assert load_messages(tmp_path / "list.json") == raw["messages"]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_relative_path_counts_from_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message = {"role": "user", "content": [{"type": "image", "image": "a.png"}]}
    (tmp_path / "c.json").write_text(json.dumps([message]))
    assert load_messages(tmp_path / "c.json")[0]["content"][0]["image"] == str(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    assert user_message("", ["a.png"])["content"][0]["image"] == str(tmp_path / "a.png")


def test_a_kept_picture_is_read_many_times_and_stays_what_it_was() -> None:
    file = io.BytesIO(IMAGES[0].read_bytes())
    kept = keep_picture(file)
    assert load_image(kept).tobytes() == load_image(kept).tobytes() == load_image(IMAGES[0]).tobytes()
    mine = Image.new("RGB", (4, 4))
    kept = keep_picture(mine)
    mine.paste((255, 0, 0), (0, 0, 4, 4))
    assert load_image(kept).getpixel((0, 0)) == (0, 0, 0)


def test_modes_without_a_png_become_rgb() -> None:
    picture = Image.open(IMAGES[0]).convert("CMYK")
    assert load_image(picture_uri(picture)).tobytes() == picture.convert("RGB").tobytes()
    with pytest.raises(ImageError, match="convert it to RGB"):
        picture_uri(Image.new("La", (2, 2)))


def test_a_large_picture_still_fits_when_it_is_read_back() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1800, 1800, 3), dtype=np.uint8)
    uri = picture_uri(noise)
    assert len(uri) < MAX_BYTES // 3 * 4
    picture = load_image(uri)
    assert picture.size == (900, 900)
    assert ImageProcessor(16)(picture).isfinite().all()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "not readable as JSON"),
        ("{", "not readable as JSON"),
        ("\xff", "not readable as JSON"),
        ("[" * 100_000, "not readable as JSON"),
        ("{}", "wanted"),
        ('"hello"', "wanted"),
        ('[{"role": "owl", "content": "x"}]', "message 0: role 'owl'"),
        ('[{"role": "user", "content": 5}]', "message 0: content is int"),
        ('[{"role": "user", "content": [{"type": "image"}]}]', "message 0, part 0"),
        ('[{"role": "assistant", "content": [{"type": "image", "image": "a"}]}]', "only user messages"),
    ],
)
def test_files_that_do_not_fit_say_why(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "c.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=said) as caught:
        load_messages(path)
    assert str(path) in str(caught.value)


def test_unreadable_and_unwritable_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        Conversation.load(tmp_path / "none.json")
    with pytest.raises(DataError, match="cannot be written"):
        talk().save(tmp_path / "no" / "c.json")
    (tmp_path / "file").touch()
    for name in ("file/c.json", "\0", "\ud800"):
        with pytest.raises(DataError, match="cannot be written"):
            talk().save(tmp_path / name)
        with pytest.raises(DataError, match="cannot be read"):
            Conversation.load(tmp_path / name)
    (tmp_path / "file").unlink()
    odd: list[dict[str, Any]] = [{"role": "user", "content": [{"type": "text", "text": {1, 2}}]}]
    with pytest.raises(PromptError, match="JSON"):
        Conversation(odd).save(tmp_path / "c.json")
    assert list(tmp_path.iterdir()) == []


def test_a_lone_surrogate_survives(tmp_path: Path) -> None:
    Conversation([user_message("a\ud800b")]).save(tmp_path / "c.json")
    assert load_messages(tmp_path / "c.json")[0]["content"] == "a\ud800b"


def test_an_empty_conversation_is_one_too(tmp_path: Path) -> None:
    Conversation(system="Hm.").save(tmp_path / "c.json")
    assert Conversation.load(tmp_path / "c.json").messages == [{"role": "system", "content": "Hm."}]


def test_a_video_is_kept_as_its_path(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), (60 * i, 0, 0)) for i in range(4)]
    frames[0].save(tmp_path / "clip.gif", save_all=True, append_images=frames[1:])
    message = user_message("What happens?", [Video(tmp_path / "clip.gif", 2), IMAGES[0]])
    Conversation([message]).save(tmp_path / "c.json")
    assert load_messages(tmp_path / "c.json") == [message]
    (_, (video, _)) = chat_pieces(load_messages(tmp_path / "c.json"))
    assert video == Video(str(tmp_path / "clip.gif"), 2)
    relative = [{"role": "user", "content": [{"type": "video", "video": "clip.gif"}]}]
    (tmp_path / "d.json").write_text(json.dumps(relative))
    assert load_messages(tmp_path / "d.json")[0]["content"][0]["video"] == str(tmp_path / "clip.gif")
    stills = user_message("And here?", [Video([IMAGES[0], IMAGES[1]])])
    Conversation([stills]).save(tmp_path / "e.json")
    assert load_messages(tmp_path / "e.json") == [stills]
    with pytest.raises(PromptError, match="cannot be saved; pass its path"):
        Conversation([user_message("", [Video(frames)])]).save(tmp_path / "f.json")


def test_a_video_from_an_open_file_can_be_shown_again(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), (60 * i, 0, 0)) for i in range(4)]
    frames[0].save(tmp_path / "clip.gif", save_all=True, append_images=frames[1:])
    with (tmp_path / "clip.gif").open("rb") as file:
        message = user_message("What happens?", [Video(file)])
    for _ in range(2):
        (_, (video,)) = chat_pieces([message])
        assert len(load_frames(video)) == 4
