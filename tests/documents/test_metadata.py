"""What machines read of the documents: CITATION.cff, and the head of the bundled model's card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import owl_fast

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).resolve().parents[2]
CARD = (ROOT / "owl_fast/assets/owl-nano/README.md").read_text(encoding="utf-8")


def test_the_citation_names_software_and_paper() -> None:
    cited: dict[str, Any] = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["cff-version"] == "1.2.0"
    assert cited["message"]
    assert (cited["title"], str(cited["version"])) == ("owl_fast", owl_fast.__version__)
    assert cited["license"] == "Apache-2.0"
    assert cited["authors"] == [{"name": "The owl_fast authors"}]
    (paper,) = cited["references"]
    assert (paper["type"], paper["year"]) == ("article", 2023)
    assert "2304.14178" in paper["url"]
    assert len(paper["authors"]) == 17
    assert all(set(author) == {"given-names", "family-names"} for author in paper["authors"])
    assert paper["authors"][0] == {"given-names": "Qinghao", "family-names": "Ye"}


def test_the_model_card_has_a_head_and_its_sections() -> None:
    nothing, head, body = CARD.split("---\n", 2)
    assert nothing == ""
    told = yaml.safe_load(head)
    assert told["license"] == "apache-2.0"
    assert told["pipeline_tag"] == "image-text-to-text"
    assert told["library_name"] == "owl_fast"
    assert set(told["language"]) == {"en", "de", "fr", "zh", "ja"}
    titles = [line[3:] for line in body.splitlines() if line.startswith("## ")]
    assert titles == [
        *("Use", "What it cannot do", "Training data", "Training", "Evaluation", "Files"),
        "Licence and citation",
    ]
