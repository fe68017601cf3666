"""The server is asked what its own description allows, and what it does not."""

from __future__ import annotations

import time
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from tests.serving.owls import MODEL, Owls

CHECKS = [
    *(not_a_server_error, status_code_conformance, content_type_conformance),
    *(response_schema_conformance, negative_data_rejection),
]
POSTS = ("/v1/chat/completions", "/v1/completions", "/tokenize")
GETS = ("/v1/models", "/v1/models/{model}", "/health", "/ready")
LONGEST = 20.0  # seconds for a request on a busy machine; a hang takes longer


def fuzz(owls: Owls, path: str, mode: GenerationMode, examples: int, repeatable: bool) -> None:
    document = requests.get(f"{owls.url}/openapi.json", timeout=LONGEST).json()
    operation = schemathesis.openapi.from_dict(document)[path]["POST" if path in POSTS else "GET"]
    session = requests.Session()
    session.trust_env = False

    @settings(
        max_examples=examples, derandomize=repeatable, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(case=operation.as_strategy(generation_mode=mode), real=st.booleans())
    def ask(case: Any, real: bool) -> None:
        if mode is GenerationMode.POSITIVE and real and isinstance(case.body, dict) and "model" in case.body:
            # Names made up get no further than 404. A few tokens do.
            case.body |= {"model": MODEL}
            if "prompt" in case.body or "messages" in case.body:
                case.body["max_tokens"] = 2
        begin = time.monotonic()
        reply = case.call(base_url=owls.url, session=session, timeout=LONGEST)
        assert time.monotonic() - begin < LONGEST
        assert reply.status_code == 200 or len(reply.content) <= 1024
        if reply.status_code != 413:  # which is no rejection to the check
            case.validate_response(reply, checks=CHECKS)

    ask()
    session.close()


@pytest.mark.parametrize("mode", GenerationMode, ids=lambda mode: mode.value)
@pytest.mark.parametrize("path", POSTS)
def test_what_it_says_it_takes(owls: Owls, path: str, mode: GenerationMode) -> None:
    fuzz(owls, path, mode, 40, repeatable=True)
    owls.idle()


@pytest.mark.parametrize("path", GETS)
def test_what_it_says_it_gives(owls: Owls, path: str) -> None:
    fuzz(owls, path, GenerationMode.POSITIVE, 5, repeatable=True)


@pytest.mark.slow
@pytest.mark.parametrize("mode", GenerationMode, ids=lambda mode: mode.value)
@pytest.mark.parametrize("path", POSTS)
def test_two_thousand_of_each(owls: Owls, path: str, mode: GenerationMode) -> None:
    before = owls.fixed_answer()
    fuzz(owls, path, mode, 1000, repeatable=False)
    assert owls.fixed_answer() == before
    owls.idle()
