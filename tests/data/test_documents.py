"""One file as documents: chunks, encodings, JSONL and Parquet, and what people get wrong about them."""

import bz2
import gzip
import json
import lzma
import sys
import tracemalloc
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.data import documents as module
from gossamer.data import text_files
from gossamer.data.documents import is_binary, read_documents, split_into_chunks
from gossamer.data.text_files import DecodeStats
from gossamer.errors import UserError


def documents(path: Path, field: str = "text", errors: str = "strict") -> list[str]:
    return ["".join(document) for document in read_documents(path, field, errors)]


def write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def refusal(path: Path, **options: str) -> str:
    with pytest.raises(UserError) as caught:
        documents(path, **options)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


@given(st.text(st.sampled_from("ab\n"), max_size=60), st.lists(st.integers(0, 60), max_size=5), st.integers(1, 9))
def test_chunks_depend_on_the_text_alone(text: str, cuts: list[int], limit: int) -> None:
    bounds = [0, *sorted(cuts), len(text)]
    chunks = [text[begin:end] for begin, end in pairwise(bounds)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MAX_CHUNK", limit)
        found = list(split_into_chunks(chunks))
        assert found == list(split_into_chunks([text]))
    assert "".join(found) == text
    assert all(0 < len(chunk) <= limit for chunk in found)
    for chunk in found[:-1]:  # a chunk without a line end has no line end to end at
        assert chunk.endswith("\n") or ("\n" not in chunk and len(chunk) == limit)


@pytest.mark.parametrize("block", [1, 2, 3, 1 << 20])
def test_a_text_file_is_one_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(text_files, "_BLOCK", block)  # characters of several bytes fall on the border of two blocks
    path = write(tmp_path / "a.txt", "\ufeffnaïve 日本 😀\r\nend\n")
    assert documents(path) == ["naïve 日本 😀\r\nend\n"]


def test_a_large_text_file_comes_in_chunks(tmp_path: Path) -> None:
    text = "some words\n" * 100_000
    (document,) = (list(document) for document in read_documents(write(tmp_path / "a.txt", text), "text", "strict"))
    assert len(document) == 5 and "".join(document) == text


@pytest.mark.parametrize("content", ["", "\ufeff"])
def test_no_text_no_document(tmp_path: Path, content: str) -> None:
    assert documents(write(tmp_path / "a.txt", content)) == []


@pytest.mark.parametrize("block", [1, 4, 1 << 20])
def test_not_utf8_names_the_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(text_files, "_BLOCK", block)
    path = write(tmp_path / "a.txt", "aé".encode() + b"\xe9\n")
    assert "not UTF-8 at byte 3" in refusal(path) and "--errors replace" in refusal(path)
    assert documents(path, errors="replace") == ["aé\ufffd\n"]


def test_a_character_cut_off_at_the_end_of_a_file(tmp_path: Path) -> None:
    assert "not UTF-8 at byte 2" in refusal(write(tmp_path / "a.txt", "ab€".encode()[:-1]))


def test_a_line_of_jsonl_is_a_document(tmp_path: Path) -> None:
    lines = ['\ufeff{"text": "one", "id": 1}', "", '{"text": ""}', '{"text": "tw\\u00f6 \\ud83d\\ude00"}\r']
    for name in ("a.jsonl", "a.NDJSON"):
        assert documents(write(tmp_path / name, "\n".join(lines))) == ["one", "twö 😀"]


def test_a_large_record_comes_in_chunks(tmp_path: Path) -> None:
    text = "word " * 100_000
    path = write(tmp_path / "a.jsonl", json.dumps({"body": text}))
    (document,) = read_documents(path, "body", "strict")
    assert [len(chunk) for chunk in document] == [module.MAX_CHUNK, len(text) - module.MAX_CHUNK]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a"', "line 2: not JSON (Expecting ',' delimiter at column"),
        ('{"text": "a', "line 2: not JSON (Invalid control character at column 12)"),
        ("[" * 100_000, "line 2: not JSON"),
        ('["text"]', 'line 2: the record is not an object; write it as {"text": ...}'),
        ('{"txet": "a"}', "line 2: no field 'text' in this record ('txet'); did you mean 'txet'?"),
        ("{}", "line 2: no field 'text' in this record (it is empty); name the right one with --corpus.text_field"),
        ('{"text": 3}', "line 2: field 'text' holds int, not text"),
        ('{"text": null}', "line 2: field 'text' holds NoneType, not text"),
        ('{"text": "\\ud800"}', "line 2: field 'text' holds half of a surrogate pair"),
    ],
)
def test_bad_records_name_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    assert message in refusal(write(tmp_path / "a.jsonl", '{"text": "fine"}\n' + line + "\n"))


def test_jsonl_that_is_not_utf8_names_the_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n')
    assert "line 2: not UTF-8 at byte 24" in refusal(path)
    assert documents(path, errors="replace") == ["a", "\ufffd"]


def test_half_a_surrogate_is_replaced(tmp_path: Path) -> None:
    assert documents(write(tmp_path / "a.jsonl", '{"text": "a\\udc00b"}'), errors="replace") == ["a\ufffdb"]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())])
def test_a_row_of_parquet_is_a_document(tmp_path: Path, kind: pa.DataType) -> None:
    texts = [f"document {index} é" for index in range(150)] + [""]
    column = pa.array([text.encode() for text in texts] if pa.types.is_binary(kind) else texts).cast(kind)
    pq.write_table(pa.table({"id": pa.array(range(151)), "body": column}), tmp_path / "a.parquet")
    assert documents(tmp_path / "a.parquet", field="body") == texts[:-1]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"texts": ["a"]}, "no field 'text' in this file ('texts'); did you mean 'texts'?"),
        ({"text": [1, 2]}, "column 'text' holds int64, not text"),
        ({"text": ["a", None]}, "row 2: column 'text' is null"),
        ({"text": [b"a", b"\xff"]}, "row 2: not UTF-8"),
    ],
)
def test_parquet_without_text_names_the_column(tmp_path: Path, columns: dict[str, list[object]], message: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    assert message in refusal(tmp_path / "a.parquet")


def test_damaged_parquet_is_refused(tmp_path: Path) -> None:
    assert "not a complete Parquet file" in refusal(write(tmp_path / "a.parquet", "PAR1 and nothing else"))


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install 'gossamer[parquet]'" in refusal(write(tmp_path / "a.parquet", "PAR1"))


def test_a_file_that_is_gone_is_refused(tmp_path: Path) -> None:
    assert "no such file; check its permissions" in refusal(tmp_path / "gone.txt")
    with pytest.raises(UserError, match="no such file"):
        is_binary(tmp_path / "gone.txt")


def test_binary_is_told_by_a_nul_byte(tmp_path: Path) -> None:
    assert is_binary(write(tmp_path / "a", b"abc\0"))
    assert not is_binary(write(tmp_path / "a", "é\n"))
    assert not is_binary(write(tmp_path / "a.parquet", b"PAR1\0"))  # a format that is read, not text


def packed(suffix: str, content: bytes) -> bytes:
    if suffix == ".zst":
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, "zstd") as stream:
            stream.write(content)
        return sink.getvalue().to_pybytes()
    return {".gz": gzip, ".bz2": bz2, ".xz": lzma}[suffix].compress(content)


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_compressed_files_are_what_is_in_them(tmp_path: Path, suffix: str) -> None:
    lines = "".join(json.dumps({"text": f"document {index}"}) + "\n" for index in range(2000)).encode()
    texts = [f"document {index}" for index in range(2000)]
    assert documents(write(tmp_path / f"a.jsonl{suffix}", packed(suffix, lines))) == texts
    assert documents(write(tmp_path / f"a.txt{suffix}", packed(suffix, lines))) == [lines.decode()]
    whole = packed(suffix, lines * 20)
    message = refusal(write(tmp_path / f"cut.jsonl{suffix}", whole[: len(whole) // 2]))
    assert "damaged or cut short" in message
    assert "damaged or cut short" in refusal(write(tmp_path / f"none.txt{suffix}", b"no such format"))
    assert is_binary(write(tmp_path / f"a.tar{suffix}", packed(suffix, b"\0" * 512)))


def test_a_bomb_is_read_block_by_block(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt.gz", gzip.compress(b"a" * (64 << 20)))
    tracemalloc.start()
    try:
        assert sum(len(chunk) for document in read_documents(path, "text", "strict") for chunk in document) == 64 << 20
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-16-le"])
def test_byte_order_marks_say_the_encoding(tmp_path: Path, encoding: str) -> None:
    def encoded(text: str) -> bytes:
        return ("" if encoding in ("utf-16", "utf-32") else "\ufeff").encode(encoding) + text.encode(encoding)

    assert documents(write(tmp_path / "a.txt", encoded("naïve 日本 😀\r\nend\n"))) == ["naïve 日本 😀\r\nend\n"]
    assert documents(write(tmp_path / "a.jsonl", encoded('{"text": "é"}\n{"text": "ü"}\n'))) == ["é", "ü"]
    assert documents(write(tmp_path / "a.tsv", encoded("text\tid\né\t1\n"))) == ["é"]
    assert not is_binary(tmp_path / "a.txt")
    assert "as its byte order mark says" in refusal(write(tmp_path / "b.txt", encoded("abc")[:-1]))


def test_json_files(tmp_path: Path) -> None:
    assert documents(write(tmp_path / "a.json", '[\n {"text": "one"},\n {"text": "two", "n": NaN}\n]')) == [
        "one",
        "two",
    ]
    assert documents(write(tmp_path / "b.json", '["one", "two"]')) == ["one", "two"]
    assert documents(write(tmp_path / "c.json", '{"text": "one"}\n{"text": "two"}\n')) == ["one", "two"]
    assert documents(write(tmp_path / "d.json", '{\n "text": "one"\n}')) == ["one"]
    assert "no field 'text' in this record ('content')" in refusal(write(tmp_path / "e.json", '[{"content": "a"}]'))
    assert "item 2: field 'text' holds int" in refusal(write(tmp_path / "f.json", '[{"text": "a"}, {"text": 1}]'))
    assert "not JSON" in refusal(write(tmp_path / "g.json", '[{"text": "a"'))
    assert documents(write(tmp_path / "h.json", " \n")) == []


def test_csv_files(tmp_path: Path) -> None:
    quoted = 'id,text\r\n1,"a, ""b""\nc"\r\n\r\n2,d\r\n'
    assert documents(write(tmp_path / "a.csv", quoted)) == ['a, "b"\nc', "d"]
    assert documents(write(tmp_path / "b.csv", "id;text\n1;a, b\n")) == ["a, b"]
    assert documents(write(tmp_path / "c.tsv", "\ufefftext\tid\na, b\t1\n")) == ["a, b"]
    assert "no field 'text' in this header ('id', 'review')" in refusal(write(tmp_path / "d.csv", "id,review\n1,a\n"))
    assert "has 3 columns, the header has 2" in refusal(write(tmp_path / "e.csv", "id,text\n1,a,b\n"))
    assert "occurs 2 times" in refusal(write(tmp_path / "f.csv", "text,text\na,b\n"))
    assert documents(write(tmp_path / "g.csv", "\n")) == []


def test_arrow_files(tmp_path: Path) -> None:
    table = pa.table({"text": ["one", "two", ""], "n": [1, 2, 3]})
    with pa.ipc.new_stream(tmp_path / "a.arrow", table.schema) as stream:
        stream.write_table(table)
    with pa.ipc.new_file(tmp_path / "b.feather", table.schema) as file:
        file.write_table(table)
    assert documents(tmp_path / "a.arrow") == documents(tmp_path / "b.feather") == ["one", "two"]
    assert "no field 'body'" in refusal(tmp_path / "a.arrow", field="body")
    assert "not a complete Arrow file" in refusal(write(tmp_path / "c.arrow", b"ARROW1\0\0 and nothing else"))


def test_arrow_texts_that_lie_outside_of_the_file(tmp_path: Path) -> None:
    offsets = np.array([0, 3, 6, 6], np.int32)
    whole = pa.array(["one", "two", ""])
    with pa.ipc.new_file(tmp_path / "a.arrow", pa.schema({"text": pa.string()})) as file:
        file.write_table(pa.table({"text": whole}))
    content = (tmp_path / "a.arrow").read_bytes()
    assert content.count(offsets.tobytes()) == 1
    for wrong in ([0, 3, 1 << 30, 1 << 30], [0, -(1 << 30), 6, 6], [0, 6, 3, 6]):
        damaged = content.replace(offsets.tobytes(), np.array(wrong, np.int32).tobytes())
        assert "not a complete Arrow file" in refusal(write(tmp_path / "b.arrow", damaged))


@pytest.mark.parametrize(
    ("name", "content", "count"),
    [
        ("a.txt", b"ab\xff\xfe" + "\ufffd".encode(), 2),
        ("a.jsonl", b'{"text": "\xff"}\n{"text": "\xc3"}', 2),
        ("a.csv", b"text\n\xffa\n", 1),
    ],
)
def test_what_is_replaced_is_counted(tmp_path: Path, name: str, content: bytes, count: int) -> None:
    stats = DecodeStats()
    for document in read_documents(write(tmp_path / name, content), "text", "replace", stats):
        assert "".join(document)
    assert stats.replaced == count
