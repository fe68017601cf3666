"""Settings of a command: flags > file > defaults.

A command's argparse parser is the one description of its settings. add_settings_flags gives it --config and
--print-config, read_settings joins the layers. A file is TOML, its keys are the long flag names.
"""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from owl_fast.errors import DataError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

NO_SETTINGS = ("help", "config", "print_config")


def add_settings_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        action="append",
        default=[],
        metavar="FILE",
        help="FILE.toml: settings, flags override them; FILE.json: config of a model file that has none",
    )
    parser.add_argument("--print-config", action="store_true", help="print all settings as TOML and leave")


def read_settings(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Flags over the TOML file over the parser's defaults; `config` becomes the .json file, or None.

    Leaves with 2 when a flag or the file is wrong, with 0 after --print-config.
    """
    given = parser.parse_args(argv)
    try:
        toml, model_config = _split(given.config)
        values = {} if toml is None else _values(parser, toml)
    except DataError as error:
        parser.error(str(error))
    # A value that stands in the namespace already is a default to argparse, except for a list, which it
    # would extend, and for what has no flag, which it overwrites.
    prefilled = {name: value for name, value in values.items() if _has_flag(parser, name)}
    merged = parser.parse_args(argv, argparse.Namespace(**prefilled))
    for name in values.keys() - prefilled.keys():
        if getattr(merged, name) == parser.get_default(name):
            setattr(merged, name, values[name])
    merged.config = model_config if model_config is not None else values.get("config")
    if merged.print_config:
        names = (name for name in vars(merged) if name != "print_config")
        print(as_toml({name: getattr(merged, name) for name in names}), end="")
        parser.exit(0)
    return merged


def as_toml(settings: Mapping[str, Any]) -> str:
    """Lines `name = value`; None, for which TOML has no word, is a comment that shows the name."""
    lines = ((name.replace("_", "-"), value) for name, value in settings.items())
    return "".join(f"# {name} = ...\n" if v is None else f"{name} = {_toml(v)}\n" for name, v in lines)


def read_toml(file: str | Path) -> dict[str, Any]:
    """What as_toml has written, or somebody; DataError if it is not TOML."""
    try:
        return tomllib.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"{file}: not readable as TOML ({reason})") from None


def _toml(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, str):
        # JSON's strings are TOML's, but for DEL, which TOML wants escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _split(files: Sequence[str]) -> tuple[str | None, str | None]:
    """The settings file and the model's config among the values of --config."""
    found: dict[str, str] = {}
    for file in files:
        ending = Path(file).suffix.lower()
        if ending not in (".toml", ".json"):
            raise DataError(f"--config {file}: wanted a .toml file of settings or a model's config.json")
        if ending in found:
            raise DataError(f"--config {file}: {found[ending]} came already; give one {ending} file")
        found[ending] = file
    return found.get(".toml"), found.get(".json")


def _values(parser: argparse.ArgumentParser, file: str) -> dict[str, Any]:
    """The file's settings by the parser's names, of the types its flags have."""
    raw = read_toml(file)
    actions = {a.dest: a for a in parser._actions if a.dest not in NO_SETTINGS}
    values: dict[str, Any] = {}
    for key, value in raw.items():
        name = key.replace("-", "_")
        if name == "config" and isinstance(value, str) and value.endswith(".json"):
            values[name] = value
        elif name in actions:
            values[name] = _check(actions[name], value, f"{file}: {key}")
        else:
            close = difflib.get_close_matches(name, actions, n=1)
            known = ", ".join(sorted(actions)).replace("_", "-")
            hint = f"did you mean {close[0].replace('_', '-')}?" if close else f"wanted one of {known}"
            raise DataError(f"{file}: no setting {key!r:.60}; {hint}")
    return values


def _check(action: argparse.Action, value: Any, where: str) -> Any:
    """The value as the flag would have given it."""
    if isinstance(action.default, list):
        if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
            raise DataError(f"{where} is {value!r:.60}; wanted a list of strings")
        return value
    kind: Any = bool if action.nargs == 0 else action.type or str
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise DataError(f"{where} is {value!r:.60}; wanted {kind.__name__}")
    if action.choices is not None and value not in action.choices:
        raise DataError(f"{where} is {value!r:.60}; wanted one of {', '.join(map(str, action.choices))}")
    return float(value) if kind is float else value


def _has_flag(parser: argparse.ArgumentParser, name: str) -> bool:
    return any(
        action.dest == name and action.option_strings and not isinstance(action.default, list)
        for action in parser._actions
    )
