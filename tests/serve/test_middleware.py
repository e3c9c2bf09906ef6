"""Keys: who comes in, and that taking a key back works at once."""

from __future__ import annotations

import hmac
import logging

import pytest

from gossamer.errors import UserError
from gossamer.serve.middleware import ApiKeys
from gossamer.serve.options import ServeOptions, is_loopback

ONE, TWO = "0123456789abcdef", "ghijklmnopqrstuvwxyz"


def test_keys_have_names_or_line_numbers(tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"# for the team\n\nanna {ONE}\n{TWO}\n")
    keys = ApiKeys(file)
    assert [keys.name_of(key) for key in (ONE, TWO, ONE[:-1], "", "é\ud800")] == ["anna", "line 4", None, None, None]


def test_a_changed_file_holds_at_once(tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"{ONE}\n{TWO}\n")
    keys = ApiKeys(file)
    file.write_text(f"{TWO}\n")
    assert keys.name_of(ONE) is None and keys.name_of(TWO) == "line 1"
    file.unlink()
    assert keys.name_of(TWO) is None
    file.write_text(f"{ONE}\n")
    assert keys.name_of(ONE) == "line 1"


def test_a_file_that_breaks_lets_nobody_in(tmp_path, caplog):
    file = tmp_path / "keys"
    file.write_text(f"{ONE}\n")
    keys = ApiKeys(file)
    file.write_text(f"{ONE} and {TWO} and more\n")
    assert keys.name_of(ONE) is None
    assert "no key is valid" in caplog.text and ONE not in caplog.text


def test_every_key_is_compared_in_constant_time(tmp_path, monkeypatch):
    file = tmp_path / "keys"
    file.write_text("\n".join(f"{ONE}{index}" for index in range(5)))
    keys = ApiKeys(file)
    compared = []
    monkeypatch.setattr(hmac, "compare_digest", lambda *pair: compared.append(pair) or pair[0] == pair[1])
    assert keys.name_of(f"{ONE}0") == "line 1"
    assert len(compared) == 5 and all(len(digest) == 32 for pair in compared for digest in pair)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("", "holds no key"),
        ("# nothing\n", "holds no key"),
        ("short\n", "line 1: a key has at least 16 characters"),
        (f"a b {ONE}\n", "line 1: expected KEY or NAME KEY"),
        (f"a {ONE}\na {TWO}\n", "line 2: the name 'a' occurs twice"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_a_file_that_is_wrong_from_the_start(tmp_path, content, message):
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        ApiKeys(file)


def test_a_file_that_others_can_read_is_mentioned(tmp_path, caplog):
    file = tmp_path / "keys"
    file.write_text(ONE)
    file.chmod(0o644)
    with caplog.at_level(logging.WARNING):
        ApiKeys(file)
    assert "chmod 600" in caplog.text


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("192.168.1.2", False),
        ("::", False),
        ("localhost.evil.example", False),
        ("", False),
    ],
)
def test_which_hosts_are_this_machine_alone(tmp_path, host, own):
    assert is_loopback(host) is own
    if own:
        ServeOptions(host=host)
    else:
        with pytest.raises(UserError, match="give --keys FILE"):
            ServeOptions(host=host)
        ServeOptions(host=host, keys=tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [("port", -1), ("port", 65536), ("max_queue", -1), ("max_body", 0), ("ping", 0.0), ("drain_timeout", -1.0)],
)
def test_limits_that_make_no_sense(name, value):
    with pytest.raises(UserError, match=f"{name} = "):
        ServeOptions(**{name: value})
