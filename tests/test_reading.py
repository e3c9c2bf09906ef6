"""The one reader: what it takes, what it refuses in one line, and that nothing else parses what others wrote."""

import ast
import json
import os
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import gossamer
from gossamer import reading
from gossamer.errors import UserError
from gossamer.reading import (
    MissingFile,
    checked,
    open_to_append,
    open_to_read,
    parse_json,
    read_json,
    read_object,
    read_text,
    text_of_name,
    user_path,
)
from gossamer.yaml_files import parse_yaml, yaml_text

PACKAGE = Path(gossamer.__file__).parent
# What a model, a client of the service or a template's process has said in JSON is no file, and is answered otherwise
# than by one line.
ELSEWHERE = ("serve/", "data/chat/renderer.py", "data/chat/template_process.py", "data/chat/tool_calls.py")
PARSERS = {
    ("json", "load"), ("json", "loads"), ("yaml", "load"), ("yaml", "safe_load"), ("yaml", "compose"),
    ("yaml", "unsafe_load"), ("yaml", "full_load"), ("tomllib", "load"), ("tomllib", "loads"),
}  # fmt: skip


BILLION = "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else 1}]" for i in range(12))


def refusal(call: Any, *arguments: Any) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_nothing_else_parses_what_others_wrote() -> None:
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Attribute):
                continue
            name = node.value.id if isinstance(node.value, ast.Name) else ""
            if (name, node.attr) in PARSERS or node.attr == "expanduser":
                found.add(str(path.relative_to(PACKAGE)))
    assert {path for path in found if not path.startswith(ELSEWHERE)} == {"reading.py", "yaml_files.py"}


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(10**300), 10**300) | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(st.characters(exclude_categories=["Cs"])),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
        max_leaves=20,
    )
)  # fmt: skip
def test_json_comes_back(value: Any) -> None:
    assert parse_json(json.dumps(value), "x") == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": NaN}', "x: a: NaN is no number"),
        ('{"a": -Infinity}', "x: a: -Infinity is no number"),
        ('{"a": 1e999}', "x: a: 1e999 is beyond every number"),
        ('{"a": NaN "b"', "x: NaN is no number"),
        ('{"a": 1e999, "b": ' + "[" * 100_000, "x: 1e999 is beyond every number"),
        ('{"a": ' + "9" * 5000 + "}", "x: a: a number of 5000 digits"),
        ('{"a": [1, {"b": [0, NaN]}], "c": 1e999}', "x: a.1.b.1: NaN is"),
        ("[" * 100_000, "x: not JSON (nested more than 64 deep)"),
        ("[" * 65 + "]" * 65, "x: nested more than 64 deep"),
        ('{"a":' * 70 + "1" + "}" * 70, "x: nested more than 64 deep"),
        ('"\\ud800"', "x: holds half of a surrogate pair"),
        ("{\n 'a': 1}", "x: not JSON (Expecting property name enclosed in double quotes at line 2, column 2)"),
        ("", "x: not JSON (Expecting value at column 1)"),
        ('{"a": [1]\n', "x: not JSON (Expecting ',' delimiter at column 10)"),
        ('\n{"a": [1]\n', "x: not JSON (Expecting ',' delimiter at column 10)"),
    ],
)
def test_json_that_is_refused(text: str, message: str) -> None:
    assert refusal(parse_json, text, "x").startswith(message)


def test_a_record_may_hold_anything_beside_its_text() -> None:
    long = "9" * 5000
    record = parse_json(f'{{"text": "a", "x": NaN, "y": {long}, "z": 1e999}}', "x", strict=False)
    assert record["text"] == "a"
    assert "deep" in refusal(parse_json, "[" * 100_000, "x", "", False)


def test_64_levels_are_read() -> None:
    assert parse_json("[" * 64 + "]" * 64, "x") is not None
    assert parse_yaml("[" * 64 + "]" * 64, "x") is not None


@dataclass
class Inner:
    steps: int = 0


@dataclass
class Outer:
    name: str
    parts: dict[str, Inner] = field(default_factory=dict)
    pair: tuple[float, float] = (0, 0)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "x: name: field required"),
        ({"name": 3}, "x: name: input should be a valid string, not 3"),
        ({"name": "a", "parts": []}, "x: parts: "),
        ({"name": "a", "parts": {"b": {"steps": "3"}}}, "x: parts.b.steps: input should be a valid integer, not '3'"),
        ({"name": "a", "parts": {"b": {"steps": True}}}, "x: parts.b.steps: "),
        ({"name": "a", "pair": [1, 2, 3]}, "x: pair: "),
        ([], "x: "),
        (None, "x: "),
    ],
)
def test_another_type_is_named_by_its_field(value: Any, message: str) -> None:
    assert refusal(checked, value, Outer, "x").startswith(message)


def test_a_declared_type_is_built() -> None:
    found = checked({"name": "a", "parts": {"b": {"steps": 3}}, "pair": [1, 2.5]}, Outer, "x")
    assert found == Outer("a", {"b": Inner(3)}, (1, 2.5))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2", "x:2: duplicate key 'a'"),
        ("a: .nan", "x:1: .nan is no number"),
        ("a: -.inf", "x:1: -.inf is no number"),
        ("a: 1e999", "x:1: 1e999 is no number"),
        ("a:\n  b: " + "9" * 5000, "x:2: a number of 5000 digits"),
        ("[" * 100_000, "x:1: nested more than 64 deep"),
        ("- " * 100_000, "x:1: nested more than 64 deep"),
        ("a: &a [*a]", "x:1: its aliases stand for"),
        (
            "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else 1}]" for i in range(12)),
            "x:1: its aliases",
        ),
        ("a: !!python/object:os.system {}", "x:1: could not determine a constructor"),
        ("a: !!int b", "x:1: b is no number"),
        ("a: !!bool b", "x: "),
        ("a: !!timestamp b", "x: "),
        ("{[1]: 2}: 3", "x:1: found unhashable key"),
        ("a: \x00", "x: unacceptable character"),
        ("a: [1", "x:1: "),
        ("x" * (2 << 20), "x: is longer than"),
    ],
)
def test_yaml_that_is_refused(text: str, message: str) -> None:
    assert refusal(parse_yaml, text, "x").startswith(message)


def test_yaml_as_recipes_write_it() -> None:
    text = "a: 1e-3\nb: &x [1, 2]\nc: *x\nd: '1e3'\ne: 0x10\nf:\n"
    assert parse_yaml(text, "x") == {"a": 1e-3, "b": [1, 2], "c": [1, 2], "d": "1e3", "e": 16, "f": None}
    assert parse_yaml("", "x") is None


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"])),
        st.integers(-(10**18), 10**18) | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(st.characters(exclude_categories=["Cs"])) | st.none() | st.booleans(),
        max_size=5,
    )
)  # fmt: skip
def test_yaml_comes_back(value: Any) -> None:
    assert parse_yaml(yaml_text(value), "x") == value
    assert yaml.safe_load(yaml_text(value)).keys() == value.keys()


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(tmp_path)  # the path of a socket is short
        server.bind("socket")
        for name, what in (("pipe", "is a pipe"), ("folder", "is a folder"), ("socket", "")):
            for call in (read_text, open_to_read, open_to_append, read_object):
                message = refusal(call, tmp_path / name)
                assert message.startswith(f"{tmp_path / name}: ") and what in message
    assert "is a device" in refusal(read_text, Path("/dev/zero"))
    assert "no such file" in refusal(read_text, tmp_path / "gone")
    with pytest.raises(MissingFile):
        read_json(tmp_path / "gone", dict[str, int])


def test_paths_of_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert user_path("~/a") == Path("/somewhere/a") and user_path("a/~b") == Path("a/~b")
    assert "no such user" in refusal(user_path, "~nobody-of-this-name/a")
    assert "NUL" in refusal(user_path, "a\0b")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda uid: (_ for _ in ()).throw(KeyError(uid)))
    assert "HOME is not set" in refusal(user_path, "~/a")


def test_a_file_has_a_bound(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x" * 11)
    assert read_text(tmp_path / "a", max_bytes=11) == "x" * 11
    assert "is larger than 10 bytes" in refusal(read_text, tmp_path / "a", "", 10)
    (tmp_path / "b").write_bytes(b"ab\xff")
    assert "not UTF-8 text at byte 2" in refusal(read_text, tmp_path / "b")
    (tmp_path / "c").write_bytes(b"\xef\xbb\xbf{}")
    assert read_object(tmp_path / "c") == {}
    assert reading.read_bytes(tmp_path / "b") == b"ab\xff"


def test_a_name_that_is_no_text_can_be_written_down() -> None:
    assert text_of_name(os.fsdecode(b"runs/\xff\xc3\xa9")) == "runs/\ufffdé"
    assert text_of_name("\ud800").encode("utf-8")
