"""Two processes under torchrun: when one is killed all are started again and go on from the last checkpoint."""

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from gossamer.run.checkpoint import newest_checkpoint
from gossamer.run.metrics import read_metrics
from gossamer.train.recipe import to_yaml

pytestmark = pytest.mark.slow

TRAIN = Path(__file__).parents[2] / "recipes" / "cluster" / "train.sh"
STEPS = 60
BY_THE_CLOCK = {"elapsed", "tokens_per_second", "mfu", "memory", "flops", "device_seconds"}


@dataclass
class Torchruns:
    """A run of two processes under one torchrun, or under two as on two machines, as docs/cluster.md tells to type."""

    recipe: Path
    run: Path
    nodes: int = 1

    def __post_init__(self):
        self.told = self.run.with_suffix(".stderr")
        with socket.create_server(("127.0.0.1", 0)) as free:
            meeting = f"127.0.0.1:{free.getsockname()[1]}"
        where = ["--standalone"]
        if self.nodes == 2:
            where = ["--nnodes=2", "--rdzv-backend=c10d", f"--rdzv-endpoint={meeting}", "--rdzv-id=test"]
        options = [*where, f"--nproc-per-node={2 // self.nodes}", "--max-restarts=2", "--monitor-interval=0.1"]
        words = ["--no-python", TRAIN, self.run, "--recipe", self.recipe]
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # where `gossamer` is
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PATH": path, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        command = [sys.executable, "-m", "torch.distributed.run", *options, *words]
        with self.told.open("w") as told:
            self.processes = [subprocess.Popen(command, env=environment, stderr=told) for _ in range(self.nodes)]

    def wait_for(self, true):
        """Until this is true of what was told on standard error."""
        deadline = time.monotonic() + 120
        while not true(self.told.read_text()):
            running = all(process.poll() is None for process in self.processes)
            assert running and time.monotonic() < deadline, self.told.read_text()
            time.sleep(0.02)

    def finish(self):
        for process in self.processes:
            assert process.wait(timeout=300) == 0, self.told.read_text()

    def kill(self, rank):
        """SIGKILL to the process of this rank."""
        parents = ",".join(str(process.pid) for process in self.processes)
        found = subprocess.run(["ps", "-o", "pid=", "--ppid", parents], capture_output=True, text=True, check=True)
        for pid in found.stdout.split():
            if f"RANK={rank}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                os.kill(int(pid), signal.SIGKILL)
                return
        raise AssertionError(f"no process of rank {rank} among {found.stdout.split()}")


def measured(run):
    events = [event for event in read_metrics(run) if event["event"] in ("train", "eval", "end")]
    return [{name: value for name, value in event.items() if name not in BY_THE_CLOCK} for event in events]


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_killed_process_is_started_again_with_the_others(tiny_recipe, tmp_path, nodes):
    training = replace(tiny_recipe.training, steps=STEPS, checkpoint_every=3, eval_every=10)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(to_yaml(replace(tiny_recipe, training=training)))
    whole = Torchruns(recipe, tmp_path / "whole")
    whole.finish()

    killed = Torchruns(recipe, tmp_path / "killed", nodes)
    for kills, rank in enumerate((1, 0)):
        killed.wait_for(lambda told, kills=kills: told.count("resuming") == kills)
        before = newest_checkpoint(killed.run)
        killed.wait_for(lambda told, before=before: newest_checkpoint(killed.run) != before)
        killed.kill(rank)
        killed.wait_for(lambda told, kills=kills: told.count("exitcode: -9") > kills)
    killed.finish()

    assert killed.told.read_text().count("resuming") == 2
    ends = [(torchruns.run / "model" / "model.safetensors").read_bytes() for torchruns in (whole, killed)]
    assert ends[0] == ends[1]
    assert measured(killed.run) == measured(whole.run)
    logged = [event["step"] for event in measured(killed.run) if event["event"] == "train"]
    assert logged == list(range(1, STEPS + 1))
