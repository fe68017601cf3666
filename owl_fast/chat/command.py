"""From the arguments to one answer or a conversation."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from owl_fast.chat.arguments import build_parser
from owl_fast.chat.screen import Screen
from owl_fast.command_line import LOADING, loading_options
from owl_fast.errors import ImageError, OwlError
from owl_fast.settings import read_settings

if TYPE_CHECKING:
    from owl_fast.chat.backend import Backend
    from owl_fast.chat.session import Session
    from owl_fast.chat.talk import Reader, Talk
    from owl_fast.engine.sampling import SamplingParams

DEMONSTRATION = (
    "owl-nano, the bundled model, is a small demonstration: it knows simple drawn scenes and little else.\n"
    "A real one: python -m owl_fast.chat MODEL, with MODEL a folder, a .pth file or an id on the hub."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code (argparse itself leaves with 2 on wrong usage)."""
    _replace_closed_streams()
    parser = build_parser()
    args = read_settings(parser, argv)
    # A terminal that cannot show a letter is no reason to stop.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        return _run(parser, args)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except OSError as error:
        # Files report their own; what is left is an output that is full, or whose reader has left. The
        # interpreter is kept from complaining once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            print(f"error: the output cannot be written ({error.strerror})", file=sys.stderr)
        return 1


def _run(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    _check_model(parser, args)
    _read_pipe(parser, args)
    _import_libraries()
    params = _params(parser, args)
    if args.prompt is not None:
        return _answer_once(args, params)
    from owl_fast.chat.terminal import is_dumb, kept_terminal

    plain = args.plain or is_dumb()
    with kept_terminal(redrawn=not plain):
        return _converse(args, params, plain)


def _check_model(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Of `-i a.png b.png` the second one is MODEL, which nobody means."""
    if args.model is None or not os.path.isfile(args.model):
        return
    from owl_fast.picture_files import decode, picture_bytes

    try:
        decode(picture_bytes(args.model), args.model, pixels=False)
    except ImageError:
        return
    parser.error(f"{args.model}: a picture, where MODEL stands; every picture has an -i of its own")


def _replace_closed_streams() -> None:
    """A stream that was closed (`<&-`), None in Python, then holds nothing and takes everything."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115


def _import_libraries() -> None:
    """Ctrl-C ends the process outright meanwhile: numpy, torch and Triton do not survive half an import."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    import owl_fast.ops  # noqa: F401

    signal.signal(signal.SIGINT, before)


def _answer_once(args: argparse.Namespace, params: SamplingParams) -> int:
    screen = Screen(bar=not args.plain)
    try:
        session = _open(args, params, screen, greeting=args.verbose)
        reason = session.ask(args.prompt).finish_reason
    except OwlError as error:
        screen.error(error)
        return 1
    return {"cancelled": 130, "error": 1}.get(reason, 0)


def _converse(args: argparse.Namespace, params: SamplingParams, plain: bool) -> int:
    from owl_fast.chat.talk import Talk
    from owl_fast.chat.terminal import quiet_keys

    screen = _screen(plain)
    try:
        with quiet_keys():
            session = _open(args, params, screen, greeting=True)
            talk = Talk(session, screen)
            reader = _reader(talk, screen, plain, keep=not args.no_history)
    except OwlError as error:
        screen.error(error)
        return 1
    screen.note("Type a message, /help for the commands.")
    return talk.run(reader)


def _screen(plain: bool) -> Screen:
    if plain:
        return Screen()
    from owl_fast.chat.colour import ColourScreen

    return ColourScreen()


def _reader(talk: Talk, screen: Screen, plain: bool, keep: bool) -> Reader:
    from owl_fast.chat.commands import offers
    from owl_fast.chat.history import History, default_path

    history = History(default_path() if keep else None, screen.note)
    if plain:
        from owl_fast.chat.plain_keyboard import PlainKeyboard

        return PlainKeyboard(offers(), history)
    from owl_fast.chat.keyboard import Keyboard

    return Keyboard(offers(), history, talk.status)


def _open(args: argparse.Namespace, params: SamplingParams, screen: Screen, greeting: bool) -> Session:
    """The session of the command line, with its model and pictures."""
    from owl_fast.chat.pictures import open_all
    from owl_fast.chat.session import Session

    waiting = open_all(args.image, args.video)  # before the model, which may take minutes
    backend = _backend(args, params, screen)
    backend.check(params)
    if greeting:
        screen.note(backend.ready())
    if args.model is None and args.url is None:
        screen.note(DEMONSTRATION)
    session = Session(backend, params, screen, stream=not args.no_stream)
    if args.adapter is not None:
        session.choose_adapter(args.adapter)
    if args.load is not None:
        said = session.load(args.load)
        if greeting:
            screen.note(said)
    if args.system is not None:
        session.conversation.set_system(args.system)
    session.queue = waiting
    return session


def _backend(args: argparse.Namespace, params: SamplingParams, screen: Screen) -> Backend:
    if args.url is not None:
        from owl_fast.chat.remote import RemoteBackend
        from owl_fast.chat.server import Server, api_key

        return RemoteBackend(Server(args.url, api_key(args.api_key_file)), args.model)
    from owl_fast.chat.local import LocalBackend

    return LocalBackend.load(args.model, screen, max_batch=params.beams, **loading_options(args))


def _params(parser: argparse.ArgumentParser, args: argparse.Namespace) -> SamplingParams:
    """Sampling flags as SamplingParams. Wrong usage: values out of range, flags without meaning."""
    from owl_fast.chat import sampling

    if args.url is None and args.api_key_file is not None:
        parser.error("--api-key-file is for a server; give its --url")
    loading = ("adapter", *LOADING)
    idle = [name for name in loading if getattr(args, name) not in (None, parser.get_default(name))]
    if args.url is not None and idle:
        flag = idle[0].replace("_", "-")
        parser.error(f"--{flag} is about loading a model; with --url the server has done that")
    try:
        return sampling.from_flags(vars(args))
    except OwlError as error:
        parser.error(str(error))


def _read_pipe(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """What comes on stdin: the picture named -, or the prompt when there is no -p."""
    from_stdin = args.image.count("-")
    if from_stdin > 1 or (from_stdin and args.prompt is None):
        parser.error("-i - reads one picture from stdin and needs the question in -p")
    if from_stdin:
        args.image[args.image.index("-")] = sys.stdin.buffer.read()
    elif args.prompt is None and not sys.stdin.isatty():
        try:
            args.prompt = sys.stdin.buffer.read().decode().strip()
        except UnicodeDecodeError:
            parser.error("what came on stdin is no UTF-8 text; a picture wants -i - and the question in -p")
    if args.prompt is not None and not args.prompt.strip():
        parser.error("the prompt is empty; give one with -p or on stdin")
