"""Cache entries are whole or not there."""

import errno
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from gossamer import cache, files
from gossamer.cache import cached_folder, json_digest, read_cached_json, write_cached_json
from gossamer.errors import UserError


def valid(folder: Path) -> bool:
    return (folder / "a").is_file() and (folder / "a").read_text() == "whole"


def build(folder: Path) -> None:
    (folder / "a").write_text("whole")


def refuse(folder: Path) -> None:
    raise AssertionError("built although it was there")


def test_built_once(tmp_path: Path) -> None:
    folder = cached_folder(tmp_path / "x" / "entry", valid, build)
    assert valid(folder) and cached_folder(folder, valid, refuse) == folder
    assert os.listdir(folder.parent) == ["entry"]


@pytest.mark.parametrize("damage", ["half", "empty", "file"])
def test_damaged_entries_are_replaced(tmp_path: Path, damage: str) -> None:
    entry = tmp_path / "entry"
    if damage == "file":
        entry.write_text("in the way")
    else:
        entry.mkdir()
        if damage == "half":
            (entry / "a").write_text("ha")
    cached_folder(entry, valid, build)
    assert valid(entry) and os.listdir(tmp_path) == ["entry"]


def test_a_failing_build_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        build(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_folder(tmp_path / "entry", valid, fail)
    assert os.listdir(tmp_path) == []


def test_several_builders_at_once(tmp_path: Path) -> None:
    together = threading.Barrier(4)
    failures: list[BaseException] = []

    def build_together(folder: Path) -> None:
        build(folder)
        together.wait(timeout=120)

    def work() -> None:
        try:
            assert valid(cached_folder(tmp_path / "entry", valid, build_together))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and os.listdir(tmp_path) == ["entry"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk(tmp_path: Path, number: int) -> None:
    def fill(folder: Path) -> None:
        build(folder)
        raise OSError(number, os.strerror(number))

    with pytest.raises(UserError, match=f"^{tmp_path}: the disk is full; free some space, or set GOSSAMER_CACHE"):
        cached_folder(tmp_path / "entry", valid, fill)
    assert os.listdir(tmp_path) == []


def test_no_place_for_a_cache(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        cached_folder(tmp_path / "file" / "entry", valid, build)
    with pytest.raises(UserError, match="cannot be written"):
        write_cached_json(tmp_path / "file" / "a.json", "")


def test_leftovers_of_killed_processes_go(tmp_path: Path) -> None:
    for name, age in ((".tmp-0000000a-old", 2), (".tmp-0000000b-new", 0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text("half")
        for path in (tmp_path / name / "a", tmp_path / name):
            os.utime(path, (time.time() - age * files._ABANDONED,) * 2)
    cached_folder(tmp_path / "entry", valid, build)
    assert sorted(os.listdir(tmp_path)) == [".tmp-0000000b-new", "entry"]


def test_a_note_that_is_being_written_is_no_damage(tmp_path: Path) -> None:
    entry = cached_folder(tmp_path / "entry", valid, build)
    (entry / ".tmp-0000000a-checked.json").write_text("{")
    cached_folder(entry, valid, refuse)


def test_keys_tell_values_apart() -> None:
    keys = [
        json_digest(),
        json_digest("a", "b"),
        json_digest("ab"),
        json_digest(["a", "b"]),
        json_digest("a", "b", None),
        json_digest("1"),
        json_digest(1),
    ]
    assert len(set(keys)) == len(keys) and json_digest("a", [1]) == json_digest("a", [1])


def zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def keeping_its_time(path: Path) -> None:
    before = path.stat()
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def of_another_entry(path: Path) -> None:
    other = path.parent.with_name("other")
    cached_folder(other, lambda folder: True, lambda folder: fill(folder, "others"))
    shutil.rmtree(path.parent)
    other.rename(path.parent)


def fill(folder: Path, text: str) -> None:
    (folder / "a.bin").write_text(text)
    (folder / "b.bin").write_text(text * 2)


@pytest.mark.parametrize("settled", [0, 2 * 10**9])
@pytest.mark.parametrize(
    "damage",
    [
        zeros,
        keeping_its_time,
        of_another_entry,
        Path.unlink,
        lambda path: (path.parent / "more").touch(),
        lambda path: path.rename(path.with_name("c.bin")),
        lambda path: (path.parent / "seal.json").write_text("[" * 10_000),
        lambda path: (path.unlink(), os.mkfifo(path)),
    ],
)
def test_what_is_not_as_it_was_written_is_rebuilt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Any, settled: int, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cache, "_SETTLED", settled)
    built: list[Path] = []

    def build(folder: Path) -> None:
        built.append(folder)
        fill(folder, "text")

    for _ in range(3):
        cached_folder(tmp_path / "entry", lambda folder: True, build)
    assert len(built) == 1
    time.sleep(0.02)
    damage(tmp_path / "entry" / "a.bin")
    cached_folder(tmp_path / "entry", lambda folder: True, build)
    assert len(built) == 2 and (tmp_path / "entry" / "a.bin").read_text() == "text"
    assert "rebuilding it" in caplog.text


def test_a_file_is_read_once_for_each_time_of_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_SETTLED", 0)
    read: list[str] = []
    real = cache._checksum
    monkeypatch.setattr(cache, "_checksum", lambda path: read.append(path.name) or real(path))
    for _ in range(4):
        cached_folder(tmp_path / "entry", lambda folder: True, lambda folder: fill(folder, "text"))
    assert sorted(read) == ["a.bin", "a.bin", "b.bin", "b.bin"]  # when it was built, and when it was first opened
    os.utime(tmp_path / "entry" / "a.bin")
    cached_folder(tmp_path / "entry", lambda folder: True, lambda folder: fill(folder, "text"))
    assert read[4:] == ["a.bin"]


@pytest.mark.parametrize("damage", ["", "{}", "[[1]]", '{"digest": 1, "value": {"a": 1}}', "swapped"])
def test_cached_json(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.json"
    assert read_cached_json(path, dict[str, int]) is None
    write_cached_json(path, {"a": 1})
    assert read_cached_json(path, dict[str, int]) == {"a": 1} and read_cached_json(path, dict[str, str]) is None
    if damage == "swapped":
        write_cached_json(tmp_path / "b.json", {"a": 2})
        (tmp_path / "b.json").replace(path)
    else:
        path.write_text(damage)
    assert read_cached_json(path, dict[str, int]) is None
