"""Several turns and the commands, with a scripted model and keyboard."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from owl_fast.chat.commands import COMMANDS
from owl_fast.chat.session import Session
from owl_fast.chat.talk import Talk
from owl_fast.engine.sampling import SamplingParams
from owl_fast.errors import ContextLengthError, OwlError
from tests.chat.fakes import FakeBackend, FakeReader, FakeScreen, clip
from tests.golden_data import image_files
from tests.typed import TYPED

IMAGE, OTHER = image_files()[:2]
# /exit and /edit would change what the entries behind them do.
TAKING = [f"{name} " for name in COMMANDS if name not in ("/save", "/exit", "/edit")]
BEGINNINGS = ["", "/", '"""', "/save no/such/folder/", *TAKING]


class Run:
    """What a whole conversation left behind."""

    def __init__(self, *entries: str | type[BaseException], scripts: tuple[Any, ...] = ()) -> None:
        self.backend, self.screen = FakeBackend(*scripts), FakeScreen()
        self.session = Session(self.backend, SamplingParams(), self.screen)
        self.talk, self.reader = Talk(self.session, self.screen), FakeReader(*entries)
        self.code = self.talk.run(self.reader)

    @property
    def turns(self) -> list[tuple[str, Any]]:
        return [(message["role"], message["content"]) for message in self.session.conversation.messages]

    def asked(self, index: int) -> list[tuple[str, Any]]:
        return [(message["role"], message["content"]) for message in self.backend.asked[index][0]]


def names(content: Any) -> list[str]:
    return [part.get("name", part.get("text")) for part in content]


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


# --- turns ---


def test_turns_build_on_each_other() -> None:
    run = Run("hello", "", "and?", scripts=(["Hi", " there"], ["So."]))
    assert run.code == 0
    assert run.asked(1) == [("user", "hello"), ("assistant", "Hi there"), ("user", "and?")]
    assert run.turns[-1] == ("assistant", "So.")
    assert run.screen.answers == ["Hi there", "So.", ""]
    assert run.screen.notes[0].endswith("context 12/100 · stop")


def test_a_block_is_a_message_whatever_it_says() -> None:
    run = Run('"""\n/clear\nnow\n"""', '""""""', " /clear")
    assert [turn for turn in run.turns if turn[0] == "user"] == [("user", "/clear\nnow"), ("user", "/clear")]


def test_a_question_that_fails_is_taken_back_and_its_pictures_wait() -> None:
    run = Run(f"/image {IMAGE}", "too long", "short", scripts=(ContextLengthError("no room"), ["ok"]))
    assert run.screen.errors == ["no room"]
    (question, answer) = run.turns
    assert names(question[1]) == [IMAGE.name, "short"]
    assert answer == ("assistant", "ok")
    assert run.session.queue == []


def test_an_answer_that_breaks_off_is_kept_as_far_as_it_came() -> None:
    run = Run("tell", "/continue", scripts=(["Once", OwlError("the line broke")], [" upon"]))
    assert run.screen.errors == ["the line broke; what was said is kept, /continue goes on with it"]
    assert run.asked(1) == [("user", "tell"), ("assistant", "Once")]
    assert run.turns == [("user", "tell"), ("assistant", "Once upon")]


def test_ctrl_c_keeps_what_was_said_and_a_second_one_does_not_wait() -> None:
    run = Run("one", "two", scripts=(["A", interrupt, "B"], ["C", interrupt, interrupt, "D"]))
    assert run.turns == [("user", "one"), ("assistant", "A"), ("user", "two"), ("assistant", "C")]
    assert run.screen.notes[0].endswith("· cancelled")


def test_ctrl_c_before_the_first_word_takes_the_question_back() -> None:
    run = Run(f"/image {IMAGE}", "one", scripts=([interrupt, "A"],))
    assert run.turns == []
    assert [picture.name for picture in run.session.queue] == [IMAGE.name]
    assert run.screen.notes[-1].startswith("stopped")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_twice_at_an_empty_prompt_leaves() -> None:
    run = Run(KeyboardInterrupt, "hello", KeyboardInterrupt, KeyboardInterrupt, "never")
    assert run.code == 0
    assert len(run.backend.asked) == 1
    assert list(run.reader.entries) == ["never"]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(BEGINNINGS), TYPED), max_size=6))
def test_whatever_is_typed_the_conversation_goes_on(typed: list[tuple[str, str]]) -> None:
    """Mistakes are messages on the screen; anything else would come out of run()."""
    run = Run(*(beginning + text for beginning, text in typed), f"/image {IMAGE}", "hello?")
    assert run.code == 0
    assert run.turns[-2:][0][0] == "user"
    assert run.backend.asked[-1][0][-1]["content"][-1]["text"].endswith("hello?")


# --- pictures ---


def test_pictures_wait_are_listed_and_dropped(capsys: pytest.CaptureFixture[str]) -> None:
    folder = IMAGE.parent
    run = Run(
        "/drop 1",
        "/images",
        f"/image {folder}/*.png",
        "/images",
        "/drop 1",
        "/drop 9",
        "/drop x",
        "/image no.png",
    )
    waiting = sorted(path.name for path in folder.glob("*.png"))
    assert [picture.name for picture in run.session.queue] == waiting[1:]
    assert run.screen.notes[0].startswith("no picture or video waits")
    assert f"dropped {waiting[0]}" in run.screen.notes
    assert [error[:5] for error in run.screen.errors] == ["no pi", "/drop", "/drop", "'no.p"]
    assert "picture(s) waiting" in run.talk.status()


def test_a_picture_stands_where_it_is_typed() -> None:
    run = Run(f"/image {IMAGE}", f"/image {OTHER}", "this <image> or that")
    assert names(run.turns[0][1]) == [OTHER.name, "this", IMAGE.name, "or that"]


def test_videos_wait_beside_pictures_and_are_kept_by_their_path(tmp_path: Path) -> None:
    video, file = clip(tmp_path / "clip.gif"), tmp_path / "talk.json"
    run = Run(f"/video {video}", f"/image {IMAGE}", "/video no.gif")
    assert run.screen.notes[0] == "video 1: clip.gif, 4 frame(s) of 10 x 8"
    assert run.screen.notes[1].endswith("where it says <|video|>")
    assert run.screen.notes[2].startswith(f"picture 2: {IMAGE.name}")
    assert [error[:7] for error in run.screen.errors] == ["'no.gif"]
    assert "1 video(s) waiting · 1 picture(s) waiting" in run.talk.status()
    entries = ("see <|video|>", "/edit", "why <|video|>", f"/save {file}")
    run = Run(f"/video {video}", f"/image {IMAGE}", *entries)
    assert names(run.turns[0][1]) == [IMAGE.name, "why", "clip.gif"]
    again = Run(f"/load {file}", "more")
    assert again.asked(0)[0][1][2]["video"] == str(video)


# --- commands about the conversation ---


def test_undo_retry_and_clear() -> None:
    scripts = (["1"], ["2"], ["3"])
    run = Run("one", "two", "/retry", "/undo", "/undo", "/undo", "/retry", scripts=scripts)
    assert run.asked(2) == run.asked(1)
    assert run.turns == []
    assert run.screen.errors == ["nothing has been asked yet"] * 2
    assert any("temperature" in note for note in run.screen.notes)
    run = Run("/system Be brief.", "one", f"/image {IMAGE}", "/clear")
    assert run.turns == [("system", "Be brief.")]
    assert run.session.queue == []


def test_a_failed_retry_keeps_the_answer() -> None:
    run = Run("one", "/retry", scripts=(["1"], OwlError("busy")))
    assert run.turns == [("user", "one"), ("assistant", "1")]


def test_edit_changes_the_last_message_and_keeps_its_pictures() -> None:
    run = Run(
        "first", f"/image {IMAGE}", "what <image> is", "/edit", "why <image>", scripts=(["a"], ["b"], ["c"])
    )
    assert run.reader.drafts[4] == "what <image> is"
    assert [turn for turn in run.turns if turn[0] == "assistant"] == [("assistant", "a"), ("assistant", "c")]
    assert names(run.turns[2][1]) == ["why", IMAGE.name]


@pytest.mark.parametrize("entry", ["", KeyboardInterrupt, "/images"])
def test_an_edit_can_be_given_up(entry: Any) -> None:
    run = Run("/first", '"""/second"""', "/edit", entry, "third")
    assert run.reader.drafts[3] == '"""/second"""'
    assert [content for role, content in run.turns if role == "user"] == ["/second", "third"]


def test_the_system_text_is_shown_replaced_and_brought_back() -> None:
    run = Run("/system", "/system Be brief.", "hello", "/system default", "bye")
    assert run.asked(0)[0] == ("system", "Be brief.")
    assert run.asked(1)[0] == ("user", "hello")
    assert run.screen.notes[0] == "system text: the model's own"
    assert "system text: Be brief." in run.screen.notes


def test_a_conversation_is_saved_and_loaded_with_its_pictures(tmp_path: Path) -> None:
    file, other = tmp_path / "talk.json", tmp_path / "other.png"
    other.write_bytes(b"precious")
    run = Run(
        f"/image {IMAGE}", "what?", f"/save {file}", f"/save {file}", f"/save {other}", "/save", "/load"
    )
    assert run.screen.notes.count(f"saved to {file}") == 2
    assert len(run.screen.errors) == 3
    assert other.read_bytes() == b"precious"
    again = Run("before", f"/load {file}", "more")
    assert [role for role, _ in again.asked(1)] == ["user", "assistant", "user"]
    (picture, words) = again.asked(1)[0][1]
    assert picture["image_url"]["url"].startswith("data:image/png;base64,")
    assert words == {"type": "text", "text": "what?"}
    broken = Run("before", f"/load {other}")
    assert broken.turns[0] == ("user", "before")
    assert len(broken.screen.errors) == 1


# --- commands about the model ---


def test_settings_are_shown_changed_and_checked() -> None:
    run = Run(
        *("/set temperature 0.5", "/set top-k 3", "/set stop ###", "/set seed 4", "/set seed default"),
        *(
            "/set tempratur 1",
            "/set temperature hot",
            "/set temperature -1",
            "/set beams 2",
            "/set",
            "/set seed",
            "/set nonsense",
        ),
        "hello",
    )
    params = run.backend.asked[0][1]
    assert params == SamplingParams(temperature=0.5, top_k=3, stop=("###",))
    assert [error for error in run.screen.errors if "did you mean temperature?" in error]
    assert len(run.screen.errors) == 5
    assert "no setting 'nonsense'" in run.screen.errors[-1]
    rows = [note.split()[:2] for note in run.screen.notes]
    assert ["temperature", "0.5"] in rows
    assert rows.count(["seed", "-"]) == 3


def test_topics_tokens_and_adapters() -> None:
    run = Run(
        *("hello", "/show", "/show memory", "/show params", "/show weather", "/tokens"),
        *("/adapter", "/adapter some/folder", "/adapter off", "/adapter folder", "bye"),
    )
    notes = run.screen.notes
    assert "messages  3" in notes
    assert "topic     memory" in notes
    assert any(note.startswith("temperature") for note in notes)
    assert run.screen.errors == ["/show wants one of model, params, template, memory, cache; 'weather' came"]
    assert "the conversation takes 21 positions of 100, 79 left for an answer" in notes
    assert run.backend.folders == {"folder": "some/folder"}
    assert run.backend.asked[-1][2] == "folder"
    assert "adapter folder" in run.talk.status()


def test_help_names_every_command() -> None:
    run = Run("/help", "/exit", "never")
    said = "\n".join(run.screen.notes)
    assert all(command in said for command in COMMANDS)
    assert list(run.reader.entries) == ["never"]
    (line,) = Run("/help drop").screen.notes
    assert line.startswith("/drop N")


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("/clera", "did you mean /clear?"),
        ("/CLEAR", "did you mean /clear?"),
        ("/dance", "/help lists"),
        ("/", "no command /; /help lists"),
        ("/load ~\0", "no NUL"),
        ("/exit now", "/exit takes nothing behind it; 'now' came"),
        (str(IMAGE), f"/image {IMAGE}"),
    ],
)
def test_an_unknown_command_gets_a_hint(line: str, hint: str) -> None:
    run = Run(line)
    assert hint in run.screen.errors[0]
    assert run.backend.asked == []
