"""Standard error that nobody reads any more."""

import os
import sys

from gossamer.train.outlive import outliving_readers


def test_what_cannot_be_written_is_thrown_away(monkeypatch):
    reading, writing = os.pipe()
    with os.fdopen(writing, "w", buffering=1) as pipe:
        monkeypatch.setattr(sys, "stderr", pipe)
        with outliving_readers():
            print("one", file=sys.stderr, flush=True)
            assert os.read(reading, 100) == b"one\n"
            os.close(reading)
            print("two", file=sys.stderr, flush=True)
            os.write(sys.stderr.fileno(), b"three")  # as a library below Python does
            assert not sys.stderr.isatty()
        assert sys.stderr is pipe
