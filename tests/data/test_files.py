"""Which files a path stands for."""

import os
from pathlib import Path

import pytest

from gossamer.data.config import CorpusConfig
from gossamer.data.files import find_files, standard_library
from gossamer.data.progress import Progress
from gossamer.errors import UserError


def find(path: Path | str) -> list[tuple[str, bool]]:
    found = find_files(str(path), CorpusConfig(), Progress(False))
    return [(os.path.relpath(file, path), named) for file, named in found]


def test_folders_are_walked_in_order(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.py", "a/y.jsonl", "a.txt", ".git/config", ".hidden", "pic.PNG", "w.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    assert find(tmp_path) == [("a.txt", False), ("b.txt", False), ("a/y.jsonl", False), ("a/z.py", False)]


def test_links_stand_for_their_targets(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "there.txt").write_text("text")
    (tmp_path / "folder" / "here.txt").symlink_to(tmp_path / "there.txt")
    assert find(tmp_path / "folder") == [("../there.txt", False)]


def test_a_named_file_whatever_its_name(tmp_path: Path) -> None:
    (tmp_path / ".hidden.png").write_text("text")
    assert find(tmp_path / ".hidden.png") == [(".", True)]


def test_missing(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("text")
    with pytest.raises(UserError, match=r"no such file or folder; did you mean 'corpus.txt'\?"):
        find(tmp_path / "copus.txt")
    with pytest.raises(UserError, match="no such file or folder; check the path"):
        find(tmp_path / "quite-different")
    with pytest.raises(UserError, match="there is no folder"):
        find(tmp_path / "no" / "corpus.txt")


def test_empty(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no text in this folder"):
        find(tmp_path)
    (tmp_path / "empty.txt").touch()
    with pytest.raises(UserError, match="the file is empty"):
        find(tmp_path / "empty.txt")


def test_neither_file_nor_folder(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="neither a file nor a folder"):
        find(tmp_path / "pipe")


def test_text_given_for_a_path() -> None:
    with pytest.raises(UserError, match=r"cannot be read .File name too long."):
        find("once upon a time " * 100)


def test_unreadable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "inner").mkdir()
    real = os.scandir

    def scandir(path: str) -> object:
        if str(path).endswith("inner"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match=r"inner: cannot be read \(Permission denied\)"):
        find(tmp_path)


def test_the_standard_library_is_its_programs() -> None:
    files = [file for file, _ in standard_library()]
    names = {file.name for file in files}
    assert {"argparse.py", "dataclasses.py"} <= names and all(file.suffix == ".py" for file in files)
    parts = {part for file in files for part in file.relative_to(os.path.dirname(os.__file__)).parts}
    assert not parts & {"site-packages", "test", "tests", "idle_test", "__pycache__"}
    assert 2e6 < sum(file.stat().st_size for file in files) < 2e7
    assert files == [file for file, _ in standard_library()]
