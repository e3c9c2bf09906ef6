"""Saving beside training."""

import errno
import threading

import pytest
import torch

from gossamer import hub
from gossamer.data.tokenizer import char_tokenizer
from gossamer.errors import UserError
from gossamer.model.causal_lm import CausalLM
from gossamer.run import saver as savers
from gossamer.run.checkpoint import newest_checkpoint
from gossamer.run.saver import Saver
from gossamer.train.config import OptimizerConfig
from gossamer.train.optimizer import build_optimizers
from gossamer.train.world import ALONE


@pytest.fixture
def learning(tiny_config):
    model = CausalLM(tiny_config)
    return model, build_optimizers(model, OptimizerConfig())


@pytest.fixture
def saver(tmp_path):
    made = Saver(tmp_path, char_tokenizer(["abc"]), keep=2, world=ALONE)
    yield made
    made.wait()


def test_training_goes_on_while_the_old_weights_are_written(learning, saver, tmp_path, monkeypatch):
    model, optimizers = learning
    changed = threading.Event()
    write = savers.hub.save

    def slow(*arguments):
        assert changed.wait(30)
        write(*arguments)

    monkeypatch.setattr(savers.hub, "save", slow)
    before = model.lm_head.weight.detach().clone()
    saver.save(1, model, optimizers, {})
    with torch.no_grad():
        model.lm_head.weight.zero_()
    changed.set()
    saver.wait()
    assert torch.equal(hub.load(tmp_path / "model").lm_head.weight, before)
    assert newest_checkpoint(tmp_path).name == "step-00000001"


def test_what_goes_wrong_in_the_background_is_told(learning, saver, tmp_path, monkeypatch):
    saver.save(1, *learning, {}, wait=True)

    def full(*arguments, **keywords):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(savers.hub, "save", lambda *arguments: None)
        patch.setattr("gossamer.run.checkpoint.dcp.save", full)
        saver.save(2, *learning, {})
        with pytest.raises(UserError, match="no space left"):
            saver.wait()
    assert newest_checkpoint(tmp_path).name == "step-00000001"
    saver.check()  # told once
    saver.save(3, *learning, {}, wait=True)
    assert newest_checkpoint(tmp_path).name == "step-00000003"
