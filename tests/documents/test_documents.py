"""Every command and every Python block of the documents. All of them are read at once; most run in order, in
one folder, as somebody who follows the document would run them."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.documents import tables
from tests.documents.blocks import spoken_commands
from tests.documents.commands import PROGRAMS, STAMPS, Commands, Depth
from tests.documents.door import Shell
from tests.documents.pages import BLOCKS, DOCUMENTS
from tests.documents.reader import Reader
from tests.documents.workshop import NANO, judge, prepare
from tests.fake_hub import Hub, files_in
from tests.serving.owls import serving

WITH_COMMANDS = [name for name, found in BLOCKS.items() if any(b.kind in ("shell", "console") for b in found)]
WITH_PYTHON = [name for name, found in BLOCKS.items() if any(b.kind == "python" for b in found)]
NOWHERE = {"server": "http://127.0.0.1:9", "judge": "http://127.0.0.1:9"}


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    hub = Hub(tmp_path_factory.mktemp("hub"), {"MAGAer13/mplug-owl-llama-7b": files_in(NANO)})
    yield Commands(hub.environment)
    hub.close()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    prepare(folder)
    return folder


@contextlib.contextmanager
def shell_in(folder: Path, aside: Path) -> Iterator[Shell]:
    (aside / "home/.config/fish/completions").mkdir(parents=True)
    shell = Shell(folder, aside, PROGRAMS, STAMPS)
    yield shell
    shell.close()


@pytest.fixture(scope="module")
def mistakes(commands: Commands, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Every document's commands read by their parsers: document -> what was wrong."""
    found = {}
    with shell_in(prepared, tmp_path_factory.mktemp("read")) as shell:
        for name in WITH_COMMANDS:
            reader = Reader(name, prepared, NOWHERE)
            try:
                for block in BLOCKS[name]:
                    if block.kind in ("shell", "console"):
                        reader.command(block, shell, commands, Depth.READ)
            except AssertionError as error:
                found[name] = str(error)
    return found


@pytest.mark.parametrize("name", WITH_COMMANDS)
def test_commands_are_read(name: str, mistakes: dict[str, str]) -> None:
    if name in mistakes:
        pytest.fail(mistakes[name], pytrace=False)


def test_every_exception_is_needed(mistakes: dict[str, str], commands: Commands) -> None:
    assert commands.used == tables.READ.keys()
    text = {name: [block.text for block in found] for name, found in BLOCKS.items()}
    for name, begins in tables.NOT_STARTED:
        assert any(block.startswith(begins) for block in text[name]), begins
    for name, words, said in tables.SAID:
        assert any(words in line and said in line for line in "".join(text[name]).splitlines()), words
    everything = "".join(DOCUMENTS.values())
    assert [words for words in tables.STAND_INS if words not in everything] == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_commands_in_sentences(
    name: str, commands: Commands, prepared: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Programs, subcommands and flags of these names exist."""
    spoken = spoken_commands(DOCUMENTS[name])
    with shell_in(prepared, tmp_path_factory.mktemp("spoken")) as shell:
        for command in spoken:
            command = re.sub(r"\|[\w|-]+", "", command)  # one of several words that may stand there
            code, output = shell.run(command, commands.answer(Depth.FLAGS))
            assert code == 0, f"{name}: {command}\n{output}"


def test_every_block_is_known() -> None:
    """Whoever adds one that is neither command nor Python says in tables.OTHERS what it is."""
    used = set()
    for name, found in BLOCKS.items():
        for block in found:
            if block.kind == "other":
                rows = [r for r in tables.OTHERS if r.document == name and block.text.startswith(r.begins)]
                assert len(rows) == 1, f"{name}:{block.line}: what is this?\n{block.text}"
                used.add(rows[0])
    assert used == set(tables.OTHERS)


@pytest.fixture
def addresses(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """Of the servers that the document asks."""
    text = "".join(block.text for block in BLOCKS[request.getfixturevalue("name")])
    found = dict(NOWHERE)
    with contextlib.ExitStack() as stack:
        if "http://127.0.0.1:8000" in text:
            found["server"] = stack.enter_context(serving()).url
        if "owleval judge" in text:
            found["judge"] = stack.enter_context(judge())
        yield found


@pytest.fixture
def folder(tmp_path: Path, prepared: Path) -> Path:
    return shutil.copytree(prepared, tmp_path / "checkout", symlinks=True)


@pytest.mark.parametrize("name", [name for name in WITH_PYTHON if name not in tables.AFTER_COMMANDS])
def test_python_blocks(
    name: str, folder: Path, addresses: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    reader = Reader(name, folder, addresses)
    for block in BLOCKS[name]:
        if block.kind == "python":
            reader.python(block)
    assert all((folder / file).is_file() for file in tables.LEFT_BY_PYTHON.get(name, ()))
    line, times = tables.PRINTED_BY_PYTHON.get(name, ("", 0))
    assert capsys.readouterr().out.count(line) >= times


@pytest.mark.parametrize(
    "name",
    [name if name in tables.SHORT else pytest.param(name, marks=pytest.mark.slow) for name in WITH_COMMANDS],
)
def test_commands_run(
    name: str,
    folder: Path,
    addresses: dict[str, str],
    commands: Commands,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    reader = Reader(name, folder, addresses)
    with shell_in(folder, tmp_path_factory.mktemp("run")) as shell:
        for block in BLOCKS[name]:
            if block.kind == "python" and name in tables.AFTER_COMMANDS:
                reader.python(block)
            elif block.kind in ("shell", "console"):
                reader.command(block, shell, commands, Depth.RUN)
    reader.check_what_was_said()
