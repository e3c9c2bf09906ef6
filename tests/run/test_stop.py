"""How far a run is, by whichever measure it has, a budget of the clock above all; and signals that end it."""

import os
import signal
from dataclasses import replace
from types import SimpleNamespace

import pytest

from gossamer.cost import budget
from gossamer.cost.ledger import read_ledger
from gossamer.errors import UserError
from gossamer.run import checkpoint, cost, loop, training_run, validate
from gossamer.run.checkpoint import Saver
from gossamer.run.metrics import read_metrics
from gossamer.run.samples import SampleWriter
from gossamer.run.stop import NOTHING_YET, Progress, StopRule, interruptible
from gossamer.train.config import TrainingConfig
from gossamer.train.step import Learner
from gossamer.train.world import SINGLE_PROCESS


class Spent(SimpleNamespace):
    """What was spent, by hand: seconds of the clock, FLOPs of all steps."""

    flops_per_token, tokens_per_step = 1e6, 1000

    @property
    def ledger(self):
        return SimpleNamespace(work=SimpleNamespace(all_flops=self.all_flops))


def rule(costs, **training):
    return StopRule(TrainingConfig(**training), costs, SINGLE_PROCESS)


def fraction(stop, step=0, tokens=0, elapsed=0.0):
    return stop.advance(Progress(step, tokens, elapsed, 0.0)).fraction


def test_progress_is_made_once_a_step():
    stop = rule(Spent(), steps=10)
    first = stop.advance(NOTHING_YET, steps=1, tokens=8, seconds=0.5)
    assert first == Progress(1, 8, 0.5, 0.1)
    assert stop.advance(first, steps=9, tokens=72, seconds=1.0) == Progress(10, 80, 1.5, 1.0)
    assert stop.advance(first) == first, "a pause takes of a budget of time alone"
    with pytest.raises(AttributeError):
        first.step = 2


def test_the_length_is_in_seconds_before_tokens_before_steps():
    assert fraction(rule(Spent(), steps=10), 4, 999, 999.0) == 0.4
    assert fraction(rule(Spent(), steps=10, tokens=1000), 9, 250, 999.0) == 0.25
    assert fraction(rule(Spent(), steps=10, tokens=1000, seconds=60), 9, 999, 30.0) == 0.5
    assert fraction(rule(Spent(), seconds=60), 9, 999, 61.0) == 1.0


def test_a_budget_of_time_ends_before_what_comes_after_the_last_step():
    costs = Spent(wall_seconds=45.0)
    stop = rule(costs, budget="100s")
    stop.record_pause("validation", 2.0, share=0.5)  # so the last one takes 4 s
    stop.record_pause("sample", 1.0)
    stop.record_pause("save", 3.5)
    assert fraction(stop) == pytest.approx(0.5)  # 100 s less 4, 1, 3.5 and 1.5 for the report
    costs.wall_seconds = 91.0
    assert fraction(stop) == 1.0


def test_a_run_by_a_budget_never_turns_back():
    stop = rule(Spent(wall_seconds=50.0), budget="100s")
    stop.record_pause("validation", 40.0)
    before = stop.advance(NOTHING_YET, 1, 1, 1.0)
    stop.record_pause("validation", 1.0)
    assert stop.advance(before, 1, 1, 1.0).fraction == before.fraction


def test_money_is_time_at_its_price():
    assert rule(Spent(), budget="1usd", price=36.0).budget_seconds == pytest.approx(100)


def test_a_budget_of_flops_is_whole_steps_within_it():
    costs = Spent(all_flops=0.0)
    stop = rule(costs, budget="1.0005e12flop")  # a thousand steps of 1e9 and half a one
    for steps, share in ((500, 0.5), (999, 0.999), (1000, 1.0)):
        costs.all_flops = steps * 1e9
        assert fraction(stop, steps) == pytest.approx(share)


def test_a_run_by_steps_has_its_limit_and_reads_all_of_the_last_validation():
    stop = rule(Spent(), steps=10)
    assert stop.setting == ("10", "steps")
    assert list(stop.batches_in_time(iter("abc"))) == list("abc")


def test_the_last_validation_stops_in_time_but_reads_something():
    costs = Spent(wall_seconds=99.0)
    stop = rule(costs, budget="100s")
    assert list(stop.batches_in_time(iter("abc"))) == ["a"]
    costs.wall_seconds = 10.0
    assert list(stop.batches_in_time(iter("abc"))) == ["a", "b", "c"]


@pytest.fixture
def clock(monkeypatch):
    """The clock of a run in this process, which moves only by what `takes` says that something takes."""
    clock = SimpleNamespace(now=100.0)
    for module in (loop, training_run, cost, checkpoint):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: clock.now))

    def takes(owner, name, seconds):
        """Let `owner.name` take so many seconds, which are computed when it is called."""
        real = getattr(owner, name)

        def timed(*args, **named):
            clock.now += seconds()
            return real(*args, **named)

        monkeypatch.setattr(owner, name, timed)

    # What a thread does beside the training would come at any moment of this clock.
    save = Saver.save
    monkeypatch.setattr(
        Saver, "save", lambda self, model, optimizers, state, wait: save(self, model, optimizers, state, True)
    )
    clock.takes = takes
    return clock


def test_a_machine_that_becomes_slower_has_the_decay_complete_in_time(tiny_recipe, tmp_path, clock):
    """By steps the decay would not have begun."""
    seconds, began = 60.0, clock.now
    clock.takes(Learner, "step", lambda: 1.0 if clock.now - began < seconds / 3 else 3.0)
    clock.takes(validate, "tally", lambda: 0.5)
    clock.takes(SampleWriter, "write", lambda: 0.5)
    clock.takes(Saver, "_write", lambda: 0.5)
    training = replace(
        tiny_recipe.training, budget=f"{seconds}s", eval_every=10, checkpoint_every=10, sample_every=10, steps=1000
    )
    loop.train(replace(tiny_recipe, training=training), tmp_path / "run", began=began)
    ledger = read_ledger(tmp_path / "run")
    assert ledger is not None
    # The last step may begin with a moment left, and the report has its time.
    assert 0.9 * seconds < ledger.total.device_seconds < seconds + 3.0
    events = [event for event in read_metrics(tmp_path / "run") if event["event"] == "train"]
    assert 20 < len(events) < 40, "neither as if all steps were fast nor as if all were slow"
    rates = [event["learning_rate"] for event in events]
    assert rates[0] == max(rates) and rates[-1] < 0.2 * rates[0]
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


def test_a_run_that_its_budget_stopped_before_its_last_validation_ends_when_resumed(tiny_recipe, few_flops, tmp_path):
    training = replace(few_flops, log_every=100, checkpoint_every=3)
    recipe, run = replace(tiny_recipe, training=training), tmp_path / "run"

    def die_at_the_end(progress):
        if progress.is_complete:
            raise SystemExit

    with pytest.raises(SystemExit):
        loop.train(recipe, run, on_step=die_at_the_end)
    loop.train(recipe, run, resume=True)
    assert read_metrics(run)[-1]["event"] in ("sample", "checkpoint")
    assert sum(event["event"] == "end" for event in read_metrics(run)) == 1
    with pytest.raises(UserError, match=r"taken its 5e9flop budget; continue it with a larger --training\.budget"):
        loop.train(recipe, run, resume=True)


# Signals.


@pytest.fixture(params=["SIG_DFL", "SIG_IGN"])
def hangup(request):
    """What this process does about a closed terminal."""
    before = signal.signal(signal.SIGHUP, getattr(signal, request.param))
    yield request.param
    signal.signal(signal.SIGHUP, before)


def test_a_closed_terminal_counts_unless_it_is_to_be_ignored(hangup):
    with interruptible() as caught:
        os.kill(os.getpid(), signal.SIGHUP)
    assert caught == ([signal.SIGHUP] if hangup == "SIG_DFL" else [])
    assert signal.getsignal(signal.SIGHUP) == getattr(signal, hangup)


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with interruptible() as caught:
        os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, "a second Ctrl-C stops at once"
    assert caught == [signal.SIGTERM]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before
