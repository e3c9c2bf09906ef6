"""Fetch the named texts that networks are raced on, all in the public domain, and check them.

    python benchmarks/fetch_texts.py [--out texts] [--only NAME …] [--server URL]

tinyshakespeare comes from karpathy/char-rnn and is refused if it is another text. The novels of the figures in docs/
are Standard Ebooks' editions as plain text; what is fetched are Project Gutenberg's editions of the same books, without
their headers and licences. So losses differ a little, and every record names the fingerprint of the text that it was
made with. A file with the fingerprint of the figures' own text is announced as such, wherever it came from. A fetched
file stays, with its fingerprint beside it in SHA256SUMS: a file that has changed since is refused.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import sys
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException, IncompleteRead
from pathlib import Path

from texts import FETCHED, NOVELS, SHAKESPEARE

GUTENBERG, GITHUB = "https://www.gutenberg.org", "https://raw.githubusercontent.com"
SUMS = "SHA256SUMS"
TIMEOUT = 60.0  # seconds without a byte
_BEGIN = re.compile(r"^\*\*\* ?START OF (?:THE|THIS) PROJECT GUTENBERG EBOOK.*$", re.MULTILINE)
_END = re.compile(r"^\*\*\* ?END OF (?:THE|THIS) PROJECT GUTENBERG EBOOK", re.MULTILINE)


@dataclass(frozen=True)
class Named:
    """A text that can be fetched.

    Attributes:
        file: its place in the folder of texts
        path: its address on the server
        sha256: fingerprint of the text that the figures in docs/ were measured with
        server: the server
    """

    file: str
    path: str
    sha256: str
    server: str = GUTENBERG

    @property
    def exact(self) -> bool:
        """Whether the address gives that very text; otherwise it is another edition of it."""
        return self.server != GUTENBERG


def _novel(name: str, number: int, sha256: str) -> Named:
    return Named(f"{NOVELS}/{name}.txt", f"/cache/epub/{number}/pg{number}.txt", sha256)


TEXTS = (
    Named(
        SHAKESPEARE,
        "/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        GITHUB,
    ),
    _novel("anna-karenina", 1399, "1d9d7be50409db457ef9b37eab5ba28e79102148b847795442e6351962f1533c"),
    _novel("bleak-house", 1023, "d3e62534e78803a83dd4e65a9c441c11c0c113b09b0a6e031063766d6c320eee"),
    _novel("david-copperfield", 766, "cfa4186b384a097f8adabca5f51ea2fdd71a2676b03d4d4e79ae592684d9ec76"),
    _novel("les-miserables", 135, "6431e81dbe1069e5703241e8cf9bd689fb10318c6ae4124e9e432c2827bf4fbc"),
    _novel("moby-dick", 2701, "e13c56af61023f7bb75debcd853419c852ec9f270aaf442cf4ab80bbfe4384d5"),
    _novel("the-brothers-karamazov", 28054, "56dc6d538a530ce57712097e7f4495c633aa29ea115b8e997c5e6f9281a5887c"),
    _novel("the-wealth-of-nations", 3300, "2aa362afb6c641677ab50878b586840780e5c5d8e700df71a7fdc1cf5c94e8d9"),
    _novel("war-and-peace", 2600, "f173c9c7a6339cdb46026e01e07feb1325cacf71f4e9c5c9483506dc18aa4832"),
)


class FetchError(Exception):
    """A text cannot be had; the message is one line."""


def without_licence(text: str) -> str:
    """Return a book of Project Gutenberg without the text before and behind it, with the line ends of Unix.

    Raises:
        FetchError: it has no such marks, so it is an error page or another kind of file.
    """
    text = text.replace("\r\n", "\n").removeprefix("\ufeff")
    begin = _BEGIN.search(text)
    end = _END.search(text, begin.end()) if begin else None
    if not (begin and end):
        raise FetchError("is not a book of Project Gutenberg: its START and END lines are missing")
    return text[begin.end() : end.start()].strip("\n") + "\n"


def fetch(named: Named, server: str = "") -> bytes:
    """Return the content of a text as it is stored.

    Raises:
        FetchError: it cannot be reached, is cut off, or is not what it should be.
    """
    address = (server or named.server) + named.path
    try:
        with urllib.request.urlopen(address, timeout=TIMEOUT) as answer:
            content: bytes = answer.read()
    except IncompleteRead as error:
        raise FetchError(f"{address}: cut off after {len(error.partial):,} bytes; try again") from error
    except (OSError, HTTPException) as error:
        raise FetchError(f"{address}: {getattr(error, 'reason', None) or error}") from error
    if named.exact:
        if (found := _sha256(content)) != named.sha256:
            raise FetchError(f"{address}: is not the expected text: its sha256 is {found} instead of {named.sha256}")
        return content
    try:
        return without_licence(content.decode("utf-8")).encode()
    except (UnicodeDecodeError, FetchError) as error:
        raise FetchError(f"{address}: {error}") from error


def get(named: Named, folder: Path, server: str = "") -> str:
    """Fetch a text into a folder unless it is there, and return a line that says what it is.

    Raises:
        FetchError: it cannot be had, or the file there is not the one that was fetched.
    """
    path, sums = folder / named.file, _read_sums(folder)
    if path.is_file():
        found = _sha256(path.read_bytes())
        if found not in (named.sha256, sums.get(named.file)):
            raise FetchError(f"{path} is not the text that was fetched (sha256 {found}); remove it to fetch it anew")
    else:
        content = fetch(named, server)
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, content)
        found = _sha256(content)
        lines = [f"{digest}  {file}" for file, digest in sorted((sums | {named.file: found}).items())]
        _write(folder / SUMS, "\n".join([*lines, ""]).encode())
    kind = "the text of the figures" if found == named.sha256 else "another edition than the figures' own"
    return f"{path}: {path.stat().st_size:,} bytes, sha256 {found}: {kind}"


def _read_sums(folder: Path) -> dict[str, str]:
    try:
        lines = (folder / SUMS).read_text().splitlines()
    except FileNotFoundError:
        return {}
    return {file: digest for digest, _, file in (line.partition("  ") for line in lines)}


def _write(path: Path, content: bytes) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_bytes(content)
    part.replace(path)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def main() -> int:
    """Fetch the texts that the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = [named.file for named in TEXTS]
    parser.add_argument("--out", type=Path, default=FETCHED, help="folder to put them into")
    parser.add_argument("--only", nargs="*", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--server", default="", help="a mirror that has them under the same paths")
    arguments = parser.parse_args()
    failed = 0
    for named in TEXTS:
        if named.file not in arguments.only:
            continue
        try:
            print(get(named, arguments.out, arguments.server), flush=True)
        except FetchError as error:
            print(f"fetch_texts.py: {error}", file=sys.stderr)
            failed += 1
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
