"""The chat from its command line: one answer, pipes, several turns, Ctrl-C, exit codes."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from owl_fast import Engine, chat
from owl_fast.chat.text import safe
from owl_fast.engine.outputs import Event, Output
from owl_fast.engine.stream import Stream
from tests.chat.fakes import clip
from tests.golden_data import GOLDEN, FirstRelease, Golden, image_files

MODEL = str(Golden("micro").checkpoint)
IMAGE = str(image_files()[0])
BASE = [MODEL, "--device", "cpu", "--dtype", "fp32", "--max-tokens", "6"]
ROOT = GOLDEN.parent.parent


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.from_pretrained(MODEL, device="cpu", dtype="fp32", max_batch=1)


def user(text: str, *images: str) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def answer(engine: Engine, *messages: dict[str, Any], **options: Any) -> str:
    """What the engine says, as it is; the screen leaves out control characters, which this model says."""
    output = engine.generate(messages, max_tokens=6, **options)
    assert isinstance(output, Output)
    return output.text


def command(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """The real command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "owl_fast.chat", *arguments],
        input=stdin,
        capture_output=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=120,
        check=False,
    )


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let input() give these lines; an exception type is raised in its turn. After the last comes Ctrl-D."""

    def lines(*entries: str | type[BaseException]) -> None:
        waiting: Iterator[str | type[BaseException]] = iter((*entries, EOFError))

        def answer(_prompt: str = "") -> str:
            entry = next(waiting)
            if isinstance(entry, str):
                return entry
            raise entry

        monkeypatch.setattr("builtins.input", answer)
        monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)

    return lines


# --- one answer ---


def test_one_answer_on_stdout_and_the_statistics_on_stderr(
    engine: Engine, capfd: pytest.CaptureFixture[str]
) -> None:
    assert chat.main([*BASE, "-i", IMAGE, "-p", "What is it?"]) == 0
    out, err = capfd.readouterr()
    assert out == safe(answer(engine, user("What is it?", IMAGE))) + "\n"
    statistics = err.strip().splitlines()[-1]
    assert statistics.startswith("6 tok · ")
    assert "(image " in statistics
    assert statistics.endswith("· length")
    assert "\x1b" not in err


@pytest.mark.parametrize("flags", [["--no-stream"], ["--plain"], ["-v"]], ids=str)
def test_flags_do_not_change_the_answer(
    engine: Engine, capfd: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    assert chat.main([*BASE, *flags, "-p", "hello"]) == 0
    out, err = capfd.readouterr()
    assert out == safe(answer(engine, user("hello"))) + "\n"
    assert ("ready: checkpoint fp32" in err) == ("-v" in flags)


def test_sampling_flags_and_system_reach_the_engine(
    engine: Engine, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = ["--temperature", "1.5", "--top-k", "9", "--seed", "3", "--stop", "zzz", "-s", "Be brief."]
    assert chat.main([*BASE, *flags, "-p", "hello"]) == 0
    messages = [{"role": "system", "content": "Be brief."}, user("hello")]
    wanted = answer(engine, *messages, temperature=1.5, top_k=9, seed=3, stop="zzz")
    assert capfd.readouterr().out == safe(wanted) + "\n"


def test_a_file_of_the_first_release_and_a_video(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    release, video = FirstRelease(), str(clip(tmp_path / "clip.gif"))
    told = {"tokenizer": str(release.folder / "tokenizer.model"), **release.HEADS}
    flags = [word for name, value in told.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    assert chat.main([str(release.checkpoint), *BASE[1:], *flags, "--video", video, "-p", "What?"]) == 0
    model = Engine.from_pretrained(release.checkpoint, device="cpu", dtype="fp32", **told)
    content = [{"type": "video", "video": video}, {"type": "text", "text": "What?"}]
    assert capfd.readouterr().out == safe(answer(model, {"role": "user", "content": content})) + "\n"


def test_the_picture_or_the_prompt_may_come_from_a_pipe(engine: Engine) -> None:
    picture = command(*BASE, "-i", "-", "-p", "What is it?", stdin=Path(IMAGE).read_bytes())
    wanted = safe(answer(engine, user("What is it?", IMAGE)))
    assert (picture.returncode, picture.stdout.decode()) == (0, wanted + "\n")
    prompt = command(*BASE, stdin="¿hello?\n".encode())
    wanted = safe(answer(engine, user("¿hello?")))
    assert (prompt.returncode, prompt.stdout.decode()) == (0, wanted + "\n")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["no/such/folder", "-p", "x"], 1, "no/such/folder"),
        ([MODEL, "-i", "missing.png", "-p", "x"], 1, "missing.png"),
        ([MODEL, "-i", f"{MODEL}/config.json", "-p", "x"], 1, "config.json"),
        ([MODEL, "-p", "x", "--max-tokens", "100000"], 1, "context"),
        ([MODEL, "-p", "x", "--adapter", "no/such"], 1, "no/such"),
        ([MODEL, "-p", "x", "--device", "tpu"], 1, "tpu"),
        (
            [MODEL, "-p", "x", "--device", "cpu", "--dtype", "fp16", "--exact"],
            1,
            "exact answers with float16",
        ),
        ([MODEL, "-p", "x", "--temperature", "-1"], 2, "temperature"),
        ([MODEL, "-p", "x", "--beams", "2", "--stop", "a"], 2, "beams"),
        ([MODEL, "-p", "x", "--top-k", "many"], 2, "top-k"),
        ([MODEL, "-p", "x", "--dtype", "int3"], 2, "dtype"),
        ([MODEL, "-p", "  "], 2, "empty"),
        ([MODEL, "-i", "-"], 2, "stdin"),
        (
            ["-i", IMAGE, IMAGE, "-p", "x"],
            2,
            "a picture, where MODEL stands; every picture has an -i of its own",
        ),
        ([MODEL, "--no-such-flag"], 2, "no-such-flag"),
    ],
    ids=str,
)
def test_a_mistake_gets_one_line_and_its_exit_code(
    capfd: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    try:
        result = chat.main(arguments)
    except SystemExit as leaving:  # argparse leaves by itself
        result = int(leaving.code or 0)
    out, err = capfd.readouterr()
    assert result == code
    assert message in err.strip().splitlines()[-1]
    assert "Traceback" not in err
    assert out == ""


def test_a_picture_is_opened_before_the_model(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Engine, "from_pretrained", lambda *_, **__: pytest.fail("a model was loaded"))
    assert chat.main([*BASE, "-i", "missing.png", "-p", "x"]) == 1
    assert capfd.readouterr().err == "error: 'missing.png': no such file\n"


def test_a_picture_in_the_place_of_the_prompt_is_wrong_usage() -> None:
    result = command(*BASE, stdin=Path(IMAGE).read_bytes())
    assert result.returncode == 2
    assert b"a picture wants -i -" in result.stderr


@pytest.mark.parametrize(
    ("streams", "code", "said"),
    [("<&-", 2, "prompt is empty"), ("-p x <&- >&-", 0, "tok/s"), ("-p x > /dev/full", 1, "No space left")],
    ids=str,
)
def test_streams_that_are_closed_or_full(streams: str, code: int, said: str) -> None:
    line = f"{shlex.join([sys.executable, '-m', 'owl_fast.chat', *BASE])} {streams}"
    result = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, cwd=ROOT, timeout=120, check=False
    )
    assert result.returncode == code
    assert said in result.stderr.strip().splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_an_empty_pipe_is_wrong_usage() -> None:
    result = command(*BASE)
    assert result.returncode == 2
    assert b"prompt is empty" in result.stderr
    assert b"Traceback" not in result.stderr


def test_help_shows_examples(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        chat.main(["--help"])
    assert leaving.value.code == 0
    assert "cat a.jpg |" in capfd.readouterr().out


def test_the_bundled_model_says_once_what_it_is(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("owl_fast.engine.opening.BUNDLED", Golden("micro").checkpoint)
    assert chat.main(["-p", "hello", "--max-tokens", "2"]) == 0
    err = capfd.readouterr().err
    assert err.count("demonstration") == 1
    assert "python -m owl_fast.chat MODEL" in err
    assert chat.main([*BASE, "-p", "hello"]) == 0
    assert "demonstration" not in capfd.readouterr().err


# --- Ctrl-C ---


@pytest.fixture
def interrupted_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Send a real SIGINT while the answer's n-th event is being made."""

    def arm(count: int) -> None:
        events = iter(range(count + 1))
        following = Stream.__next__

        def next_event(stream: Stream) -> Event:
            if next(events, None) == count:
                os.kill(os.getpid(), signal.SIGINT)
            return following(stream)

        monkeypatch.setattr(Stream, "__next__", next_event)

    return arm


def test_ctrl_c_stops_the_answer_and_keeps_it(
    engine: Engine, capfd: pytest.CaptureFixture[str], interrupted_after: Callable[[int], None]
) -> None:
    whole = safe(answer(engine, user("hello")))
    before = signal.getsignal(signal.SIGINT)
    interrupted_after(3)
    assert chat.main([*BASE, "-p", "hello"]) == 130
    out, err = capfd.readouterr()
    assert whole.startswith(out[:-1])
    assert err.strip().endswith("· cancelled")
    assert err.strip().splitlines()[-1].startswith("3 tok")
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_while_loading_leaves(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Engine, "from_pretrained", interrupted)
    assert chat.main([*BASE, "-p", "x"]) == 130
    assert "Traceback" not in capfd.readouterr().err


# --- several turns ---


def test_turns_build_on_each_other(
    engine: Engine, capfd: pytest.CaptureFixture[str], typed: Callable[..., None]
) -> None:
    typed(f"/image {IMAGE}", "What is it?", "", "And its color?")
    assert chat.main(BASE) == 0
    first = user("What is it?", IMAGE)
    one = answer(engine, first)
    two = answer(engine, first, {"role": "assistant", "content": one}, user("And its color?"))
    out, err = capfd.readouterr()
    assert out == f"{safe(one)}\n{safe(two)}\n"
    assert f"picture 1: {os.path.basename(IMAGE)}" in err
    assert "ready: checkpoint fp32 · " in err


def test_a_failed_turn_is_taken_back_and_its_pictures_wait(
    engine: Engine, capfd: pytest.CaptureFixture[str], typed: Callable[..., None]
) -> None:
    typed("/image nowhere.png", f"/image {IMAGE}", "word " * 400, "What is it?")
    assert chat.main(BASE) == 0
    out, err = capfd.readouterr()
    assert out == safe(answer(engine, user("What is it?", IMAGE))) + "\n"
    assert err.count("error: ") == 2
    assert "nowhere.png" in err


def test_an_interrupted_turn_is_kept(
    engine: Engine,
    capfd: pytest.CaptureFixture[str],
    typed: Callable[..., None],
    interrupted_after: Callable[[int], None],
) -> None:
    typed("hello", "go on")
    interrupted_after(3)
    assert chat.main(BASE) == 0
    begun = engine.generate([user("hello")], max_tokens=3).text  # type: ignore[union-attr]
    following = answer(engine, user("hello"), {"role": "assistant", "content": begun}, user("go on"))
    assert capfd.readouterr().out == f"{safe(begun)}\n{safe(following)}\n"


def test_clear_help_and_unknown_commands(
    engine: Engine, capfd: pytest.CaptureFixture[str], typed: Callable[..., None]
) -> None:
    typed(f"/image {IMAGE}", "/clear", "/help", "/clera", "/dance", "hello", "/exit", "never asked")
    assert chat.main(BASE) == 0
    out, err = capfd.readouterr()
    assert out == safe(answer(engine, user("hello"))) + "\n"
    assert "did you mean /clear?" in err
    assert "no command /dance; /help lists" in err
    assert "/image PATH" in err


def test_ctrl_c_twice_at_the_prompt_leaves(
    capfd: pytest.CaptureFixture[str], typed: Callable[..., None]
) -> None:
    typed(KeyboardInterrupt, "hello", KeyboardInterrupt, KeyboardInterrupt, "never asked")
    assert chat.main(BASE) == 0
    assert capfd.readouterr().err.count("tok/s") == 1
