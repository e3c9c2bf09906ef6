"""What decides a tuning: its base, its examples, the user, and defaults for the rest."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gossamer.errors import UserError
from gossamer.train.recipe import Recipe, to_yaml
from gossamer.tune.recipe import Counts, final_recipe, first_recipe, said_by, tuning_of
from tuned_runs import make_base

COUNTS = Counts("sft", examples=100, batch=16, longest=50, tokens=3000)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "model")


def first(base: Path, method: str = "sft", **more: Any) -> Recipe:
    said = {"training.init_from": str(base), **{key.replace("__", "."): value for key, value in more.items()}}
    return first_recipe(method, None, said)


def test_rates_depend_on_the_method_and_on_what_is_trained(base: Path) -> None:
    rates = [
        (first(base).optimizer, 1e-5),
        (first(base, tuning__lora=True).optimizer, 2e-4),
        (first(base, tuning__drafts=True).optimizer, 2e-4),
        (first(base, "dpo").optimizer, 1e-6),
        (first(base, "kto", tuning__lora=True).optimizer, 1e-5),
    ]
    for optimizer, rate in rates:
        assert (optimizer.kind, optimizer.learning_rate, optimizer.weight_decay) == ("adamw", rate, 0.0)
    assert first(base, optimizer__learning_rate=1.0).optimizer.learning_rate == 1.0


@pytest.mark.parametrize(
    ("method", "more", "expected"),
    [
        ("sft", {}, ("loss", 1, True)),
        ("sft", {"tuning__lora": True}, ("none", 0, True)),
        ("sft", {"tuning__lora": True, "tuning__drafts": True}, ("none", 1, True)),
        ("sft", {"tuning__drafts": True}, ("none", 1, True)),
        ("dpo", {}, ("none", 1, False)),
        ("kto", {"tuning__lora": True}, ("none", 0, False)),
        ("dpo", {"training__balance": "loss", "training__mtp_trunk_gradient": True}, ("loss", 1, True)),
    ],
)
def test_experts_are_balanced_and_drafts_teach_the_trunk_where_all_is_tuned_on_answers(
    base: Path, method: str, more: dict[str, Any], expected: tuple[str, int, bool]
) -> None:
    training = first(base, method, **more).training
    assert (training.balance, training.mtp_steps, training.mtp_trunk_gradient) == expected


def test_a_run_is_tuned_by_its_own_optimizer_at_a_tenth_of_its_peak(base: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "model").mkdir(parents=True)
    for file in base.iterdir():
        (run / "model" / file.name).write_bytes(file.read_bytes())
    own = Recipe()
    own = replace(own, training=replace(own.training, mtp_decay=0.25, balance="none"))
    (run / "config.yaml").write_text(to_yaml(own))
    found = first(run)
    assert (found.optimizer.kind, found.optimizer.learning_rate) == ("muon", pytest.approx(3e-4))
    assert (found.training.mtp_decay, found.training.balance, found.training.sampled_vocab_size) == (0.25, "none", 0)
    assert first(run, "dpo").optimizer.kind == first(run, tuning__lora=True).optimizer.kind == "adamw"
    (run / "config.yaml").write_text(to_yaml(replace(found, optimizer=replace(found.optimizer, learning_rate=7e-5))))
    assert first(run).optimizer.learning_rate == 7e-5  # a tuning's own rate is low already


def test_epochs_decide_the_length_unless_something_else_does(base: Path) -> None:
    usual = final_recipe(first(base), COUNTS, {}, 4096)
    assert (tuning_of(usual).epochs, usual.training.steps, usual.schedule.warmup_steps) == (2, 13, 1)
    assert final_recipe(first(base, "dpo"), replace(COUNTS, method="dpo"), {}, 4096).training.steps == 7
    said = {"training.steps": 500}
    longer = final_recipe(first(base, training__steps=500), COUNTS, said, 4096)
    assert (tuning_of(longer).epochs, longer.training.steps, longer.schedule.warmup_steps) == (None, 500, 15)
    assert longer.training.eval_every == 62 and longer.training.checkpoint_every == 50
    budget = final_recipe(first(base, training__budget="10m"), COUNTS, {"training.budget": "10m"}, 4096)
    assert tuning_of(budget).epochs is None and budget.training.budget == "10m"
    many = replace(COUNTS, examples=100_000)
    assert (
        final_recipe(first(base, training__seconds=9.0), many, {"training.seconds": 9.0}, 64).schedule.warmup_steps
        == 20
    )


def test_rows_hold_the_longest_example_and_no_more_than_a_step(base: Path) -> None:
    assert tuning_of(final_recipe(first(base), COUNTS, {}, 4096)).row_tokens == 800
    assert tuning_of(final_recipe(first(base), COUNTS, {}, 512)).row_tokens == 512
    assert tuning_of(final_recipe(first(base), replace(COUNTS, longest=900), {}, 512)).row_tokens == 900
    with pytest.raises(UserError, match=r"^--row_tokens 40: the longest example has 50 tokens; give at least as many"):
        final_recipe(first(base, tuning__row_tokens=40), COUNTS, {}, 512)


@pytest.mark.parametrize(
    ("method", "more", "message"),
    [
        ("sft", {"tuning__rank": 8}, "--rank is of adapters; add --lora"),
        ("sft", {"tuning__loss": "ipo"}, "--loss is of preferences, but the data are for sft"),
        ("kto", {"tuning__loss": "ipo"}, "--loss is of preferences, but the data are for kto"),
        ("dpo", {"tuning__gamma": 1.0}, "--gamma is of the loss simpo"),
        ("dpo", {"tuning__drafts": True}, "--drafts learns from answers, not from preferences"),
        ("sft", {"tuning__epochs": 1, "training__budget": "5m"}, "--epochs and --budget both say when the run ends"),
        ("sft", {"tuning__context": 1000}, "--context 1000: the base has positions for 256 tokens; give at most that"),
        ("sft", {"model__hidden_size": 64}, "--model.hidden_size = 64 contradicts the checkpoint"),
        ("sft", {"optimizer__learning_rate": -1.0}, "optimizer.learning_rate = -1.0: must be above 0"),
    ],
)
def test_what_contradicts_itself_is_refused(method: str, more: dict[str, Any], message: str, base: Path) -> None:
    with pytest.raises(UserError) as caught:
        first(base, method, **more)
    assert str(caught.value).startswith(message)


def test_a_recipes_file_is_put_on_the_defaults(base: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("tuning:\n  batch: 4\noptimizer:\n  learning_rate: 0.5\n")
    said = {"training.init_from": str(base), "tuning.context": 64}
    found = first_recipe("sft", str(file), said)
    assert (tuning_of(found).batch, tuning_of(found).context, found.optimizer.learning_rate) == (4, 64, 0.5)
    assert found.optimizer.kind == "adamw" and found.schedule.decay_fraction == 0.5
    assert said_by(str(file), said)["tuning.batch"] == 4
