"""Files and folders are whole or not there, one process at a time holds a lock, and a full disk is one line."""

import errno
import os
import threading
import time
from pathlib import Path

import pytest

from gossamer import files
from gossamer.errors import UserError
from gossamer.files import (
    building,
    disk_errors,
    is_temporary,
    locked,
    publish,
    replacing,
    sweep,
    try_lock,
    write_atomically,
)
from gossamer.reading import open_to_append, open_to_read

OLD = 2 * files._ABANDONED


def age(folder: Path, seconds: float) -> None:
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (time.time() - seconds,) * 2)


def leftover(path: Path) -> Path:
    """What a process leaves that is killed while it writes a folder in the place of `path`."""
    folder = files._temporary(path)
    folder.mkdir()
    (folder / "a").write_text("half")
    return folder


# Files.


@pytest.mark.parametrize(("content", "found"), [("é", "é".encode()), (b"\x00\xff", b"\x00\xff")])
def test_a_file_is_replaced_as_a_whole(tmp_path: Path, content: str | bytes, found: bytes) -> None:
    write_atomically(tmp_path / "b.json", "before")
    write_atomically(tmp_path / "b.json", content)
    assert (tmp_path / "b.json").read_bytes() == found and os.listdir(tmp_path) == ["b.json"]


@pytest.mark.parametrize("call", ["os.replace", "os.fsync"])
def test_a_failed_replacement_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "page.html"
    path.write_bytes(b"old")

    def fail(*given: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(call, fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == {"page.html": b"old"}


def test_the_bytes_are_on_the_disk_before_the_name_and_the_name_before_the_call_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    synced, replaced = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        calls.append("sync " + ("folder" if os.readlink(f"/proc/self/fd/{descriptor}") == str(tmp_path) else "file"))
        synced(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", lambda *names: (calls.append("rename"), replaced(*names)))
    write_atomically(tmp_path / "a", "text")
    assert calls == ["sync file", "rename", "sync folder"]


def test_the_name_that_is_written_under_keeps_the_ending(tmp_path: Path) -> None:
    with replacing(tmp_path / "trace.json.gz") as temporary:
        assert temporary.name.endswith("-trace.json.gz") and is_temporary(temporary)
        temporary.write_text("")
    assert os.listdir(tmp_path) == ["trace.json.gz"] and not is_temporary(tmp_path / "trace.json.gz")


# Folders.


def test_a_folder_that_is_not_published_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), building(tmp_path / "x" / "folder") as temporary:
        (temporary / "a").write_text("half")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path / "x") == []


@pytest.mark.parametrize("before", ["nothing", "a folder", "a file"])
def test_a_published_folder_takes_the_place_of_whatever_is_there(tmp_path: Path, before: str) -> None:
    place = tmp_path / "folder"
    if before == "a folder":
        place.mkdir()
        (place / "old").write_text("old")
    elif before == "a file":
        place.write_text("old")
    with building(place) as temporary:
        (temporary / "part").mkdir()
        (temporary / "part" / "a").write_text("new")
        publish(temporary, place)
    assert (place / "part" / "a").read_text() == "new" and os.listdir(tmp_path) == ["folder"]
    assert os.listdir(place) == ["part"]


def test_what_another_process_has_put_there_stays_if_it_is_as_good(tmp_path: Path) -> None:
    place = tmp_path / "folder"
    for content in ("first", "second"):
        with building(place) as temporary:
            (temporary / "a").write_text(content)
            publish(temporary, place, lambda folder: (folder / "a").is_file())
    assert (place / "a").read_text() == "first" and os.listdir(tmp_path) == ["folder"]


# What killed processes leave.


def test_leftovers_of_the_same_name_go_after_a_day(tmp_path: Path) -> None:
    old, new, other = (leftover(tmp_path / name) for name in ("m", "m", "x-m"))
    for folder in (old, other):
        age(folder, OLD)
    write_atomically(tmp_path / "m", "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"m", new.name, other.name}


def test_a_leftover_is_as_old_as_its_newest_file(tmp_path: Path) -> None:
    folder = leftover(tmp_path / "m")
    (folder / "part").mkdir()
    age(folder, OLD)
    (folder / "part" / "b").write_text("still being written")
    os.utime(folder / "part", (time.time() - OLD,) * 2)
    sweep(tmp_path, "m")
    assert folder.exists()


def test_all_leftovers_of_a_folder_go_at_once_where_nobody_writes(tmp_path: Path) -> None:
    for name in ("m", "n"):
        leftover(tmp_path / name)
    (tmp_path / "kept").mkdir()
    sweep(tmp_path, age=0)
    assert os.listdir(tmp_path) == ["kept"]


# Disks that refuse.


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
        RuntimeError("I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598"),
    ],
    ids=str,
)
def test_a_full_disk_is_one_line(error: Exception) -> None:
    with pytest.raises(UserError, match=r"^/place: the disk is full; free some space, or name another$"):  # noqa: SIM117
        with disk_errors(Path("/place"), "name another"):
            raise error


def test_other_refusals_are_one_line_and_mistakes_pass() -> None:
    with (
        pytest.raises(UserError, match=r"^/place: cannot be written \(Permission denied\); set GOSSAMER_CACHE to a"),
        disk_errors(Path("/place")),
    ):
        raise PermissionError(errno.EACCES, "Permission denied")
    for error in (UserError("own words"), RuntimeError("a mistake"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught, disk_errors(Path("/place")):
            raise error
        assert caught.value is error


# Locks.


def test_one_thread_at_a_time_holds_a_lock(tmp_path: Path) -> None:
    inside, waited, counts = 0, [], [0]
    entered = threading.Event()

    def work() -> None:
        nonlocal inside
        with locked(tmp_path / "locks" / "a", lambda: waited.append(1)):
            inside += 1
            counts.append(inside)
            entered.wait(timeout=120)
            inside -= 1

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 120
    while len(waited) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    with locked(tmp_path / "locks" / "b", lambda: waited.append(2)):  # another lock is free
        entered.set()
    for thread in threads:
        thread.join()
    assert max(counts) == 1 and len(counts) == 4 and waited == [1, 1]


def test_whoever_fails_lets_the_next_in(tmp_path: Path) -> None:
    with pytest.raises(KeyError), locked(tmp_path / "a", lambda: None):
        raise KeyError
    with locked(tmp_path / "a", lambda: pytest.fail("still held")):
        pass


def test_a_lock_can_be_shared_or_held_alone(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    held = [open_to_read(tmp_path / "a") for _ in range(2)]
    assert all(try_lock(file, shared=True) for file in held)
    with open_to_append(tmp_path / "a") as writer:
        assert not try_lock(writer)
        for file in held:
            file.close()
        assert try_lock(writer)
        with open_to_read(tmp_path / "a") as reader:
            assert not try_lock(reader, shared=True)


def test_a_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoLocks:
        LOCK_EX = LOCK_NB = 0

        @staticmethod
        def flock(file: object, mode: int) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

    for fcntl in (None, NoLocks):
        monkeypatch.setattr(files, "fcntl", fcntl)
        with locked(tmp_path / "a", refuse_to_wait):
            pass
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"), locked(tmp_path / "file" / "a", refuse_to_wait):
        pass


def test_a_pipe_for_a_lock_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "lock")
    with pytest.raises(UserError, match="lock: is a pipe"), locked(tmp_path / "lock", lambda: None):
        pass


def refuse_to_wait() -> None:
    raise AssertionError("nobody holds it")
