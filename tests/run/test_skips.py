"""Steps whose gradient is not finite."""

import pytest

from gossamer.errors import UserError
from gossamer.run import loop
from gossamer.run.metrics import read_metrics
from gossamer.train.step import Learner


def _poison(patch, steps):
    """Make the gradient of these steps not finite."""
    step_of = Learner.step
    taken = []

    def step(self, batches, learning_rate):
        taken.append(learning_rate)
        if len(taken) not in steps:
            return step_of(self, batches, learning_rate)
        weight = self.model.lm_head.weight
        original = weight.detach().clone()
        weight.data.fill_(float("nan"))
        result = step_of(self, batches, learning_rate)
        weight.data.copy_(original)
        return result

    patch.setattr(Learner, "step", step)


def test_a_step_that_is_not_finite_is_skipped_and_logged(tiny_recipe, tmp_path, monkeypatch):
    _poison(monkeypatch, {3, 8})
    loop.train(tiny_recipe, tmp_path / "run")
    events = read_metrics(tmp_path / "run")
    assert [event["step"] for event in events if event["event"] == "skip"] == [3, 8]
    assert all(event["loss"] is not None for event in events if event["event"] == "train")
    assert not [event for event in events if event["event"] == "rollback"]


def test_too_many_in_a_row_go_back_to_the_checkpoint(tiny_recipe, tmp_path, monkeypatch):
    _poison(monkeypatch, {7, 8, 9})
    loop.train(tiny_recipe, tmp_path / "run")  # a checkpoint every 5 steps
    events = read_metrics(tmp_path / "run")
    (rollback,) = [event for event in events if event["event"] == "rollback"]
    assert (rollback["step"], rollback["to"]) == (9, 5)
    assert next(event for event in events if event["event"] == "end")["loss"] is not None


def test_without_a_checkpoint_to_go_back_to_the_run_ends_with_a_remedy(tiny_recipe, tmp_path, monkeypatch):
    _poison(monkeypatch, {1, 2, 3})
    with pytest.raises(UserError, match="learning_rate"):
        loop.train(tiny_recipe, tmp_path / "run")
