"""What a rater is shown: the answers of all systems to each question, by names that tell nothing."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from typing import Any

from owl_fast.evaluation.owleval import conversations
from owl_fast.evaluation.study import Study


class Sheets:
    """Of one study. Systems that gave no answer to a question are not shown there."""

    def __init__(self, study: Study) -> None:
        self._questions, self._key = study.questions, study.key.encode()
        # Some systems begin every answer with a space, by which they would be known.
        self._texts = {
            system: {number: text.strip() for number, text in answers.texts.items()}
            for system, answers in study.answers.items()
        }
        self._failed = {system: set(answers.failed) for system, answers in study.answers.items()}
        self._before = {
            turn.id: turns[:number]
            for turns in conversations(study.questions)
            for number, turn in enumerate(turns)
        }

    @property
    def questions(self) -> int:
        """How many have an answer to be rated."""
        return sum(bool(self.systems(question.id)) for question in self._questions)

    @property
    def answers(self) -> int:
        return sum(len(self.systems(question.id)) for question in self._questions)

    def systems(self, number: int) -> list[str]:
        """Those that answered a question."""
        return [system for system, texts in self._texts.items() if number in texts]

    def shown(self, rater: str, number: int) -> dict[str, str]:
        """Name on the page -> system. Every rater sees another order for every question, always the same."""
        named = {self._mask(rater, number, system): system for system in self.systems(number)}
        return dict(sorted(named.items()))

    def of(self, rater: str) -> list[dict[str, Any]]:
        """Everything a rater sees, question by question."""
        return [
            {
                "id": question.id,
                "text": question.text,
                "picture": question.image is not None,
                "abilities": list(question.abilities),
                "answers": [self._answer(mask, system, question.id) for mask, system in shown.items()],
            }
            for question in self._questions
            if (shown := self.shown(rater, question.id))
        ]

    def _answer(self, mask: str, system: str, number: int) -> dict[str, Any]:
        texts = self._texts[system]
        earlier: Sequence[Any] = [
            {"question": turn.text, "answer": texts.get(turn.id)} for turn in self._before[number]
        ]
        return {
            "id": mask,
            "text": texts[number],
            "failed": number in self._failed[system],
            "earlier": earlier,
        }

    def _mask(self, rater: str, number: int, system: str) -> str:
        told = f"{rater}\0{number}\0{system}".encode()
        return hmac.digest(self._key, told, "sha256").hex()[:16]
