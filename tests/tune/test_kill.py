"""A tuning that is killed at any moment, again and again, ends where an undisturbed one ends."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tuned_runs import conversations, make_base, pairs, write_lines

pytestmark = pytest.mark.slow

KILLS = 4


def launch(base: Path, data: Path, out: Path, processes: int = 1) -> subprocess.Popen[bytes]:
    """Begin a tuning, or go on with it."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    words = ["tune", base, "--data", data, "--device", "cpu", "--batch", "4", "--learning_rate", "1e-3", "--out", out]
    words += ["--training.checkpoint_every", "2", "--corpus.cache_dir", data.parent / "cache"]
    words += ["--resume"] if (out / "config.yaml").exists() else []
    command = [sys.executable, *torchrun, "-m", "gossamer.cli", *map(str, words)]
    with out.with_suffix(".log").open("ab") as told:
        return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=told, stdout=told)


def outcome(run: Path) -> tuple[dict[str, torch.Tensor], Any]:
    return load_file(run / "model" / "model.safetensors"), json.loads((run / "guard.json").read_text())["verdict"]


@pytest.mark.parametrize("lines", [conversations, pairs])
def test_killed_at_random_moments_a_tuning_ends_bit_identical(lines: Any, tmp_path: Path) -> None:
    base, data = make_base(tmp_path / "base"), write_lines(tmp_path / "data.jsonl", lines(60))
    began = time.monotonic()
    assert launch(base, data, tmp_path / "whole").wait() in (0, 1)
    lasted = time.monotonic() - began
    moments = random.Random(3)
    for _ in range(KILLS):
        process = launch(base, data, tmp_path / "killed")
        time.sleep(moments.uniform(0.4, 1) * lasted)
        process.kill()
        process.wait()
        if (tmp_path / "killed" / "report.html").exists():
            break
    if not (tmp_path / "killed" / "report.html").exists():
        assert launch(base, data, tmp_path / "killed").wait() in (0, 1)
    (whole, verdict), (killed, same) = outcome(tmp_path / "whole"), outcome(tmp_path / "killed")
    assert whole.keys() == killed.keys() and all(torch.equal(whole[name], killed[name]) for name in whole)
    assert verdict == same


def test_two_processes_tune_as_one_does(tmp_path: Path) -> None:
    base, data = make_base(tmp_path / "base"), write_lines(tmp_path / "data.jsonl", pairs(20))
    for run, processes in (("one", 1), ("two", 2)):
        assert launch(base, data, tmp_path / run, processes).wait() in (0, 1)
    (one, verdict), (two, other) = outcome(tmp_path / "one"), outcome(tmp_path / "two")
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, atol=1e-4, rtol=1e-3)
    assert other["after"]["loss"] == pytest.approx(verdict["after"]["loss"], abs=1e-4)
