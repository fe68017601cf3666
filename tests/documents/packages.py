"""What `pip install` is asked for, against pyproject.toml and constraints.txt; nothing is installed."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def check_pip(words: list[str]) -> None:
    """AssertionError for an extra, a package or a file that is not there. The checkout is the working
    folder."""
    parser = argparse.ArgumentParser(prog="pip", allow_abbrev=False)
    parser.add_argument("install", choices=["install"])
    parser.add_argument("wanted", nargs="*")
    parser.add_argument("-c", dest="constraints", type=Path, action="append", default=[])
    parser.add_argument("-e", dest="wanted_editable", action="append", default=[])
    parser.add_argument("--no-binary", action="append", default=[])
    for flag in ("force-reinstall", "no-deps", "no-cache-dir", "quiet", "disable-pip-version-check"):
        parser.add_argument(f"--{flag}", action="store_true")
    # parse_args would leave at once where commands are only read.
    given, unknown = parser.parse_known_intermixed_args(words)
    assert not unknown, f"pip: {unknown}"
    for file in given.constraints:
        assert file.is_file(), f"no file {file}"
    wanted = [*given.wanted, *given.wanted_editable]
    assert wanted, "pip install of nothing"
    for requirement in wanted:
        _check(requirement)


def _check(requirement: str) -> None:
    found = re.fullmatch(r"([\w.-]+?)(?:\[([\w,-]+)\])?", requirement)
    assert found, f"{requirement}: not understood"
    name, extras = found[1], found[2]
    if name not in (".", "owl-fast"):
        tested = re.findall(r"(?m)^([\w.-]+)==", Path("constraints.txt").read_text(encoding="utf-8"))
        assert name.lower().replace("-", "_") in {one.lower().replace("-", "_") for one in tested}, (
            f"{name} is not in constraints.txt"
        )
    elif extras:
        with open("pyproject.toml", "rb") as file:
            known = tomllib.load(file)["project"]["optional-dependencies"]
        assert set(extras.split(",")) <= set(known), f"{requirement}: the extras are {', '.join(known)}"
