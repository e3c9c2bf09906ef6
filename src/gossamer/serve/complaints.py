"""From pydantic's complaints about a request to the one that its writer can act on, in a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError

from gossamer.serve.errors import ApiError, invalid

__all__ = ["validation_error"]

_KINDS = {
    "string_type": "a string",
    "int_type": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}
"""Types of complaints about a value's type, and what it should have been."""

Complaint = Mapping[str, Any]
Path = tuple[str | int, ...]


def validation_error(error: RequestValidationError) -> ApiError:
    """The answer to a request whose fields are wrong; names the field, dotted, and what is taken there."""
    complaints, body = error.errors(), error.body
    first = complaints[0]
    if first["type"] == "json_invalid":
        said = str(first.get("ctx", {}).get("error", first["msg"])).removesuffix(" at")
        return invalid(f"the body is not valid JSON ({said} at character {first['loc'][-1]})", code="bad_json")
    if isinstance(body, bytes):
        return invalid("the body came without the header Content-Type: application/json", code="bad_json")
    if not isinstance(body, dict) and first["loc"] == ("body",):
        return invalid("the body must be a JSON object, sent as application/json", code="bad_json")
    told = _clearest(complaints, body)
    param = ".".join(map(_shown, _split(told[0], body)[0])) or None
    message = _message(told)
    code = "unsupported_field" if told[0]["type"] == "extra_forbidden" else str(told[0]["type"])
    return invalid(f"{param}: {message}" if param else message, param, code)


def _message(complaints: Sequence[Complaint]) -> str:
    """What the complaint says, or, of several about one value, each of another alternative, all of them."""
    first, kind = complaints[0], complaints[0]["type"]
    context = first.get("ctx", {})
    if kind in _KINDS:
        return "expected " + " or ".join(dict.fromkeys(_KINDS[item["type"]] for item in complaints))
    match kind:
        case "extra_forbidden":
            return "not supported here; leave it out"
        case "missing":
            return "this field is required"
        case "literal_error":
            return f"{_quoted(first['input'])} is not taken here; expected {context['expected']}"
        case "union_tag_invalid":
            name = context["discriminator"].strip("'")
            return f"{name} {_quoted(context['tag'])} is not taken here; expected {context['expected_tags']}"
        case "union_tag_not_found":
            return f"{context['discriminator'].strip(chr(39))} is missing"
    return str(first["msg"]).removeprefix("Value error, ")


def _clearest(complaints: Sequence[Complaint], body: Any) -> list[Complaint]:
    """The complaint to tell, of each alternative of a union one; several where they say the same of one value.

    The alternative that was meant is the one of which most is right: its complaint lies deepest, or furthest in a list.
    """
    paths = [_split(complaint, body) for complaint in complaints]
    union = paths[0][2]
    if union is None:
        return [complaints[0]]
    firsts: dict[Path, tuple[Path, Complaint]] = {}
    for (path, alternative, _), complaint in zip(paths, complaints, strict=True):
        if path[: len(union)] == union:
            firsts.setdefault(alternative, (path, complaint))

    def rightness(path: Path, kind: str) -> tuple[int, list[int], int]:
        rank = 0 if kind == "missing" else 1 if kind in _KINDS else 2
        return len(path), [part for part in path if isinstance(part, int)], rank

    best = max(rightness(path, complaint["type"]) for path, complaint in firsts.values())
    return [complaint for path, complaint in firsts.values() if rightness(path, complaint["type"]) == best]


def _split(complaint: Complaint, body: Any) -> tuple[Path, Path, Path | None]:
    """A complaint's place without the names of a union's alternatives, which stand among its parts.

    Returns:
        The path of fields and indices; the names of alternatives; the path of the innermost union, if there is one.
    """
    value, path, names, union = body, list[str | int](), list[str | int](), None
    parts = complaint["loc"][1:]
    for number, part in enumerate(parts, 1):
        if (isinstance(value, dict) and part in value) or (isinstance(value, list) and isinstance(part, int)):
            path.append(part)
            value = value[part]
        elif complaint["type"] == "missing" and number == len(parts):
            path.append(part)
        else:
            names.append(part)
            union = tuple(path)
    return tuple(path), tuple(names), union


def _quoted(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _shown(part: str | int) -> str:
    """A field's name, which the client may have made up, short and in one line."""
    text = str(part)
    return text if text.isprintable() and len(text) <= 60 else _quoted(text)
