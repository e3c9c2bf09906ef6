"""Which JSON types the schema of a parameter accepts: the one place that decides what is a string.

The XML format of tool calls writes strings as they are and everything else as JSON. So the grammar of a forced call and
the reader of calls must agree on what a string is, and both ask here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["accepted_types", "resolve"]

_MAX_STEPS = 64
"""References and branches that are followed from one schema, because a client's schema may refer to itself."""
_TYPES = {"string", "number", "integer", "boolean", "array", "object", "null"}
_IMPLIED = {"properties": "object", "additionalProperties": "object", "items": "array", "prefixItems": "array"}
"""Keywords that imply a type, for schemas without `type`."""


def accepted_types(schema: Any, root: Mapping[str, Any]) -> frozenset[str]:
    """Return the JSON types that a schema accepts, empty if it does not restrict them.

    More than `type` decides: `const` and `enum` name values, `anyOf` and `oneOf` add types, `allOf` removes some, and
    `$ref` stands for another schema.

    Args:
        schema: the schema of one value; it comes from the client and may hold anything
        root: the schema of all parameters, in which references are looked up
    """
    return frozenset(_accepted(schema, root, [_MAX_STEPS]))


def _accepted(schema: Any, root: Mapping[str, Any], steps_left: list[int]) -> set[str]:
    steps_left[0] -= 1
    if steps_left[0] < 0 or not isinstance(schema, Mapping):
        return set()
    schema = resolve(schema, root)
    declared = schema.get("type")
    limits = [{kind for kind in ([declared] if isinstance(declared, str) else _items(declared)) if _is_type(kind)}]
    if "const" in schema:
        limits.append({_type_of(schema["const"])})
    limits.append({_type_of(value) for value in _items(schema.get("enum"))})
    for union in ("anyOf", "oneOf"):
        branches = [_accepted(branch, root, steps_left) for branch in _items(schema.get(union))]
        limits.append(set().union(*branches) if all(branches) else set())
    limits += [_accepted(branch, root, steps_left) for branch in _items(schema.get("allOf"))]
    limits = [limit for limit in limits if limit]
    if not limits:
        return {kind for keyword, kind in _IMPLIED.items() if keyword in schema}
    found = limits[0]
    for limit in limits[1:]:
        found = _intersect(found, limit)
    return found


def resolve(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    """Follow references within `root`, and return the schema they lead to, with the keywords that stand beside them."""
    for _ in range(_MAX_STEPS):
        reference = schema.get("$ref")
        target = _at(root, reference) if isinstance(reference, str) else None
        if target is None:
            return schema
        schema = {**target, **{key: value for key, value in schema.items() if key != "$ref"}}
    return schema


def _at(root: Mapping[str, Any], reference: str) -> Mapping[str, Any] | None:
    """The object that a JSON pointer (RFC 6901) in a fragment names; None if there is none."""
    if reference == "#":
        return root
    if not reference.startswith("#/"):
        return None
    value: Any = root
    for part in reference[2:].split("/"):
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(value, Mapping) and key in value:
            value = value[key]
        elif isinstance(value, list) and key.isdigit() and int(key) < len(value):
            value = value[int(key)]
        else:
            return None
    return value if isinstance(value, Mapping) else None


def _intersect(left: set[str], right: set[str]) -> set[str]:
    """The types that both sets accept; an integer is a number."""
    found = left & right
    if ("number" in left and "integer" in right) or ("integer" in left and "number" in right):
        found.add("integer")
    return found


def _is_type(name: Any) -> bool:
    return isinstance(name, str) and name in _TYPES


def _type_of(value: Any) -> str:
    kinds = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}
    return kinds.get(type(value), "null")


def _items(value: Any) -> list[Any]:
    """The list that a schema should hold here, empty if the client has put something else there."""
    return value if isinstance(value, list) else []
