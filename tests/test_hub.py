"""Hub ids, against a hub on the loopback interface; huggingface_hub runs in processes of its own."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from owl_fast import Engine, hub
from owl_fast.errors import CheckpointError, UnsupportedError
from tests.golden_data import Golden

pytest.importorskip("huggingface_hub")
ROOT = Path(__file__).resolve().parents[1]
GOLDEN = Golden("micro")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORIES = {
    "owl/bin": GOLDEN.checkpoint,
    "owl/both": GOLDEN.checkpoint.parent / "checkpoint_safetensors",
    "owl/adapter": GOLDEN.adapter,
}
ASK = """
import json, sys
from owl_fast import hub
from owl_fast.errors import OwlError
for model in sys.argv[1:]:
    try:
        print(json.dumps(["ok", str(hub.local_path(model))]))
    except OwlError as error:
        print(json.dumps([type(error).__name__, str(error)]))
"""


def files_of(repository: str) -> dict[str, bytes]:
    files = {path.name: path.read_bytes() for path in REPOSITORIES[repository].iterdir()}
    return files | ({"pytorch_model.bin": b"never asked for"} if repository == "owl/both" else {})


class Handler(http.server.BaseHTTPRequestHandler):
    """The few calls of the hub's interface that a download makes."""

    protocol_version = "HTTP/1.1"
    asked: list[str]

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        self.asked.append(path)
        owner, name, *rest = path.removeprefix("/api/models").strip("/").split("/")
        repository = f"{owner}/{name}"
        if repository not in REPOSITORIES:
            self.reply(
                401, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
            )
        elif path.startswith("/api/") and rest[0] == "revision":
            siblings = [{"rfilename": name} for name in files_of(repository)]
            self.reply(200, json.dumps({"id": repository, "sha": COMMIT, "siblings": siblings}).encode())
        elif path.startswith("/api/") and rest[0] == "tree":
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in files_of(repository).items()
            ]
            self.reply(200, json.dumps(entries).encode())
        else:
            data = files_of(repository)[rest[-1]]
            etag = f'"{hashlib.sha1(data).hexdigest()}"'
            self.reply(200, data, {"ETag": etag, "X-Repo-Commit": COMMIT})

    def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


class Hub:
    def __init__(self, home: Path) -> None:
        self.asked: list[str] = []
        handler = type("BoundHandler", (Handler,), {"asked": self.asked})
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self.server.serve_forever)
        self._thread.start()
        self.environment = {
            **{name: value for name, value in os.environ.items() if "proxy" not in name.lower()},
            "HF_ENDPOINT": f"http://127.0.0.1:{self.server.server_port}",
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "PYTHONPATH": str(ROOT),
        }

    def ask(self, cwd: Path, *models: str, **environment: str) -> list[tuple[str, str]]:
        """(ok | name of the error, path | message) for each."""
        done = subprocess.run(
            [sys.executable, "-c", ASK, *models],
            cwd=cwd,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return [tuple(json.loads(line)) for line in done.stdout.splitlines()]

    def close(self) -> None:
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()


@pytest.fixture(scope="module")
def the_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    hub = Hub(tmp_path_factory.mktemp("home"))
    yield hub
    hub.close()


@pytest.fixture(scope="module")
def answers(the_hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    """What one process got, with the hub in reach and a local folder in the way of one id."""
    cwd = tmp_path_factory.mktemp("cwd")
    (cwd / "owl" / "local").mkdir(parents=True)
    models = [*REPOSITORIES, "owl/none", "owl/local"]
    return dict(zip(models, the_hub.ask(cwd, *models), strict=True))


def test_a_repository_is_downloaded(answers: dict[str, tuple[str, str]]) -> None:
    status, path = answers["owl/bin"]
    assert status == "ok"
    names = {file.name for file in Path(path).iterdir()}
    assert names == {f.name for f in GOLDEN.checkpoint.iterdir() if f.suffix in (".json", ".bin", ".model")}


def test_one_set_of_weights_is_enough(answers: dict[str, tuple[str, str]]) -> None:
    names = {file.name for file in Path(answers["owl/both"][1]).iterdir()}
    assert "model.safetensors.index.json" in names
    assert "pytorch_model.bin" not in names


def test_an_engine_reads_what_was_downloaded(
    answers: dict[str, tuple[str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda model, **options: answers[model][1])
    engine = Engine.from_pretrained("owl/bin", device="cpu", dtype="fp32", max_batch=1)
    engine.load_adapter("a", "owl/adapter")
    ours = Engine.from_pretrained(GOLDEN.checkpoint, adapter=GOLDEN.adapter, device="cpu", dtype="fp32")
    wanted = ours.generate("AI: ", max_tokens=6).logprobs
    assert engine.generate("AI: ", max_tokens=6, adapter="a").logprobs == wanted
    shutil.copytree(GOLDEN.adapter, tmp_path / "a")
    config = json.loads((tmp_path / "a/adapter_config.json").read_text())
    config["base_model_name_or_path"] = "owl/bin"
    (tmp_path / "a/adapter_config.json").write_text(json.dumps(config))
    alone = Engine.from_pretrained(tmp_path / "a", device="cpu", dtype="fp32")
    assert alone.generate("AI: ", max_tokens=6).logprobs == wanted


def test_an_existing_path_goes_first(answers: dict[str, tuple[str, str]], the_hub: Hub) -> None:
    assert answers["owl/local"] == ("ok", "owl/local")
    assert not any("owl/local" in path for path in the_hub.asked)


def test_an_unknown_id_is_one_clear_error(answers: dict[str, tuple[str, str]]) -> None:
    kind, message = answers["owl/none"]
    assert kind == "CheckpointError"
    assert message.startswith("owl/none: no such file or folder, and as an id of the Hugging Face hub")
    assert "\n" not in message


def test_offline_mode_is_honoured(answers: dict[str, tuple[str, str]], the_hub: Hub, tmp_path: Path) -> None:
    before = len(the_hub.asked)
    found = the_hub.ask(tmp_path, "owl/bin", "owl/both", "owl/none", HF_HUB_OFFLINE="1")
    assert found[:2] == [answers["owl/bin"], answers["owl/both"]]
    assert found[2][0] == "CheckpointError"
    assert len(the_hub.asked) == before


@pytest.mark.parametrize("model", ["a/b/c", "./a/b", "/a/b", "~/a", "a", "a/../b", "a b/c", "", "a/b\n"])
def test_what_is_no_id_stays_a_path(model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tmp_path)
    assert hub.local_path(model) == Path(model)
    assert hub.local_path(Path("owl/bin")) == Path("owl/bin")


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UnsupportedError, match=r"owl/bin: no such file.*pip install '\.\[hub\]'"):
        Engine.from_pretrained("owl/bin")
    with pytest.raises(CheckpointError, match="nowhere"):
        Engine.from_pretrained("nowhere")
