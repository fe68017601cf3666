"""Pictures by name, and their places in a message."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from owl_fast.chat.pictures import Part, find_paths, open_all, open_picture, open_video, place, unplace
from owl_fast.errors import ImageError
from owl_fast.fetch import Fetcher
from tests.chat.fakes import clip
from tests.golden_data import image_files


def part(name: object) -> Part:
    return {"type": "image", "image": name}


def shown(parts: list[Part]) -> list[object]:
    return [part.get("image", part.get("text")) for part in parts]


@pytest.mark.parametrize(
    ("text", "pictures", "kinds"),
    [
        ("look", [], ["look"]),
        ("say <image>", [], ["say <image>"]),
        ("look", [1, 2], [1, 2, "look"]),
        ("<image> look", [1], [1, "look"]),
        ("this <image> and <image> here", [1, 2], ["this", 1, "and", 2, "here"]),
        ("this <image>", [1, 2], [2, "this", 1]),
        ("<image> and <image>", [1], [1, "and <image>"]),
        ("<image><image>", [1, 2], [1, 2]),
        ("", [1], [1, ""]),
    ],
)
def test_pictures_go_where_they_are_typed(text: str, pictures: list[int], kinds: list[object]) -> None:
    assert shown(place(text, [part(number) for number in pictures])) == kinds


@pytest.mark.parametrize(
    ("text", "pictures"),
    [
        ("look", []),
        ("look", [1, 2]),
        ("this <image> and <image> here", [1, 2]),
        ("this <image>", [1]),
        ("<image> first <image>", [1, 2]),
    ],
)
def test_a_message_taken_apart_can_be_put_together_again(text: str, pictures: list[int]) -> None:
    parts = place(text, [part(number) for number in pictures])
    assert place(*unplace(parts)) == parts


def test_text_alone_has_no_pictures() -> None:
    assert unplace("hello") == ("hello", [])


def test_pictures_in_front_and_among_the_words_keep_their_order() -> None:
    parts = place("this <image>", [part(1), part(2)])
    text, pictures = unplace(parts)
    assert (text.count("<image>"), shown(pictures)) == (2, [2, 1])
    assert place(text, pictures) == parts


def test_names_are_read_as_they_stand_or_as_a_shell_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a b.png", "c.png", "d.png", "it's.png", "x[1].png"):
        Path(name).touch()
    assert find_paths("a b.png") == ["a b.png"]
    assert find_paths(' "a b.png" ') == ["a b.png"]
    assert find_paths(r"a\ b.png c.png") == ["a b.png", "c.png"]
    assert find_paths("it's.png") == ["it's.png"]
    assert find_paths("isn't.png") == ["isn't.png"]
    assert find_paths("x[1].png") == ["x[1].png"]
    assert find_paths("?.png") == ["c.png", "d.png"]
    assert find_paths("~/a.png") == [os.path.expanduser("~/a.png")]
    for nothing, message in (
        ("", "no file is named"),
        ("*.jpg", "no file matches"),
        ("\0/*", "no file has such a name"),
    ):
        with pytest.raises(ImageError, match=message):
            find_paths(nothing)


def test_flags_name_paths_and_patterns(tmp_path: Path) -> None:
    data = image_files()[0].read_bytes()
    for name in ("b.png", "a.png", "x[1].png"):
        (tmp_path / name).write_bytes(data)
    given = [data, f"{tmp_path}/?.png", f"{tmp_path}/x[1].png"]
    assert [shown.name for shown in open_all(given, [])] == ["stdin", "a.png", "b.png", "x[1].png"]
    with pytest.raises(ImageError, match="no file matches"):
        open_all([], [f"{tmp_path}/*.mp4"])


def test_too_many_matches_are_refused(tmp_path: Path) -> None:
    for number in range(65):
        (tmp_path / f"{number}.png").touch()
    with pytest.raises(ImageError, match="65 files match"):
        find_paths(f"{tmp_path}/*.png")


def test_a_url_is_fetched_by_the_one_who_fetches(monkeypatch: pytest.MonkeyPatch) -> None:
    path = image_files()[0]
    monkeypatch.setattr(Fetcher, "__call__", lambda self, url: path.read_bytes())
    picture = open_picture("https://example.org/pictures/owl.png")
    assert (picture.name, picture.data) == ("owl.png", path.read_bytes())
    assert find_paths("HTTP://a/*.png https://b/[1].png") == ["HTTP://a/*.png", "https://b/[1].png"]


def test_a_picture_is_opened_at_once() -> None:
    path = image_files()[0]
    picture = open_picture(str(path))
    assert (picture.name, picture.data) == (path.name, path.read_bytes())
    assert open_picture(path.read_bytes()).size == picture.size
    with pytest.raises(ImageError, match="README"):
        open_picture(str(path.parent.parent / "README.md"))


def test_a_video_is_opened_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shown = open_video(str(clip(Path("clip.gif"))))
    assert (shown.name, shown.size) == ("clip.gif", "4 frame(s) of 10 x 8")
    assert shown.part()["video"] == str(tmp_path / "clip.gif")
    Path("cut.gif").write_bytes(Path("clip.gif").read_bytes()[:50])
    for broken in ("cut.gif", "none.gif", "https://example.com/clip.gif"):
        with pytest.raises(ImageError):
            open_video(broken)


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("look", ["v1", 1, "v2", "look"]),
        ("this <image>", ["v1", "v2", "this", 1]),
        ("<|video|> then <image> then <|video|>", ["v1", "then", 1, "then", "v2"]),
        ("first <|video|>", [1, "v2", "first", "v1"]),
    ],
)
def test_videos_go_where_they_are_typed(text: str, kinds: list[object]) -> None:
    videos: list[Part] = [{"type": "video", "video": name} for name in ("v1", "v2")]
    parts = place(text, [videos[0], part(1), videos[1]])
    assert [p.get("video", p.get("image", p.get("text"))) for p in parts] == kinds
    assert place(*unplace(parts)) == parts
