"""The command line of the chat."""

from __future__ import annotations

import argparse

from owl_fast.chat.sampling import add_sampling_flags
from owl_fast.command_line import add_loading_flags
from owl_fast.settings import add_settings_flags

EXAMPLES = """\
examples:
  python -m owl_fast.chat                                        talk to the bundled demonstration model
  python -m owl_fast.chat -i scene.png -p "What color is the star?"
  python -m owl_fast.chat models/mplug-owl-llama-7b -i a.jpg     a model folder in Hugging Face layout
  python -m owl_fast.chat MAGAer13/mplug-owl-llama-7b            the same from the hub
  python -m owl_fast.chat models/mplug-owl-llama-7b --quant int4 where memory is short
  python -m owl_fast.chat instruction_tuned.pth --tokenizer tokenizer.model
  python -m owl_fast.chat --load talk.json                       go on with a saved conversation
  python -m owl_fast.chat --url http://127.0.0.1:8000/v1         the same screen against a server
  cat a.jpg | python -m owl_fast.chat -i - -p "What is it?"      the picture from a pipe
  echo "Tell me a story." | python -m owl_fast.chat              the prompt from a pipe
  python -m owl_fast.chat --print-config > owl.toml              settings to edit, for --config owl.toml
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m owl_fast.chat",
        description="Ask a model about pictures. With -p, or with a pipe on stdin: one answer on stdout.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_question(parser.add_argument_group("question"))
    _add_model(parser.add_argument_group("model"))
    add_sampling_flags(parser.add_argument_group("answer"))
    _add_screen(parser.add_argument_group("screen"))
    add_settings_flags(parser)
    return parser


def _add_question(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("-p", "--prompt", metavar="TEXT", help="ask this, print the answer, leave")
    add(
        *("-i", "--image"),
        action="append",
        default=[],
        metavar="IMAGE",
        help="picture: path, URL, quoted pattern, or - for stdin; repeatable",
    )
    add(
        "--video",
        action="append",
        default=[],
        metavar="FILE",
        help="video file or quoted pattern; repeatable",
    )
    add("-s", "--system", metavar="TEXT", help="replaces the header of the conversation")
    add("--load", metavar="FILE", help="go on with a conversation kept by /save")


def _add_model(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add_loading_flags(group)
    add("--adapter", metavar="DIR", help="LoRA adapter folder")
    add("--url", metavar="URL", help="ask an OpenAI-compatible server; MODEL is then its name there")
    add(
        "--api-key-file",
        metavar="FILE",
        help="key for --url (default: the environment's OWL_API_KEY, if set)",
    )


def _add_screen(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--plain", action="store_true", help="no colour, no redrawing: for screen readers and logs")
    add("--no-stream", action="store_true", help="print each answer when it is complete")
    add("--no-history", action="store_true", help="keep no file of what was typed")
    add("-v", "--verbose", action="store_true", help="say what is loaded also for a single answer")
