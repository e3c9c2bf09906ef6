"""How far a run is, by whichever measure it has, and a budget of the clock above all."""

import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from gossamer.cost import budget
from gossamer.cost.ledger import read_ledger
from gossamer.errors import UserError
from gossamer.run import loop
from gossamer.run.length import Length
from gossamer.run.metrics import read_metrics
from gossamer.train.config import TrainingConfig
from gossamer.train.step import Learner
from gossamer.train.world import ALONE


class Spent(SimpleNamespace):
    """A meter by hand: seconds of the clock, FLOPs of all steps."""

    flops_per_token, tokens_per_step = 1e6, 1000

    @property
    def ledger(self):
        return SimpleNamespace(work=SimpleNamespace(all_flops=self.all_flops))


def length(meter, **training):
    return Length(TrainingConfig(**training), meter, ALONE)


def test_a_budget_of_time_ends_before_what_comes_after_the_last_step():
    meter = Spent(seconds=0.0)
    run = length(meter, budget="100s")
    run.took("evaluation", 2.0, share=0.5)  # so the last one takes 4 s
    run.took("sample", 1.0)
    run.took("save", 3.5)
    meter.seconds = 45.0
    run.update(1, 1, 1.0)
    assert run.done == pytest.approx(0.5)  # 100 s less 4, 1, 3.5 and 1.5 for the report
    meter.seconds = 91.0
    run.update(2, 2, 2.0)
    assert run.done == 1.0


def test_a_run_by_a_budget_never_turns_back():
    meter = Spent(seconds=50.0)
    run = length(meter, budget="100s")
    run.took("evaluation", 40.0)
    run.update(1, 1, 1.0)
    before = run.done
    run.took("evaluation", 1.0)
    run.update(2, 2, 2.0)
    assert run.done == before


def test_money_is_time_at_its_price():
    assert length(Spent(), budget="1usd", price=36.0).seconds == pytest.approx(100)


def test_a_budget_of_flops_is_whole_steps_within_it():
    meter = Spent(all_flops=0.0)
    run = length(meter, budget="1.0005e12flop")  # a thousand steps of 1e9 and half a one
    for steps, done in ((500, 0.5), (999, 0.999), (1000, 1.0)):
        meter.all_flops = steps * 1e9
        run.update(steps, 0, 0.0)
        assert run.done == pytest.approx(done)


def test_other_lengths_are_as_they_were():
    run = length(Spent(), steps=10)
    run.update(4, 0, 0.0)
    assert run.done == 0.4
    assert run.limit == ("10", "steps")
    assert list(run.in_time(iter("abc"))) == list("abc")


def test_the_last_evaluation_stops_in_time_but_reads_something():
    meter = Spent(seconds=99.0)
    run = length(meter, budget="100s")
    assert list(run.in_time(iter("abc"))) == ["a"]
    meter.seconds = 10.0
    assert list(run.in_time(iter("abc"))) == ["a", "b", "c"]


def test_a_machine_that_becomes_slower_has_the_decay_complete_in_time(tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(budget, "MIN_SECONDS", 1.0)
    seconds, began, step = 6.0, time.perf_counter(), Learner.step

    def slower(self, *args):
        if time.perf_counter() - began > seconds / 3:
            time.sleep(0.1)
        return step(self, *args)

    monkeypatch.setattr(Learner, "step", slower)
    training = replace(tiny_recipe.training, budget=f"{seconds}s", eval_every=20, checkpoint_every=20, sample_every=20)
    loop.train(replace(tiny_recipe, training=training), tmp_path / "run", began=began)
    ledger = read_ledger(tmp_path / "run")
    assert ledger is not None
    assert 0.6 * seconds < ledger.total.device_seconds < seconds
    events = [event for event in read_metrics(tmp_path / "run") if event["event"] == "train"]
    rates = [event["learning_rate"] for event in events]
    # By steps the decay would not have begun. How far it comes depends on the time that is kept for saving.
    assert rates[0] == max(rates) and rates[-1] < 0.9 * rates[0]
    assert rates == sorted(rates, reverse=True)


@pytest.fixture
def few_flops(tiny_recipe, monkeypatch):
    """Training by a budget of some twenty steps, less than anybody may ask for."""
    monkeypatch.setattr(budget, "MIN_FLOPS", 1e9)
    return replace(tiny_recipe.training, budget="5e9flop", batch_size=8, eval_every=0)


def test_a_run_by_flops_ends_within_them_and_its_rate_falls_to_the_end(tiny_recipe, few_flops, tmp_path):
    training = replace(few_flops, log_every=1)
    loop.train(replace(tiny_recipe, training=training), tmp_path / "run")
    events = read_metrics(tmp_path / "run")
    per_step = events[0]["flops_per_token"] * events[0]["tokens_per_step"]
    steps = [event["step"] for event in events if event["event"] == "train"]
    assert len(steps) > 5
    assert 5e9 - per_step <= steps[-1] * per_step <= 5e9
    rates = [event["learning_rate"] for event in events if event["event"] == "train"]
    decay = tiny_recipe.schedule.decay_fraction
    assert rates[-1] == pytest.approx(rates[0] / (decay * steps[-1]), rel=1e-6)


def test_a_run_that_its_budget_stopped_in_its_last_evaluation_ends_when_resumed(
    tiny_recipe, few_flops, tmp_path, monkeypatch
):
    training = replace(few_flops, log_every=100, checkpoint_every=3)
    recipe, run = replace(tiny_recipe, training=training), tmp_path / "run"

    def killed(self):
        raise SystemExit

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(loop._Run, "_evaluate_last", killed)
        loop.train(recipe, run)
    loop.train(recipe, run, resume=True)
    assert read_metrics(run)[-1]["event"] in ("sample", "checkpoint")
    assert sum(event["event"] == "end" for event in read_metrics(run)) == 1
    with pytest.raises(UserError, match=r"taken its 5e9flop budget; a larger --training\.budget"):
        loop.train(recipe, run, resume=True)
