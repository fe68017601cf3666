"""A report's numbers, counted by hand on a small study."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from owl_fast.evaluation.ratings import Pair, Rating
from owl_fast.evaluation.study import Study, open_study
from owl_fast.evaluation.tables import report
from tests.evaluation.small_set import answer, answers_of, small_set, write_lines

# Questions: 1 (a b, single), 2 (a b, both), 3 (a b f, multi), 4 (a b e, single). "one" failed question 2,
# "two" has no answer to question 4.
RATINGS = [
    Rating("ann", 1, "one", "A", "ab"),
    Rating("ann", 2, "one", "D"),
    Rating("ann", 3, "one", "B", "af"),
    Rating("ann", 4, "one", "C", "ac"),  # c: nobody asked for it
    Rating("ann", 1, "two", "B", "a"),
    Rating("bob", 1, "one", "C", "a"),
    Rating("bob", 2, "one", "D"),
    Rating("bob", 1, "two", "B", "ab"),
    Rating("gpt", 1, "one", "B", "ab", "some-model"),
]
ASIDE = [Rating("ann", 1, "three", "A"), Rating("ann", 9, "one", "A"), Rating("ann", 4, "two", "A")]


@pytest.fixture
def study(tmp_path: Path) -> Study:
    lines = [answer(9, "?", system="two"), *answers_of("two", "abc"), answer(1, "again", system="two")]
    files = [
        write_lines(tmp_path / "one.jsonl", answers_of("one", ["a", "无法回溯", "c", "d"])),
        write_lines(tmp_path / "two.jsonl", lines),
    ]
    return open_study(tmp_path / "study", files, small_set(tmp_path / "data"))


def grades(*counts: int) -> dict[str, int]:
    return {**dict(zip("ABCD", counts, strict=True)), "ratings": sum(counts)}


def test_people(study: Study) -> None:
    found = report(study, RATINGS, [], {})
    assert found["questions"] == {"all": 4, "single_turn": 3, "multi_turn": 2}
    people = found["groups"][0]
    assert people["model"] is None
    assert people["raters"] == {"ann": grades(1, 2, 1, 1), "bob": grades(0, 1, 1, 1)}
    assert people["all"]["grades"] == {
        "all": {"two": grades(0, 2, 0, 0), "one": grades(1, 1, 2, 2)},
        "single_turn": {"two": grades(0, 2, 0, 0), "one": grades(1, 0, 2, 2)},
        "multi_turn": {"two": grades(0, 0, 0, 0), "one": grades(0, 1, 0, 2)},
    }
    assert people["without_failed"]["grades"]["all"]["one"] == grades(1, 1, 2, 0)
    assert people["without_failed"]["grades"]["multi_turn"]["one"] == grades(0, 1, 0, 0)
    assert people["not_rated"] == {"two": [2, 3], "one": []}
    assert people["medians"] == {
        "1": {"two": "B", "one": "A/C"}, "2": {"one": "D"}, "3": {"one": "B"}, "4": {"one": "C"}
    }  # fmt: skip


def test_abilities(study: Study) -> None:
    people = report(study, RATINGS, [], {})["groups"][0]
    shown = {letter: of_it["one"] for letter, of_it in people["all"]["abilities"].items()}
    assert shown == {
        "a": {"shown": 4, "ratings": 6}, "b": {"shown": 1, "ratings": 6}, "c": {"shown": 0, "ratings": 0},
        "d": {"shown": 0, "ratings": 0}, "e": {"shown": 0, "ratings": 1}, "f": {"shown": 1, "ratings": 1},
    }  # fmt: skip
    assert people["without_failed"]["abilities"]["a"]["one"] == {"shown": 4, "ratings": 4}


def test_a_model_stands_apart(study: Study) -> None:
    found = report(study, RATINGS, [], {})
    assert [group["model"] for group in found["groups"]] == [None, "some-model"]
    assert found["groups"][1]["all"]["grades"]["all"]["one"] == grades(0, 1, 0, 0)
    alone = report(study, RATINGS[-1:], [], {})
    assert [group["model"] for group in alone["groups"]] == ["some-model"]


def test_agreement(study: Study) -> None:
    """ann and bob graded three answers both: A C, D D, B B."""
    found = report(study, RATINGS, [], {})["agreement"]
    names = [[rater["rater"] for rater in of_it["raters"]] for of_it in found]
    assert names == [["ann", "bob"], ["ann", "gpt"], ["bob", "gpt"]]
    first = found[0]
    assert (first["answers"], first["equal"]) == (3, 2)
    # Unequal by chance: A meets three, D meets two, B meets two others, of 9.
    assert first["kappa"] == pytest.approx(1 - (1 / 3) / (7 / 9))
    # Squares: seen 4 of 3; by chance A: 4 + 9 + 1, D: 1 + 0 + 4, B: 1 + 4 + 0, of 9.
    assert first["weighted_kappa"] == pytest.approx(1 - (4 / 3) / (24 / 9))


def test_what_belongs_nowhere_is_counted(study: Study) -> None:
    pairs = [Pair("j", 1, "three", "two", True, 5, 5)]
    found = report(study, [*RATINGS, *ASIDE], pairs, {})
    assert found["set_aside"]["ratings"] == {
        "unknown_system": {"three": 1}, "unknown_question": {"9": 1}, "no_answer": {"two": 1},
        "other_answer": {},
    }  # fmt: skip
    assert found["set_aside"]["pairs"]["unknown_system"] == {"three": 1}
    assert found["set_aside"]["ticks"] == 1
    without = report(study, RATINGS, [], {})
    assert (found["groups"], found["pairs"]) == (without["groups"], [])


def test_what_is_odd(study: Study) -> None:
    found = report(study, [], [], {"one": {"model": "owl"}})["systems"]
    odd: dict[str, list[int]] = {"renamed": [], "other_picture": [], "reworded": []}
    assert found["one"] == {
        "record": {"model": "owl"},
        "answers": 4, "failed": [2], "missing": [], "doubled": [], "unknown": [], **odd
    }  # fmt: skip
    assert found["two"] == {
        "answers": 3, "failed": [], "missing": [4], "doubled": [1], "unknown": [9], **odd, "record": None
    }  # fmt: skip


def test_scores_beside_a_reference(study: Study) -> None:
    """Question 1 in both orders, whose better answer turns; 2, which "one" failed, in both; 3 in one."""
    pairs = [
        Pair("j", 1, "one", "two", True, 9, 7),
        Pair("j", 1, "one", "two", False, 6, 7),
        Pair("j", 2, "one", "two", True, 1, 10),
        Pair("j", 2, "one", "two", False, 2, 8),
        Pair("j", 3, "one", "two", True, 5, 5),
    ]
    judged = report(study, [], pairs, {})["pairs"]
    assert [(of_it["judge"], of_it["reference"], list(of_it["all"])) for of_it in judged] == [
        ("j", "two", ["one"])
    ]
    scores: dict[str, Any] = judged[0]["all"]["one"]
    assert (scores["questions"], scores["both_orders"], scores["turned"]) == (3, 2, 1)
    assert (scores["score"], scores["reference_score"]) == (7.5 + 1.5 + 5, 7 + 9 + 5)
    assert scores["ratio"] == pytest.approx(14 / 21)
    assert scores["system_first"] == {"questions": 3, "score": 15, "reference_score": 22, "ratio": 15 / 22}
    assert scores["reference_first"] == {"questions": 2, "score": 8, "reference_score": 15, "ratio": 8 / 15}
    # Leads first and second: 2 and -1, -9 and -6: (3 / 2 - 3 / 2) / 2.
    assert scores["first_gains"] == 0
    told = judged[0]["without_failed"]["one"]
    assert (told["questions"], told["score"], told["first_gains"]) == (2, 12.5, 1.5)


def test_what_was_said_of_other_words_counts_nowhere(study: Study) -> None:
    """Answers may be made anew; ratings of the earlier ones are not theirs."""
    rating = Rating("ann", 1, "one", "A", digest=study.answers["one"].digest(1))
    pair = Pair("j", 1, "one", "two", True, 5, 5, (rating.digest, "another"))
    found = report(study, [rating, replace(rating, rater="bob", digest="another")], [pair], {})
    assert found["set_aside"]["ratings"]["other_answer"] == {"one": 1}
    assert found["set_aside"]["pairs"]["other_answer"] == {"one": 1}
    assert found["groups"][0]["raters"].keys() == {"ann"}
    assert found["pairs"] == []
