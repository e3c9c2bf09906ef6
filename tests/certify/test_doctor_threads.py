"""What is said of threads, quotas and hyper-threads."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.certify.doctor import ThreadUse, thread_findings, thread_use

GOOD = ThreadUse(threads=8, wanted="", machine=8, bound=8, quota=math.inf, threads_per_core=1, load=0.5)


def told(use: ThreadUse) -> str:
    return "\n".join(map(str, thread_findings(use)))


def test_a_thread_a_core_on_a_quiet_machine_is_as_it_should_be() -> None:
    assert told(GOOD) == ""
    assert told(replace(GOOD, machine=64, quota=8.0)) == "" and told(replace(GOOD, machine=64, bound=8)) == ""


@pytest.mark.parametrize(
    ("changes", "sentences"),
    [
        (
            {"threads": 64, "wanted": "64"},
            [
                "OMP_NUM_THREADS=64 asks for 64 threads, but this process may use 8 of the machine's 8",
                "OMP_NUM_THREADS=8",
            ],
        ),
        ({"threads": 64, "machine": 64, "bound": 64, "quota": 1.5}, ["quota is 1.5 processors", "OMP_NUM_THREADS=2"]),
        ({"threads": 64, "machine": 64}, ["bound to 8 of them"]),
        ({"threads_per_core": 2}, ["8 threads share 4 cores", "try OMP_NUM_THREADS=4"]),
        ({"threads": 1, "wanted": "1"}, ["1 of 8 cores are used (OMP_NUM_THREADS=1)"]),
        ({"load": 7.0}, ["other programs kept 7.0 of 8 processors busy"]),
    ],
)
def test_what_costs_speed_is_said_with_a_remedy(changes: dict[str, object], sentences: list[str]) -> None:
    words = told(replace(GOOD, **changes))
    assert all(sentence in words for sentence in sentences) and words.count("\n") == 0


@given(
    st.builds(
        ThreadUse, threads=st.integers(1, 256), wanted=st.sampled_from(["", "4"]), machine=st.integers(1, 256),
        bound=st.integers(1, 256), quota=st.floats(0.01, 300) | st.just(math.inf),
        threads_per_core=st.integers(1, 4), load=st.just(0.0),
    )
)  # fmt: skip
def test_the_number_that_is_recommended_is_not_complained_about(use: ThreadUse) -> None:
    assert 1 <= use.cores <= use.usable <= use.bound
    assert not list(thread_findings(replace(use, threads=use.cores)))


def test_this_process_can_be_told_in_json() -> None:
    found = json.loads(json.dumps(thread_use().to_dict(), allow_nan=False))
    assert 1 <= found["cores"] <= found["usable"] <= found["machine"] and found["threads"] >= 1
