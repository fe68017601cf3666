"""Python blocks of documents that are files: their first line is a comment with the path.

Such a block is run as that module, from memory: Triton reads the source of a kernel through linecache.
"""

from __future__ import annotations

import linecache
import re
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]


def path_of(block: str) -> str | None:
    """The path a block is to be written to; None for one that is no file."""
    found = re.match(r"# ([\w/]+\.py)\n", block)
    return found[1] if found else None


def module_of(path: str, block: str) -> ModuleType:
    """The module of a file that is not there, to be imported from now on; of one that is there, a copy with
    the block's lines in addition."""
    name = path.removesuffix(".py").replace("/", ".")
    name = f"owl_fast.{name}" if name.startswith("kernels.") else name
    module = ModuleType(name)
    if (ROOT / path).is_file():
        vars(module).update(vars(import_module(name)))
    else:
        sys.modules[name] = module
    where = f"block: {path}"
    linecache.cache[where] = len(block), None, block.splitlines(keepends=True), where
    exec(compile(block, where, "exec"), vars(module))
    return module
