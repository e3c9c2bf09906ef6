"""What a schema says about types, by the keywords of JSON Schema 2020-12 (json-schema.org/draft/2020-12)."""

from __future__ import annotations

import pytest

from gossamer.data.chat.json_schema import accepted_types, resolve

ROOT = {
    "$defs": {
        "Text": {"type": "string", "title": "Text"},
        "Loop": {"$ref": "#/$defs/Loop"},
        "A": {"$ref": "#/$defs/B"},
        "B": {"anyOf": [{"$ref": "#/$defs/A"}, {"type": "null"}]},
        "a/b": {"type": "array"},
    },
    "properties": {"list": {"items": [{"type": "boolean"}]}},
}


@pytest.mark.parametrize(
    ("schema", "types"),
    [
        ({"type": "string"}, {"string"}),
        (
            {"type": "string", "title": "T", "default": "x", "minLength": 1, "pattern": "a", "format": "date"},
            {"string"},
        ),
        ({"type": ["string", "null"]}, {"string", "null"}),
        ({"const": "Rome"}, {"string"}),
        ({"enum": ["a", None, 3, 1.5, True]}, {"string", "null", "integer", "number", "boolean"}),
        ({"type": "string", "enum": ["a", 3]}, {"string"}),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, {"string", "null"}),
        ({"oneOf": [{"$ref": "#/$defs/Text"}, {"const": 5}]}, {"string", "integer"}),
        ({"anyOf": [{"type": "string"}, {}]}, set()),
        ({"allOf": [{"$ref": "#/$defs/Text"}]}, {"string"}),
        ({"allOf": [{"type": ["string", "integer"]}, {"type": ["number", "null"]}]}, {"integer"}),
        ({"$ref": "#/$defs/Text"}, {"string"}),
        ({"$ref": "#/$defs/Text", "description": "d"}, {"string"}),
        ({"$ref": "#/$defs/a~1b"}, {"array"}),
        ({"$ref": "#/properties/list/items/0"}, {"boolean"}),
        ({"properties": {}}, {"object"}),
        ({"items": {}}, {"array"}),
        # what is no schema says nothing, and what refers to itself ends
        ({}, set()),
        (True, set()),
        (5, set()),
        ({"type": 5, "anyOf": 5, "enum": 5}, set()),
        ({"type": "text"}, set()),
        ({"$ref": "#/$defs/Loop"}, set()),
        ({"$ref": "#/$defs/B"}, set()),
        ({"$ref": "https://example.com/schema"}, set()),
        ({"$ref": "#/nothing"}, set()),
    ],
)
def test_the_types_that_a_schema_accepts(schema, types):
    assert accepted_types(schema, ROOT) == types


def test_what_stands_beside_a_reference_counts():
    assert resolve({"$ref": "#/$defs/Text", "title": "Mine"}, ROOT) == {"type": "string", "title": "Mine"}


def test_a_schema_that_branches_without_end_is_looked_at_for_a_moment():
    root: dict = {"$defs": {"T": {"anyOf": [{"$ref": "#/$defs/T"}] * 50}}}
    assert accepted_types({"$ref": "#/$defs/T"}, root) == set()
