"""The examples of docs/data.md are read as the formats they stand for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from owl_fast.training.readers.formats import FORMATS
from tests.training.data_files import open_file, read_all

GUIDE = (Path(__file__).parents[3] / "docs/data.md").read_text(encoding="utf-8")
EXAMPLES = {
    name: re.sub("^    ", "", block, flags=re.MULTILINE)
    for name, block in re.findall(r"^\*\*(\w+)\*\*[^*]*?\n\n((?:    .*\n)+)", GUIDE, re.MULTILINE)
}


@pytest.mark.parametrize("name", sorted(set(FORMATS) - {"webdataset"}))
def test_an_example(name: str, tmp_path: Path) -> None:
    path = tmp_path / "example"
    path.write_text(EXAMPLES[name], encoding="utf-8")
    assert open_file(path).format == name
    assert len(read_all(path)) == (1 if name in ("sharegpt", "coco", "columns") else 2)


def test_every_format_has_an_example() -> None:
    assert set(EXAMPLES) == set(FORMATS)
