"""Hub ids, against a hub on the loopback interface; huggingface_hub runs in processes of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from owl_fast import Engine, hub
from owl_fast.errors import CheckpointError, UnsupportedError
from tests.fake_hub import Hub, files_in
from tests.golden_data import Golden

pytest.importorskip("huggingface_hub")
GOLDEN = Golden("micro")
REPOSITORIES = {
    "owl/bin": files_in(GOLDEN.checkpoint),
    "owl/both": files_in(GOLDEN.checkpoint.parent / "checkpoint_safetensors")
    | {"pytorch_model.bin": b"never asked for"},
    "owl/adapter": files_in(GOLDEN.adapter),
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


def ask(hub: Hub, cwd: Path, *models: str, **environment: str) -> list[tuple[str, str]]:
    """(ok | name of the error, path | message) for each."""
    done = subprocess.run(
        [sys.executable, "-c", ASK, *models],
        cwd=cwd,
        env=hub.environment | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def the_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    hub = Hub(tmp_path_factory.mktemp("home"), REPOSITORIES)
    yield hub
    hub.close()


@pytest.fixture(scope="module")
def answers(the_hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    """What one process got, with the hub in reach and a local folder in the way of one id."""
    cwd = tmp_path_factory.mktemp("cwd")
    (cwd / "owl" / "local").mkdir(parents=True)
    models = [*REPOSITORIES, "owl/none", "owl/local"]
    return dict(zip(models, ask(the_hub, cwd, *models), strict=True))


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
    found = ask(the_hub, tmp_path, "owl/bin", "owl/both", "owl/none", HF_HUB_OFFLINE="1")
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
