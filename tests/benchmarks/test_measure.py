"""What a subject's time is taken from."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import measure
import pytest

from gossamer.cli import ENVIRONMENT


def slow_at_first(first: float) -> Callable[[], object]:
    calls: list[None] = []

    def call() -> None:
        calls.append(None)
        if len(calls) == 1:
            time.sleep(first)

    return call


def broken() -> Callable[[], object]:
    raise ValueError("no such network")


def test_what_the_first_call_compiles_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "PATIENCE", 0.2)
    subject = measure.Subject("one", slow_at_first, 1.0)
    measure.time_in_turns([subject], turns=3, warm_up=1)
    assert len(subject.seconds) == 3
    assert max(subject.seconds) < 1.0


def test_a_failure_is_kept_and_ends_the_turns() -> None:
    subject = measure.Subject("one", broken)
    measure.time_in_turns([subject], turns=2)
    assert "no such network" in subject.failure
    assert not subject.seconds


def spin_count() -> Callable[[], object]:
    raise ValueError(os.environ["GOMP_SPINCOUNT"])


def test_a_peer_has_the_environment_that_its_users_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", ENVIRONMENT["GOMP_SPINCOUNT"])
    subjects = [measure.Subject("ours", spin_count), measure.Subject("theirs", spin_count, peer=True)]
    measure.time_in_turns(subjects, turns=1)
    ours, theirs = (subject.failure for subject in subjects)
    assert ours.endswith(ENVIRONMENT["GOMP_SPINCOUNT"])
    assert theirs.endswith(measure.environment.AS_USERS_HAVE_THEM["GOMP_SPINCOUNT"])
    assert ours != theirs
