"""Two processes under torchrun: when one is killed all are started again and go on from the last checkpoint."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from gossamer.train.checkpoint import newest_checkpoint
from gossamer.train.metrics import read_metrics
from gossamer.train.recipe import to_yaml

pytestmark = pytest.mark.slow

TRAIN = Path(__file__).parents[2] / "recipes" / "cluster" / "train.sh"
STEPS = 60
BY_THE_CLOCK = {"elapsed", "tokens_per_second", "memory"}


def launch(recipe, run, told):
    """What docs/cluster.md tells to type, with a look at the processes ten times a second."""
    options = ["--standalone", "--nproc-per-node=2", "--max-restarts=2", "--monitor-interval=0.1", "--no-python"]
    command = [sys.executable, "-m", "torch.distributed.run", *options, TRAIN, run, "--recipe", recipe]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # where `gossamer` is
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PATH": path}
    return subprocess.Popen(command, env=environment, stderr=told.open("w"))


def worker(torchrun, rank):
    """The newest process of this rank."""
    pids = subprocess.run(["ps", "-o", "pid=", "--ppid", str(torchrun.pid)], capture_output=True, text=True).stdout
    for pid in reversed(pids.split()):
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        if f"RANK={rank}".encode() in variables:
            return int(pid)
    raise AssertionError(f"no process of rank {rank} among {pids}")


def measured(run):
    events = [event for event in read_metrics(run) if event["event"] in ("train", "eval", "end")]
    return [{name: value for name, value in event.items() if name not in BY_THE_CLOCK} for event in events]


def test_a_killed_process_is_started_again_with_the_others(tiny_recipe, tmp_path):
    training = replace(tiny_recipe.training, steps=STEPS, checkpoint_every=3, eval_every=10)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(to_yaml(replace(tiny_recipe, training=training)))
    whole, killed, told = tmp_path / "whole", tmp_path / "killed", tmp_path / "stderr"
    assert launch(recipe, whole, told).wait(timeout=300) == 0, told.read_text()

    torchrun = launch(recipe, killed, told)
    before = None
    for rank in (1, 0):
        deadline = time.monotonic() + 120
        while (newest := newest_checkpoint(killed)) in (None, before) and time.monotonic() < deadline:
            assert torchrun.poll() is None, told.read_text()
            time.sleep(0.05)
        before = newest
        os.kill(worker(torchrun, rank), signal.SIGKILL)
    assert torchrun.wait(timeout=300) == 0, told.read_text()

    assert told.read_text().count("resuming") == 2
    assert (killed / "model" / "model.safetensors").read_bytes() == (whole / "model" / "model.safetensors").read_bytes()
    assert measured(killed) == measured(whole)
    assert [event["step"] for event in measured(killed) if event["event"] == "train"] == list(range(1, STEPS + 1))
