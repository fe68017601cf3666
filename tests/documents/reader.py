"""Somebody who goes through a document from its top, and does what it says."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

from tests.documents import tables
from tests.documents.blocks import Block
from tests.documents.commands import Commands, Depth
from tests.documents.door import Shell
from tests.documents.pages import BLOCKS


class Reader:
    """addresses: of the servers that documents ask. said: what was printed, for each block."""

    def __init__(self, name: str, folder: Path, addresses: dict[str, str]) -> None:
        self.name, self.folder, self._addresses = name, folder, addresses
        self.said: list[tuple[Block, str]] = []
        self.names: dict[str, Any] = {}

    def command(self, block: Block, shell: Shell, commands: Commands, depth: Depth) -> None:
        """AssertionError for one that fails."""
        script = self._filled_in(block.script)
        if any(name == self.name and block.text.startswith(begins) for name, begins in tables.NOT_STARTED):
            done = subprocess.run(["bash", "-n", "-c", script], capture_output=True, text=True)
            code, output = done.returncode, done.stderr
        else:
            code, output = shell.run(script, commands.answer(depth))
        assert code == 0, f"{self.name}:{block.line}: exit code {code}\n{script}\n{output[-3000:]}"
        self.said.append((block, output))

    def python(self, block: Block) -> None:
        """Tracebacks name the document's own lines."""
        text = "\n" * (block.line - 1) + self._filled_in(block.text)
        here = os.getcwd()
        os.chdir(self.folder)
        try:
            exec(compile(text, self.name, "exec"), self.names)
        finally:
            os.chdir(here)

    def check_what_was_said(self) -> None:
        """AssertionError for output that a document shows and that did not come."""
        for block, output in self.said:
            came = iter(map(_plain, output.splitlines()))
            for line in block.shown:
                assert line == "..." or _plain(line) in came, f"{self.name}: not printed: {line}\n{output}"
        shown = [(words, line) for name, words, line in tables.SAID if name == self.name]
        for row in tables.OTHERS:
            if row.document == self.name and row.printed_by:
                texts = (block.text for block in BLOCKS[self.name] if block.text.startswith(row.begins))
                shown += [(row.printed_by, text.splitlines()[0]) for text in texts]
        for words, line in shown:
            outputs = [output for block, output in self.said if words in block.text]
            came = [_plain(one) for output in outputs for one in output.splitlines()]
            assert _plain(line) in came, f"{self.name}: {words} did not print: {line}\n{outputs}"

    def _filled_in(self, text: str) -> str:
        for words, there in tables.STAND_INS.items():
            text = text.replace(words, there.format(**self._addresses))
        return text


def _plain(line: str) -> str:
    """Widths of columns are not compared."""
    return " ".join(line.split())
