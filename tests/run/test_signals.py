"""Signals that ask a run to end."""

import os
import signal

import pytest

from gossamer.run.signals import interruptible


@pytest.fixture(params=["SIG_DFL", "SIG_IGN"])
def hangup(request):
    """What this process does about a closed terminal."""
    before = signal.signal(signal.SIGHUP, getattr(signal, request.param))
    yield request.param
    signal.signal(signal.SIGHUP, before)


def test_a_closed_terminal_counts_unless_it_is_to_be_ignored(hangup):
    with interruptible() as caught:
        os.kill(os.getpid(), signal.SIGHUP)
    assert caught == ([signal.SIGHUP] if hangup == "SIG_DFL" else [])
    assert signal.getsignal(signal.SIGHUP) == getattr(signal, hangup)


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with interruptible() as caught:
        os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, "a second Ctrl-C stops at once"
    assert caught == [signal.SIGTERM]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before
