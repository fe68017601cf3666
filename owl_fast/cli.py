"""The `owl-fast NAME ...` command: runs `python -m owl_fast.NAME ...`."""

from __future__ import annotations

import difflib
import runpy
import sys

from owl_fast import __version__

COMMANDS = {
    "chat": "ask a model about pictures in the terminal",
    "serve": "answer OpenAI's API and show a web page",
    "doctor": "what is installed, and what a model is and needs",
    "data": "check, count and repack training data",
    "quantize": "write a model folder in fewer bits, which loads in seconds",
    "train": "train the vision side, or tune a model to instructions",
    "evaluate": "how good a model is: OwlEval, owl-nano's questions, captions, short answers",
    "export.onnx": "write the vision tower as an ONNX file",
    "export.merged": "write a model with an adapter merged into it",
    "export.llm": "write the language model as a folder for transformers",
    "export.gguf": "write the language model as a file for llama.cpp",
    "completion": "print what lets a shell complete these commands",
}


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, what in COMMANDS.items()]
    return "\n".join(
        [
            "usage: owl-fast NAME [ARGUMENTS]",
            "       owl-fast --version",
            "",
            *lines,
            "",
            "owl-fast NAME --help has examples.",
        ]
    )


def main() -> int:
    """Dispatch on the first argument; 2 for a missing or unknown name."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["--version"]:
        print(f"owl_fast {__version__}")
        return 0
    if arguments and arguments[0] in ("-h", "--help"):
        print(usage())
        return 0
    if not arguments or arguments[0] not in COMMANDS:
        if arguments:
            close = difflib.get_close_matches(arguments[0], COMMANDS, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            print(f"owl-fast: no command {arguments[0]!r}{hint}", file=sys.stderr)
        print(usage(), file=sys.stderr)
        return 2
    name = arguments[0]
    sys.argv = [f"owl-fast {name}", *arguments[1:]]
    runpy.run_module(f"owl_fast.{name}", run_name="__main__", alter_sys=False)
    return 0
