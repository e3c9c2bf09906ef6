"""Damaged checkpoints, a full disk, data that vanishes: one clear line, nothing lost, and --resume ends as ever."""

import json
import logging
import os
import shutil
import subprocess
import threading
from dataclasses import replace
from functools import partial

import pytest

from gossamer import cli
from gossamer.files import is_temporary
from gossamer.run import loop
from gossamer.run.checkpoint import newest_checkpoint
from gossamer.run.metrics import read_metrics
from gossamer.train.recipe import to_yaml

pytestmark = pytest.mark.slow

STEPS = 9


@pytest.fixture
def recipe(tiny_recipe, tmp_path):
    """File of a recipe with a checkpoint every three steps."""
    training = replace(tiny_recipe.training, steps=STEPS, checkpoint_every=3, eval_every=4)
    file = tmp_path / "recipe.yaml"
    file.write_text(to_yaml(replace(tiny_recipe, training=training)))
    return file


@pytest.fixture
def train(recipe, capfd):
    """Trains into a folder as the command line does; returns the exit status and what was told on standard error."""

    def run(folder, *options, resume=False):
        capfd.readouterr()
        source = ["--resume"] if resume else ["--recipe", str(recipe)]
        status = cli.main(["train", *source, "--out", str(folder), *options])
        for thread in threading.enumerate():
            if thread.name == "saver":  # a process that ends waits for it
                thread.join()
        told = capfd.readouterr().err
        assert "Traceback" not in told and "Exception" not in told, told
        return status, told

    return run


def weights(run):
    return (run / "model" / "model.safetensors").read_bytes()


def complaint(told):
    """The one line that says what went wrong."""
    (line,) = [line for line in told.splitlines() if line.startswith("gossamer:")]
    return line


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 8
    path.write_bytes(content)


def cut_short(path):
    os.truncate(path, path.stat().st_size - 1)


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("__0_0.distcp", flip_a_bit),
        ("__0_0.distcp", cut_short),
        (".metadata", flip_a_bit),
        ("progress.json", flip_a_bit),
        ("manifest.json", cut_short),
        ("manifest.json", os.remove),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(train, tmp_path, caplog, file, damage):
    run = tmp_path / "run"
    assert train(run)[0] == 0
    end = weights(run)
    damage(run / "checkpoints" / f"step-{STEPS:08d}" / file)
    (run / "model" / "model.safetensors").unlink()
    with caplog.at_level(logging.WARNING, "gossamer"):
        assert train(run, resume=True)[0] == 0
    told = [record.getMessage() for record in caplog.records if record.name == "gossamer"]
    (warning,) = [line for line in told if "damaged" in line]  # the text is short, which is warned of, too
    assert f"step-{STEPS:08d} is damaged" in warning and "\n" not in warning
    assert [event["step"] for event in read_metrics(run) if event["event"] == "resume"] == [6]
    assert weights(run) == end


def test_without_any_whole_checkpoint_the_run_says_so(train, tmp_path):
    run = tmp_path / "run"
    assert train(run)[0] == 0
    before = (run / "metrics.jsonl").read_bytes()
    for data in run.glob("checkpoints/*/*.distcp"):
        flip_a_bit(data)
    status, told = train(run, resume=True)
    assert status == 2 and "no checkpoint" in complaint(told)
    assert (run / "metrics.jsonl").read_bytes() == before


@pytest.fixture
def small_disk(tmp_path):
    """Makes a disk of so many bytes at a path, or gives it that size; all are taken away in the end."""
    made = []

    def mount(path, size):
        options = f"size={size}"
        if path in made:
            options += ",remount"
        path.mkdir(exist_ok=True)
        try:
            done = subprocess.run(
                ["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], capture_output=True, text=True
            )
        except OSError as error:
            pytest.skip(f"no disk can be made here: {error}")
        if done.returncode:
            pytest.skip(f"no disk can be made here: {done.stderr.strip()}")
        made.append(path)

    yield mount
    for path in set(made):
        subprocess.run(["umount", path], check=True)


def test_a_disk_that_fills_up_while_training(train, tmp_path, small_disk):
    """Disks of several sizes, so that it is another write that finds no room: model, checkpoint, metrics, samples."""
    whole, options = tmp_path / "whole", ("--training.keep_checkpoints", "99")
    assert train(whole, *options)[0] == 0
    checkpoint = sum(path.stat().st_size for path in (whole / "checkpoints" / "step-00000003").iterdir())
    told_of = set()
    for part in range(6):
        disk = tmp_path / f"disk-{part}"
        small_disk(disk, checkpoint * 2 + checkpoint * part // 4)
        run = disk / "run"
        status, told = train(run, *options)
        assert status == 2
        assert "no space left" in complaint(told) or "disk is full" in complaint(told)
        told_of.add("checkpoint" if "checkpoint" in complaint(told) else "other")
        kept = sorted(run.glob("checkpoints/step-*"))
        assert kept and newest_checkpoint(run) == kept[-1], "earlier checkpoints are whole"
        assert not [path for path in run.rglob("*") if is_temporary(path)], "nothing half-written"
        small_disk(disk, 64 << 20)
        status, told = train(run, resume=True)
        assert status == 0, told
        assert weights(run) == weights(whole)
        assert steps(run) == list(range(1, STEPS + 1))
    assert told_of == {"checkpoint", "other"}, "the sizes find several writes"


@pytest.fixture
def after_step(monkeypatch):
    """Has something done when a run has taken its fourth step."""

    def install(deed):
        def on_step(progress):
            if progress.step == 4:
                deed()

        train = loop.train
        monkeypatch.setattr(loop, "train", partial(train, on_step=on_step))
        return lambda: monkeypatch.setattr(loop, "train", train)

    return install


@pytest.mark.parametrize("part", ["train", "validation"])
def test_data_cut_short_in_mid_run(train, tmp_path, after_step, part):
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert train(whole)[0] == 0
    (shard,) = (tmp_path / "cache").glob(f"shards/*/{part}.bin")
    undo = after_step(lambda: os.truncate(shard, 100))
    status, told = train(run)
    assert status == 2
    assert str(shard) in complaint(told) and "cut short" in complaint(told) and "--resume" in complaint(told)
    undo()
    assert train(run, resume=True)[0] == 0
    assert weights(run) == weights(whole)
    assert steps(run) == list(range(1, STEPS + 1))


def test_data_removed_in_mid_run_is_still_read(train, tmp_path, after_step):
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert train(whole)[0] == 0
    after_step(lambda: shutil.rmtree(tmp_path / "cache"))
    assert train(run)[0] == 0
    assert weights(run) == weights(whole)


def steps(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [event["step"] for event in map(json.loads, lines) if event["event"] == "train"]
