"""recipes/cluster: the files say what Slurm, Kubernetes, torchrun and `gossamer train` understand, and fit together."""

import os
import re
import shlex
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from torch.distributed.run import get_args_parser

from gossamer import cli
from gossamer.cli.arguments import parse
from gossamer.train.recipe import Recipe, load_recipe

CLUSTER = Path(__file__).parents[1] / "recipes" / "cluster"
DOCUMENT = Path(__file__).parents[1] / "docs" / "cluster.md"
SBATCH = CLUSTER / "slurm.sbatch"
SLURM_OPTIONS = {  # of those that sbatch has
    "job-name", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "time", "signal", "requeue", "open-mode",
    "output",
}  # fmt: skip


@dataclass(frozen=True)
class Launch:
    """What a torchrun command line says."""

    nodes: int
    processes: int
    endpoint: str
    shutdown: int
    recipe: Recipe
    run: str

    def check(self) -> None:
        """Every process gets as many rows, and experts, as the others."""
        world, training = self.nodes * self.processes, self.recipe.training
        assert training.batch_size % world == 0
        assert world % training.expert_parallel == 0
        assert self.recipe.model.num_experts % training.expert_parallel == 0
        assert self.processes % training.expert_parallel == 0, "experts are exchanged within a node"


def understood(command: list[str], fresh_store: bool, shutdown: int = 0) -> Launch:
    """Read a command with torchrun's own parser and the train verb's."""
    assert command[0] == "torchrun"
    options = get_args_parser().parse_args(command[1:])
    assert int(options.max_restarts) == 0 or fresh_store, "restarts need TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"
    words = list(options.training_script_args)
    if options.no_python:
        assert Path(options.training_script) == Path("recipes/cluster/train.sh")
        run = words.pop(0)
    else:
        assert (options.module, options.training_script, words.pop(0)) == (True, "gossamer.cli", "train")
        run = ""
    given = parse("train", cli.train, words)
    nodes = 1 if options.standalone else int(options.nnodes)
    recipe = load_recipe(given["recipe"], given["overrides"])
    return Launch(nodes, int(options.nproc_per_node), options.rdzv_endpoint, shutdown, recipe, run or given["out"])


# Slurm.


@pytest.mark.parametrize("script", [SBATCH, CLUSTER / "train.sh"], ids=lambda path: path.name)
def test_scripts_are_valid_shell(script):
    subprocess.run(["bash", "-n", script], check=True)


def sbatch_options():
    lines = [line for line in SBATCH.read_text().splitlines() if line.startswith("#SBATCH")]
    pairs = [re.fullmatch(r"#SBATCH --([a-z-]+)(?:=(\S+))?", line) for line in lines]
    assert all(pairs), lines
    return {pair[1]: pair[2] for pair in pairs}


def test_sbatch_options():
    options = sbatch_options()
    assert options.keys() == SLURM_OPTIONS
    assert options["ntasks-per-node"] == "1", "one torchrun a node, which starts the processes"
    assert options["open-mode"] == "append", "a requeued job keeps its log"
    assert options["signal"].startswith("B:USR1@"), "the script itself hears that time is up"
    text = SBATCH.read_text()
    assert text.index("#SBATCH --output") < text.index("\nset -euo"), (
        "sbatch stops reading options at the first command"
    )


@pytest.fixture
def slurm(tmp_path):
    """Start the batch script where srun runs its command, which notes it, and scontrol and scancel note theirs."""
    options = sbatch_options()
    fakes = {
        "scontrol": 'echo "scontrol $@" >> "$LOG"; [ "$1" != show ] || printf "n1\\nn2\\n"',
        "scancel": 'echo "scancel $@" >> "$LOG"; touch "$LOG.stop"',
        "srun": 'exec "$@"',
        "torchrun": """
            variables="$TORCH_DISABLE_SHARE_RDZV_TCP_STORE $TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
            echo "torchrun$(printf ' %q' "$@") # $variables" >> "$LOG"
            [ -z "${WORK:-}" ] || until [ -e "$LOG.stop" ]; do sleep 0.05; done
            exit "${WORK:-0}" """,
    }
    for name, body in fakes.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "LOG": str(tmp_path / "log"),
        "SLURM_JOB_ID": "77",
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_JOB_NUM_NODES": options["nodes"],
        "SLURM_GPUS_ON_NODE": options["gpus-per-node"],
    }

    def start(*words, **variables):
        return subprocess.Popen(["bash", SBATCH, *words], env=environment | variables), tmp_path / "log"

    return start


def test_the_batch_script_starts_one_process_for_every_gpu(slurm):
    process, log = slurm("--training.steps", "60000")
    assert process.wait(timeout=300) == 0
    asked, command = log.read_text().splitlines()
    assert asked == "scontrol show hostnames n[1-2]"
    fresh_store, shutdown = command.rpartition("# ")[2].split()
    launch = understood(shlex.split(command, comments=True), fresh_store == "1", int(shutdown))
    options = sbatch_options()
    assert (launch.nodes, launch.processes) == (int(options["nodes"]), int(options["gpus-per-node"]))
    assert launch.endpoint == "n1:29500"
    assert launch.recipe.training.steps == 60000, "options of sbatch's command line reach the trainer"
    assert 0 < launch.shutdown < int(options["signal"].rpartition("@")[2])
    launch.check()


@pytest.mark.parametrize("status", [0, 1])
def test_the_batch_script_queues_itself_again_when_time_is_up(slurm, status):
    process, log = slurm(WORK=str(status))
    deadline = time.monotonic() + 300
    while not (log.exists() and "torchrun" in log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR1)
    process.wait(timeout=300)
    *_, cancelled, queued = log.read_text().splitlines()
    assert cancelled == "scancel --signal=TERM 77"
    assert queued == "scontrol requeue 77"


def test_the_batch_script_fails_as_the_training_does(slurm):
    process, log = slurm(WORK="3")
    (log.parent / "log.stop").touch()
    assert process.wait(timeout=300) == 3
    assert "requeue" not in log.read_text()


# Kubernetes.


def test_the_manifest_fits_together():
    service, job = yaml.safe_load_all((CLUSTER / "kubernetes.yaml").read_text())
    assert (service["apiVersion"], service["kind"]) == ("v1", "Service")
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    name, pods = job["metadata"]["name"], job["spec"]["template"]["spec"]
    assert service["spec"]["clusterIP"] == "None", "headless: a name for every pod"
    assert service["spec"]["selector"] == {"job-name": name}, "a label that Kubernetes gives to the pods of a Job"
    assert job["spec"]["completionMode"] == "Indexed", "pods are named by their index"
    assert pods["subdomain"] == service["metadata"]["name"]
    assert pods["restartPolicy"] in ("OnFailure", "Never"), "all that a Job allows"
    (container,) = pods["containers"]
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    assert all(isinstance(value, str) for value in environment.values()), "Kubernetes takes no numbers there"
    fresh_store = environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"
    launch = understood(container["command"], fresh_store, int(environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]))
    assert launch.nodes == job["spec"]["completions"] == job["spec"]["parallelism"]
    assert launch.processes == container["resources"]["limits"]["nvidia.com/gpu"]
    host, port = launch.endpoint.split(":")
    assert host == f"{name}-0.{service['metadata']['name']}"
    assert int(port) in [entry["containerPort"] for entry in container["ports"]]
    assert launch.shutdown < pods["terminationGracePeriodSeconds"]
    mounts = {entry["name"]: entry["mountPath"] for entry in container["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in pods["volumes"]}
    for path in (launch.run, environment["GOSSAMER_CACHE"], *launch.recipe.corpus.paths):
        assert path.startswith(mounts["shared"] + "/"), "pods share nothing else"
    launch.check()


# train.sh and the documentation.


@pytest.fixture
def train_sh(tmp_path):
    """Run train.sh with a `gossamer` that notes its words, and return them."""
    (tmp_path / "gossamer").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "gossamer").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}

    def run(folder):
        command = ["sh", CLUSTER / "train.sh", folder, "--recipe", "nano"]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()

    return run


def test_train_sh_begins_a_run_and_goes_on_with_it(train_sh, tmp_path):
    folder = tmp_path / "a run"
    assert train_sh(folder) == ["train", "--recipe", "nano", "--out", *str(folder).split()]
    folder.mkdir()
    (folder / ".lock").touch()
    assert "--resume" not in train_sh(folder), "a start that was killed before it began the run"
    (folder / "config.yaml").touch()
    assert train_sh(folder) == ["train", "--recipe", "nano", "--resume", "--out", *str(folder).split()]


def documented_commands():
    """Every torchrun command, and whether its block sets the variable that restarts need."""
    blocks = re.findall(r"```bash\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    return [
        (line.partition(" #")[0], "export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in block)
        for block in blocks
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith("torchrun")
    ]


@pytest.mark.parametrize(("command", "fresh_store"), documented_commands())
def test_documented_commands_are_understood(command, fresh_store):
    understood(shlex.split(command), fresh_store).check()


def test_the_document_has_commands():
    assert len(documented_commands()) >= 3
