"""A run from beginning to end, stopped and gone on with."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from gossamer.errors import UserError
from gossamer.train import loop
from gossamer.train.checkpoint import newest_checkpoint
from gossamer.train.metrics import read_metrics
from gossamer.train.recipe import load_recipe, recipe_from, to_yaml


def weights(run):
    return load_file(run / "model" / "model.safetensors")


def assert_same_weights(one, other):
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def test_a_run_leaves_everything_a_user_expects(tiny_recipe, tmp_path):
    run = tmp_path / "run"
    loop.train(tiny_recipe, run)
    for name in ("config.yaml", "metrics.jsonl", "samples.txt", "report.html", "model/config.json"):
        assert (run / name).stat().st_size > 0, name
    assert list((run / "tensorboard").iterdir())
    events = read_metrics(run)
    losses = [event["loss"] for event in events if event["event"] == "train"]
    assert len(losses) == 12
    assert losses[-1] < losses[0] - 0.5
    assert events[0]["event"] == "start"
    end = next(event for event in events if event["event"] == "end")
    assert end["tokens"] == 12 * 2 * 64
    assert 0 < end["bits_per_byte"] < 8
    saved = recipe_from(load_recipe(run / "config.yaml"))
    assert saved.model.vocab_size == len(set((tmp_path / "text.txt").read_text())) + 1


def test_a_resumed_run_ends_bit_identical(tiny_recipe, tmp_path):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    loop.train(tiny_recipe, whole)
    half = replace(tiny_recipe, training=replace(tiny_recipe.training, steps=12))
    stopped = _stop_after(7, half, halves)
    assert stopped == 7
    loop.train(tiny_recipe, halves, resume=True)
    assert_same_weights(whole, halves)
    assert _curve(whole) == _curve(halves)


def test_gradient_accumulation_sums_the_micro_batches(tiny_recipe, tmp_path):
    """Two micro-batches of one row take the same step as one of two rows, however many targets each row holds."""
    accumulated = replace(
        tiny_recipe, training=replace(tiny_recipe.training, batch_size=1, gradient_accumulation=2, steps=1)
    )
    together = replace(tiny_recipe, training=replace(tiny_recipe.training, steps=1))
    coefficient = {"router_aux_loss_coef": 0.0}  # balanced over a micro-batch, so not the same
    for name, recipe in (("apart", accumulated), ("together", together)):
        loop.train(replace(recipe, model=replace(recipe.model, **coefficient)), tmp_path / name)
    first, second = _curve(tmp_path / "apart")[0], _curve(tmp_path / "together")[0]
    assert first == pytest.approx(second, rel=1e-5)


def test_resume_with_another_corpus_is_refused(tiny_recipe, tmp_path, corpus_file):
    run = tmp_path / "run"
    loop.train(replace(tiny_recipe, training=replace(tiny_recipe.training, steps=2)), run)
    corpus_file.write_text(corpus_file.read_text() + "line 400: the square of 400 is 160000.\n")
    longer = replace(tiny_recipe, training=replace(tiny_recipe.training, steps=4))
    with pytest.raises(UserError, match="changed"):
        loop.train(longer, run, resume=True)


def test_resume_of_a_finished_run_says_so(tiny_recipe, tmp_path):
    run = tmp_path / "run"
    short = replace(tiny_recipe, training=replace(tiny_recipe.training, steps=2))
    loop.train(short, run)
    before = (run / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"--training\.steps"):
        loop.train(short, run, resume=True)
    assert (run / "metrics.jsonl").read_bytes() == before


def test_resume_without_a_checkpoint_is_refused(tiny_recipe, tmp_path):
    with pytest.raises(UserError, match="no checkpoint"):
        loop.train(tiny_recipe, tmp_path / "none", resume=True)


def test_a_killed_run_resumes_to_the_same_end(tiny_recipe, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    recipe = replace(tiny_recipe, training=replace(tiny_recipe.training, steps=40, checkpoint_every=3, eval_every=0))
    loop.train(recipe, whole)
    file = tmp_path / "recipe.yaml"
    file.write_text(to_yaml(recipe))
    command = [sys.executable, "-m", "gossamer.cli", "train", "--recipe", str(file), "--out", str(killed)]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while newest_checkpoint(killed) is None and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    loop.train(recipe, killed, resume=True)
    assert_same_weights(whole, killed)
    assert _curve(whole) == _curve(killed)


def _curve(run):
    return [event["loss"] for event in read_metrics(run) if event["event"] == "train"]


def _stop_after(step, recipe, run):
    """Train until Ctrl-C arrives after `step` steps; returns the step the run says it stopped after."""
    taken = loop._Run._step

    def counting(self):
        measured = taken(self)
        if self.step == step:
            os.kill(os.getpid(), signal.SIGINT)
        return measured

    assert threading.current_thread() is threading.main_thread()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop._Run, "_step", counting)
        with pytest.raises(KeyboardInterrupt):
            loop.train(recipe, run)
    return int(newest_checkpoint(run).name.removeprefix("step-"))
