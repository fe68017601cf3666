"""The page's application: the study as one rater sees it, and one change after another.

Behind the server's own door (owl_fast/serving/guard.py): loopback, no foreign origins, JSON.
"""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from owl_fast.errors import DiskError, LockedError, OwlError, ParameterError
from owl_fast.evaluate.rating.book import Book, check_grade, check_name
from owl_fast.evaluate.rating.sheets import Sheets
from owl_fast.evaluation.owleval import ABILITIES, MEANINGS, picture_path
from owl_fast.evaluation.ratings import GRADES
from owl_fast.evaluation.study import Study
from owl_fast.files import read_bytes
from owl_fast.picture_files import MAX_BYTES, decode
from owl_fast.serving.app import PAGE as HOUSE
from owl_fast.serving.app import Endpoint, page_endpoints
from owl_fast.serving.errors import ApiError
from owl_fast.serving.guard import Guard
from owl_fast.serving.json_input import parse
from owl_fast.serving.limits import Limits

PAGE = Path(__file__).parent / "page"
# Of the server's page, what this one shares.
SHARED = ("api.js", "appearance.js", "dom.js", "icon.svg", "store.js", "style.css", "theme.js")


def make_app(study: Study, book: Book, limits: Limits, rater: str | None = None) -> ASGIApp:
    """rater: the only one who rates here; None asks on the page."""
    desk = _Desk(study, book, limits, rater)
    shared = page_endpoints(HOUSE)
    files = page_endpoints(PAGE) | {f"/house/{name}": shared[f"/{name}"] for name in SHARED}

    routes = [
        Route("/raters", desk.raters),
        Route("/open", desk.open, methods=["POST"]),
        Route("/rate", desk.rate, methods=["POST"]),
        Route("/pictures/{number}", desk.picture),
        *(Route(path, _static(send)) for path, send in files.items()),
    ]
    refused = {OwlError: _refuse, ApiError: _refuse, HTTPException: _refuse}
    return Guard(Starlette(routes=routes, exception_handlers=refused), limits)


def _static(send: Endpoint) -> Callable[[Request], Awaitable[Response]]:
    async def answer(_: Request) -> Response:
        return await send()

    return answer


class _Desk:
    def __init__(self, study: Study, book: Book, limits: Limits, rater: str | None) -> None:
        self._study, self._book, self._limits, self._rater = study, book, limits, rater
        self._sheets = Sheets(study)
        self._questions = {question.id: question for question in study.questions}
        self._by_number = {str(number): question for number, question in self._questions.items()}

    def raters(self, _: Request) -> Response:
        """Who may rate here, and what by."""
        known = {} if self._rater is not None else self._book.raters()
        report = f"python -m owl_fast.evaluate owleval report {shlex.quote(str(self._study.folder))}"
        return JSONResponse(
            {
                "rater": self._rater,
                "raters": [{"name": name, "rated": rated} for name, rated in known.items()],
                "questions": self._sheets.questions,
                "answers": self._sheets.answers,
                "report": report,
                "grades": GRADES,
                "abilities": ABILITIES,
                "meanings": MEANINGS,
            }
        )

    async def open(self, request: Request) -> Response:
        """Every question as one rater sees it, with what was rated before."""
        asked = await self._asked(request, {"rater"})
        rater = self._name(asked)
        return JSONResponse(await asyncio.to_thread(self._sheet, rater))

    def _sheet(self, rater: str) -> dict[str, Any]:
        rated = self._book.of(rater)
        questions = self._sheets.of(rater)
        for question in questions:
            for mask, system in self._sheets.shown(rater, question["id"]).items():
                rating = rated.get((question["id"], system))
                answer = next(answer for answer in question["answers"] if answer["id"] == mask)
                answer |= {"grade": rating.grade, "shown": list(rating.shown)} if rating else _NOTHING
        return {"rater": rater, "questions": questions}

    async def rate(self, request: Request) -> Response:
        """One change: of the grade, of the ticks, or of both. The reply is what is on disk."""
        asked = await self._asked(request, {"rater", "question", "answer", "grade", "shown"})
        rater, number = self._name(asked), asked.get("question")
        if type(number) is not int or number not in self._questions:
            raise ApiError(404, "there is no such question", param="question")
        system = self._sheets.shown(rater, number).get(str(asked.get("answer")))
        if system is None:
            raise ApiError(404, "there is no such answer to this question; reload the page", param="answer")
        grade, shown = check_grade(asked.get("grade")), self._ticks(asked.get("shown"), number)
        if grade is None and shown is None:
            raise ApiError(400, "wanted a grade, or the letters of the abilities shown")
        rating = await asyncio.to_thread(self._book.change, rater, number, system, grade=grade, shown=shown)
        return JSONResponse({"grade": rating.grade, "shown": list(rating.shown)})

    def picture(self, request: Request) -> Response:
        question = self._by_number.get(request.path_params["number"])
        if question is None or question.image is None:
            raise ApiError(404, "there is no picture of this question")
        path = picture_path(self._study.data, question.image)
        data = read_bytes(path, MAX_BYTES)
        kind = str(decode(data, path.name, pixels=False).format).lower()
        return Response(data, media_type=f"image/{kind}", headers={"cache-control": "no-cache"})

    def _ticks(self, letters: object, number: int) -> str | None:
        if letters is None:
            return None
        required = self._questions[number].abilities
        if not isinstance(letters, list) or not all(letter in list(required) for letter in letters):
            raise ParameterError("shown: wanted a list of letters of the abilities this question asks for")
        return "".join(letter for letter in required if letter in letters)

    async def _asked(self, request: Request, known: set[str]) -> dict[str, Any]:
        asked = parse(await request.body(), self._limits)
        if not isinstance(asked, dict) or not asked.keys() <= known:
            raise ApiError(400, f"wanted a JSON object of {', '.join(sorted(known))}")
        return asked

    def _name(self, asked: dict[str, Any]) -> str:
        name = check_name(asked.get("rater"))
        if self._rater not in (None, name):
            raise ApiError(403, "this server was started for another rater; reload the page", param="rater")
        return name


_NOTHING: dict[str, Any] = {"grade": "", "shown": []}


async def _refuse(_: Request, error: Exception) -> Response:
    """In the error's own words: whoever reads them sits at this machine."""
    if isinstance(error, HTTPException):
        text = {404: "there is nothing at this path", 405: "this path has another method"}
        error = ApiError(error.status_code, text.get(error.status_code, "the request cannot be answered"))
    if not isinstance(error, ApiError):
        status = 507 if isinstance(error, DiskError) else 409 if isinstance(error, LockedError) else 400
        error = ApiError(status, str(error))
    return Response(error.content, error.status, error.headers)
