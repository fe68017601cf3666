"""Files and functions that docs/structure.md and docs/kernels.md name are there, and where they say."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = {
    name: (ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("structure.md", "kernels.md")
}
SOURCES = ("owl_fast", "kernels", "export", "benchmarks", "recipes", "examples", "tests", "docs")
PATH = re.compile(r"[\w.-]+(/[\w.-]+)*(/|\.(py|cpp|h|md|txt|json))")
CALL = re.compile(r"((?:\w+\.)*\w+)\(\)")
WORD = re.compile(r"[A-Za-z_]\w+")


def spans(text: str) -> list[str]:
    """What stands between backticks, outside of blocks of code; placeholders are left out."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    return [span for span in re.findall(r"`([^`\n]+)`", text) if "<" not in span]


@functools.cache
def tree() -> frozenset[str]:
    """Every file and folder, with a slash before it, folders with one behind it too."""
    found = [path for folder in SOURCES for path in (ROOT / folder, *(ROOT / folder).rglob("*"))]
    found += [path for path in ROOT.iterdir() if path.is_file()]
    return frozenset(f"/{path.relative_to(ROOT).as_posix()}{'/' * path.is_dir()}" for path in found)


@functools.cache
def words() -> frozenset[str]:
    """Of all sources."""
    files = [
        path for path in tree() if path.endswith((".py", ".h")) and not path.startswith("/tests/documents")
    ]
    return frozenset(WORD.findall("\n".join((ROOT / path[1:]).read_text(encoding="utf-8") for path in files)))


@functools.cache
def functions(path: str) -> frozenset[str]:
    """function, Class.method of a file."""
    found = set()
    for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body:
        inner = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
        found |= {
            prefix + one.name for one in inner if isinstance(one, (ast.FunctionDef, ast.AsyncFunctionDef))
        }
    return frozenset(found)


def steps(title: str) -> list[str]:
    """The numbered steps of a section."""
    section = DOCUMENTS["structure.md"].split(f"## {title}\n")[1].split("\n## ")[0]
    return re.findall(r"^(\d+\. .*?)(?=^\d+\. |\Z)", section, re.M | re.S)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_is_named_is_there(document: str) -> None:
    named = spans(DOCUMENTS[document])
    paths = [span for span in named if PATH.fullmatch(span)]
    names = [
        span.removesuffix("()").split(".")[-1]
        for span in named
        if CALL.fullmatch(span) or WORD.fullmatch(span)
    ]
    assert len(paths) > 20
    assert len(names) > 20
    assert [path for path in paths if not any(there.endswith(f"/{path}") for there in tree())] == []
    assert [name for name in names if name not in words()] == []


@pytest.mark.parametrize("title", ["A request's way through the house", "A training step's way"])
def test_each_step_happens_where_it_says(title: str) -> None:
    found = steps(title)
    assert len(found) == 8
    for step in found:
        files = [span for span in spans(step) if span.endswith(".py")]
        calls = [match[1] for span in spans(step) if (match := CALL.fullmatch(span))]
        assert files, step
        assert calls, step
        defined = {name for file in files for name in functions(file)}
        assert [call for call in calls if call not in defined] == [], step
