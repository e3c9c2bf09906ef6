"""A corpus: fingerprint, scans that are kept, and the held-out part."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.cache import write_cached_json
from gossamer.data import corpus as module
from gossamer.data import documents
from gossamer.data.config import CorpusConfig
from gossamer.data.corpus import Corpus, FileScan, _split_tail, open_corpus, split_rule
from gossamer.data.progress import ProgressDisplay
from gossamer.errors import UserError

QUIET = ProgressDisplay(False)


def opened(tmp_path: Path, *paths: Path, **options: Any) -> Corpus:
    config = CorpusConfig(cache_dir=str(tmp_path / "cache"))
    return open_corpus([str(path) for path in paths], config, QUIET, **options)


def folder_of(path: Path, texts: list[str]) -> Path:
    path.mkdir(exist_ok=True)
    for index, text in enumerate(texts):
        (path / f"{index:03}.txt").write_text(text)
    long_ago = time.time() - 100  # as files mostly are
    for file in path.iterdir():
        os.utime(file, (long_ago, long_ago))
    return path


def parts(corpus: Corpus) -> dict[str, list[str]]:
    """Documents of each part under the corpus' own rule."""
    found: dict[str, list[str]] = {"train": [], "validation": []}
    for part, first, text, _ in corpus.read(split_rule(corpus)):
        if first:
            found[part].append("")
        found[part][-1] += text
    return found


def test_content_alone_makes_the_digest(tmp_path: Path) -> None:
    texts = ["one\n", "two é\n"]
    folder = opened(tmp_path, folder_of(tmp_path / "a", texts))
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    assert (folder.num_documents, folder.num_bytes) == (2, 11)
    elsewhere = opened(tmp_path, folder_of(tmp_path / "c", texts))
    assert elsewhere.digest == folder.digest
    changed = [["one\n", "two e\n"], ["two é\n", "one\n"], ["one\ntwo é\n"], ["one\nt", "wo é\n"]]
    digests = {opened(tmp_path, folder_of(tmp_path / f"d{i}", texts)).digest for i, texts in enumerate(changed)}
    assert len(digests | {folder.digest}) == 5
    assert opened(tmp_path, tmp_path / "b.jsonl").num_bytes == 11


def test_a_later_start_reads_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(tmp_path / "a", [f"text {index}" for index in range(5)])
    (folder / "binary").write_bytes(b"\0")
    os.utime(folder / "binary", (1, 1))
    before = opened(tmp_path, folder)
    read: list[str] = []
    real = module._scan

    def scan(file: Path, *rest: Any) -> FileScan | None:
        read.append(file.name)
        return real(file, *rest)

    monkeypatch.setattr(module, "_scan", scan)
    assert opened(tmp_path, folder) == before and read == []
    (folder / "002.txt").write_text("Text 2")
    after = opened(tmp_path, folder)
    assert read == ["002.txt"] and after.digest != before.digest
    # written a moment ago, it could change once more within the clock's resolution: not trusted yet
    assert opened(tmp_path, folder).digest == after.digest and read == ["002.txt"] * 2


def test_damaged_scans_are_made_again(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "a", ["text"])
    before = opened(tmp_path, folder)
    (store,) = (tmp_path / "cache" / "scans").iterdir()
    store.write_text('{"half')
    assert opened(tmp_path, folder) == before


def test_scans_of_earlier_releases_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """These said in a sentence why a file was skipped."""
    folder = folder_of(tmp_path / "a", ["text\n"])
    (folder / "blob").write_bytes(b"\0")
    os.utime(folder / "blob", (1, 1))
    corpus = opened(tmp_path, folder)
    (store,) = (tmp_path / "cache" / "scans").iterdir()
    entries = json.loads(store.read_text())["value"]
    assert entries[str(folder / "blob")]["scan"]["kind"] == "binary"
    entries[str(folder / "blob")]["scan"] = "binary"
    write_cached_json(store, entries)
    monkeypatch.setattr(module, "_scan_documents", lambda *_: pytest.fail("the text is not read again"))
    assert opened(tmp_path, folder) == corpus


def test_field_and_errors_have_scans_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one", "body": "three"}')
    os.utime(tmp_path / "a.jsonl", (1, 1))
    sizes = [
        open_corpus(
            [str(tmp_path / "a.jsonl")], CorpusConfig(text_field=field, cache_dir=str(tmp_path)), QUIET
        ).num_bytes
        for field in ("text", "body")
    ]
    assert sizes == [3, 5]


def test_each_file_counts_once(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "a", ["one", "two"])
    assert opened(tmp_path, folder, folder / "000.txt", folder).num_documents == 2
    held = opened(tmp_path, folder / "001.txt")
    rest = opened(tmp_path, folder, without=[held])
    assert [path.name for path, _ in rest.files] == ["000.txt"]
    with pytest.raises(UserError, match="holds no text that is not held out"):
        opened(tmp_path, folder / "001.txt", without=[held])


def test_binary_files(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "a", ["text"])
    (folder / "data").write_bytes(b"PK\0\0")
    assert opened(tmp_path, folder).num_documents == 1
    with pytest.raises(UserError, match=r"data: binary, not text \(it holds NUL bytes\)"):
        opened(tmp_path, folder / "data")
    with pytest.raises(UserError, match="holds no text; name files"):
        only = tmp_path / "only"
        only.mkdir()
        (only / "data").write_bytes(b"PK\0\0")
        opened(tmp_path, only)


def test_the_standard_library_by_default(tmp_path: Path) -> None:
    corpus = opened(tmp_path)
    assert "standard library" in corpus.name and corpus.num_documents > 300
    held = sum(scan.held_bytes for _, scan in corpus.files)
    assert split_rule(corpus) == "documents" and 0.05 < held / corpus.num_bytes < 0.2


def test_a_corpus_is_named_after_its_first_files(tmp_path: Path) -> None:
    files = [folder_of(tmp_path / "a", list("abcde")) / f"00{index}.txt" for index in range(5)]
    assert opened(tmp_path, *files[:2]).name == f"{files[0]}, {files[1]}"
    assert opened(tmp_path, *files).name == f"{files[0]}, {files[1]} and 3 more"


def test_many_documents_are_held_out_whole(tmp_path: Path) -> None:
    texts = [f"document {index}\n" for index in range(300)]
    corpus = opened(tmp_path, folder_of(tmp_path / "a", texts))
    found = parts(corpus)
    assert sorted(found["train"] + found["validation"]) == sorted(texts)
    assert 15 <= len(found["validation"]) <= 45
    assert sum(len(text) for text in found["validation"]) == sum(scan.held_bytes for _, scan in corpus.files)
    assert len(found["validation"]) == sum(scan.held_documents for _, scan in corpus.files)
    more = opened(tmp_path, folder_of(tmp_path / "a", [*texts, *(f"new {index}" for index in range(100))]))
    assert set(found["validation"]) <= set(parts(more)["validation"])
    assert set(found["train"]) <= set(parts(more)["train"])


def test_few_documents_give_their_ends(tmp_path: Path) -> None:
    texts = ["0123456789" * 10, "éabcdefghi", "x"]
    corpus = opened(tmp_path, folder_of(tmp_path / "a", texts))
    assert split_rule(corpus) == "tails"
    assert parts(corpus) == {"train": [texts[0][:90], "éabcdefgh"], "validation": [texts[0][90:], "i", "x"]}
    assert [chunk.file for chunk in corpus.read("all")] == [file for file, _ in corpus.files]
    assert {chunk.file for chunk in corpus.read("tails")} == {file for file, _ in corpus.files}


@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_ends_of_a_document_in_many_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    monkeypatch.setattr(documents, "MAX_CHUNK", 7)
    text = "".join(f"line {index}é\n" for index in range(40))
    path = tmp_path / f"a{suffix}"
    path.write_text(text if suffix == ".txt" else f"{json.dumps({'text': text})}\n" + '{"text": "0123456789"}\n')
    found = parts(opened(tmp_path, path))
    cut = len(text) * 9 // 10
    assert found["train"][0] == text[:cut] and found["validation"][0] == text[cut:]
    assert found["train"][1:] == (["012345678"] if suffix == ".jsonl" else [])


@given(st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=6), st.integers(0, 40))
def test_a_cut_anywhere(document: list[str], cut: int) -> None:
    whole = "".join(document)
    chunks = list(_split_tail(document, cut))
    for part, text in (("train", whole[:cut]), ("validation", whole[cut:])):
        mine = [chunk for chunk in chunks if chunk.part == part]
        assert "".join(chunk.text for chunk in mine) == text
        assert [chunk.begins_document for chunk in mine] == [True, *[False] * (len(mine) - 1)][: len(mine)]
        assert all(chunk.text for chunk in mine)


def scanned(sizes: list[tuple[int, bool]]) -> Corpus:
    """A corpus of documents of these sizes in bytes, of which the hash would hold out some."""
    scans = [FileScan(str(index), 1, size, size, held, size * held) for index, (size, held) in enumerate(sizes)]
    return Corpus("made up", tuple((Path(str(index)), scan) for index, scan in enumerate(scans)), "text", "strict")


@given(st.lists(st.tuples(st.integers(1, 10**6), st.booleans()), min_size=1, max_size=60), st.randoms())
def test_whole_documents_are_held_out_where_they_are_a_sensible_share(sizes: Any, random: Any) -> None:
    held, total = sum(size for size, is_held in sizes if is_held), sum(size for size, _ in sizes)
    shuffled = list(sizes)
    random.shuffle(shuffled)
    rule = split_rule(scanned(sizes))
    assert rule == split_rule(scanned(shuffled))
    assert (rule == "documents") == (len(sizes) >= 20 and total / 30 <= held <= total / 3)


def test_one_short_document_of_some_dozens_is_not_held_out_alone() -> None:
    assert split_rule(scanned([(40, True), *[(3000, False)] * 34])) == "tails"
    assert split_rule(scanned([(3000, True), *[(3000, False)] * 25])) == "documents"


@pytest.mark.parametrize("texts", [["same\n"] * 30, [*(f"{index}" for index in range(40)), "A" * 10_000]])
def test_lopsided_hashes_fall_back_to_ends(tmp_path: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        module, "_is_validation_document", lambda first: first[0] in "As"
    )  # all copies; the one large document
    corpus = opened(tmp_path, folder_of(tmp_path / "a", texts))
    assert split_rule(corpus) == "tails"
    found = parts(corpus)
    assert "".join(found["train"]) and "".join(found["validation"])


def test_a_hash_that_takes_none_falls_back_to_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_is_validation_document", lambda first: False)
    assert split_rule(opened(tmp_path, folder_of(tmp_path / "a", [f"{index} is" for index in range(25)]))) == "tails"


def test_not_utf8_anywhere(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "a", ["text"])
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"latin.txt: not UTF-8 at byte 3; .* --errors replace"):
        opened(tmp_path, folder)
    replacing = CorpusConfig(errors="replace", cache_dir=str(tmp_path))
    assert open_corpus([str(folder)], replacing, QUIET).num_bytes == 4 + 6


def told(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str], **options: Any) -> tuple[Corpus, str]:
    capsys.readouterr()
    corpus = open_corpus(
        [str(folder)], CorpusConfig(cache_dir=str(tmp_path / "cache"), **options), ProgressDisplay(True)
    )
    return corpus, capsys.readouterr().err


def test_what_a_folder_holds_beside_its_text_is_told_by_kind(tmp_path: Path, capsys: Any) -> None:
    folder = folder_of(tmp_path / "a", ["one " * 20, "two " * 20])
    for name in ("a.png", "b.png", ".hidden", "empty.txt", "node_modules/x.js", "env/pyvenv.cfg", "env/y.py", "blob"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"" if name == "empty.txt" else b"x\0y")
    os.mkfifo(folder / "pipe")
    (folder / "broken").symlink_to(folder / "nowhere")
    (folder / "link").symlink_to(folder / "env")
    (folder / "package.json").write_text('{\n "name": "x"\n}')
    for _ in range(2):  # from the cache of scans, too
        corpus, line = told(tmp_path, folder, capsys)
        assert corpus.num_documents == 2
        for kind in (
            "2 .png (a.png, …)", "1 hidden (.hidden)", "1 empty (empty.txt)", "1 pipes", "1 broken links",
            "1 links to folders (link/)", "2 folders of packages or caches (env/, …)", "1 binary (blob)",
            "1 without a field 'text' in .json (package.json)",
        ):  # fmt: skip
            assert kind in line


def test_a_named_folder_of_packages_is_read(tmp_path: Path, capsys: Any) -> None:
    folder = folder_of(tmp_path / "node_modules", ["one"])
    corpus, line = told(tmp_path, folder, capsys)
    assert corpus.num_documents == 1 and "skipped" not in line


def test_records_that_outweigh_the_text_are_asked_about(tmp_path: Path, capsys: Any) -> None:
    folder = folder_of(tmp_path / "a", ["a card of the data"])
    (folder / "reviews.csv").write_text("id,review\n" + "1,a long review of a film\n" * 50)
    with pytest.raises(UserError, match=r"reviews.csv: without a field 'text' in .csv, which has 'id', 'review'"):
        told(tmp_path, folder, capsys)
    assert told(tmp_path, folder / "reviews.csv", capsys, text_field="review")[0].num_documents == 50


def test_a_saved_data_set(tmp_path: Path, capsys: Any) -> None:
    import pyarrow as pa

    for split, count in (("train", 3), ("test", 2)):
        folder = tmp_path / "set" / split
        folder.mkdir(parents=True)
        table = pa.table({"text": [f"{split} {index}" for index in range(count)]})
        for name in ("data-00000-of-00001.arrow", "cache-0123.arrow"):
            with pa.ipc.new_stream(folder / name, table.schema) as stream:
                stream.write_table(table)
        (folder / "state.json").write_text(
            '{"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": "x"}'
        )
        (folder / "dataset_info.json").write_text('{"description": "' + "long " * 100 + '"}')
    (tmp_path / "set" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    corpus, line = told(tmp_path, tmp_path / "set", capsys)
    assert corpus.num_documents == 3
    assert "1 splits of a data set other than train (test/)" in line and "1 left-over .arrow" in line
    assert told(tmp_path, tmp_path / "set" / "test", capsys)[0].num_documents == 2


def test_the_share_that_was_replaced_is_told(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "a.txt").write_bytes(b"ab\xff\xfe")
    for _ in range(2):
        line = told(tmp_path, tmp_path / "a.txt", capsys, errors="replace")[1]
        assert "2 of 4 characters (50.0%) were not of its encoding and became U+FFFD" in line


def test_scans_of_other_files_are_not_taken(tmp_path: Path) -> None:
    first, second = folder_of(tmp_path / "a", ["one"]), folder_of(tmp_path / "b", ["another"])
    for folder in (first, second):
        os.utime(folder / "000.txt", (1, 1))
    digest = opened(tmp_path, first).digest
    (scan,) = (tmp_path / "cache" / "scans").iterdir()
    opened(tmp_path, second)
    other = next(path for path in (tmp_path / "cache" / "scans").iterdir() if path != scan)
    scan.write_text(other.read_text().replace(str(second), str(first)))
    assert opened(tmp_path, first).digest == digest
