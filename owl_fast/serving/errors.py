"""What the server answers when it does not answer: the errors of the OpenAI API."""

from __future__ import annotations

import json
import logging
import secrets
from typing import Any

logger = logging.getLogger(__name__)


class ApiError(Exception):
    """Ends a request with a status and {"error": {"message", "type", "param", "code"}}.

    The message says what is wrong and what to do; it never repeats what came, and stays below Limits.error.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.retry_after = retry_after  # seconds, sent as a header

    @property
    def body(self) -> dict[str, Any]:
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def content(self) -> bytes:
        return json.dumps(self.body).encode()

    @property
    def headers(self) -> dict[str, str]:
        headers = {"content-type": "application/json"}
        if self.retry_after is not None:
            headers["retry-after"] = str(self.retry_after)
        return headers


_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def loading() -> ApiError:
    """While there is no model yet."""
    return ApiError(503, "the model is loading; try again soon", code="model_loading", retry_after=2)


def internal_error(error: Exception) -> ApiError:
    """What the client hears of an error that is ours: a number to find it by in the log."""
    name = secrets.token_hex(6)
    logger.error("error %s", name, exc_info=error)
    return ApiError(500, f"the server failed; its log has the reason under {name}", code="internal_error")
