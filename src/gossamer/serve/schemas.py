"""What the JSON schema of a parameter says about its value's type: the one place that decides what is text.

The XML format of calls writes strings bare and everything else as JSON, so the grammar that a forced call is held to
and the reader of calls must agree on what a string is. Both ask here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["accepted_types", "resolve"]

_MOST_STEPS = 64
"""References and branches that are followed from one schema: a client's schema may refer to itself."""
_TYPES = {"string", "number", "integer", "boolean", "array", "object", "null"}
_IMPLIED = {"properties": "object", "additionalProperties": "object", "items": "array", "prefixItems": "array"}
"""Keywords of one type alone, for schemas that leave ``type`` out."""


def accepted_types(schema: Any, root: Mapping[str, Any]) -> frozenset[str]:
    """The JSON types that a schema accepts; empty where it says nothing about types, and anything goes.

    ``type`` alone does not decide: ``const`` and ``enum`` name values, ``anyOf`` and ``oneOf`` add types, ``allOf``
    takes some away, and ``$ref`` stands for another schema.

    Args:
        schema: of one value; the client's, so it may hold anything.
        root: the schema of all parameters, in which references are looked up.
    """
    return frozenset(_accepted(schema, root, [_MOST_STEPS]))


def _accepted(schema: Any, root: Mapping[str, Any], left: list[int]) -> set[str]:
    left[0] -= 1
    if left[0] < 0 or not isinstance(schema, Mapping):
        return set()
    schema = resolve(schema, root)
    declared = schema.get("type")
    limits = [{kind for kind in ([declared] if isinstance(declared, str) else _items(declared)) if _is_type(kind)}]
    if "const" in schema:
        limits.append({_type_of(schema["const"])})
    limits.append({_type_of(value) for value in _items(schema.get("enum"))})
    for union in ("anyOf", "oneOf"):
        branches = [_accepted(branch, root, left) for branch in _items(schema.get(union))]
        limits.append(set().union(*branches) if all(branches) else set())
    limits += [_accepted(branch, root, left) for branch in _items(schema.get("allOf"))]
    said = [limit for limit in limits if limit]
    if not said:
        return {kind for keyword, kind in _IMPLIED.items() if keyword in schema}
    found = said[0]
    for limit in said[1:]:
        found = _both(found, limit)
    return found


def resolve(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema that references to a place within ``root`` lead to, with what stands beside them."""
    for _ in range(_MOST_STEPS):
        reference = schema.get("$ref")
        target = _at(root, reference) if isinstance(reference, str) else None
        if target is None:
            return schema
        schema = {**target, **{key: value for key, value in schema.items() if key != "$ref"}}
    return schema


def _at(root: Mapping[str, Any], reference: str) -> Mapping[str, Any] | None:
    """The object that a JSON pointer (RFC 6901) in a fragment names."""
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


def _both(left: set[str], right: set[str]) -> set[str]:
    """Types that both sets accept; an integer is a number."""
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
    """A list that a schema should hold; it is the client's, and may hold anything."""
    return value if isinstance(value, list) else []
