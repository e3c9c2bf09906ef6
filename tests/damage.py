"""Damaged and hostile files, made from whole ones: seeded, so that each is found again by its number."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

import yaml

__all__ = ["damaged_bytes", "damaged_json", "damaged_lines", "damaged_text", "damaged_yaml"]

_DEEP = "[" * 3000 + "]" * 3000
VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    7,
    255,
    -0.0,
    0.5,
    1e-300,
    5e-324,
    1e300,
    -1e300,
    2**31,
    2**53,
    2**63,
    -(2**63),
    2**64,
    10**30,
    10**10,
    10**300,
    10**5000,
    float("nan"),
    float("inf"),
    -float("inf"),
    "",
    "x",
    "5",
    "nan",
    "\0",
    "\ud800",
    "\u2028",
    "../x",
    "/",
    "~nobody/x",
    "a" * 5000,
    "é" * 50,
    "1e3",
    "null",
    [],
    {},
    [[]],
    [None],
    [{}],
    {"": None},
    {"a": 1},
    ["x"] * 3,
    [1, 2],
    [1.5],
    list(range(200)),
    {"x": {"x": {"x": []}}},
    [True, False],
    {"5": 5},
    "default",
    "full_attention",
]
PIECES = [
    b"",
    b"\0",
    b"\xff",
    b"\xfe\xff",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b"{",
    b"}",
    b"[",
    b"]",
    b'"',
    b",",
    b":",
    b"\n",
    b"\r",
    b"NaN",
    b"Infinity",
    b"1e999",
    b"9" * 400,
    b"9" * 5000,
    b"-",
    b"null",
    b"\\u0000",
    b"\\ud800",
    b"[" * 500,
    b'{"a":' * 500,
    b"&a [*a]",
    b"*a",
    b"!!python/object:os.system {}",
    b"!!int x",
    b"? ",
    b"- " * 200,
    b"---\n",
    b"1:30",
    b"0x",
    b"<<: ",
]


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every container with a key or an index in it."""
    found, stack = [], [value]
    while stack:
        one = stack.pop()
        if isinstance(one, dict | list):
            keys = list(one) if isinstance(one, dict) else list(range(len(one)))
            found += [(one, key) for key in keys]
            stack += [one[key] for key in keys]
    return found


def _strange(chance: random.Random, whole: Any) -> Any:
    if chance.random() < 0.2 and (places := _places(whole)):
        owner, key = chance.choice(places)
        return copy.deepcopy(owner[key])
    if chance.random() < 0.1:
        return chance.choice([-1, 1]) * chance.getrandbits(chance.randrange(1, 2000))
    return copy.deepcopy(chance.choice(VALUES))


def changed(chance: random.Random, value: Any) -> Any:
    """A value with one to three parts replaced, left out, added, renamed, wrapped or exchanged."""
    value = copy.deepcopy(value)
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        places = _places(value)
        if not places or chance.random() < 0.02:
            return _strange(chance, value)
        owner, key = chance.choice(places)
        kind = chance.randrange(9)
        if kind <= 3:
            owner[key] = _strange(chance, value)
        elif kind == 4:
            del owner[key]
        elif kind == 5 and isinstance(owner, dict):
            owner[chance.choice(["extra", "", "\0", key.upper() if isinstance(key, str) else "x"])] = _strange(
                chance, value
            )
        elif kind == 6:
            owner[key] = chance.choice(
                [[owner[key]], {"x": owner[key]}, str(owner[key])[:5000] if not _huge(owner[key]) else ""]
            )
        elif kind == 7:
            other, place = chance.choice(places)
            if place in other if isinstance(other, dict) else place < len(other):
                owner[key] = copy.deepcopy(other[place])
        elif isinstance(owner, list):
            owner.extend(copy.deepcopy(owner[:50]))
        else:
            owner[key] = _strange(chance, value)
    return value


def _huge(value: Any) -> bool:
    return "int" in type(value).__name__ and abs(value) > 10**4000


def _as_json(value: Any) -> str:
    """As JSON, whole numbers of any length included."""
    marks: dict[str, str] = {}

    def marked(one: Any) -> Any:
        if isinstance(one, dict):
            return {key: marked(item) for key, item in one.items()}
        if isinstance(one, list):
            return [marked(item) for item in one]
        if type(one) is int and abs(one) > 10**4000:
            marks["@huge@"] = "9" * 5001
            return "@huge@"
        return one

    text = json.dumps(marked(value), ensure_ascii=True)
    return text.replace('"@huge@"', marks["@huge@"]) if marks else text


def damaged_bytes(chance: random.Random, content: bytes) -> bytes:
    """Cut, overwritten, with bytes put in or a stretch doubled."""
    raw = bytearray(content)
    for _ in range(chance.choice([1, 1, 2, 5])):
        at = chance.randrange(len(raw) + 1)
        kind = chance.randrange(7)
        if kind == 0:
            del raw[at:]
        elif kind == 1 and raw:
            raw[at % len(raw)] = chance.randrange(256)
        elif kind == 2:
            raw[at:at] = chance.choice(PIECES)
        elif kind == 3:
            del raw[at : at + chance.randrange(1, 40)]
        elif kind == 4:
            raw[at:at] = raw[max(0, at - chance.randrange(1, 200)) : at]
        elif kind == 5:
            raw[at : at + 8] = chance.randbytes(8)
        else:
            raw[at:at] = chance.randbytes(chance.randrange(1, 20))
    return bytes(raw)


def damaged_text(chance: random.Random, content: bytes) -> bytes:
    """The same, or no text at all, or far too much of something."""
    if chance.random() < 0.04:
        return chance.choice([b"", b" ", b"\n", b"null", b"[]", b"{}", b'""', b"0", b"NaN", _DEEP.encode(), b"\0" * 50])
    return damaged_bytes(chance, content)


def _doubled(chance: random.Random, text: str) -> str:
    """A duplicate key."""
    begins = [index for index, sign in enumerate(text) if sign == "{"]
    if not begins:
        return text
    at = chance.choice(begins) + 1
    key = text[at : text.find(":", at)] if ":" in text[at:] else ' "x"'
    return f"{text[:at]}{key}: {_as_json(_strange(chance, None))}, {text[at:]}"


def damaged_json(chance: random.Random, content: bytes) -> bytes:
    """A JSON file whose structure, values or text are damaged."""
    if chance.random() < 0.25:
        return damaged_text(chance, content)
    try:
        text = _as_json(changed(chance, json.loads(content)))
    except (ValueError, RecursionError):  # what was damaged before
        return damaged_text(chance, content)
    return (_doubled(chance, text) if chance.random() < 0.1 else text).encode()


def damaged_lines(chance: random.Random, content: bytes) -> bytes:
    """A JSONL file of which a line is damaged."""
    if chance.random() < 0.15:
        return damaged_text(chance, content)
    lines = content.splitlines()
    for _ in range(chance.choice([1, 1, 3])):
        at = chance.randrange(len(lines))
        lines[at] = damaged_json(chance, lines[at])
    return b"\n".join(lines) + chance.choice([b"\n", b"\n", b"", b"\n\n{"])


def damaged_yaml(chance: random.Random, content: bytes) -> bytes:
    """The same of YAML."""
    if chance.random() < 0.4:
        return damaged_text(chance, content)
    value = changed(chance, yaml.safe_load(content))
    if chance.random() < 0.5:
        return _as_json(value).encode()  # which is YAML, too
    try:
        return yaml.safe_dump(value).encode("utf-8", "surrogatepass")
    except (yaml.YAMLError, ValueError):
        return _as_json(value).encode()


Damage = Callable[[random.Random, bytes], bytes]
