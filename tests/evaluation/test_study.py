"""A study is begun, added to and opened again; its files of lines survive a crash."""

from __future__ import annotations

from pathlib import Path

import pytest

from owl_fast.errors import DataError, LockedError
from owl_fast.evaluation.json_lines import LineFile
from owl_fast.evaluation.ratings import Pair, Rating, read_pairs, read_ratings
from owl_fast.evaluation.study import open_study, slug
from tests.evaluation.small_set import QUESTIONS, answers_of, small_set, write_lines


def test_systems_are_added_and_kept(tmp_path: Path) -> None:
    data = small_set(tmp_path / "data")
    (tmp_path / "more").mkdir()
    one = write_lines(tmp_path / "one_answer.jsonl", answers_of("one:v1", "abcd"))
    write_lines(tmp_path / "more" / "two.jsonl", answers_of("two", "abc"))
    begun = open_study(tmp_path / "study", [one, tmp_path / "more"], data)
    assert list(begun.answers) == ["one:v1", "two"]
    again = open_study(tmp_path / "study", [one])
    assert (again.data, list(again.answers), len(again.questions)) == (data, ["one:v1", "two"], 4)
    assert open_study(tmp_path / "third", [tmp_path / "study"], data).answers == again.answers


def test_other_answers_or_questions_are_refused(tmp_path: Path) -> None:
    data = small_set(tmp_path / "data")
    one = write_lines(tmp_path / "one.jsonl", answers_of("one", "abcd"))
    open_study(tmp_path / "study", [one], data)
    with pytest.raises(DataError, match="other answers of one than"):
        open_study(tmp_path / "study", [write_lines(one, answers_of("one", "abce"))])
    write_lines(data / "questions.jsonl", QUESTIONS[:2])
    with pytest.raises(DataError, match="not the questions of"):
        open_study(tmp_path / "study", data=data)
    with pytest.raises(DataError, match="name the data set it is about with --data"):
        open_study(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no files of answers there"):
        open_study(tmp_path / "study", [tmp_path / "nowhere"])


def test_a_system_in_two_files(tmp_path: Path) -> None:
    one = write_lines(tmp_path / "one.jsonl", answers_of("one", "abcd"))
    study = open_study(tmp_path / "study", [one], small_set(tmp_path / "data")).folder
    write_lines(study / "answers" / "more.jsonl", answers_of("one", "ab"))
    with pytest.raises(DataError, match=r"one\.jsonl: more answers of one; wanted one file a system"):
        open_study(study)


def test_a_torn_line_is_taken_away(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    with LineFile(path) as file:
        file.append({"n": 1})
        file.append({"n": 2})
        with pytest.raises(LockedError):
            LineFile(path)
    path.write_bytes(path.read_bytes() + b'{"n": 3')
    with LineFile(path) as file:
        assert [fields["n"] for _, fields in file.lines] == [1, 2]
        file.append({"n": 4})
    assert path.read_text().splitlines() == ['{"n": 1}', '{"n": 2}', '{"n": 4}']


def test_a_line_somebody_left_without_an_end_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"n": 1}\n{"n": 2}')
    with LineFile(path) as file:
        assert [fields["n"] for _, fields in file.lines] == [1, 2]
        assert path.read_text() == '{"n": 1}\n{"n": 2}'
        file.append({"n": 3})
    assert path.read_text() == '{"n": 1}\n{"n": 2}\n{"n": 3}\n'
    path.write_text('{"n": 1}\n{"n": ')
    with LineFile(path):
        pass
    assert path.read_text() == '{"n": 1}\n{"n": '  # opening changes nothing


@pytest.mark.parametrize("change", ["gone", "another", "longer", "shorter"])
def test_a_file_that_somebody_else_changes(change: str, tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    with LineFile(path) as file:
        file.append({"n": 1})
        if change in ("gone", "another"):
            path.unlink()
        if change == "another":
            path.write_text('{"n": 1}\n')
        elif change != "gone":
            path.write_text({"longer": '{"n": 1}\n{"n": 7}\n', "shorter": ""}[change])
        before = path.read_bytes() if path.exists() else None
        with pytest.raises(DataError, match="was changed or taken away by somebody else"):
            file.append({"n": 2})
    assert (path.read_bytes() if path.exists() else None) == before


def test_a_study_does_not_move_in_with_others(tmp_path: Path) -> None:
    data = small_set(tmp_path / "data")
    (tmp_path / "mine").mkdir()
    write_lines(tmp_path / "mine/notes.txt", [{"precious": 1}])
    for folder in (tmp_path / "mine", data):
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        with pytest.raises(DataError, match="not empty, and no study"):
            open_study(folder, data=data)
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_damaged_study(tmp_path: Path) -> None:
    data = small_set(tmp_path / "data")
    open_study(tmp_path / "study", data=data)
    (tmp_path / "study/study.json").write_text("{}")
    with pytest.raises(DataError, match="wanted the texts data and key; remove it"):
        open_study(tmp_path / "study")


def test_the_last_rating_counts(tmp_path: Path) -> None:
    first, last = Rating("ann", 1, "one", "B", "ab"), Rating("ann", 1, "one", "A", "a")
    judged = Rating("judge", 1, "one", "C", "", "some-model")
    pair = Pair("judge", 1, "one", "gpt", True, 7, 8.5)
    with LineFile(tmp_path / "ratings" / "ann.jsonl") as file:
        file.append(first.to_dict())
        file.append(last.to_dict())
    with LineFile(tmp_path / "ratings" / "judge.jsonl") as file:
        file.append(judged.to_dict())
    with LineFile(tmp_path / "pairs" / "judge.jsonl") as file:
        file.append(pair.to_dict())
    assert read_ratings(tmp_path) == [last, judged]
    assert read_pairs(tmp_path) == [pair]


def test_a_rating_that_was_taken_back_is_none(tmp_path: Path) -> None:
    (tmp_path / "ratings").mkdir()
    lines = [Rating("ann", 1, "one", "B"), Rating("ann", 2, "one", "", "a"), Rating("ann", 1, "one", "")]
    write_lines(tmp_path / "ratings" / "ann.jsonl", [line.to_dict() for line in lines[:2]])
    assert read_ratings(tmp_path) == lines[:1]
    write_lines(tmp_path / "ratings" / "ann.jsonl", [line.to_dict() for line in lines])
    assert read_ratings(tmp_path) == []


def test_a_rating_that_is_half_written_is_none(tmp_path: Path) -> None:
    (tmp_path / "ratings").mkdir()
    whole = Rating("ann", 1, "one", "B")
    path = write_lines(tmp_path / "ratings" / "ann.jsonl", [whole.to_dict()])
    path.write_bytes(path.read_bytes() + b'{"rater": "an')
    assert read_ratings(tmp_path) == [whole]


def test_names_as_files() -> None:
    names = ("mPLUG_Owl_7b:v1", "Ann Lee", "李雷", "../../etc", "a/b", "a%2Fb", ".x", "")
    files = ["mPLUG_Owl_7b:v1", "Ann Lee", "李雷", "%2E.%2F..%2Fetc", "a%2Fb", "a%252Fb", "%2Ex", "%20"]
    assert [slug(name) for name in names] == files
    long = ["ü" * 300, "ü" * 299 + "u"]
    assert len({slug(name) for name in long}) == 2
    assert all(len(slug(name).encode()) <= 200 for name in long)


def test_scores_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "pairs").mkdir()
    path = tmp_path / "pairs" / "judge.jsonl"
    for score in (0, 11, float("nan")):
        write_lines(path, [{**Pair("judge", 1, "one", "gpt", True, 7, 8.5).to_dict(), "score": score}])
        with pytest.raises(DataError, match=rf"judge\.jsonl:1: score is {score}; wanted 1 to 10"):
            read_pairs(tmp_path)


def test_a_line_that_is_no_rating(tmp_path: Path) -> None:
    (tmp_path / "ratings").mkdir()
    path = tmp_path / "ratings" / "ann.jsonl"
    for change in ({"grade": "E"}, {"question_id": "1"}, {"rater": None}, {"abilities": "a,x"}):
        write_lines(path, [{**Rating("ann", 1, "one", "B").to_dict(), **change}])
        with pytest.raises(DataError, match=r"ann\.jsonl:1: no rating; wanted rater"):
            read_ratings(tmp_path)
