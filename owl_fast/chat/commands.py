"""What begins with a slash: one function and one row of the table each."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from owl_fast.chat import sampling
from owl_fast.chat.completion import Candidates, Completion, paths, words
from owl_fast.chat.pictures import MARKS, Attachment, find_paths, open_picture, open_video
from owl_fast.conversation import load_messages
from owl_fast.errors import DataError, ParameterError

if TYPE_CHECKING:
    from owl_fast.chat.talk import Talk

NOTHING_WAITS = "no picture or video waits; /image PATH or /video PATH adds one"
TOPICS = ("model", "params", "template", "memory", "cache")
KEYS = (
    ("Enter", "send"),
    ("Alt-Enter", 'new line; or a block of lines between """ and """'),
    ("Up, Ctrl-R", "what was typed before; Ctrl-R searches it"),
    ("Tab", "complete a command or path"),
    ("Ctrl-C", "stop the answer and keep it; at an empty prompt twice: leave"),
    ("Ctrl-D", "leave"),
)


class Leave(Exception):
    """The user asked to go."""


def run(talk: Talk, line: str) -> None:
    """Carry out a line that begins with a slash. OwlError when it cannot be; Leave for /exit."""
    if "\0" in line:
        raise ParameterError("a command has no NUL in it; with a space in front it is a message")
    name, _, argument = line.partition(" ")
    name = name.strip()
    if name in COMMANDS:
        command, argument = COMMANDS[name], argument.strip()
        if argument and command.usage == name:
            raise ParameterError(f"{name} takes nothing behind it; {argument!r:.40} came")
        command.run(talk, argument)
        return
    if os.path.isfile(os.path.expanduser(line.strip())):
        raise ParameterError(f"to show a picture: /image {line.strip():.200}")
    close = difflib.get_close_matches(name.lower(), COMMANDS, n=1, cutoff=0.65)
    hint = f"did you mean {close[0]}?" if close else "/help lists them;"
    raise ParameterError(f"no command {name:.40}; {hint} with a space in front it is a message")


def offers() -> Completion:
    return Completion(
        {name: command.completes for name, command in COMMANDS.items()},
        {name: command.help for name, command in COMMANDS.items()},
    )


# --- pictures and videos ----------------------------------------------------------------------------------


def _image(talk: Talk, argument: str) -> None:
    _queue(talk, [open_picture(path) for path in find_paths(argument)])


def _video(talk: Talk, argument: str) -> None:
    _queue(talk, [open_video(path) for path in find_paths(argument)])


def _queue(talk: Talk, opened: Sequence[Attachment]) -> None:
    queue = talk.session.queue
    for shown in opened:
        queue.append(shown)
        talk.screen.note(f"{shown.kind} {len(queue)}: {shown.name}, {shown.size}")
    talk.screen.note(f"for the next message: in front of it, or where it says {MARKS[opened[0].kind]}")


def _images(talk: Talk, _argument: str) -> None:
    queue = talk.session.queue
    if not queue:
        talk.screen.note(NOTHING_WAITS)
        return
    talk.screen.table([(str(n), shown.name, shown.size) for n, shown in enumerate(queue, 1)])


def _drop(talk: Talk, argument: str) -> None:
    queue = talk.session.queue
    if not queue:
        raise ParameterError(NOTHING_WAITS)
    number = int(argument) if argument.isdecimal() else 0
    if not 1 <= number <= len(queue):
        raise ParameterError(
            f"/drop wants a number of 1 to {len(queue)}; /images lists the pictures and videos that wait"
        )
    talk.screen.note(f"dropped {queue.pop(number - 1).name}")


# --- the conversation -------------------------------------------------------------------------------------


def _clear(talk: Talk, _argument: str) -> None:
    talk.session.clear()
    talk.screen.note("the conversation and what waited for it are forgotten")


def _undo(talk: Talk, _argument: str) -> None:
    question = talk.session.last_question()
    talk.session.undo()
    talk.screen.note(f"taken back: {question:.60}")


def _retry(talk: Talk, _argument: str) -> None:
    talk.session.retry()
    if talk.session.params.temperature == 0:
        talk.screen.note("at temperature 0 the answer stays the likeliest; /set temperature 0.7 varies it")


def _edit(talk: Talk, _argument: str) -> None:
    talk.edit(talk.session.last_question())


def _continue(talk: Talk, _argument: str) -> None:
    talk.session.go_on()


def _system(talk: Talk, argument: str) -> None:
    conversation = talk.session.conversation
    if argument:
        conversation.set_system(None if argument == "default" else argument)
    said = [message["content"] for message in conversation.messages if message["role"] == "system"]
    talk.screen.note(f"system text: {said[0]}" if said else "system text: the model's own")


def _save(talk: Talk, argument: str) -> None:
    path = _path(argument, "/save")
    if os.path.exists(path):
        try:
            load_messages(path)
        except DataError:
            raise DataError(f"{path} exists and is no conversation; choose another name") from None
    talk.session.conversation.save(path, embed=True)
    talk.screen.note(f"saved to {path}")


def _load(talk: Talk, argument: str) -> None:
    talk.screen.note(talk.session.load(_path(argument, "/load")))


def _path(argument: str, command: str) -> str:
    if not argument:
        raise DataError(f"{command} wants a file: {command} talk.json")
    return os.path.expanduser(argument)


# --- the model --------------------------------------------------------------------------------------------


def _set(talk: Talk, argument: str) -> None:
    name, _, value = argument.partition(" ")
    if name:
        name = sampling.known(name)
    if value.strip():
        params = sampling.change(talk.session.params, name, value.strip())
        talk.session.backend.check(params)
        talk.session.params = params
    rows = sampling.rows(talk.session.params)
    talk.screen.table([row for row in rows if name in ("", row[0])])


def _show(talk: Talk, argument: str) -> None:
    topic = argument or "model"
    if topic not in TOPICS:
        raise ParameterError(f"/show wants one of {', '.join(TOPICS)}; {topic!r:.40} came")
    if topic == "params":
        _set(talk, "")
        return
    shown = talk.session.backend.show(topic, talk.session.prompt())
    if isinstance(shown, str):
        talk.screen.note(shown)
    else:
        talk.screen.table(shown)


def _adapter(talk: Talk, argument: str) -> None:
    session = talk.session
    if argument:
        session.choose_adapter(None if argument == "off" else argument)
    known = ", ".join(session.backend.adapters()) or "none; /adapter FOLDER loads one"
    talk.screen.note(f"adapter: {session.adapter or 'off'} (known: {known})")


def _tokens(talk: Talk, _argument: str) -> None:
    session = talk.session
    count, limit = session.backend.count_tokens(session.prompt()), session.backend.max_context
    left = "" if limit is None else f" of {limit}, {max(limit - count, 0)} left for an answer"
    talk.screen.note(f"the conversation takes {count} positions{left}")


# --- help -------------------------------------------------------------------------------------------------


def _help(talk: Talk, argument: str) -> None:
    name = "/" + argument.removeprefix("/")
    shown = [COMMANDS[name]] if name in COMMANDS else COMMANDS.values()
    keys = () if name in COMMANDS else (("", ""), *KEYS)
    talk.screen.table([*((command.usage, command.help) for command in shown), *keys])


def _exit(_talk: Talk, _argument: str) -> None:
    raise Leave


@dataclass(frozen=True)
class Command:
    usage: str
    help: str
    run: Callable[[Talk, str], None]
    completes: Candidates | None = None


def _table(*commands: Command) -> dict[str, Command]:
    return {command.usage.split()[0]: command for command in commands}


COMMANDS = _table(
    Command(
        "/image PATH", "a picture for the next message: path, URL or pattern (photos/*.jpg)", _image, paths
    ),
    Command("/video PATH", "a video for the next message: path or pattern", _video, paths),
    Command("/images", "the pictures and videos that wait", _images),
    Command("/drop N", "take number N out again", _drop),
    Command("/clear", "forget the conversation, pictures and videos", _clear),
    Command("/undo", "take back the last message and its answer", _undo),
    Command("/retry", "answer the last message anew", _retry),
    Command("/edit", "change the last message and ask again; its pictures stay", _edit),
    Command("/continue", "go on with the last answer", _continue),
    Command("/system TEXT", "replace the conversation's header; `default` brings it back", _system),
    Command("/set [NAME VALUE]", "see or change how answers are made", _set, words(sampling.NAMES)),
    Command("/show [TOPIC]", ", ".join(TOPICS), _show, words(TOPICS)),
    Command("/adapter NAME", "use a LoRA adapter, by name or folder; `off` uses none", _adapter, paths),
    Command("/save FILE", "keep the conversation, pictures included, videos by their paths", _save, paths),
    Command("/load FILE", "go on with one that was kept", _load, paths),
    Command("/tokens", "how much of the context is used", _tokens),
    Command("/help [COMMAND]", "this text, or one line of it", _help),
    Command("/exit", "leave", _exit),
)
