"""What follows from a run's size and length."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.run.sized import sized_recipe
from gossamer.train.recipe import BUDGET_RECIPE, load_recipe

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
