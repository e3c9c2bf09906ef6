"""Errors in OpenAI's shape: ``{"error": {"message", "type", "param", "code"}}``, each with its HTTP status."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import Response

__all__ = ["ApiError", "error_response", "http_error", "invalid", "overloaded", "unavailable"]

_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
_CODES = {
    401: "invalid_api_key",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "request_too_large",
    429: "queue_full",
}


class ApiError(Exception):
    """What a client is told instead of an answer.

    Args:
        status: HTTP status.
        message: one line that names the thing and the remedy.
        code: a word for programs; default: by status.
        param: the field of the request at fault, dotted.
        retry_after: seconds after which another try is worth it (header Retry-After).

    Attributes:
        headers: further ones of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code or _CODES.get(status)
        self.param = param
        self.retry_after = retry_after
        self.headers: Mapping[str, str] = {}

    def body(self) -> dict[str, Any]:
        """The JSON object that goes to the client, in a response or as an event of a stream."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def invalid(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """The request asks for something that cannot be: 400."""
    return ApiError(400, message, code, param)


def overloaded(retry_after: int) -> ApiError:
    """The queue is full: 429."""
    return ApiError(429, "the queue is full; try again later", "queue_full", retry_after=retry_after)


def unavailable(message: str, code: str, retry_after: int = 1) -> ApiError:
    """The service cannot answer now but will again: 503."""
    return ApiError(503, message, code, retry_after=retry_after)


def error_response(error: ApiError) -> Response:
    """The error as an HTTP response. Non-ASCII is escaped: a message may quote half of a surrogate pair."""
    headers = dict(error.headers)
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return Response(json.dumps(error.body()), error.status, headers, "application/json")


def http_error(error: HTTPException) -> ApiError:
    """What the framework refuses by itself: an unknown path, a method, a body that is too large or no JSON."""
    messages = {
        400: "the body cannot be read as JSON: it is nested too deeply, or not UTF-8",
        404: "there is no such path; /openapi.json lists them",
        405: "this path does not take the method; /openapi.json lists those it takes",
        413: "the body is too large; send less",
    }
    code = "bad_json" if error.status_code == 400 else None
    told = ApiError(error.status_code, messages.get(error.status_code, str(error.detail)), code)
    told.headers = error.headers or {}
    return told
