"""The trainer as it is, on a chip that nobody wrote a line for: every number is the CPU's, bit for bit."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
from safetensors.torch import load_file

import chip_runs
from gossamer.train.config import OptimizerConfig
from gossamer.train.recipe import to_yaml


@pytest.fixture
def recipe(tiny_recipe):
    """Short, and small: every operator on the chip is a call in Python."""
    training = replace(
        tiny_recipe.training, steps=4, eval_every=2, sample_every=2, checkpoint_every=2, sample_tokens=3,
        eval_tokens=128, final_eval_tokens=128,
    )  # fmt: skip
    model = replace(tiny_recipe.model, num_hidden_layers=2, full_attention_interval=2)
    return replace(tiny_recipe, model=model, training=replace(training, keep_checkpoints=9))


def assert_same_weights(one, other):
    first, second = (load_file(run / "model" / "model.safetensors") for run in (one, other))
    assert first.keys() == second.keys()
    assert not [name for name in first if not first[name].equal(second[name])]


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_it_trains_evaluates_and_samples(recipe, tmp_path, on_chip, kind):
    recipe = replace(recipe, optimizer=OptimizerConfig(kind=kind))
    cpu, chip = tmp_path / "cpu", tmp_path / "chip"
    expected = on_chip(chip_runs.trained, recipe, cpu, "cpu")
    assert [event["event"] for event in expected].count("train") == 4
    assert on_chip(chip_runs.trained, recipe, chip, "testchip") == expected
    assert_same_weights(cpu, chip)
    assert on_chip(chip_runs.written, chip, "testchip") == on_chip(chip_runs.written, cpu, "cpu")


def test_it_goes_on_from_a_checkpoint_of_either_device(recipe, tmp_path, on_chip):
    expected = {device: on_chip(chip_runs.trained, recipe, tmp_path / device, device) for device in ("cpu", "testchip")}
    for before, after in (("testchip", "testchip"), ("testchip", "cpu"), ("cpu", "testchip")):
        cut = tmp_path / f"{before} to {after}"
        shutil.copytree(tmp_path / before, cut)
        shutil.rmtree(cut / "checkpoints" / "step-00000004")  # as if the run had been killed after step 3
        assert on_chip(chip_runs.trained, recipe, cut, after, resume=True) == expected["cpu"], (before, after)
        assert_same_weights(tmp_path / "cpu", cut)


@pytest.fixture
def command(recipe, tmp_path):
    """What `gossamer` is called with, to train in tmp_path/run on the device that it finds."""
    file = tmp_path / "recipe.yaml"
    file.write_text(to_yaml(replace(recipe, training=replace(recipe.training, device="auto"))))
    return ["train", "--recipe", str(file), "--out", str(tmp_path / "run")]


def test_from_the_command_line_a_plug_in_is_all_it_takes(command, tmp_path):
    given = os.environ | {"GOSSAMER_PLUGIN": "chip.plugin", "PYTHONPATH": os.pathsep.join(sys.path)}
    arguments = [sys.executable, "-m", "gossamer.cli", *command]
    done = subprocess.run(arguments, env=given, capture_output=True, text=True, timeout=300)
    if "terminate called without an active exception" in done.stderr:
        # A thread of PyTorch's own that serves a device in Python may, rarely, end in the middle of the program's exit.
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        done = subprocess.run(arguments, env=given, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "in float32 on 1 x testchip (gossamer test chip)" in done.stderr


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        ({"lack": "aten.bincount"}, "gossamer: 'testchip' has no operator aten::bincount; docs/new-chip.md says"),
        ({"capacity": 3_000_000}, "gossamer: out of memory; training needs less with a smaller"),
    ],
    ids=["operator", "memory"],
)
def test_what_goes_wrong_gives_one_line(command, on_chip, fault, line):
    status, said = on_chip(chip_runs.typed, command, **fault)
    assert status == 2, said
    assert said.splitlines()[-1].startswith(line)
    assert "Traceback" not in said
