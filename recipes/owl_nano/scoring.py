"""Right or wrong: the rule of the blind test, and the table of what must be reached.

Text is lower-cased and punctuation dropped; an answer is right if an accepted phrase occurs as whole words
(Chinese and Japanese: anywhere), no rejected one does, and every required one does.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from owl_fast.evaluation.intervals import wilson
from recipes.owl_nano.questions import Turn

_UNSPACED = re.compile("[\u3040-\u30ff\u4e00-\u9fff]")


@dataclass(frozen=True)
class Target:
    """Held-out accuracy that must be reached, or that is the goal."""

    accuracy: float
    must: bool


TARGETS = {
    "color": Target(0.97, True),
    "where": Target(0.92, True),
    "count": Target(0.95, True),
    "multi": Target(0.88, True),
    "sums": Target(0.95, True),
    "text": Target(0.97, True),
    "shape": Target(0.90, False),
    "exist": Target(0.85, False),
    "countof": Target(0.85, False),
    "compare": Target(0.85, False),
    "describe": Target(0.75, False),
    "read": Target(0.75, False),
    "languages": Target(0.70, False),
}


def plain(text: str) -> str:
    """Lower case, punctuation and symbols to spaces, single spaces."""
    kept = (" " if unicodedata.category(c)[0] in "PSZC" else c for c in text.lower())
    return " ".join("".join(kept).split())


def contains(text: str, phrase: str) -> bool:
    """Whether the plain text holds the phrase as whole words (unspaced scripts: as a substring)."""
    phrase = plain(phrase)
    if _UNSPACED.search(phrase):
        return phrase in text
    return f" {phrase} " in f" {text} "


def is_right(turn: Turn, answer: str) -> bool:
    """Apply the rule to a greedy answer."""
    text = plain(answer)
    if turn.accepted and not any(contains(text, phrase) for phrase in turn.accepted):
        return False
    if not all(contains(text, phrase) for phrase in turn.required):
        return False
    covering = [plain(phrase) for phrase in turn.accepted]
    return not any(contains(text, wrong) and not _inside(wrong, covering) for wrong in turn.rejected)


def _inside(wrong: str, accepted: list[str]) -> bool:
    """A rejected word that is part of the right phrase does not count ("青" in "青色")."""
    return any(plain(wrong) in phrase for phrase in accepted if _UNSPACED.search(phrase))


def accuracies(results: Iterable[tuple[str, bool]]) -> dict[str, tuple[float, int]]:
    """(task, right) pairs -> per task the share of right answers and how many there were."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for task, right in results:
        counts[task][0] += right
        counts[task][1] += 1
    return {task: (right / total, total) for task, (right, total) in counts.items()}


def acceptance_table(measured: Mapping[str, tuple[float, int]]) -> str:
    """Markdown: one row per task with its 95 % interval, and the target beside it. A target is missed for
    sure when the whole interval lies below it."""
    lines = ["| task | accuracy | 95 % | n | target | |", "|---|---|---|---|---|---|"]
    for task, target in TARGETS.items():
        accuracy, total = measured.get(task, (0.0, 0))
        kind = "must" if target.must else "goal"
        high = wilson(round(accuracy * total), total)[1]
        missed = "missed, perhaps by chance" if high >= target.accuracy else "missed"
        verdict = "reached" if accuracy >= target.accuracy else missed
        verdict = verdict if total else "not asked"
        lines.append(f"| {task} | {_shown(accuracy, total)} | {kind} {target.accuracy:.2f} | {verdict} |")
    total = sum(n for _, n in measured.values())
    overall = sum(a * n for a, n in measured.values()) / max(1, total)
    lines.append(f"| all | {_shown(overall, total)} | | |")
    return aligned(lines)


def _shown(accuracy: float, total: int) -> str:
    low, high = wilson(round(accuracy * total), total)
    return f"{accuracy:.3f} | {low:.3f} to {high:.3f} | {total}"


def aligned(lines: Sequence[str]) -> str:
    """The same table with its columns under each other."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "| "
        + " | ".join(
            "-" * width if set(cell) == {"-"} else cell.ljust(width)
            for cell, width in zip(row, widths, strict=True)
        )
        + " |"
        for row in rows
    )


def ablation_table(rates: dict[str, dict[str, float]]) -> str:
    """Markdown: one row per task, one column per variant."""
    names = list(rates)
    lines = ["| task | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for task in next(iter(rates.values())):
        lines.append(f"| {task} | " + " | ".join(f"{rates[name][task]:.2f}" for name in names) + " |")
    return "\n".join(lines)
