"""`evaluate owleval report`: the page stands alone, is well formed and says what is in the study."""

from __future__ import annotations

import json
import resource
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path

import pytest

from owl_fast.evaluate.command import main
from owl_fast.evaluate.report import write_report
from owl_fast.evaluation.ratings import Pair, Rating
from owl_fast.evaluation.study import open_study
from tests.evaluation.example import NOTE, PAGE, REAL, write_example
from tests.evaluation.small_set import answers_of, small_set, write_lines

VOID = {"br", "input", "meta"}
LOADED = {"src", "srcset", "poster", "data", "action", "background", "style:url"}
NASTY = "<script>alert('1')</script>\"&"


class Reader(HTMLParser):
    """What stands in a page; asserts that its tags are closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def check(page: str) -> Reader:
    """Well formed, with no script and nothing that is loaded, its tables labelled."""
    reader = Reader(page)
    names = {tag for tag, _ in reader.tags}
    assert not names & {"script", "link", "img", "iframe", "object", "embed", "form", "base", "svg"}
    ids = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in reader.tags:
        assert not LOADED & attributes.keys()
        assert not [name for name in attributes if name.startswith("on")]
        if "href" in attributes:
            assert (attributes["href"] or "").removeprefix("#") in ids
        if tag == "th":
            assert attributes.get("scope") in ("row", "col")
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert "default-src 'none'" in page
    return reader


def make(folder: Path, systems: Sequence[str] = ("one", "two"), ratings: Sequence[Rating] = ()) -> Path:
    """A study of systems that failed question 2; the second has no answer to 4."""
    files = []
    for number, name in enumerate(systems):
        texts = [f"{NASTY} {name}", "无法回溯", "c", "d"][: 4 - number]
        files.append(write_lines(folder / f"{number}.jsonl", answers_of(name, texts)))
    study = open_study(folder / "study", files, small_set(folder / "data")).folder
    (study / "ratings").mkdir()
    write_lines(study / "ratings" / "all.jsonl", [rating.to_dict() for rating in ratings])
    return study


def page_of(study: Path, *flags: str) -> str:
    assert main(["owleval", "report", str(study), *flags]) == 0
    return (study / "report.html").read_text(encoding="utf-8")


def test_a_study_with_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ratings = [
        Rating("ann", 1, "one", "A", "ab"),
        Rating("ann", 2, "one", "D"),
        Rating("bob", 1, "one", "B", "a"),
        Rating("judge", 1, "two", "C", "a", "some-model"),
        Rating("ann", 1, "nobody", "C"),
    ]
    study = make(tmp_path, ratings=ratings)
    (study / "pairs").mkdir()
    write_lines(study / "pairs" / "j.jsonl", [Pair("j", 1, "one", "two", True, 9, 6).to_dict()])
    (study / "records").mkdir()
    (study / "records" / "one.json").write_text('{"model": "owl", "options": {"max_tokens": 99}}')
    reader = check(page_of(study, "--title", "Our title", "--note", "A note."))
    for said in (
        *("Our title", "A note.", "Rated by people", "Rated by some-model a model’s ratings", "one: 1 of 4"),
        *("5 answers are not rated yet", "options.max_tokens 99", "two: answers that came as a file"),
        *("ratings of nobody, a system without answers here: 1, not counted", "j, beside two", "150 %"),
        *("ann and bob 1 0 % 0/1 0.00 0.00", "What color is the circle?", NASTY),
    ):
        assert said in reader.text.replace("\u202f", " "), said
    printed = capsys.readouterr().out.splitlines()
    assert [line.split() for line in printed[:4]] == [
        ["rated", "by", "people"],
        ["system", "A", "B", "C", "D", "ratings", "A", "or", "B", "failed", "answers"],
        ["one", "1", "1", "0", "1", "3", "67%", "1"],
        ["two", "0", "0", "0", "0", "0", "-", "1"],
    ]
    assert printed[-2:] == [str(study / "report.json"), str(study / "report.html")]
    numbers = json.loads((study / "report.json").read_text(encoding="utf-8"))
    assert [numbers["title"], numbers["note"]] == ["Our title", "A note."]
    assert numbers["groups"][0]["without_failed"]["grades"]["all"]["one"]["ratings"] == 2
    before = [(study / name).read_bytes() for name in ("report.json", "report.html")]
    page_of(study, "--title", "Our title", "--note", "A note.")
    assert [(study / name).read_bytes() for name in ("report.json", "report.html")] == before


def test_names_and_texts_are_escaped(tmp_path: Path) -> None:
    names = (NASTY, "{{ 7 * 7 }} items")
    ratings = [Rating(NASTY, 1, NASTY, "A"), Rating("x", 1, names[1], "B", "", NASTY)]
    reader = check(page_of(make(tmp_path, names, ratings), "--title", NASTY, "--note", NASTY))
    assert reader.text.count(NASTY) > 10
    assert names[1] in reader.text


def test_texts_are_left_out(tmp_path: Path) -> None:
    study = make(tmp_path, ratings=[Rating("ann", 1, "one", "A")])
    page = page_of(study, "--no-texts")
    assert "left out" in check(page).text
    assert "circle" not in page
    assert "无法回溯" not in page


def test_nobody_has_rated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reader = check(page_of(make(tmp_path, ["one"])))
    assert "No ratings yet" in reader.text
    assert "owleval rate" in reader.text
    assert "1 system, 4 questions" in reader.text
    assert not any(attributes.get("id") == "set-aside" for _, attributes in reader.tags)
    assert "no ratings yet" in capsys.readouterr().out


def test_questions_without_pictures_and_abilities(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    questions = [{"question_id": n, "text": f"Question {n}?", "category": "maths"} for n in (1, 2)]
    write_lines(tmp_path / "data" / "questions.jsonl", questions)
    lines = [{"question_id": n, "text": "An answer.", "model_id": "one"} for n in (1, 2)]
    study = open_study(
        tmp_path / "study", [write_lines(tmp_path / "one.jsonl", lines)], tmp_path / "data"
    ).folder
    (study / "ratings").mkdir()
    write_lines(study / "ratings" / "ann.jsonl", [Rating("ann", 1, "one", "A").to_dict()])
    reader = check(page_of(study))
    assert "do not say which abilities" in reader.text
    assert "All questions" in reader.text
    assert "Single-turn set" not in reader.text  # all of them
    assert "failed" not in {attributes.get("name") for _, attributes in reader.tags}  # no switch


@contextmanager
def small_disk(limit: int) -> Iterator[None]:
    """Files do not grow beyond the limit."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.getsignal(signal.SIGXFSZ)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("limit", [100, 9000])
def test_a_full_disk_leaves_the_old_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], limit: int
) -> None:
    """100 bytes: neither file has room; 9000: report.json has."""
    study = make(tmp_path)
    page_of(study)
    before = {path: path.read_bytes() for path in study.iterdir() if path.is_file()}
    assert len(before[study / "report.json"]) < 9000 < len(before[study / "report.html"])
    with small_disk(limit):
        assert main(["owleval", "report", str(study), "--title", "Another"]) == 3
    assert "no report can be written" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in study.iterdir() if path.is_file()} == before


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    study = make(tmp_path)
    (tmp_path / "other").write_text("mine")
    (study / "report.html").symlink_to(tmp_path / "other")
    check(page_of(study))
    assert (tmp_path / "other").read_text() == "mine"
    assert not (study / "report.html").is_symlink()


def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["owleval", "report", str(tmp_path)]) == 1
    assert f"error: {tmp_path}: no study is there" in capsys.readouterr().err
    study = make(tmp_path, ratings=[Rating("ann", 1, "one", "A")])
    with (study / "ratings" / "all.jsonl").open("a") as file:
        file.write('{"rater": "ann"}\n')
    assert main(["owleval", "report", str(study)]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {study}/ratings/all.jsonl:2: no rating; wanted rater")
    assert said.count("\n") == 1
    assert not (study / "report.html").exists()
    with pytest.raises(SystemExit) as ended:
        main(["owleval", "report", "--help"])
    assert ended.value.code == 0
    assert "owleval report study --no-texts" in capsys.readouterr().out


def test_the_example_stands_alone() -> None:
    page = PAGE.read_text(encoding="utf-8")
    reader = check(page)
    assert NOTE in reader.text
    assert "left out" in reader.text
    assert len(page.encode()) < 300_000


@pytest.mark.skipif(not REAL.is_dir(), reason="OwlEval is not beside the checkout")
def test_the_example_is_what_is_written_today(tmp_path: Path) -> None:
    write_example(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text() == PAGE.read_text(), "run python -m tests.evaluation.example"


def test_the_switch(tmp_path: Path) -> None:
    """Failed answers count or are set aside, without a script."""
    pytest.importorskip("selenium", reason="the page is driven with selenium (pip install selenium)")
    from tests.serving.page_driver import find_browser, open_browser

    if not find_browser():
        pytest.skip("needs chromium and chromedriver")
    study = make(tmp_path, ratings=[Rating("ann", 1, "one", "A", "ab"), Rating("ann", 2, "one", "D")])
    write_report(study)
    with open_browser(tmp_path) as driver:
        driver.get((study / "report.html").as_uri())

        def rows() -> list[str]:
            found = driver.find_elements("css selector", ".stack tbody tr")
            return [row.text.split("ratings")[0] for row in found if row.is_displayed()]

        counted = rows()
        assert len(counted) == 6
        assert counted[0].split()[-7:-2] == ["1", "0", "0", "1", "2"]
        driver.find_element("id", "set-aside").click()
        assert rows()[0].split()[-7:-2] == ["1", "0", "0", "0", "1"]
        assert len(rows()) == 6
        assert driver.get_log("browser") == []  # nothing was refused by the page's own rule
