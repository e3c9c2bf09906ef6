"""Checkpoints: whole or not at all, and recognised when damaged."""

import errno
import logging
from dataclasses import replace

import pytest
import torch

from gossamer.errors import UserError
from gossamer.model.causal_lm import CausalLM
from gossamer.run import checkpoint as checkpoints
from gossamer.run.checkpoint import (
    best_checkpoint,
    load_checkpoint,
    newest_checkpoint,
    prune_checkpoints,
    save_checkpoint,
    snapshot,
)
from gossamer.train.config import OptimizerConfig
from gossamer.train.optimizer import build_optimizers


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
    folder = save_checkpoint(tmp_path, 3, snapshot(model, optimizers), {"tokens": 9, "data": {"epoch": 1}})
    drawn = torch.rand(4)
    other = CausalLM(tiny_config)
    other_optimizers = build_optimizers(other, OptimizerConfig())
    progress = load_checkpoint(folder, other, other_optimizers)
    assert progress == {"step": 3, "tokens": 9, "data": {"epoch": 1}}
    assert torch.equal(torch.rand(4), drawn)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
    for ours, theirs in zip(optimizers, other_optimizers, strict=True):
        states = zip(ours.state_dict()["state"].values(), theirs.state_dict()["state"].values(), strict=True)
        for saved, loaded in states:
            assert saved.keys() == loaded.keys()
            assert all(torch.equal(saved[key], loaded[key]) for key in saved)


def test_a_damaged_checkpoint_is_passed_over(trained, tmp_path, caplog):
    first = save_checkpoint(tmp_path, 1, snapshot(*trained), {})
    second = save_checkpoint(tmp_path, 2, snapshot(*trained), {})
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
    whole = save_checkpoint(tmp_path, 1, snapshot(*trained), {})
    monkeypatch.setattr(checkpoints, "_sync", lambda folder: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, 2, snapshot(*trained), {})
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
    whole = save_checkpoint(tmp_path, 1, snapshot(*trained), {})

    def full(*args, **kwargs):
        raise error

    monkeypatch.setattr(checkpoints.dcp, "save", full)
    with pytest.raises(UserError, match="no space left"):
        save_checkpoint(tmp_path, 2, snapshot(*trained), {})
    assert newest_checkpoint(tmp_path) == whole
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [whole.name]


def test_only_the_newest_are_kept(trained, tmp_path):
    for step in range(1, 5):
        save_checkpoint(tmp_path, step, snapshot(*trained), {})
    prune_checkpoints(tmp_path, keep=2)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000003", "step-00000004"]


def test_the_best_is_kept_beside_the_newest(trained, tmp_path):
    for step, loss in enumerate([3.0, 1.5, 2.0, 1.9], start=1):
        save_checkpoint(tmp_path, step, snapshot(*trained), {"validation_loss": loss})
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
    folder = save_checkpoint(tmp_path, 1, snapshot(*trained), {})
    other = CausalLM(replace(tiny_config, hidden_size=16))
    with pytest.raises(UserError, match="another model"):
        load_checkpoint(folder, other, build_optimizers(other, OptimizerConfig()))
