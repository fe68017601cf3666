"""`python -m owl_fast.data`: what it prints, writes and leaves with."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from owl_fast import data
from owl_fast.data import shard
from owl_fast.errors import OwlError
from owl_fast.picture_files import picture_bytes as bytes_of
from owl_fast.training.sample import Caption, Sample
from tests.golden_data import Golden
from tests.training.data_files import picture_bytes, read_all, write_lines, write_picture, write_tar

MODEL = str(Golden("micro").checkpoint)
GOOD = {"image": "a.png", "text": "Human: <image>\nHuman: What?\nAI: A boat."}
TALK = {"text": "Human: Hello\nAI: Hi <there>."}


def run(action: str, *arguments: str | Path) -> int:
    return data.main([action, *map(str, arguments), "--model", MODEL, "--plain", "--workers", "0"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_picture(tmp_path / "a.png", 1)
    write_picture(tmp_path / "b.jpg", 2)
    return tmp_path


def test_check_prints_the_first_bad_rows_and_counts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "cut.png").write_bytes(picture_bytes()[:-30])
    missing, broken = {**GOOD, "image": "no.png"}, {**GOOD, "image": "cut.png"}
    path = write_lines(folder / "a.jsonl", GOOD, missing, "oops", TALK, missing, broken)
    assert run("check", path, "--first", "2") == 1
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[0].startswith(f"{path}:2: missing picture: ")
    assert lines[1].startswith(f"{path}:3: not JSON (")
    assert lines[2:] == [
        "a.jsonl (original): 4 of 6 rows are bad: 2 x missing picture, 1 x not JSON, 1 x broken picture"
    ]
    assert said.err == ""
    assert run("check", path, "--headers-only") == 1
    assert "3 of 6 rows are bad" in capsys.readouterr().out
    assert run("check", write_lines(folder / "b.jsonl", GOOD, TALK)) == 0
    assert capsys.readouterr().out == "b.jsonl (original): 2 rows, none of them bad\n"


def test_check_counts_against_the_context(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = {"text": "Human: Say it\nAI: " + "a boat and " * 40}
    path = write_lines(folder / "a.jsonl", TALK, long)
    assert run("check", path) == 0
    assert run("check", path, "--max-length", "64") == 1
    assert "1 x answer longer than the context" in capsys.readouterr().out


def test_stats(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_lines(folder / "a.jsonl", GOOD, TALK, TALK, {**GOOD, "image": "b.jpg"}, "oops")
    assert run("stats", path, "--max-length", "20") == 0
    rows = {
        line[2:20].strip(): line[20:].strip() for line in capsys.readouterr().out.splitlines()[2:] if line
    }
    assert rows["samples"] == "4"
    assert rows["bad rows"] == "1, not counted below; `check` names them"
    assert rows["pictures"] == "2"
    assert rows["words"] == str(2 * 3 + 2 * 3)
    assert rows["duplicates"].startswith("1 (25.00%)")
    assert rows["over the context"].startswith("2 (50.00%) have more than 20")


def test_shards_hold_the_same_samples(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_lines(folder / "talk.jsonl", *[GOOD, TALK] * 4)
    write_tar(folder / "pairs.tar", {"x.jpg": picture_bytes(5), "x.txt": "ein Böot".encode()})
    out = folder / "deep/shards"
    assert run("shard", folder / "talk.jsonl", folder / "pairs.tar", "--out", out) == 0
    assert capsys.readouterr().out == f"{out}: 9 samples in 1 file(s)\n"
    assert sorted(file.name for file in out.iterdir()) == ["00000.tar", "owl_manifest.json"]
    wanted = [*read_all(folder / "talk.jsonl"), *read_all(folder / "pairs.tar")]
    assert list(map(content, read_all(out / "00000.tar"))) == list(map(content, wanted))
    assert run("shard", out / "*.tar", "--out", folder / "again") == 0
    assert (folder / "again/00000.tar").read_bytes() == (out / "00000.tar").read_bytes()


def content(sample: Sample | Caption) -> Any:
    """What is learned from it, wherever it came from."""
    if isinstance(sample, Caption):
        return replace(sample, image=bytes_of(sample.image), record="")
    return [*sample.messages], [bytes_of(picture) for picture in sample.images]


def test_shards_have_a_size_and_an_order(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_lines(folder / "a.jsonl", *[{"text": f"Human: {n}\nAI: {n}"} for n in range(40)])
    monkeypatch.setattr(shard, "MIB", 4096)
    for name in ("one", "two"):
        assert run("shard", path, "--out", folder / name, "--shard-mb", "2", "--shuffle") == 0
    files = sorted((folder / "one").glob("*.tar"))
    assert [file.name for file in files] == [f"{n:05d}.tar" for n in range(5)]
    assert [file.read_bytes() for file in files] == [
        file.read_bytes() for file in sorted((folder / "two").glob("*.tar"))
    ]
    samples = [sample for file in files for sample in read_all(file)]
    said = [int(sample.messages[-1]["content"]) for sample in samples]
    assert sorted(said) == list(range(40))
    assert said != list(range(40))


def test_shards_appear_whole_or_not_at_all(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_lines(folder / "a.jsonl", *[TALK] * 30, "oops")
    out = folder / "out"
    assert run("shard", path, "--out", out) == 1
    assert f"{path}:31: not JSON" in capsys.readouterr().err
    assert run("shard", path, "--out", out, "--skip-bad") == 5
    assert "1 bad among 31 of 31 rows (1 x not JSON)" in capsys.readouterr().err
    assert sorted(os.listdir(folder)) == ["a.jsonl", "a.png", "b.jpg"]
    assert run("shard", path, "--out", out, "--skip-bad", "--bad-cap", "0.1") == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{out}: 30 samples in 1 file(s)",
        "left out of a.jsonl: 1 x not JSON",
    ]
    assert run("shard", path, "--out", out) == 1
    assert "exists and is not an empty folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["check"], "required: SPEC"),
        (["weigh", "a.jsonl"], "invalid choice"),
        (["shard", "a.jsonl"], "shard wants --out"),
        (["stats", "a.jsonl", "--out", "x"], "stats writes no --out"),
        (["check", "a.jsonl", "--format", "lava"], "wanted one of webdataset"),
        (["check", "a.jsonl", "--columns", "image"], "wanted OURS=THEIRS"),
        (["check", "a.jsonl", "--max-length", "0"], "wanted 1 to"),
        (["check", "a.jsonl", "--workers", "-1"], "wanted 0 or more"),
        (["shard", "a.jsonl", "--out", "x", "--shard-mb", "0"], "wanted 1 or more"),
    ],
)
def test_wrong_usage(
    arguments: list[str],
    said: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(write_lines(folder / "a.jsonl", TALK).parent)
    with pytest.raises(SystemExit) as left:
        data.main(arguments)
    assert left.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", ["nowhere.json", "odd.json", "cut.tar"])
def test_data_that_cannot_be_read_is_one_line(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_lines(folder / "odd.json", {"prompt": "x"})
    cut = write_tar(folder / "cut.tar", {"a.jpg": b"x" * 2000}).read_bytes()[:1500]
    (folder / "cut.tar").write_bytes(cut)
    assert run("check", folder / name) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {folder / name}: ")
    assert error.count("\n") == 1


def test_the_bundled_model_is_the_default(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_lines(folder / "a.jsonl", GOOD)
    assert data.main(["check", str(path), "--workers", "0"]) == 0
    said = capsys.readouterr()
    assert "none of them bad" in said.out
    assert "checking a.jsonl" in said.err


def test_ctrl_c(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("owl_fast.data.task.open_task", interrupt)
    assert run("check", folder / "a.jsonl") == 130


def test_settings_come_from_a_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = folder / "data.toml"
    config.write_text('format = "original"\nmax-length = 40\n')
    assert run("check", folder / "a.jsonl", "--config", config) in (0, 1)
    path = write_lines(folder / "a.jsonl", {"text": "Human: hello you\nAI: " + "boat " * 60})
    assert run("check", path, "--config", config) == 1
    assert "answer longer than the context" in capsys.readouterr().out


def test_records_survive_as_json() -> None:
    sample = Sample([{"role": "user", "content": "a \ud83d lone surrogate"}], [], "x")
    told = json.loads(shard.members(sample)["json"])
    assert told == {"messages": [*sample.messages], "images": []}
    pair = shard.members(Caption(picture_bytes(), "\ud83d", record="x"))
    assert pair == {"png": picture_bytes(), "txt": "\ufffd".encode()}
    with pytest.raises(OwlError, match="row 3: picture of 5 bytes"):
        shard.members(Caption(b"12345", "words", record="row 3"))
