"""Ask a model about pictures in the terminal: `python -m owl_fast.chat [MODEL]`.

Answers go to stdout, everything else to stderr. Exit codes: 0 done, 1 error, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from owl_fast.errors import ImageError, OwlError

if TYPE_CHECKING:
    from owl_fast.engine.engine import Engine
    from owl_fast.engine.outputs import Output
    from owl_fast.engine.sampling import SamplingParams

EXAMPLES = """\
examples:
  python -m owl_fast.chat                                        talk to the bundled demonstration model
  python -m owl_fast.chat -i scene.png -p "What color is the star?"
  python -m owl_fast.chat models/mplug-owl-llama-7b -i a.jpg     a model folder in Hugging Face layout
  cat a.jpg | python -m owl_fast.chat -i - -p "What is it?"      the picture from a pipe
  echo "Tell me a story." | python -m owl_fast.chat              the prompt from a pipe
"""
DEMONSTRATION = (
    "owl-nano, the bundled model, is a small demonstration: it knows simple drawn scenes and little else.\n"
    "The real one: python -m owl_fast.chat FOLDER, with FOLDER an mPLUG-Owl model in Hugging Face layout."
)
HELP = """\
/image PATH   a picture for the next message, in front of it or where you type <image>
/clear        forget the conversation and the pictures
/help         this text
/exit         leave (Ctrl-D does too); Ctrl-C stops an answer and keeps what was said"""
SAMPLING_FLAGS: dict[str, tuple[type, str]] = {
    "temperature": (float, "0 (default) takes the likeliest token, above 0 samples"),
    "top-k": (int, "sample among the k likeliest tokens"),
    "top-p": (float, "sample among the likeliest tokens that sum to p"),
    "min-p": (float, "sample among tokens at least p times as likely as the likeliest"),
    "repetition-penalty": (float, "above 1 makes tokens already said less likely"),
    "no-repeat-ngram": (int, "never say the same N tokens twice"),
    "beams": (int, "beam search of this width"),
    "max-tokens": (int, "length of an answer at most (default: what the context leaves)"),
    "seed": (int, "of the draws: same seed, same answer"),
}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m owl_fast.chat",
        description="Ask a model about pictures. With -p, or with a pipe on stdin: one answer on stdout.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "model",
        nargs="?",
        metavar="MODEL",
        help="model folder or weight file (default: the bundled owl-nano)",
    )
    add(
        "-i", "--image", action="append", default=[], metavar="IMAGE", help="picture, - for stdin; repeatable"
    )
    add("-p", "--prompt", metavar="PROMPT", help="ask this, print the answer, leave")
    add("-s", "--system", metavar="TEXT", help="replaces the header of the conversation")
    add("--adapter", metavar="DIR", help="LoRA adapter folder")
    add("--tokenizer", metavar="FILE", help="tokenizer.model of a model that has none beside it")
    add("--config", metavar="FILE", help="config.json, for what a weight file alone cannot tell")
    add("--vision-heads", type=int, metavar="N", help="of a .pth of the first release (default 8)")
    add("--abstractor-heads", type=int, metavar="N", help="likewise")
    add("--device", default="auto", help="auto (default), cuda, cuda:N or cpu")
    add("--dtype", default="auto", choices=["auto", "bf16", "fp16", "fp32"], help="of the weights")
    for name, (kind, text) in SAMPLING_FLAGS.items():
        add(f"--{name}", type=kind, metavar="N" if kind is int else "X", help=text)
    add("--stop", action="append", default=[], metavar="TEXT", help="ends the answer; repeatable")
    add("--plain", action="store_true", help="no colour, no progress bar")
    add("--no-stream", action="store_true", help="print each answer when it is complete")
    add("-v", "--verbose", action="store_true", help="say what is loaded also for a single answer")
    return parser


class Screen:
    """Where things are shown: answers on stdout, the rest on stderr, dim on a terminal."""

    def __init__(self, plain: bool) -> None:
        self.redraws = sys.stderr.isatty() and not plain
        self._guard = sys.stdout.isatty()

    def answer(self, text: str) -> None:
        """Model text, without control characters where a terminal would obey them."""
        if self._guard:
            text = "".join(char for char in text if char in "\n\t" or char.isprintable())
        print(text, end="", flush=True)

    def note(self, text: str) -> None:
        print(f"\x1b[2m{text}\x1b[0m" if self.redraws else text, file=sys.stderr, flush=True)

    def error(self, error: OwlError) -> None:
        print(f"error: {error}", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def progress(self) -> Iterator[Callable[[int, int], None] | None]:
        """A bar by bytes for Engine.from_pretrained; none off a terminal."""
        if not self.redraws:
            yield None
            return
        from tqdm import tqdm

        with tqdm(unit="B", unit_scale=True, desc="loading", leave=False, file=sys.stderr) as bar:

            def update(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            yield update


class Conversation:
    """Messages so far and the pictures waiting for the next one."""

    def __init__(
        self, engine: Engine, params: SamplingParams, screen: Screen, system: str | None, stream: bool
    ) -> None:
        self.engine, self.params, self.screen, self.stream = engine, params, screen, stream
        self._system = system
        self.pictures: list[object] = []
        self.messages: list[dict[str, Any]] = []
        self.clear()

    def clear(self) -> None:
        self.messages = [] if self._system is None else [{"role": "system", "content": self._system}]
        self.pictures = []

    def add_picture(self, source: object) -> None:
        """Decode a picture now, so that a broken one is reported where it is named."""
        from owl_fast.images import load_image

        self.pictures.append(load_image(source))

    def ask(self, text: str) -> Output:
        """Show the answer to a message and its statistics; Ctrl-C ends it early and keeps it.

        When it fails the message is taken back and the pictures wait on.
        """
        messages = [*self.messages, {"role": "user", "content": place_pictures(text, self.pictures)}]
        with self.engine.stream(messages, self.params) as events, _interrupt(events.cancel):
            for event in events:
                if self.stream:
                    self.screen.answer(event.text)
            result = events.output
        self.screen.answer("\n" if self.stream else f"{result.text}\n")
        self.screen.note(statistics(result, self.engine.max_context))
        self.messages = [*messages, {"role": "assistant", "content": result.text}]
        self.pictures = []
        return result


@contextlib.contextmanager
def _interrupt(action: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C calls the action instead of raising, so that a step is never broken off in its middle."""
    before = signal.signal(signal.SIGINT, lambda *_: action())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def place_pictures(text: str, pictures: Sequence[object]) -> list[dict[str, Any]]:
    """Message parts: each typed <image> takes the next picture, the pictures left over come in front."""
    pieces = text.split("<image>", len(pictures))
    typed = len(pieces) - 1
    in_place = list(pictures[:typed])
    parts: list[dict[str, Any]] = [{"type": "image", "image": picture} for picture in pictures[typed:]]
    for index, piece in enumerate(pieces):
        if index:
            parts.append({"type": "image", "image": in_place[index - 1]})
        if piece.strip() or not typed:
            parts.append({"type": "text", "text": piece.strip() if typed else piece})
    return parts


def statistics(result: Output, max_context: int) -> str:
    """The line under an answer."""
    times, usage = result.timings, result.usage
    image = f" (image {times.image_ms:.0f} ms)" if usage.image_tokens else ""
    return " · ".join((
        f"{usage.completion_tokens} tok",
        f"{times.predicted_per_second:.1f} tok/s",
        f"first token {times.first_token_ms:.0f} ms{image}",
        f"context {usage.total_tokens}/{max_context}",
        result.finish_reason,
    ))  # fmt: skip


def load(args: argparse.Namespace, params: SamplingParams, screen: Screen) -> Engine:
    """The engine of the command line, with its start line."""
    from owl_fast.engine.engine import Engine

    begin = time.perf_counter()
    with screen.progress() as progress:
        engine = Engine.from_pretrained(
            args.model,
            device=args.device,
            dtype=args.dtype,
            adapter=args.adapter,
            tokenizer=args.tokenizer,
            config=args.config,
            vision_heads=args.vision_heads,
            abstractor_heads=args.abstractor_heads,
            max_batch=params.beams,
            progress=progress,
        )
    if args.verbose or args.prompt is None:
        name = "owl-nano" if args.model is None else os.path.basename(os.path.abspath(args.model))
        weights = sum(parameter.numel() for parameter in engine.model.parameters())
        dtype, seconds = str(engine.model.dtype).removeprefix("torch."), time.perf_counter() - begin
        screen.note(
            f"ready: {name} {dtype} · {weights / 1e6:.1f} M weights · {engine.model.device} · "
            f"context {engine.max_context} · {seconds:.1f} s"
        )
    if args.model is None:
        screen.note(DEMONSTRATION)
    return engine


def read_params(parser: argparse.ArgumentParser, args: argparse.Namespace) -> SamplingParams:
    """Sampling flags as SamplingParams; a value out of range is wrong usage."""
    from owl_fast.engine.sampling import SamplingParams

    names = [name.replace("-", "_") for name in SAMPLING_FLAGS]
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    try:
        return SamplingParams(**given, stop=tuple(args.stop))
    except OwlError as error:
        parser.error(str(error))


def read_pipe(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """What comes on stdin: the picture named -, or the prompt when there is no -p."""
    from_stdin = args.image.count("-")
    if from_stdin > 1 or (from_stdin and args.prompt is None):
        parser.error("-i - reads one picture from stdin and needs the question in -p")
    if from_stdin:
        args.image[args.image.index("-")] = sys.stdin.buffer.read()
    elif args.prompt is None and not sys.stdin.isatty():
        args.prompt = sys.stdin.buffer.read().decode("utf-8", "replace").strip()
    if args.prompt is not None and not args.prompt.strip():
        parser.error("the prompt is empty; give one with -p or on stdin")


def talk(conversation: Conversation) -> int:
    """Several turns from the keyboard."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (arrow keys in input())
    screen = conversation.screen
    screen.note("Type a message, /help for the commands.")
    leaving = False
    while True:
        try:
            line = input(">>> ").strip()
        except EOFError:
            print()
            return 0
        except KeyboardInterrupt:
            print()
            if leaving:
                return 0
            leaving = True
            screen.note("Ctrl-C once more leaves.")
            continue
        leaving = False
        try:
            if line.startswith("/"):
                if not run_command(conversation, line):
                    return 0
            elif line:
                conversation.ask(line)
        except OwlError as error:
            screen.error(error)


def run_command(conversation: Conversation, line: str) -> bool:
    """Carry out a /command; False when it asks to leave."""
    name, _, rest = line.partition(" ")
    screen = conversation.screen
    if name == "/exit":
        return False
    if name == "/help":
        screen.note(HELP)
    elif name == "/clear":
        conversation.clear()
        screen.note("forgotten")
    elif name == "/image":
        conversation.add_picture(_one_path(rest))
        screen.note(f"{len(conversation.pictures)} picture(s) for the next message")
    else:
        close = difflib.get_close_matches(name, ("/image", "/clear", "/help", "/exit"), n=1)
        hint = f"did you mean {close[0]}?" if close else "/help lists the commands"
        screen.note(f"no command {name}; {hint}")
    return True


def _one_path(text: str) -> str:
    """The path behind /image: as it stands, or in quotes."""
    text = text.strip()
    if text[:1] in ("'", '"'):
        with contextlib.suppress(ValueError):
            text = " ".join(shlex.split(text))
    if not text:
        raise ImageError("/image wants a path: /image scene.png")
    return os.path.expanduser(text)


def run(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    read_pipe(parser, args)
    params = read_params(parser, args)
    screen = Screen(args.plain)
    try:
        engine = load(args, params, screen)
        conversation = Conversation(engine, params, screen, args.system, stream=not args.no_stream)
        for source in args.image:
            conversation.add_picture(source)
        if args.prompt is None:
            return talk(conversation)
        return 130 if conversation.ask(args.prompt).finish_reason == "cancelled" else 0
    except OwlError as error:
        screen.error(error)
        return 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code (argparse itself leaves with 2 on wrong usage)."""
    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        return run(parser, args)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has left; keep the interpreter from complaining once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
