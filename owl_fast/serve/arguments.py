"""The arguments of `python -m owl_fast.serve`."""

from __future__ import annotations

import argparse
import ipaddress
import os
import stat
from collections.abc import Sequence

from owl_fast.command_line import add_loading_flags
from owl_fast.errors import DataError, ParameterError
from owl_fast.serving import options
from owl_fast.settings import add_settings_flags, read_settings

EXAMPLES = """\
examples:
  python -m owl_fast.serve                                       owl-nano at http://127.0.0.1:8000
  python -m owl_fast.serve models/mplug-owl-llama-7b --quant int4
  python -m owl_fast.serve MODEL --adapter mine=runs/mine/final  a second model, "mine", on the same weights
  OWL_API_KEY=... python -m owl_fast.serve MODEL --host 0.0.0.0 --public-host owl.example.org
  python -m owl_fast.serve --print-config > serve.toml           settings to edit, for --config serve.toml

What it answers, and every bound: docs/serving.md.
exit codes: 0 stopped, 1 error, 2 wrong usage, 70 the model stopped working: to be started again
"""

LEAST_CONTEXT = 256  # the header and a picture alone take about 110 positions of a 7B
LONGEST_KEYS = 64 << 10  # bytes of a file


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m owl_fast.serve",
        description="Answer OpenAI's API and show a web page, with a model of this machine.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_model(parser.add_argument_group("model"))
    _add_network(parser.add_argument_group("network"))
    _add_pictures(parser.add_argument_group("pictures (data: URIs are always read)"))
    add_settings_flags(parser)
    return parser


def read_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Flags over --config; leaves with 2 for a host that would be open to all without a key."""
    parser = build_parser()
    args = read_settings(parser, argv)
    if not 0 <= args.port < 1 << 16:
        parser.error(f"--port {args.port}: wanted 0 (any free one) to 65535")
    if args.max_context < LEAST_CONTEXT:
        parser.error(
            f"--max-context {args.max_context}: wanted at least {LEAST_CONTEXT}, which hold the header of a "
            "conversation, a picture, a question and an answer"
        )
    if not (is_loopback(args.host) or has_key(args) or args.insecure_no_auth):
        parser.error(
            f"--host {args.host} can be reached by others: give a key (--api-key-file or the environment's "
            "OWL_API_KEY), or say --insecure-no-auth"
        )
    return args


def _add_model(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add_loading_flags(group)
    add(
        "--adapter",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="LoRA adapter, to be asked for as the model NAME; repeatable",
    )
    add("--max-batch", type=int, default=8, metavar="N", help="answers generated at once (default: 8)")
    add(
        "--max-context",
        type=int,
        default=2048,
        metavar="N",
        help="positions of a prompt and its answer (default: 2048)",
    )
    add(
        "--speculation",
        type=int,
        default=0,
        metavar="N",
        help="guess how answers go on, in steps of fewer rows than N (default: 0, no guesses)",
    )


def _add_network(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    add("--port", type=int, default=8000, metavar="N", help="0: any free one (default: 8000)")
    add(
        "--api-key-file",
        metavar="FILE",
        help="keys, one a line, in a file of mode 0600 (default: the environment's OWL_API_KEY, if set)",
    )
    add("--insecure-no-auth", action="store_true", help="anybody who reaches --host may ask")
    add(
        "--public-host",
        action="append",
        default=[],
        metavar="NAME",
        help="NAME or NAME:PORT by which clients call this server; repeatable",
    )


def _add_pictures(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--image-hosts", metavar="HOST,...", help="https URLs of these hosts are fetched (default: none)")
    add("--image-dir", metavar="DIR", help="files in this folder may be named (default: none)")


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def public_hosts(args: argparse.Namespace) -> list[str]:
    """Names by which it may be called, beside those of loopback: a certain --host is one of them."""
    try:
        address = ipaddress.ip_address(args.host)
    except ValueError:
        own = [args.host] if args.host else []
    else:
        text = f"[{address}]" if address.version == 6 else str(address)
        own = [] if address.is_unspecified else [text]
    return [*own, *args.public_host]


def has_key(args: argparse.Namespace) -> bool:
    return args.api_key_file is not None or options.VARIABLE in os.environ


def read_keys(args: argparse.Namespace) -> list[str]:
    """Of the file, else of the environment. DataError, ParameterError; neither says what a key is."""
    if args.api_key_file is None:
        return options.environment_keys()
    return options.read_keys(_read_key_file(args.api_key_file), args.api_key_file)


def _read_key_file(name: str) -> str:
    try:
        with open(name, encoding="ascii") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & (0o037 if _is_credential(name) else 0o077):
                raise DataError(f"{name}: others may read it (mode {mode:04o}); chmod 600 {name}")
            text = file.read(LONGEST_KEYS + 1)
        if len(text) > LONGEST_KEYS:
            raise DataError(f"{name}: longer than {LONGEST_KEYS} bytes, which no list of keys is")
        return text
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not plain ASCII"
        raise DataError(f"{name}: cannot be read ({reason})") from None


def _is_credential(name: str) -> bool:
    """Whether it is a file systemd made for this service: there the group's bits are the mask of an ACL that
    lets the service's own user read it."""
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    return bool(folder and os.path.dirname(os.path.realpath(name)) == os.path.realpath(folder))


def check_pictures(args: argparse.Namespace) -> None:
    """ParameterError for hosts that are none, and for a folder that is none."""
    from owl_fast.fetch import Fetcher

    Fetcher(options.read_list(args.image_hosts))
    if args.image_dir is not None and not os.path.isdir(args.image_dir):
        raise ParameterError(f"--image-dir {args.image_dir!r:.200}: no such folder")
