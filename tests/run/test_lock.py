"""One trainer for a run, however it ends."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from gossamer import files
from gossamer.cli import main
from gossamer.errors import UserError
from gossamer.run import loop
from gossamer.run.lock import claimed, require_unclaimed
from gossamer.train.recipe import to_yaml
from gossamer.train.world import SINGLE_PROCESS

BUSY = "is being trained by another process; wait for its end, or begin another run with --out DIR"
HOLD = """
import sys, time
from pathlib import Path
from gossamer.run.lock import claimed
from gossamer.train.world import SINGLE_PROCESS
with claimed(Path(sys.argv[1]), SINGLE_PROCESS):
    print("held", flush=True)
    time.sleep(600)
"""

needs_locks = pytest.mark.skipif(files.fcntl is None, reason="this system has no such locks")


@pytest.fixture
def holder(tmp_path):
    """Another process, which holds the run in tmp_path/run."""
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "run"], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        yield process
        process.kill()


@needs_locks
def test_a_run_has_one_trainer_until_that_is_killed(holder, tiny_recipe, tmp_path):
    run = tmp_path / "run"
    for resume in (False, True):
        with pytest.raises(UserError, match=f"^{run} {BUSY}$"):
            loop.train(tiny_recipe, run, resume)
    with pytest.raises(UserError, match=BUSY):
        require_unclaimed(run)
    assert [path.name for path in run.iterdir()] == [".lock"]
    holder.kill()
    holder.wait()
    require_unclaimed(run)
    loop.train(replace(tiny_recipe, training=replace(tiny_recipe.training, steps=1)), run)


@needs_locks
@pytest.mark.parametrize("options", [["--recipe", "nano"], ["--resume"]], ids=str)
def test_the_command_line_says_so(holder, tiny_recipe, tmp_path, capsys, options):
    (tmp_path / "run" / "config.yaml").write_text(to_yaml(tiny_recipe))
    assert main(["train", *options, "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err == f"gossamer: {tmp_path / 'run'} {BUSY}\n"


@needs_locks
@pytest.mark.slow
def test_every_process_under_torchrun_says_so(holder, tiny_recipe, tmp_path):
    run, recipe = tmp_path / "run", tmp_path / "recipe.yaml"
    recipe.write_text(to_yaml(tiny_recipe))
    (run / "config.yaml").write_text(to_yaml(tiny_recipe))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launcher, "-m", "gossamer.cli", "train", "--resume", "--out", str(run)]
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode != 0
    assert done.stderr.count(f"gossamer: {run} {BUSY}") == 2, done.stderr


def test_nothing_is_left_where_nothing_was_begun(tmp_path):
    def fail(run: Path):
        with pytest.raises(UserError, match="mistake"), claimed(run, SINGLE_PROCESS):
            raise UserError("mistake")

    fail(tmp_path / "runs" / "new")
    assert not (tmp_path / "runs").exists()
    (tmp_path / "there").mkdir()
    fail(tmp_path / "there")
    assert not list((tmp_path / "there").iterdir())
    (tmp_path / "there" / "config.yaml").touch()
    fail(tmp_path / "there")
    assert (tmp_path / "there" / "config.yaml").exists()


def test_without_locks_nobody_is_kept_out(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "fcntl", None)
    with claimed(tmp_path, SINGLE_PROCESS), claimed(tmp_path, SINGLE_PROCESS):
        require_unclaimed(tmp_path)


@needs_locks
def test_a_file_system_without_locks_keeps_nobody_out(tmp_path, monkeypatch):
    def refuse(file, kind):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    with claimed(tmp_path, SINGLE_PROCESS), claimed(tmp_path, SINGLE_PROCESS):
        require_unclaimed(tmp_path)


def test_what_a_killed_trainer_left_goes_when_the_run_is_next_claimed(tmp_path):
    (tmp_path / "config.yaml").touch()
    (tmp_path / ".tmp-00000001-model").mkdir()
    (tmp_path / ".tmp-00000001-model" / "model.safetensors").write_text("half")
    (tmp_path / ".tmp-00000002-report.html").touch()  # perhaps another process writes it now
    with claimed(tmp_path, SINGLE_PROCESS):
        assert {path.name for path in tmp_path.iterdir()} == {"config.yaml", ".lock", ".tmp-00000002-report.html"}
