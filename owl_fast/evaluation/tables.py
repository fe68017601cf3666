"""The numbers of a report on a study: report.json (its keys: docs/evaluation.md), which the page shows.

Every rating counts once, also where several raters graded an answer. People are counted together, each model
apart: no number mixes them. What belongs to no answer of the study is set aside and counted there.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from owl_fast.evaluation.agreement import kappa, weighted_kappa
from owl_fast.evaluation.owleval import ABILITIES, SETS, Answers
from owl_fast.evaluation.ratings import GRADES, Pair, Rating, about
from owl_fast.evaluation.study import Study

ODD = ("failed", "missing", "doubled", "unknown", "renamed", "other_picture", "reworded")
VARIANTS = ("all", "without_failed")
Table = dict[str, Any]
Answer = tuple[str, int]  # system, question


def report(
    study: Study, ratings: Sequence[Rating], pairs: Sequence[Pair], records: Mapping[str, Table]
) -> Table:
    """records: how the answers of a system were made, by system. Systems stand in the order of their share of
    A and B with the first group of raters, else of their names."""
    kept = [rating for rating in ratings if about(study, rating)]
    groups = _groups(kept)
    systems = _order(study.answers, groups)
    kept_pairs = [pair for pair in pairs if about(study, pair)]
    return {
        "questions": {"all": len(study.questions), **{name: len(_of(study, name)) for name in SETS}},
        "abilities": {
            letter: {"name": name, "questions": sum(letter in q.abilities for q in study.questions)}
            for letter, name in ABILITIES.items()
        },
        "systems": {name: _system(study, study.answers[name], records.get(name)) for name in systems},
        "groups": [_group(study, systems, model, of_it) for model, of_it in groups.items()],
        "agreement": _agreement(kept),
        "pairs": _pairs(study, systems, kept_pairs),
        "set_aside": {
            "ratings": _set_aside(study, ratings),
            "pairs": _set_aside(study, pairs),
            "ticks": _ticks_aside(study, kept),
        },
    }


def _of(study: Study, name: str) -> set[int]:
    return {question.id for question in study.questions if name in ("all", *question.sets)}


def _failed(study: Study) -> Collection[Answer]:
    return {(name, number) for name, answers in study.answers.items() for number in answers.failed}


def _groups(ratings: Iterable[Rating]) -> dict[str | None, list[Rating]]:
    """People first, under None, then each model."""
    found: dict[str | None, list[Rating]] = defaultdict(list)
    for rating in ratings:
        found[rating.model].append(rating)
    return {
        model: found[model] for model in sorted(found, key=lambda model: (model is not None, model or ""))
    }


def _order(names: Iterable[str], groups: Mapping[str | None, Sequence[Rating]]) -> list[str]:
    ratings = next(iter(groups.values()), [])
    total, good = Counter(r.system for r in ratings), Counter(r.system for r in ratings if r.grade in "AB")
    return sorted(names, key=lambda name: (-good[name] / max(total[name], 1), name))


def _system(study: Study, answers: Answers, record: Table | None) -> Table:
    odd = {name: sorted(getattr(answers, name)) for name in ODD if name != "missing"}
    odd["missing"] = answers.missing(study.questions)
    return {"answers": len(answers.texts), **{name: odd[name] for name in ODD}, "record": record}


def _group(study: Study, systems: Sequence[str], model: str | None, ratings: Sequence[Rating]) -> Table:
    failed, rated = _failed(study), {(rating.system, rating.question) for rating in ratings}
    told = [rating for rating in ratings if (rating.system, rating.question) not in failed]
    raters = sorted({rating.rater for rating in ratings})
    return {
        "model": model,
        "raters": {name: _grades(rating for rating in ratings if rating.rater == name) for name in raters},
        "not_rated": {
            name: sorted(number for number in study.answers[name].texts if (name, number) not in rated)
            for name in systems
        },
        **{
            variant: {"grades": _by_set(study, systems, of_it), "abilities": _shown(study, systems, of_it)}
            for variant, of_it in zip(VARIANTS, (ratings, told), strict=True)
        },
        "medians": _medians(study, systems, ratings),
    }


def _grades(ratings: Iterable[Rating]) -> dict[str, int]:
    counts = Counter(rating.grade for rating in ratings)
    return {**{grade: counts[grade] for grade in GRADES}, "ratings": counts.total()}


def _by_set(study: Study, systems: Sequence[str], ratings: Sequence[Rating]) -> Table:
    found = {}
    for name in ("all", *SETS):
        ids = _of(study, name)
        found[name] = {
            system: _grades(r for r in ratings if r.system == system and r.question in ids)
            for system in systems
        }
    return found


def _shown(study: Study, systems: Sequence[str], ratings: Sequence[Rating]) -> Table:
    """Of the ratings of answers to questions that ask for an ability, how many tick it."""
    found = {}
    for letter in ABILITIES:
        ids = {question.id for question in study.questions if letter in question.abilities}
        asked = [rating for rating in ratings if rating.question in ids]
        found[letter] = {
            system: {
                "shown": sum(letter in r.shown for r in asked if r.system == system),
                "ratings": sum(r.system == system for r in asked),
            }
            for system in systems
        }
    return found


def _medians(study: Study, systems: Sequence[str], ratings: Sequence[Rating]) -> Table:
    """By question and system; "A/B" where the two middle grades differ."""
    grades: dict[Answer, list[str]] = defaultdict(list)
    for rating in ratings:
        grades[rating.system, rating.question].append(rating.grade)
    return {
        str(question.id): {
            system: _median(sorted(grades[system, question.id]))
            for system in systems
            if (system, question.id) in grades
        }
        for question in study.questions
    }


def _median(grades: Sequence[str]) -> str:
    low, high = grades[(len(grades) - 1) // 2], grades[len(grades) // 2]
    return low if low == high else f"{low}/{high}"


def _agreement(ratings: Sequence[Rating]) -> list[Table]:
    """Of any two raters who graded an answer both, models among them."""
    grades: dict[tuple[str, str | None], dict[Answer, int]] = defaultdict(dict)
    for rating in ratings:
        place = list(GRADES).index(rating.grade)
        grades[rating.rater, rating.model][rating.system, rating.question] = place
    raters = sorted(grades, key=lambda rater: (rater[1] is not None, rater[1] or "", rater[0]))
    found = []
    for one, other in itertools.combinations(raters, 2):
        pairs = [
            (grades[one][answer], grades[other][answer]) for answer in grades[one].keys() & grades[other]
        ]
        if pairs:
            found.append(
                {
                    "raters": [{"rater": rater, "model": model} for rater, model in (one, other)],
                    "answers": len(pairs),
                    "equal": sum(a == b for a, b in pairs),
                    "kappa": kappa(pairs),
                    "weighted_kappa": weighted_kappa(pairs),
                }
            )
    return found


def _pairs(study: Study, systems: Sequence[str], pairs: Sequence[Pair]) -> list[Table]:
    """Scores beside a reference's, by judge and reference."""
    failed, found = _failed(study), []
    for judge, reference in sorted({(pair.judge, pair.reference) for pair in pairs}):
        chosen = [pair for pair in pairs if (pair.judge, pair.reference) == (judge, reference)]
        told = [
            pair
            for pair in chosen
            if not {(pair.system, pair.question), (reference, pair.question)} & set(failed)
        ]
        found.append(
            {
                "judge": judge,
                "reference": reference,
                **{
                    variant: {
                        system: pair_scores([pair for pair in of_it if pair.system == system])
                        for system in systems
                        if any(pair.system == system for pair in chosen)
                    }
                    for variant, of_it in zip(VARIANTS, (chosen, told), strict=True)
                },
            }
        )
    return found


def pair_scores(pairs: Sequence[Pair]) -> Table:
    """A question's scores are the means over its orders; the total is their sum.

    first_gains: by how much an answer's lead over the other is greater when it stands first, halved, on
    average over the questions judged in both orders. turned: of these, where the better answer changed.
    """
    by_question: dict[int, dict[bool, Pair]] = defaultdict(dict)
    for pair in pairs:
        by_question[pair.question][pair.system_first] = pair
    both = [orders for orders in by_question.values() if len(orders) == 2]
    leads = [(_lead(orders[True]), _lead(orders[False])) for orders in both]
    own = sum(_mean([pair.score for pair in orders.values()]) for orders in by_question.values())
    other = sum(_mean([pair.reference_score for pair in orders.values()]) for orders in by_question.values())
    return {
        "questions": len(by_question),
        "both_orders": len(both),
        **_totals(own, other),
        "system_first": _one_order([pair for pair in pairs if pair.system_first]),
        "reference_first": _one_order([pair for pair in pairs if not pair.system_first]),
        "first_gains": _mean([(first - second) / 2 for first, second in leads]) if leads else None,
        "turned": sum(first * second < 0 for first, second in leads),
    }


def pairs_text(reference: str, scores: Mapping[str, Table]) -> str:
    """What pair_scores made of each system, as lines."""
    width = max([len("system"), *map(len, scores)])
    lines = [f"{'system':{width}}  questions     score  {reference:>16.16}    ratio"]
    for system, of_it in scores.items():
        ratio = "-" if of_it["ratio"] is None else f"{of_it['ratio']:.1%}"
        lines.append(
            f"{system:{width}}  {of_it['questions']:9}  {of_it['score']:8.1f}  "
            f"{of_it['reference_score']:16.1f}  {ratio:>7}"
        )
    return "\n".join(lines)


def _lead(pair: Pair) -> float:
    return pair.score - pair.reference_score


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _one_order(pairs: Sequence[Pair]) -> Table:
    own, other = sum(pair.score for pair in pairs), sum(pair.reference_score for pair in pairs)
    return {"questions": len(pairs), **_totals(own, other)}


def _totals(own: float, other: float) -> Table:
    return {"score": own, "reference_score": other, "ratio": own / other if other else None}


def _set_aside(study: Study, judged: Iterable[Rating | Pair]) -> Table:
    """What is about no answer of the study, by the first thing that is wrong with it."""
    ids = _of(study, "all")
    systems: Counter[str] = Counter()
    questions: Counter[str] = Counter()
    answers: Counter[str] = Counter()
    changed: Counter[str] = Counter()
    for one in judged:
        system, number = one.system, one.question
        if system not in study.answers:
            systems[system] += 1
        elif number not in ids:
            questions[str(number)] += 1
        elif number not in study.answers[system].texts:
            answers[system] += 1
        elif not about(study, one):
            changed[system] += 1
    return {
        "unknown_system": dict(sorted(systems.items())),
        "unknown_question": dict(sorted(questions.items(), key=lambda item: int(item[0]))),
        "no_answer": dict(sorted(answers.items())),
        "other_answer": dict(sorted(changed.items())),
    }


def _ticks_aside(study: Study, ratings: Iterable[Rating]) -> int:
    """Ticks of abilities that the question does not ask for."""
    asked = {question.id: question.abilities for question in study.questions}
    return sum(len(set(rating.shown) - set(asked[rating.question])) for rating in ratings)
