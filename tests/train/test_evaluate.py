"""Measuring a finished run, and trying it with a prompt."""

from dataclasses import replace

import pytest

from gossamer.errors import UserError
from gossamer.infer.sample import sample_run
from gossamer.train import loop
from gossamer.train.evaluate import evaluate_run


@pytest.mark.parametrize("heads", [0, 1])
def test_draft_acceptance_is_told_of_models_with_drafts(tiny_recipe, tmp_path, heads):
    model, training = replace(tiny_recipe.model, num_nextn_predict_layers=heads), replace(tiny_recipe.training, steps=1)
    loop.train(replace(tiny_recipe, model=model, training=training), tmp_path / "run")
    found = evaluate_run(tmp_path / "run", device="cpu")
    assert ("mtp_acceptance" in found) == (heads == 1)
    assert found["tokens"] > 0 and found["documents"] == 1


def test_a_prompt_that_is_no_text_is_refused_before_it_is_shown(tiny_recipe, tmp_path):
    loop.train(replace(tiny_recipe, training=replace(tiny_recipe.training, steps=1)), tmp_path / "run")
    with pytest.raises(UserError, match="half of a surrogate pair"):
        next(sample_run(tmp_path / "run", prompt="line \udcff", device="cpu"))
