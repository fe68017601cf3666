"""Flags > file > defaults, and the file that --print-config writes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from owl_fast.settings import add_settings_flags, as_toml, read_settings, tomllib


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="test")
    parser.add_argument("model", nargs="?")
    parser.add_argument("--heat", type=float)
    parser.add_argument("--top-k", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", choices=["auto", "fp32"])
    parser.add_argument("--stop", action="append", default=[])
    parser.add_argument("--plain", action="store_true")
    add_settings_flags(parser)
    return parser


def read(tmp_path: Path, toml: str, *flags: str) -> dict[str, Any]:
    file = tmp_path / "x.toml"
    file.write_text(toml, encoding="utf-8")
    return vars(read_settings(make_parser(), ["--config", str(file), *flags]))


def test_defaults_without_a_file() -> None:
    settings = vars(read_settings(make_parser(), []))
    assert settings == {
        **{"model": None, "heat": None, "top_k": 5, "device": "auto", "dtype": "auto", "stop": []},
        **{"plain": False, "config": None, "print_config": False},
    }


FILE = (
    'model = "owl"\nheat = 1\ntop-k = 7\ndevice = "cuda"\ndtype = "fp32"\nstop = ["a", "b"]\nplain = true\n'
)


def test_the_file_goes_before_the_defaults(tmp_path: Path) -> None:
    settings = read(tmp_path, FILE)
    assert (settings["model"], settings["heat"], settings["top_k"]) == ("owl", 1.0, 7)
    assert (settings["device"], settings["dtype"], settings["plain"]) == ("cuda", "fp32", True)
    assert settings["stop"] == ["a", "b"]


def test_flags_go_before_the_file_also_where_they_repeat_a_default(tmp_path: Path) -> None:
    flags = ["nano", "--heat", "0", "--top-k", "5", "--device", "auto", "--stop", "c"]
    settings = read(tmp_path, FILE, *flags)
    assert (settings["model"], settings["heat"], settings["top_k"]) == ("nano", 0.0, 5)
    assert (settings["device"], settings["stop"], settings["dtype"]) == ("auto", ["c"], "fp32")


def test_a_models_config_is_told_apart_by_its_ending(tmp_path: Path) -> None:
    assert read(tmp_path, "", "--config", "m.json")["config"] == "m.json"
    assert read(tmp_path, 'config = "m.json"')["config"] == "m.json"
    assert read(tmp_path, 'config = "m.json"', "--config", "n.json")["config"] == "n.json"


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("dvice = 1", "did you mean device?"),
        ("zzz = 1", "wanted one of device, dtype, heat"),
        ("config = 'y.toml'", "no setting 'config'"),
        ("print-config = true", "no setting 'print-config'"),
        ("heat = 'hot'", "heat is 'hot'; wanted float"),
        ("heat = true", "wanted float"),
        ("top-k = 1.5", "wanted int"),
        ("plain = 1", "wanted bool"),
        ("dtype = 'int3'", "wanted one of auto, fp32"),
        ("stop = 'a'", "wanted a list of strings"),
        ("stop = [1]", "wanted a list of strings"),
        ("heat =", "not readable as TOML"),
    ],
)
def test_a_file_that_does_not_fit_is_wrong_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], toml: str, message: str
) -> None:
    with pytest.raises(SystemExit) as leaving:
        read(tmp_path, toml)
    assert leaving.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert "x.toml" in said


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config", "a.yaml"], "wanted a .toml file"),
        (["--config", "missing.toml"], "No such file"),
        (["--config", "a.json", "--config", "b.json"], "a.json came already"),
    ],
)
def test_files_that_cannot_be(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read_settings(make_parser(), flags)
    assert message in capsys.readouterr().err


def test_what_print_config_writes_is_read_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["m", "--heat", "0.5", "--stop", 'say "x"\n', "--config", "m.json", "--plain"]
    wanted = vars(read_settings(make_parser(), flags))
    with pytest.raises(SystemExit) as leaving:
        read_settings(make_parser(), [*flags, "--print-config"])
    assert leaving.value.code == 0
    assert read(tmp_path, capsys.readouterr().out) == wanted


def test_print_config_shows_what_is_not_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read_settings(make_parser(), ["--print-config"])
    said = capsys.readouterr().out
    assert {"# model = ...", "# heat = ...", "top-k = 5"} <= set(said.splitlines())
    assert read(tmp_path, said) == vars(read_settings(make_parser(), []))


@given(
    st.dictionaries(
        st.from_regex("[a-z]+", fullmatch=True),
        st.one_of(st.text(), st.integers(-(2**63), 2**63 - 1), st.booleans(), st.floats(allow_nan=False))
        | st.lists(st.text(), max_size=3),
        max_size=4,
    )
)
def test_any_value_survives_toml(settings: dict[str, Any]) -> None:
    assert tomllib.loads(as_toml(settings)) == settings
