"""The gate in front of the operations: no call ends the process, and all implementations refuse the same."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gossamer import ops
from gossamer.errors import UserError

CALLS = Path(__file__).parent / "random_calls.py"


def make_calls(first: int, count: int) -> None:
    """In a process of its own: one that dies is a failure of the call whose number it printed last."""
    command = [sys.executable, "-W", "ignore", str(CALLS), str(first), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "2"})
    assert done.returncode == 0, f"status {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


def test_random_calls_give_a_result_or_a_users_mistake_through_every_implementation() -> None:
    make_calls(0, 60)


@pytest.mark.slow
@pytest.mark.parametrize("batch", range(20))
def test_many_random_calls_do(batch: int) -> None:
    first = batch * 1000 if "CI" in os.environ else random.randrange(10**9)
    make_calls(first, 1000)


@pytest.mark.parametrize("implementation", [one.name for one in ops.OPERATIONS["rms_norm"].implementations])
def test_a_whole_number_is_a_number(implementation: str) -> None:
    """ctypes would hand it over in another register than the kernel reads."""
    x, weight = torch.ones(2, 4), torch.ones(4)
    with ops.forced(rms_norm=implementation):
        torch.testing.assert_close(ops.rms_norm(x, weight, 1), ops.rms_norm(x, weight, 1.0))
        with pytest.raises(UserError, match="eps must be a finite number"):
            ops.rms_norm(x, weight, float("nan"))


def test_a_view_that_stands_for_other_numbers_does_not_reach_a_kernel() -> None:
    x = torch._neg_view(torch.ones(2, 4))  # holds 1, means −1
    with ops.forced(few_rows="native"), pytest.raises(UserError, match="no plain tensor"):
        ops.few_rows(x, torch.ones(3, 4))
