"""The command: what it refuses to begin, what it says, how it ends."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from owl_fast import serve
from owl_fast.errors import OwlError
from owl_fast.serve.arguments import public_hosts, read_arguments, read_keys
from owl_fast.serving.options import read_adapters
from tests.golden_data import GOLDEN
from tests.serving.owls import FIXED, MODEL, seen
from tests.serving.waiting import PATIENCE

ROOT = Path(__file__).parents[2]
KEY = "a-key-that-is-long-enough"


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OWL_API_KEY", raising=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "owl.example", "127.0.0.1.example", ""])
def test_open_to_others_only_with_a_key(
    host: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit) as leaving:
        read_arguments(["--host", host])
    assert leaving.value.code == 2
    assert "--insecure-no-auth" in capsys.readouterr().err
    assert read_arguments(["--host", host, "--insecure-no-auth"]).host == host
    assert read_arguments(["--host", host, "--api-key-file", "key"]).host == host
    monkeypatch.setenv("OWL_API_KEY", KEY)
    assert read_arguments(["--host", host]).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_needs_none(host: str) -> None:
    assert read_keys(read_arguments(["--host", host])) == []


@pytest.mark.parametrize(
    ("host", "names"),
    [
        ("0.0.0.0", ["a:5"]),
        ("::", ["a:5"]),
        ("192.168.1.5", ["192.168.1.5", "a:5"]),
        ("fd00::5", ["[fd00::5]", "a:5"]),
        ("owl.example", ["owl.example", "a:5"]),
    ],
)
def test_the_host_it_listens_on_is_a_name_for_it(host: str, names: list[str]) -> None:
    args = read_arguments(["--host", host, "--insecure-no-auth", "--public-host", "a:5"])
    assert public_hosts(args) == names


def key_file(folder: Path, text: str, mode: int = 0o600) -> str:
    file = folder / "key"
    file.write_text(text)
    file.chmod(mode)
    return str(file)


def test_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = read_arguments(["--api-key-file", key_file(tmp_path, f"{KEY}\n\n{KEY}-2\n")])
    assert read_keys(args) == [KEY, f"{KEY}-2"]
    monkeypatch.setenv("OWL_API_KEY", KEY)
    assert read_keys(read_arguments([])) == [KEY]


@pytest.mark.parametrize(
    ("text", "mode", "words"),
    [
        (KEY, 0o644, "chmod 600"),
        (KEY, 0o660, "chmod 600"),
        ("fifteen-letters", 0o600, "at least 16"),
        (f"{KEY}\nfifteen-letters", 0o600, "at least 16"),
        ("", 0o600, "at least 16"),
        ("a key with spaces in it", 0o600, "no header can carry"),
        ("schlüssel-mit-umlaut", 0o600, "ASCII"),
    ],
)
def test_keys_that_are_none(tmp_path: Path, text: str, mode: int, words: str) -> None:
    with pytest.raises(OwlError, match=re.escape(words)) as caught:
        read_keys(read_arguments(["--api-key-file", key_file(tmp_path, text, mode)]))
    assert not text or text not in str(caught.value)


@pytest.mark.parametrize(("mode", "taken"), [(0o400, True), (0o440, True), (0o444, False), (0o460, False)])
def test_a_credential_of_systemd_may_have_the_mask_of_an_acl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, taken: bool
) -> None:
    args = read_arguments(["--api-key-file", key_file(tmp_path, KEY, mode)])
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    if taken:
        assert read_keys(args) == [KEY]
    else:
        with pytest.raises(OwlError, match="chmod 600"):
            read_keys(args)


def test_only_what_lies_in_the_folder_of_credentials_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, folder = key_file(tmp_path, KEY, 0o440), tmp_path / "credentials"
    folder.mkdir()
    (folder / "link").symlink_to(file)
    for value in ("", str(folder)):
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", value)
        for name in (file, str(folder / "link"), str(folder / "../key")):
            with pytest.raises(OwlError, match="chmod 600"):
                read_keys(read_arguments(["--api-key-file", name]))


def test_a_file_of_keys_is_read_whole_or_not(tmp_path: Path) -> None:
    lines = f"{KEY}{'-' * (64 - len(KEY) - 1)}\n" * 1024
    assert len(read_keys(read_arguments(["--api-key-file", key_file(tmp_path, lines)]))) == 1024
    with pytest.raises(OwlError, match="longer than 65536 bytes"):
        read_keys(read_arguments(["--api-key-file", key_file(tmp_path, f"{lines}{KEY}")]))


@pytest.mark.parametrize("arguments", [["--port", "-1"], ["--port", "65536"], ["--max-context", "255"]])
def test_numbers_that_make_no_sense(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        read_arguments(arguments)
    assert leaving.value.code == 2
    assert f"{' '.join(arguments)}: wanted" in capsys.readouterr().err


def test_adapters() -> None:
    args = read_arguments(["--adapter", "a=x", "--adapter", "b=y=z"])
    assert read_adapters(args.adapter) == {"a": "x", "b": "y=z"}
    for wrong in (["x"], ["=x"], ["a="], ["a=x", "a=y"]):
        with pytest.raises(OwlError, match="NAME=DIR"):
            read_adapters(wrong)


def test_settings_as_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        read_arguments(["--port", "5", "--adapter", "a=x", "--print-config"])
    file = tmp_path / "serve.toml"
    file.write_text(capsys.readouterr().out)
    args = read_arguments(["--config", str(file), "--max-batch", "3"])
    assert (args.port, args.adapter, args.max_batch) == (5, ["a=x"], 3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no/such/model"], "no/such/model"),
        (["--adapter", "a=no/such/adapter"], "no/such/adapter"),
        (["--adapter", "base=x"], "adapter base: the model itself has this name"),
        (["--adapter", "default=x"], "adapter default: "),
        (["--adapter", "owl-nano=x"], "adapter owl-nano: "),
        (["some/owl", "--adapter", "owl=x"], "adapter owl: "),
        (["--image-dir", "no/such/folder"], "folder"),
        (["--image-hosts", "127.0.0.1"], "127.0.0.1"),
        (["--public-host", "a b"], "public host"),
        (["--max-batch", "0"], "max_batch"),
    ],
)
def test_what_cannot_be_started(arguments: list[str], words: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert serve.main([*arguments, "--port", "0", "--device", "cpu"]) == 1
    out, err = capfd.readouterr()
    assert out == ""
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert words in line


def test_a_port_that_is_taken(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert serve.main(["--port", str(port)]) == 1
    reason = "(Address already in use); say --port N, or 0 for any free one"
    assert capfd.readouterr().err == f"error: cannot listen on 127.0.0.1, port {port} {reason}\n"


@contextmanager
def running(*arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process, and the line that says it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-m", "owl_fast.serve", "--port", "0", "--device", "cpu", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline()
    finally:
        process.kill()
        process.communicate()


def test_from_start_to_end(tmp_path: Path) -> None:
    micro = GOLDEN / "micro"
    file = key_file(tmp_path, KEY)
    arguments = [str(micro / "checkpoint"), "--adapter", f"mine={micro / 'lora_adapter'}"]
    with running(*arguments, "--api-key-file", file) as (process, line):
        found = re.fullmatch(r"ready: (http://127\.0\.0\.1:\d+) · checkpoint fp32 · cpu · .* s\n", line)
        assert found is not None
        with httpx.Client(base_url=found[1], timeout=PATIENCE, trust_env=False) as client:
            assert client.get("/health").status_code == 200
            assert client.get("/v1/models").status_code == 401
            client.headers["Authorization"] = f"Bearer {KEY}"
            assert [model["id"] for model in client.get("/v1/models").json()["data"]] == [
                "checkpoint",
                "mine",
            ]
            assert client.get("/ready").status_code == 200
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=25)
        assert (process.returncode, out) == (0, "")
        assert KEY not in err


def test_the_chat_of_the_terminal_is_a_client(tmp_path: Path) -> None:
    with running() as (_, line):
        chat = [sys.executable, "-m", "owl_fast.chat", "--url", f"{line.split()[1]}/v1", "-v"]
        command = [*chat, "-i", str(ROOT / "examples/scene.png"), "-p", "What color is the star?"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
        assert (done.returncode, done.stdout) == (0, "The star is red.\n")
        assert f"ready: {MODEL} at " in done.stderr
        assert "6 tok" in done.stderr


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_stopped_while_it_loads(sign: signal.Signals) -> None:
    """In the middle of imports, and with the thread that loads inside torch."""
    command = [sys.executable, "-m", "owl_fast.serve", "--port", "0", "--device", "cpu"]
    for moment in (None, 0.0, 0.2, 0.4):  # seconds after it listens
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)
        try:
            assert process.stderr is not None
            if moment is None:
                time.sleep(0.7)
            else:
                line = process.stderr.readline()
                assert re.fullmatch(
                    r"loading owl-nano; http://127\.0\.0\.1:\d+ answers when it is ready\n", line
                )
                time.sleep(moment)
            process.send_signal(sign)
            _, err = process.communicate(timeout=25)
            assert (process.returncode, err) == (0, "")
        finally:
            process.kill()
            process.communicate()


def test_it_says_that_it_loads() -> None:
    """From the first moment on; and Ctrl-C does not wait for the rest."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "owl_fast.serve", "--port", str(port), "--device", "cpu"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        seen_statuses = []
        end = time.monotonic() + PATIENCE
        while 200 not in seen_statuses:
            assert time.monotonic() < end
            try:
                seen_statuses.append(
                    httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).status_code
                )
            except httpx.TransportError:
                time.sleep(0.01)
        assert set(seen_statuses) <= {503, 200}
        body = {"messages": seen(), **FIXED, "model": MODEL}
        reply = httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body, trust_env=False)
        assert reply.json()["choices"][0]["message"]["content"] == "The star is red."
        process.send_signal(signal.SIGINT)
        assert process.wait(25) == 0
    finally:
        process.kill()
        process.communicate()
