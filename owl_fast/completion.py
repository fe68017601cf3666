"""Print a script with which a shell completes `owl-fast`: `python -m owl_fast.completion bash`.

The script is made from the parsers of the commands and complete in itself: pressing Tab starts no Python.
"""

from __future__ import annotations

import argparse
import importlib
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from owl_fast.cli import COMMANDS

EXAMPLES = """\
examples:
  eval "$(owl-fast completion bash)"                                     in ~/.bashrc
  eval "$(owl-fast completion zsh)"                                      in ~/.zshrc, after compinit
  owl-fast completion fish > ~/.config/fish/completions/owl-fast.fish    once
"""


@dataclass(frozen=True)
class Flag:
    """takes: nothing (None), one of these words, or with no words a file or anything else."""

    names: tuple[str, ...]
    help: str
    takes: tuple[str, ...] | None


def flags_of(parser: argparse.ArgumentParser) -> list[Flag]:
    flags = []
    for action in parser._actions:
        if action.option_strings:
            takes = None if action.nargs == 0 else tuple(map(str, action.choices or ()))
            flags.append(Flag(tuple(action.option_strings), action.help or "", takes))
    return flags


def words_of(parser: argparse.ArgumentParser) -> tuple[str, ...]:
    """Words that may stand without a flag, where the parser knows them."""
    return tuple(
        str(word) for action in parser._actions if not action.option_strings for word in action.choices or ()
    )


def bash(parsers: dict[str, argparse.ArgumentParser]) -> str:
    values, flags = [], []
    for name, parser in parsers.items():
        for flag in flags_of(parser):
            if flag.takes:
                patterns = "|".join(f'"{name} {spelling}"' for spelling in flag.names)
                values.append(f'        {patterns}) words="{" ".join(flag.takes)}" ;;')
        spellings = " ".join(spelling for flag in flags_of(parser) for spelling in flag.names)
        flags.append(f'        "{name} -"*) words="{spellings}" ;;')
        if words_of(parser):
            flags.append(f'        "{name} "*) words="{" ".join(words_of(parser))}" ;;')
    return "\n".join([
        "_owl_fast() {",
        '    local words="" name="${COMP_WORDS[1]}"',
        '    local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}"',
        "    # Of --flag=word bash makes three.",
        '    [ "$before" = "=" ] && before="${COMP_WORDS[COMP_CWORD-2]}"',
        '    [ "$word" = "=" ] && word=""',
        '    case "$name $before" in',
        *values,
        f'        *) [ "$COMP_CWORD" -eq 1 ] && words="{" ".join(parsers)}" ;;',
        "    esac",
        '    [ -z "$words" ] && case "$name $word" in',
        *flags,
        "    esac",
        '    COMPREPLY=($(compgen -W "$words" -- "$word"))',
        "}",
        "complete -o default -F _owl_fast owl-fast",
        "",
    ])  # fmt: skip


def zsh(parsers: dict[str, argparse.ArgumentParser]) -> str:
    lines = [
        "#compdef owl-fast",
        "_owl_fast() {",
        "    if (( CURRENT == 2 )); then",
        f"        local -a names=({' '.join(shlex.quote(f'{name}:{COMMANDS[name]}') for name in parsers)})",
        "        _describe command names",
        "        return",
        "    fi",
        "    local name=$words[2]",
        "    shift words; (( CURRENT-- ))",
        "    case $name in",
    ]
    for name, parser in parsers.items():
        specs = [spec for flag in flags_of(parser) for spec in _zsh_specs(flag)]
        rest = f"*:word:({' '.join(words_of(parser))})" if words_of(parser) else "*:file:_files"
        lines.append(f"        {name}) _arguments {' '.join(map(shlex.quote, [*specs, rest]))} ;;")
    return "\n".join([*lines, "    esac", "}", "compdef _owl_fast owl-fast", ""])


def _zsh_specs(flag: Flag) -> list[str]:
    text = "".join(f"\\{char}" if char in "[]:\\" else char for char in flag.help)
    if flag.takes is None:
        value = ""
    else:
        value = f":value:({' '.join(flag.takes)})" if flag.takes else ":value:_files"
    return [f"*{spelling}[{text}]{value}" for spelling in flag.names]


def fish(parsers: dict[str, argparse.ArgumentParser]) -> str:
    lines = []
    for name, parser in parsers.items():
        text = shlex.quote(COMMANDS[name])
        lines.append(f"complete -c owl-fast -f -n __fish_use_subcommand -a {name} -d {text}")
        inside = f"complete -c owl-fast -n '__fish_seen_subcommand_from {name}'"
        if words_of(parser):
            lines.append(f"{inside} -f -a {shlex.quote(' '.join(words_of(parser)))}")
        lines += [f"{inside} {_fish_flag(flag)}" for flag in flags_of(parser)]
    return "\n".join([*lines, ""])


def _fish_flag(flag: Flag) -> str:
    spelled = [f"-l {n[2:]}" if n.startswith("--") else f"-s {n[1:]}" for n in flag.names]
    takes = (
        "" if flag.takes is None else f" -x -a {shlex.quote(' '.join(flag.takes))}" if flag.takes else " -r"
    )
    text = "'" + flag.help.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return f"{' '.join(spelled)}{takes} -d {text}"


SHELLS = {"bash": bash, "zsh": zsh, "fish": fish}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m owl_fast.completion",
        description="Print a script with which a shell completes owl-fast.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=list(SHELLS))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    parsers = {name: importlib.import_module(f"owl_fast.{name}").build_parser() for name in COMMANDS}
    print(SHELLS[args.shell](parsers), end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
