"""Checkpoints: whole or not at all, and recognized when damaged."""

import errno
import json
import logging
import shutil
import threading
from dataclasses import replace
from functools import partial

import pytest
import torch

from gossamer import files, hub
from gossamer.cost.ledger import Work
from gossamer.data.tokenizer import char_tokenizer
from gossamer.errors import UserError
from gossamer.model.causal_lm import CausalLM
from gossamer.run import checkpoint as checkpoints
from gossamer.run.checkpoint import (
    Saver,
    TrainerState,
    best_checkpoint,
    copy_model,
    load_checkpoint,
    newest_checkpoint,
    prune_checkpoints,
    read_state,
    save_checkpoint,
    snapshot,
)
from gossamer.run.stop import Progress
from gossamer.train.config import OptimizerConfig
from gossamer.train.optimizer import build_optimizers, step_clipped
from gossamer.train.world import SINGLE_PROCESS


def state(step, **values):
    """What a checkpoint after a step holds beside tensors."""
    progress = Progress(step, 9 * step, 0.5 * step, 0.125)
    return TrainerState(progress, {"epoch": 1}, Work(step, 9 * step, {"head": 1e9}, 2.0, 3.0), **values)


@pytest.fixture
def trained(tiny_config):
    torch.manual_seed(1)
    model = CausalLM(tiny_config)
    optimizers = build_optimizers(model, OptimizerConfig())
    ids = torch.randint(64, (1, 16))
    out = model(ids, labels=ids)
    (out.loss + out.mtp_loss).backward()
    for optimizer in optimizers:
        optimizer.step()
    return model, optimizers


def test_round_trip(trained, tiny_config, tmp_path):
    model, optimizers = trained
    torch.manual_seed(5)
    folder = save_checkpoint(tmp_path, snapshot(model, optimizers), state(3))
    drawn = torch.rand(4)
    other = CausalLM(tiny_config)
    other_optimizers = build_optimizers(other, OptimizerConfig())
    assert load_checkpoint(folder, other, other_optimizers) == state(3)
    assert torch.equal(torch.rand(4), drawn)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
    for ours, theirs in zip(optimizers, other_optimizers, strict=True):
        states = zip(ours.state_dict()["state"].values(), theirs.state_dict()["state"].values(), strict=True)
        for saved, loaded in states:
            assert saved.keys() == loaded.keys()
            assert all(torch.equal(saved[key], loaded[key]) for key in saved)


@pytest.mark.parametrize("written_fused", [False, True])
def test_a_checkpoint_goes_on_in_the_way_of_the_device_that_reads_it(
    trained, tiny_config, tmp_path, monkeypatch, written_fused
):
    model, optimizers = trained
    for group in optimizers[-1].param_groups:
        group["fused"] = written_fused
    folder = save_checkpoint(tmp_path, snapshot(model, optimizers), state(3))
    monkeypatch.setenv("GOSSAMER_DEVICE_FLAGS", f"fused_adamw={'no' if written_fused else 'yes'}")
    other = CausalLM(tiny_config)
    other_optimizers = build_optimizers(other, OptimizerConfig())
    load_checkpoint(folder, other, other_optimizers)
    assert {group["fused"] for group in other_optimizers[-1].param_groups} == {not written_fused}
    ids = torch.randint(64, (1, 16))
    other(ids, labels=ids).loss.backward()
    step_clipped(other_optimizers[-1], torch.tensor(2.0), max_norm=1.0)


def test_a_damaged_checkpoint_is_passed_over(trained, tmp_path, caplog):
    first = save_checkpoint(tmp_path, snapshot(*trained), state(1))
    second = save_checkpoint(tmp_path, snapshot(*trained), state(2))
    assert newest_checkpoint(tmp_path) == second
    data = next(second.glob("*.distcp"))
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    with caplog.at_level(logging.WARNING, "gossamer"):
        assert newest_checkpoint(tmp_path) == first
    assert "damaged" in caplog.text
    data.unlink()
    assert newest_checkpoint(tmp_path) == first


def test_a_crash_while_writing_leaves_no_checkpoint(trained, tmp_path, monkeypatch):
    whole = save_checkpoint(tmp_path, snapshot(*trained), state(1))
    with monkeypatch.context() as patch:
        patch.setattr(files, "sync_tree", lambda folder: (_ for _ in ()).throw(KeyboardInterrupt))
        patch.setattr(shutil, "rmtree", lambda *given, **options: None)  # nor is anything cleared away at a kill
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(tmp_path, snapshot(*trained), state(2))
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2
    assert newest_checkpoint(tmp_path) == whole
    prune_checkpoints(tmp_path, keep=5)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [whole.name]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598"),
    ],
)
def test_a_full_disk_is_one_clear_line_and_harms_nothing(trained, tmp_path, monkeypatch, error):
    whole = save_checkpoint(tmp_path, snapshot(*trained), state(1))

    def full(*args, **kwargs):
        raise error

    monkeypatch.setattr(checkpoints.dcp, "save", full)
    with pytest.raises(
        UserError,
        match=r"checkpoints: the disk is full; free some space, .* continue with --resume; earlier",
    ):
        save_checkpoint(tmp_path, snapshot(*trained), state(2))
    assert newest_checkpoint(tmp_path) == whole
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [whole.name]


def test_only_the_newest_are_kept(trained, tmp_path):
    for step in range(1, 5):
        save_checkpoint(tmp_path, snapshot(*trained), state(step))
    prune_checkpoints(tmp_path, keep=2)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000003", "step-00000004"]


def test_the_best_is_kept_beside_the_newest(trained, tmp_path):
    for step, loss in enumerate([3.0, 1.5, 2.0, 1.9], start=1):
        save_checkpoint(tmp_path, snapshot(*trained), state(step, validation_loss=loss))
    prune_checkpoints(tmp_path, keep=1)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000002", "step-00000004"]
    assert best_checkpoint(tmp_path).name == "step-00000002"


def test_a_snapshot_does_not_follow_the_training(trained):
    model, optimizers = trained
    taken = snapshot(model, optimizers)
    before = model.lm_head.weight.detach().clone()
    with torch.no_grad():
        model.lm_head.weight.add_(1.0)
    assert torch.equal(taken["model"]["lm_head.weight"], before)


def test_a_checkpoint_of_another_model_is_refused(trained, tiny_config, tmp_path):
    folder = save_checkpoint(tmp_path, snapshot(*trained), state(1))
    other = CausalLM(replace(tiny_config, hidden_size=16))
    with pytest.raises(UserError, match="another model"):
        load_checkpoint(folder, other, build_optimizers(other, OptimizerConfig()))


def test_a_checkpoint_of_an_earlier_version_is_read(tmp_path):
    """All in one level, the share of the run as `done`; and without it from before there were budgets."""
    whole = state(3, validation_loss=2.5)
    ledger = {"steps": 3, "tokens": 27, "flops": {"head": 1e9}, "device_seconds": 2.0, "possible_flops": 3.0}
    flat = {"step": 3, "tokens": 27, "elapsed": 1.5, "done": 0.125, "data": {"epoch": 1}, "ledger": ledger}
    (tmp_path / "progress.json").write_text(json.dumps(flat | {"validation_loss": 2.5}))
    assert read_state(tmp_path) == whole
    (tmp_path / "progress.json").write_text(json.dumps({"step": 3, "tokens": 27, "elapsed": 1.5, "data": {}}))
    assert read_state(tmp_path) == TrainerState(Progress(3, 27, 1.5, 1.0))


@pytest.mark.parametrize("damage", [{"step": -1}, {"tokens": "9"}, {"elapsed": None}, {"fraction": 2}])
def test_a_damaged_progress_is_named(tmp_path, damage):
    progress = {"step": 3, "tokens": 27, "elapsed": 1.5, "fraction": 0.5} | damage
    (tmp_path / "progress.json").write_text(json.dumps({"progress": progress, "data": {}}))
    with pytest.raises(UserError, match=rf"progress\.json: progress\.{next(iter(damage))}: "):
        read_state(tmp_path)


# Saving while training continues.


@pytest.fixture
def learning(tiny_config):
    model = CausalLM(tiny_config)
    return model, build_optimizers(model, OptimizerConfig())


@pytest.fixture
def saver(tmp_path):
    copier = partial(copy_model, tmp_path, char_tokenizer(["abc"]), SINGLE_PROCESS)
    made = Saver(tmp_path, copier, keep=2, world=SINGLE_PROCESS)
    yield made
    made.wait()


def test_training_goes_on_while_the_old_weights_are_written(learning, saver, tmp_path, monkeypatch):
    model, optimizers = learning
    changed = threading.Event()
    write = checkpoints.hub.save

    def slow(*arguments):
        assert changed.wait(30)
        write(*arguments)

    monkeypatch.setattr(checkpoints.hub, "save", slow)
    before = model.lm_head.weight.detach().clone()
    saver.save(model, optimizers, state(1))
    with torch.no_grad():
        model.lm_head.weight.zero_()
    changed.set()
    saver.wait()
    assert torch.equal(hub.load(tmp_path / "model").lm_head.weight, before)
    assert newest_checkpoint(tmp_path).name == "step-00000001"


def test_what_goes_wrong_in_the_background_is_told(learning, saver, tmp_path, monkeypatch):
    saver.save(*learning, state(1), wait=True)

    def full(*arguments, **keywords):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.hub, "save", lambda *arguments: None)
        patch.setattr("gossamer.run.checkpoint.dcp.save", full)
        saver.save(*learning, state(2))
        with pytest.raises(UserError, match="disk is full"):
            saver.wait()
    assert newest_checkpoint(tmp_path).name == "step-00000001"
    saver.check()  # told once
    saver.save(*learning, state(3), wait=True)
    assert newest_checkpoint(tmp_path).name == "step-00000003"
