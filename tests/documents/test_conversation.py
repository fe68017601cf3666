"""The README's conversation is what the bundled model says."""

from __future__ import annotations

import re

from owl_fast import Engine
from tests.documents.blocks import blocks
from tests.documents.pages import DOCUMENTS, ROOT


def test_the_readme_s_conversation() -> None:
    (shown,) = (block.text for block in blocks(DOCUMENTS["README.md"]) if ">>> " in block.text)
    picture = re.match(r"\$ owl-fast chat -i (\S+)\n", shown)
    turns = re.findall(r"^>>> (.*)\n(.*)$", shown, re.M)
    assert picture
    assert len(turns) == 5
    chat = Engine.from_pretrained().chat()
    told = [chat(asked, images=[] if at else [ROOT / picture[1]]).text for at, (asked, _) in enumerate(turns)]
    assert told == [answer for _, answer in turns]
