"""Steps whose gradient is not finite."""

import pytest

from gossamer.errors import UserError
from gossamer.run import loop
from gossamer.run.metrics import read_metrics


def _poison(patch, steps):
    """Make the gradient of these steps not finite."""
    taken = loop._Run._step

    def step(self):
        if self.step + 1 in steps:
            original = self.learner.model.lm_head.weight.detach().clone()
            self.learner.model.lm_head.weight.data.fill_(float("nan"))
            measured = taken(self)
            self.learner.model.lm_head.weight.data.copy_(original)
            return measured
        return taken(self)

    patch.setattr(loop._Run, "_step", step)


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
