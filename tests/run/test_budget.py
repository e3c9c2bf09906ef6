"""What is chosen for a budget, what that is predicted to reach, and whether a run keeps to both."""

import math
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gossamer.cost.network import count_network, flops_by_part
from gossamer.cost.scaling import Law
from gossamer.data.config import CorpusConfig
from gossamer.data.dataset import prepare
from gossamer.errors import UserError
from gossamer.run import budget
from gossamer.run.budget import BudgetPlan, choose_recipe, compressed_bits, sized_recipe
from gossamer.run.memory import estimate_peak
from gossamer.run.metrics import read_metrics
from gossamer.train.recipe import BUDGET_RECIPE, load_recipe
from gossamer.train.world import SINGLE_PROCESS

LAW = Law(E=0.7, A=0.2, alpha=0.3, B=0.8, beta=0.25, gamma=1.0, R=15.4, c0=2.0)
PLAN = BudgetPlan(128, 1e6, 2.0, 1.5, 0.02, False, 8000.0, (128,))


@pytest.fixture
def base(corpus_file, tmp_path):
    """The recipe that budgets begin with, on a small text, its vocabulary known."""
    corpus = CorpusConfig(paths=(str(corpus_file),), tokenizer="char", cache_dir=str(tmp_path / "cache"))
    recipe = replace(load_recipe(BUDGET_RECIPE), corpus=corpus)
    return replace(recipe, model=replace(recipe.model, vocab_size=prepare(corpus).tokenizer.vocab_size))


def budgeted(base, amount):
    return replace(base, training=replace(base.training, budget=amount))


def chosen(base, amount):
    return choose_recipe(budgeted(base, amount), prepare(base.corpus), SINGLE_PROCESS, time.perf_counter())


@pytest.fixture
def speeds(monkeypatch):
    """A machine of a TFLOP/s at any size, and a log of what was measured there."""
    asked = []

    def measured(recipe, dataset, world, seconds):
        asked.append(recipe.model.hidden_size)
        counted = count_network(recipe.model, recipe.training.sequence_length)
        return 1e12 / counted.training_flops

    monkeypatch.setattr(budget, "tokens_per_second", measured)
    monkeypatch.setattr(budget, "law", lambda: LAW)
    monkeypatch.setattr(budget.devices, "peak_rate", lambda *_: 1e9)  # a guess that is far off
    return asked


def test_a_larger_budget_buys_a_larger_network_and_a_lower_loss(base, speeds):
    plans = [chosen(base, amount)[1] for amount in ("1m", "20m", "10h")]
    widths = [plan.width for plan in plans]
    assert widths == sorted(widths) and widths[0] < widths[-1]
    assert plans[0].bits_per_byte > plans[1].bits_per_byte > plans[2].bits_per_byte


def test_what_is_chosen_was_measured_and_nothing_twice(base, speeds):
    recipe, plan = chosen(base, "10m")
    assert speeds[-1] == plan.width == recipe.model.hidden_size
    assert len(speeds) == len(set(speeds)) > 1, "the guess was far off"
    assert plan.measured == tuple(speeds)


def test_a_budget_of_flops_needs_no_clock_and_is_spent(base, speeds):
    recipe, plan = chosen(base, "1e15flop")
    assert not speeds
    assert plan.tokens_per_second is None
    each = count_network(recipe.model, recipe.training.sequence_length).training_flops
    assert plan.tokens * each == pytest.approx(1e15)


def test_a_budget_of_flops_buys_more_text_with_a_sampled_head(base, speeds):
    """As the ledger counts it, which says when the run is over."""
    recipe, plan = chosen(replace(base, training=replace(base.training, sampled_vocab_size=16)), "1e13flop")
    model, training = recipe.model, recipe.training
    steps = training.mtp_steps if training.mtp_loss_weight else 0
    each = sum(flops_by_part(model, training.sequence_length, steps, sampled_vocab_size=16).values())
    assert each < sum(flops_by_part(model, training.sequence_length, steps).values())
    assert plan.tokens * each == pytest.approx(1e13)


def test_a_size_that_does_not_fit_is_passed_over(base, speeds, monkeypatch):
    large, free = chosen(base, "10h")
    room = estimate_peak(large, torch.device("cpu")).base + (1 << 29)  # this process's own size is counted, too
    monkeypatch.setattr(budget.devices, "memory_bytes", lambda device: room)
    recipe, plan = chosen(base, "10h")
    assert plan.width < free.width
    assert recipe.model.hidden_size == plan.width


def test_too_little_time_left_is_refused(base, speeds):
    with pytest.raises(UserError, match=r"budget '60s' is too small: .* 20 are the least"):
        choose_recipe(budgeted(base, "60s"), prepare(base.corpus), SINGLE_PROCESS, time.perf_counter() - 59.999)


def test_text_read_too_often_gets_a_warning_that_says_what_fits():
    assert PLAN.warning("10m", 1 << 20) is None
    line = replace(PLAN, epochs=8.0).warning("10m", 1 << 20)
    assert line is not None
    assert "1.00 MiB of training text 8.0 times" in line
    assert "50% of the budget fits this text, or 2.00 MiB of text this budget" in line


def test_the_outcome_is_compared():
    assert PLAN.outcome(1.5299).endswith("± 2.0%: it is 2.0% more, within that band")
    assert PLAN.outcome(1.4701).endswith("± 2.0%: it is 2.0% less, within that band")
    assert PLAN.outcome(1.56).endswith("4.0% more, outside that band")
    assert PLAN.outcome(1.44).endswith("4.0% less, outside that band")


def test_a_plan_is_read_back_from_the_run(tmp_path):
    from dataclasses import asdict

    from gossamer.run.metrics import MetricsWriter

    assert budget.read_plan(tmp_path) is None
    with MetricsWriter(tmp_path) as metrics:
        metrics.write("plan", 0, **asdict(PLAN))
    found = budget.read_plan(tmp_path)
    assert found is not None
    assert found.describe("1m") == PLAN.describe("1m")


def test_a_damaged_plan_is_named(tmp_path):
    from gossamer.errors import UserError

    (tmp_path / "metrics.jsonl").write_text('{"event": "plan", "step": 0, "width": "wide"}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl: the event 'plan': width: .*, not 'wide'; restore it"):
        budget.read_plan(tmp_path)


def test_harder_text_needs_more_bits(tmp_path):
    import random

    draw = random.Random(0)
    texts = {
        "easy": "the cat sat on the mat and the dog sat on the cat.\n" * 400,
        "hard": "".join(draw.choices("abcdefgh \n", k=20_000)),
    }
    bits = {}
    for name, text in texts.items():
        (tmp_path / f"{name}.txt").write_text(text)
        config = CorpusConfig(paths=(str(tmp_path / f"{name}.txt"),), tokenizer="char", cache_dir=str(tmp_path / "c"))
        bits[name] = compressed_bits(prepare(config, progress=False))
    assert bits["easy"] < 0.5
    assert bits["hard"] == pytest.approx(math.log2(10), rel=0.05), "random letters have their entropy"


# Recipes by size.

BASE = load_recipe(BUDGET_RECIPE)


@given(st.floats(1e4, 1e13), st.integers(1, 12))
def test_the_batch_grows_with_the_root_of_the_tokens_and_is_shared_equally(tokens, processes):
    recipe = sized_recipe(BASE, 128, tokens, processes)
    assert recipe.training.batch_size % processes == 0
    longer = sized_recipe(BASE, 128, 16 * tokens, processes).training.batch_size
    assert recipe.training.batch_size <= longer <= 4 * recipe.training.batch_size + processes


def test_at_a_million_tokens_and_width_128_it_is_the_recipe():
    recipe = sized_recipe(BASE, 128, 1e6)
    assert recipe.optimizer == BASE.optimizer
    assert recipe.training.batch_size == BASE.training.batch_size
    assert recipe.schedule == BASE.schedule


def test_the_learning_rate_falls_with_the_root_of_the_width():
    rates = [sized_recipe(BASE, width, 1e6).optimizer.learning_rate for width in (128, 512, 2048)]
    assert all(wider == pytest.approx(narrow / 2) for narrow, wider in pairwise(rates))


def test_a_short_run_warms_up_for_a_tenth_of_its_steps():
    recipe = sized_recipe(BASE, 128, 50 * 1024)
    assert recipe.training.batch_size * recipe.training.sequence_length == 1024
    assert recipe.schedule.warmup_steps == 5


@given(st.floats(1e5, 1e12))
def test_evaluations_read_a_few_percent_of_what_is_trained_on(tokens):
    training = sized_recipe(BASE, 128, tokens).training
    steps = tokens / (training.batch_size * training.sequence_length)
    read = steps / training.eval_every * training.eval_tokens + training.final_eval_tokens
    assert read <= 0.3 * tokens
    assert training.final_eval_tokens >= training.eval_tokens >= min(BASE.training.eval_tokens, 1024)


@pytest.mark.slow
def test_a_killed_run_goes_on_with_what_is_left(tmp_path):
    out, command = tmp_path / "run", [sys.executable, "-m", "gossamer.cli", "train", "--budget", "40s"]
    subprocess.run([*command, "--out", str(tmp_path / "warm")], check=True)  # fills the cache
    began = time.perf_counter()
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run([*command, "--out", str(out)], timeout=25)
    subprocess.run([*command, "--out", str(out), "--resume"], check=True)
    assert 36 < time.perf_counter() - began < 42
    kinds = [event["event"] for event in read_metrics(out)]
    assert kinds.count("plan") == kinds.count("end") == 1


@pytest.mark.slow
def test_a_run_keeps_its_budget_and_its_prediction(tmp_path):
    """A minute on the standard library's source: all of the command's time, start of Python included."""
    out, seconds = tmp_path / "run", 60
    command = [sys.executable, "-m", "gossamer.cli", "train", "--budget", f"{seconds}s", "--out", str(out)]
    subprocess.run([*command[:4], "--budget", "20s", "--out", str(tmp_path / "warm")], check=True)  # fills the cache
    began = time.perf_counter()
    subprocess.run(command, check=True)
    took = time.perf_counter() - began
    assert 0.93 * seconds < took < 1.02 * seconds
    events = read_metrics(Path(out))
    plan = next(event for event in events if event["event"] == "plan")
    end = next(event for event in events if event["event"] == "end")
    assert end["bits_per_byte"] == pytest.approx(plan["bits_per_byte"], rel=0.1)
    rates = [event["learning_rate"] for event in events if event["event"] == "train"]
    assert rates[-1] < 0.1 * max(rates), "the decay is complete"
