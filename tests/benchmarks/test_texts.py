"""Texts to race on: what every machine has, what was fetched, and that no other text passes for one of them."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import fetch_texts
import pytest
import record
import texts
import time_to_loss
from fetch_texts import FetchError, Named, without_licence
from texts import NOVELS, SHAKESPEARE

PLAY = b"First Citizen:\nBefore we proceed any further, hear me speak.\n"
BOOK = (
    "\ufeffThe Project Gutenberg eBook of Moby Dick\r\n\r\n*** START OF THE PROJECT GUTENBERG EBOOK MOBY DICK ***\r\n"
    "\r\n\r\nCall me Ishmael.\r\n\r\nSome years ago—\r\n\r\n"
    "*** END OF THE PROJECT GUTENBERG EBOOK MOBY DICK ***\r\nLicence\r\n"
)
KEPT = "Call me Ishmael.\n\nSome years ago—\n"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


SHAKESPEARES = Named(SHAKESPEARE, "/play.txt", sha256(PLAY), fetch_texts.GITHUB)
MOBY = Named(f"{NOVELS}/moby-dick.txt", "/pg2701.txt", sha256(b"another edition"))
Serve = Callable[..., str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serves these bytes under these paths; a length that is told may be another than the true one."""
    servers: list[ThreadingHTTPServer] = []

    def start(pages: dict[str, bytes], cut: int = 0) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                content = pages.get(self.path)
                if content is None:
                    return self.send_error(404)
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) - cut])

            def log_message(self, *_: object) -> None:
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for one in servers:
        one.shutdown()
        one.server_close()


def test_what_is_fetched_is_kept_with_its_fingerprint(serve: Serve, tmp_path: Path) -> None:
    server = serve({"/play.txt": PLAY, "/pg2701.txt": BOOK.encode()})
    assert fetch_texts.get(SHAKESPEARES, tmp_path, server).endswith("the text of the figures")
    assert fetch_texts.get(MOBY, tmp_path, server).endswith("another edition than the figures' own")
    assert (tmp_path / SHAKESPEARE).read_bytes() == PLAY
    assert (tmp_path / NOVELS / "moby-dick.txt").read_text() == KEPT
    sums = (tmp_path / fetch_texts.SUMS).read_text().splitlines()
    assert sums == [f"{sha256(KEPT.encode())}  novels/moby-dick.txt", f"{sha256(PLAY)}  tinyshakespeare.txt"]
    fetch_texts.get(MOBY, tmp_path, "http://127.0.0.1:9")  # it is there: nobody is asked
    (tmp_path / NOVELS / "moby-dick.txt").write_text("changed")
    with pytest.raises(FetchError, match="is not the text that was fetched"):
        fetch_texts.get(MOBY, tmp_path, server)


@pytest.mark.parametrize(
    ("named", "pages", "cut", "complaint"),
    [
        (SHAKESPEARES, {"/play.txt": PLAY + b"x"}, 0, "is not the expected text"),
        (SHAKESPEARES, {}, 0, "Not Found"),
        (SHAKESPEARES, {"/play.txt": PLAY}, 5, "cut off after 56 bytes"),
        (MOBY, {"/pg2701.txt": b"<html>Too many requests</html>"}, 0, "is not a book"),
        (MOBY, {"/pg2701.txt": BOOK[:150].encode()}, 0, "is not a book"),
        (MOBY, {"/pg2701.txt": b"\xff\xfe"}, 0, "utf-8"),
    ],
)
def test_what_is_not_the_text_is_not_kept(
    serve: Serve, tmp_path: Path, named: Named, pages: dict[str, bytes], cut: int, complaint: str
) -> None:
    with pytest.raises(FetchError, match=complaint):
        fetch_texts.get(named, tmp_path, serve(pages, cut))
    assert not list(tmp_path.iterdir())


def test_the_command_fetches_all_and_says_what_failed(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fetch_texts, "TEXTS", (SHAKESPEARES, MOBY))
    monkeypatch.setattr("sys.argv", ["x", "--out", str(tmp_path), "--server", serve({"/pg2701.txt": BOOK.encode()})])
    assert fetch_texts.main() == 2
    told = capsys.readouterr()
    assert "moby-dick.txt: 36 bytes" in told.out
    assert told.err.startswith("fetch_texts.py: http://127.0.0.1:") and told.err.count("\n") == 1


def test_every_named_text_has_an_address_and_a_fingerprint_of_its_own() -> None:
    for key in ("file", "path", "sha256"):
        assert len({getattr(named, key) for named in fetch_texts.TEXTS}) == len(fetch_texts.TEXTS) == 9
    assert all(len(named.sha256) == 64 for named in fetch_texts.TEXTS)
    assert [named.file for named in fetch_texts.TEXTS if named.exact] == [SHAKESPEARE]
    assert without_licence(BOOK) == KEPT


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh clone: nothing was fetched, and the cache is empty."""
    monkeypatch.setattr(texts, "FETCHED", tmp_path / "texts")
    monkeypatch.setenv("GOSSAMER_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_every_machine_has_a_text_for_characters_and_it_is_the_same_each_time(clone: Path) -> None:
    one, again = texts.standard_library_text(), texts.standard_library_text()
    assert one == again and one.sha256 == sha256(one.paths[0].read_bytes())
    content = one.paths[0].read_bytes()
    assert 800_000 < len(content) == one.size < 2_000_000 and content.isascii()
    assert clone / "cache" in one.paths[0].parents
    one.paths[0].write_bytes(content[:100])  # a disk was full
    assert texts.standard_library_text().paths[0].read_bytes() == content
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert str(one) == f"modules of Python {version}'s standard library ({one.size:,} bytes, sha256 {one.sha256[:16]}…)"
    assert texts.RaceText.of(one.record()).sha256 == one.sha256


def test_a_fresh_clone_races_on_what_it_has_and_says_what_it_leaves_out(
    clone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    found = time_to_loss.texts_of(parser, ["characters", "novels", "standard library"], None)
    assert list(found) == ["characters", "standard library"]
    assert found["standard library"].paths == () and found["standard library"].size > 2 * found["characters"].size
    assert capsys.readouterr().err == "novels: left out; python benchmarks/fetch_texts.py fetches its text\n"
    recipe = time_to_loss.recipe_for(
        time_to_loss.RACES["characters"], time_to_loss.newest_record(), found["characters"], seed=1
    )
    assert recipe.corpus.paths == (str(found["characters"].paths[0]),) and recipe.corpus.tokenizer == "char"


def test_fetched_texts_come_before_the_standard_librarys_and_named_folders_before_both(clone: Path) -> None:
    for folder in ("texts", "mine"):
        (clone / folder / NOVELS).mkdir(parents=True)
        (clone / folder / SHAKESPEARE).write_text(folder)
        (clone / folder / NOVELS / "a.txt").write_text(folder)
    parser = argparse.ArgumentParser()
    for given, folder in ((None, "texts"), (clone / "mine", "mine")):
        found = time_to_loss.texts_of(parser, ["characters", "novels"], given)
        assert {text.paths[0].parts[-2] for text in found.values()} == {folder}
        assert {text.sha256 for text in found.values()} == {sha256(folder.encode())}


def test_a_folder_that_was_named_in_vain_is_refused(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        time_to_loss.texts_of(argparse.ArgumentParser(), ["characters"], clone / "none")
    assert "fetch_texts.py --out" in capsys.readouterr().err


def a_record(text: texts.RaceText, loss: float) -> dict[str, object]:
    return {"loss": loss, "spread": 0.01, "seconds": 7.0, "text": text.record()}


def test_a_record_is_held_against_what_is_known_of_its_very_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = json.loads(record.TARGETS.read_text())
    named = {named.sha256 for named in fetch_texts.TEXTS}
    assert {sha for sha, one in known.items() if one["text"] == SHAKESPEARE} < named
    monkeypatch.setattr(record, "TARGETS", tmp_path / "targets.json")
    record.TARGETS.write_text(json.dumps({"a": {"loss": 1.886}}))
    ours, other = (texts.RaceText("text", (), digest, 9) for digest in ("a", "b"))
    assert record.verdict(a_record(ours, 1.88)).endswith("holds (at most 1.886)")
    assert record.verdict(a_record(ours, 1.89)).endswith("does not hold (at most 1.886)")
    assert "is not known" in record.verdict(a_record(other, 1.0)) and record.holds(a_record(other, 9.0)) is None
