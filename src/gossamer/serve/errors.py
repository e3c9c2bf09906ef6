"""Errors in OpenAI's shape, `{"error": {"message", "type", "param", "code"}}`, each with its HTTP status.

Whatever is wrong with a request, its sender gets one line that names the field and says what is accepted there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

__all__ = ["ApiError", "error_response", "http_error", "invalid", "overloaded", "unavailable", "validation_error"]

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
    """An error that a client receives instead of an answer.

    Args:
        status: the HTTP status
        message: one line that names the thing and the remedy
        code: a word for programs; by default it follows from the status
        param: the field of the request at fault, dotted
        retry_after: seconds after which another try is worthwhile (header Retry-After)

    Attributes:
        headers: further headers of the response
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
        """Return the JSON object that goes to the client, in a response or as an event of a stream."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def invalid(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """Return the error for a request that asks for something impossible: 400."""
    return ApiError(400, message, code, param)


def overloaded(retry_after: int) -> ApiError:
    """Return the error for a full queue: 429."""
    return ApiError(429, "the queue is full; try again later", "queue_full", retry_after=retry_after)


def unavailable(message: str, code: str, retry_after: int = 1) -> ApiError:
    """Return the error of a service that cannot answer now but will be able to later: 503."""
    return ApiError(503, message, code, retry_after=retry_after)


def error_response(error: ApiError) -> Response:
    """Return the error as an HTTP response; non-ASCII is escaped, as a message may quote half of a surrogate pair."""
    headers = dict(error.headers)
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return Response(json.dumps(error.body()), error.status, headers, "application/json")


def http_error(error: HTTPException) -> ApiError:
    """Translate what the framework refuses by itself: an unknown path or method, a body too large or not JSON."""
    messages = {
        400: "the body cannot be read as JSON: it is nested too deeply, or not UTF-8",
        404: "there is no such path; /openapi.json lists them",
        405: "this path does not take the method; /openapi.json lists those it takes",
        413: "the body is too large; send less",
    }
    code = "bad_json" if error.status_code == 400 else None
    translated = ApiError(error.status_code, messages.get(error.status_code, str(error.detail)), code)
    translated.headers = error.headers or {}
    return translated


# What pydantic finds wrong with the fields of a request: usually several details, of which the sender is told one.

_TYPE_NAMES = {
    "string_type": "a string",
    "int_type": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}
"""What a value should have been, by pydantic's type of error."""

Detail = Mapping[str, Any]
"""One of pydantic's error details: `type`, `loc`, `msg`, `input` and `ctx`."""

FieldPath = tuple[str | int, ...]


def validation_error(error: RequestValidationError) -> ApiError:
    """Translate wrong fields of a request into an error that names the field, dotted, and what is accepted there."""
    details, body = error.errors(), error.body
    first = details[0]
    if first["type"] == "json_invalid":
        problem = str(first.get("ctx", {}).get("error", first["msg"])).removesuffix(" at")
        return invalid(f"the body is not valid JSON ({problem} at character {first['loc'][-1]})", code="bad_json")
    if isinstance(body, bytes):
        return invalid("the body came without the header Content-Type: application/json", code="bad_json")
    if not isinstance(body, dict) and first["loc"] == ("body",):
        return invalid("the body must be a JSON object, sent as application/json", code="bad_json")
    clearest = _clearest(details, body)
    param = ".".join(map(_short_name, _split_location(clearest[0], body)[0])) or None
    message = _message(clearest)
    code = "unsupported_field" if clearest[0]["type"] == "extra_forbidden" else str(clearest[0]["type"])
    return invalid(f"{param}: {message}" if param else message, param, code)


def _message(details: Sequence[Detail]) -> str:
    """What is wrong with one value; several details come from several alternatives, all of which are named."""
    first, kind = details[0], details[0]["type"]
    context = first.get("ctx", {})
    if kind in _TYPE_NAMES:
        return "expected " + " or ".join(dict.fromkeys(_TYPE_NAMES[detail["type"]] for detail in details))
    match kind:
        case "extra_forbidden":
            return "not supported here; leave it out"
        case "missing":
            return "this field is required"
        case "literal_error":
            return f"{_short_repr(first['input'])} is not taken here; expected {context['expected']}"
        case "union_tag_invalid":
            name = context["discriminator"].strip("'")
            return f"{name} {_short_repr(context['tag'])} is not taken here; expected {context['expected_tags']}"
        case "union_tag_not_found":
            return f"{context['discriminator'].strip(chr(39))} is missing"
    return str(first["msg"]).removeprefix("Value error, ")


def _clearest(details: Sequence[Detail], body: Any) -> list[Detail]:
    """The detail that helps the sender most, or several if they say the same about one value.

    Each alternative of a union has details of its own. The alternative that was meant is the one that is right for the
    most part: its first detail lies deepest, or furthest in a list.
    """
    locations = [_split_location(detail, body) for detail in details]
    union = locations[0][2]
    if union is None:
        return [details[0]]
    firsts: dict[FieldPath, tuple[FieldPath, Detail]] = {}
    for (path, alternative, _), detail in zip(locations, details, strict=True):
        if path[: len(union)] == union:
            firsts.setdefault(alternative, (path, detail))

    def rightness(path: FieldPath, kind: str) -> tuple[int, list[int], int]:
        rank = 0 if kind == "missing" else 1 if kind in _TYPE_NAMES else 2
        return len(path), [part for part in path if isinstance(part, int)], rank

    best = max(rightness(path, detail["type"]) for path, detail in firsts.values())
    return [detail for path, detail in firsts.values() if rightness(path, detail["type"]) == best]


def _split_location(detail: Detail, body: Any) -> tuple[FieldPath, FieldPath, FieldPath | None]:
    """Separate the fields in the location of a detail from the names of the alternatives of unions among them.

    Returns:
        The path of fields and indices; the names of alternatives; the path of the innermost union, if there is one.
    """
    value, path, names, union = body, list[str | int](), list[str | int](), None
    parts = detail["loc"][1:]
    for number, part in enumerate(parts, 1):
        if (isinstance(value, dict) and part in value) or (isinstance(value, list) and isinstance(part, int)):
            path.append(part)
            value = value[part]
        elif detail["type"] == "missing" and number == len(parts):
            path.append(part)
        else:
            names.append(part)
            union = tuple(path)
    return tuple(path), tuple(names), union


def _short_repr(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _short_name(part: str | int) -> str:
    """The name of a field, which the client may have made up, short and in one line."""
    text = str(part)
    return text if text.isprintable() and len(text) <= 60 else _short_repr(text)
