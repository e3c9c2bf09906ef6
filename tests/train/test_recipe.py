"""Recipes: merging, refusing, and the way to YAML and back."""

import re
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
import yaml
from docstring_parser import parse as parse_docstring
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from gossamer.cost.network import count_network
from gossamer.data.config import CorpusConfig, SetConfig
from gossamer.errors import UserError
from gossamer.infer.options import EngineOptions
from gossamer.infer.request import SamplingParams
from gossamer.model.config import ModelConfig
from gossamer.options import plain_type
from gossamer.train.config import OptimizerConfig, ScheduleConfig, TrainingConfig, TuningConfig
from gossamer.train.recipe import (
    CONTINUE_RECIPE,
    DEFAULT_RECIPE,
    Recipe,
    flatten,
    load_recipe,
    recipe_file,
    recipe_folder,
    recipe_from,
    recipe_names,
    recipe_options,
    to_yaml,
)
from gossamer.units import network_words

SECTIONS = (ModelConfig, CorpusConfig, OptimizerConfig, ScheduleConfig, TrainingConfig, TuningConfig)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
positive = st.floats(0, 1, exclude_min=True)
fractions = st.floats(0, 1)


def reload(recipe: Recipe, folder: Path) -> Recipe:
    path = folder / "config.yaml"
    path.write_text(to_yaml(recipe), encoding="utf-8")
    return load_recipe(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recipe")


recipes = st.builds(
    Recipe,
    model=st.builds(
        ModelConfig,
        num_hidden_layers=st.just(2),
        rms_norm_eps=st.floats(1e-30, 1),
        rope_theta=st.floats(1, 1e12),
        norm_topk_prob=st.booleans(),
        mlp_only_layers=st.sampled_from([(), (0,), (0, 1)]),
        layer_types=st.sampled_from([None, ("full_attention", "linear_attention")]),
        max_position_embeddings=st.just(10**6),
    ),
    corpus=st.builds(
        CorpusConfig,
        paths=st.lists(texts, max_size=3).map(tuple),
        text_field=texts,
        errors=st.sampled_from(["strict", "replace"]),
        cache_dir=st.none() | texts,
    )
    | st.builds(
        CorpusConfig,
        sets=st.dictionaries(
            st.from_regex(r"[a-z0-9_-]+", fullmatch=True),
            st.builds(
                SetConfig, paths=st.tuples(texts), weight=positive, validation_paths=st.just(()) | st.tuples(texts)
            ),
            max_size=2,
        ),
        validation_sets=st.dictionaries(st.sampled_from(["A", "B"]), st.tuples(texts), max_size=2),
    ),
    optimizer=st.builds(
        OptimizerConfig, learning_rate=positive, betas=st.tuples(*[st.floats(0, 1, exclude_max=True)] * 2), eps=positive
    ),
    schedule=st.builds(
        ScheduleConfig, warmup_steps=st.integers(0, 10**12), decay_fraction=fractions, final_fraction=fractions
    ),
    training=st.builds(
        TrainingConfig,
        sequence_length=st.integers(2, 10**6),
        steps=st.integers(1, 10**12),
        seed=st.integers(0, 2**63 - 1),
        sample_prompt=texts | st.from_regex(r"[-+]?\d+(\.\d*)?([eE][-+]?\d+)?", fullmatch=True),
    ),
    description=texts,
)


@given(recipe=recipes)
@example(recipe=Recipe(training=TrainingConfig(sample_prompt="1e-3"), description="null"))
@example(recipe=Recipe(training=TrainingConfig(sample_prompt="def f(x):\n\treturn '\x85\ufeff' # no\n")))
def test_a_saved_recipe_loads_back_equal(folder: Path, recipe: Recipe) -> None:
    assert reload(recipe, folder) == recipe


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_of_the_package_is_valid_and_describes_itself(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.description.startswith(f"{name}: ")
    if recipe.corpus.tokenizer == "bpe" and name != CONTINUE_RECIPE:  # whose network is a checkpoint's
        assert recipe.model.vocab_size == recipe.corpus.vocab_size


@pytest.mark.parametrize(
    "record", sorted((recipe_folder().parent / "records").glob("*/recipe.yaml")), ids=lambda path: path.parent.name
)
def test_recipes_of_earlier_releases_still_load(record: Path) -> None:
    assert load_recipe(record).training.steps


@pytest.mark.parametrize("name", recipe_names())
def test_a_killed_run_loses_a_tenth_or_a_few_minutes(name: str) -> None:
    """A step of the recipes that are as long as a number of seconds takes one or two on two cores."""
    training = load_recipe(name).training
    assert 0 < training.checkpoint_every <= (50 if training.seconds else training.steps / 10)


@pytest.mark.parametrize("name", recipe_names(tuning=True))
def test_recipes_of_tuning_describe_themselves_and_say_what_is_tuned(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.description.startswith(f"{name}: ") and recipe.tuning is not None
    assert name not in recipe_names()


def test_the_default_recipe_exists() -> None:
    assert DEFAULT_RECIPE in recipe_names()


# Published parameters in billions, without the multi-token-prediction head; active ones as in the network's name, which
# counts the embedding, or None.
RELEASED = {
    "80b-a3b": (80, None),
    "qwen3.5-0.8b": (0.75, None),
    "qwen3.5-2b": (1.88, None),
    "qwen3.5-4b": (4.21, None),
    "qwen3.5-9b": (8.95, None),
    "qwen3.5-27b": (26.9, None),
    "qwen3.5-35b-a3b": (35, 3),
    "qwen3.5-122b-a10b": (122, 10),
    "qwen3.5-397b-a17b": (397, 17),
}


@pytest.mark.parametrize("name", ["nano", "demo", "micro", "mini", "small", *RELEASED])
def test_presets_say_their_size_in_the_words_of_every_other_place(name: str) -> None:
    words = network_words(*count_network(load_recipe(name).model).sizes)
    comment = " ".join(line.lstrip("# ") for line in recipe_file(name).read_text().split("\n") if line.startswith("#"))
    assert words in comment


@pytest.mark.parametrize("name", recipe_names())
def test_descriptions_tell_the_size_without_the_head(name: str) -> None:
    recipe = load_recipe(name)
    parameters, active, mtp, mtp_active = count_network(recipe.model).sizes
    letters = {"M": 1e6, "B": 1e9}
    told = [float(value) * letters[unit] for value, unit in re.findall(r"(\d[\d.]*)([MB])\b", recipe.description)]
    for value, real in zip(told, (parameters - mtp, active - mtp_active), strict=False):
        assert value == pytest.approx(real, rel=0.02)


@pytest.mark.parametrize("name", RELEASED)
def test_released_sizes_are_those_of_transformers_classes_and_those_published(name: str) -> None:
    config = load_recipe(name).model
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config.to_dict()))
    parameters, active, mtp, mtp_active = count_network(config).sizes
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters - mtp
    published, published_active = RELEASED[name]
    assert (parameters - mtp) / 1e9 == pytest.approx(published, rel=0.01)
    if published_active is not None:
        with_embedding = active - mtp_active + config.vocab_size * config.hidden_size
        assert with_embedding / 1e9 == pytest.approx(published_active, abs=0.5)


@pytest.mark.parametrize("section", [*SECTIONS, Recipe])
def test_every_field_is_documented(section: type) -> None:
    documented = {item.arg_name for item in parse_docstring(section.__doc__ or "").params if item.description}
    assert documented == {item.name for item in fields(section)}


@pytest.mark.parametrize("key", [key for key in recipe_options(tuning=True) if "." in key])
def test_a_value_of_another_type_is_refused_by_its_name(key: str) -> None:
    annotation = plain_type(recipe_options(tuning=True)[key].annotation)
    wrong: Any = {"no": "mapping fits"}
    with pytest.raises(UserError, match=rf"^{key}(\.no)? = .*: expected "):
        recipe_from({}, {key: wrong})
    if get_origin(annotation) is dict:
        for wrong in (3, ["x"], {1: {}}):
            with pytest.raises(UserError, match=rf"^{key} = .*: expected names, each with a"):
                recipe_from({}, {key: wrong})
    if annotation is int:
        for wrong in (True, 1.5, "1", None):
            with pytest.raises(UserError, match=rf"^{key} = .*: expected a whole number$"):
                recipe_from({}, {key: wrong})
    if annotation is float:
        for wrong in (True, "1", float("nan"), float("inf")):
            with pytest.raises(UserError, match=rf"^{key} = .*: expected a number$"):
                recipe_from({}, {key: wrong})
    if get_origin(annotation) is tuple:
        with pytest.raises(UserError, match=rf"^{key} = 'x': expected a list"):
            recipe_from({}, {key: "x"})


def test_overrides_win_over_the_file_and_the_file_over_defaults() -> None:
    values = {"training": {"steps": 5, "seed": 7}, "optimizer": {"learning_rate": 1}}
    recipe = recipe_from(values, {"training.steps": 9})
    default = Recipe()
    assert recipe == replace(
        default,
        training=replace(default.training, steps=9, seed=7),
        optimizer=replace(default.optimizer, learning_rate=1.0),
    )
    assert isinstance(recipe.optimizer.learning_rate, float)


def test_parts_of_a_mapping_are_overridden_by_dotted_names() -> None:
    novels, code = {"paths": ["n"], "weight": 2}, {"paths": ["c"], "validation_paths": ["v"]}
    values = {"corpus": {"sets": {"novels": novels, "code": code}}}
    overrides = {"corpus.sets.novels.weight": 3, "corpus.sets.poems.paths": ["p"], "corpus.validation_sets.w": ["w"]}
    corpus = recipe_from(values, overrides).corpus
    assert corpus.sets == {
        "novels": SetConfig(("n",), 3.0),
        "code": SetConfig(("c",), 1.0, ("v",)),
        "poems": SetConfig(("p",)),
    }
    assert corpus.validation_sets == {"w": ("w",)} and values["corpus"]["sets"]["novels"]["weight"] == 2
    whole = {"corpus.sets.novels.weight": 5, "corpus.sets": {"novels": SetConfig(("m",), 1.0)}}
    assert recipe_from(values, whole).corpus.sets == {"novels": SetConfig(("m",), 5.0)}


def test_an_empty_section_is_the_default() -> None:
    assert recipe_from({"model": None, "training": {}}) == Recipe()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"training": {"step": 1}}, "unknown key 'training.step'; did you mean 'training.steps'?"),
        ({"trainig": {"steps": 1}}, "unknown key 'trainig'; did you mean 'training'?"),
        ({"steps": 1}, "unknown key 'steps'; did you mean 'training.steps'?"),
        ({"model": {"steps.x": 1}}, "unknown key 'model.steps.x'"),
        ({"model": {3: 1}}, "unknown key 'model.3'"),
        ({"model": 3}, "model = 3: expected a section of keys"),
        ({"optimizer": {"betas": [0.9]}}, "optimizer.betas = [0.9]: expected a list of 2, each a number"),
        ({"optimizer": {"betas": [0.9, 1]}}, "optimizer.betas = 1: must be from 0 to below 1"),
        ({"optimizer": {"learning_rate": 0}}, "optimizer.learning_rate = 0: must be above 0 and at most 1,000"),
        ({"schedule": {"decay_fraction": 1.5}}, "schedule.decay_fraction = 1.5: must be from 0 to 1"),
        ({"training": {"steps": 0}}, "training.steps = 0: must be from 1 to 1,000,000,000,000"),
        ({"training": {"eval_every": -1}}, "training.eval_every = -1: must be from 0 to 1,000,000,000,000"),
        ({"model": {"hidden_size": 0}}, "model.hidden_size = 0: must be from 1 to 4,194,304"),
        (
            {"model": {"max_position_embeddings": 64}, "training": {"sequence_length": 65}},
            "training.sequence_length = 65: must be <= model.max_position_embeddings = 64",
        ),
        ({"description": 3}, "description = 3: expected text"),
        (
            {"corpus": {"sets": {"novels": {"paths": ["n"]}, "novel": {"weight": 2}}}},
            "corpus.sets.novel: names no paths; did you mean 'novels'?",
        ),
        (
            {"corpus": {"sets": {"a": {"paths": ["n"], "weigth": 2}}}},
            "unknown key 'corpus.sets.a.weigth'; did you mean 'weight'?",
        ),
        ({"corpus": {"sets": {"a": {"paths": ["n"], "weight": "2"}}}}, "corpus.sets.a.weight = '2': expected a number"),
    ],
)
def test_mistakes_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        recipe_from(values)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training:\n  steps: 1\n  steps: 2\n", ":3: duplicate key 'steps'"),
        ("training: [\n", ":2: "),
        ("- training\n", ": expected sections of keys, got list"),
        ("training:\n  step: 1\n", ": unknown key 'training.step'; did you mean 'training.steps'?"),
        ("training: !!python/object:os.system {}\n", ":1: could not determine a constructor"),
        ("description: 2020-13-45\n", ": month must be in 1..12"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_recipe(path)
    assert str(caught.value).startswith(f"{path}{message}")


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"bad\.yaml: "):
        load_recipe(path)


def test_an_unknown_recipe_names_the_nearest_and_the_others() -> None:
    with pytest.raises(UserError, match=r"no recipe 'micr'; did you mean 'micro'\? .*80b-a3b, budget, continue, demo"):
        load_recipe("micr")


@pytest.mark.parametrize("written", ["1e-3", "1E-3", "1.0e-3", "0.001", ".1e-2"])
def test_a_learning_rate_is_a_number_however_it_is_written(tmp_path: Path, written: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(f"optimizer:\n  learning_rate: {written}\n")
    assert load_recipe(path).optimizer.learning_rate == 1e-3


def test_the_saved_recipe_is_plain_yaml_that_names_every_field() -> None:
    values = yaml.safe_load(to_yaml(Recipe()))
    named = {f"{section}.{key}" for section, part in values.items() if isinstance(part, dict) for key in part}
    assert named | {"description"} == set(flatten(Recipe())) == set(recipe_options())


def test_only_the_recipe_of_a_tuning_has_its_section(tmp_path: Path) -> None:
    plain, tuning = Recipe(), recipe_from({}, {"tuning.rank": 8, "tuning.targets": ["q_proj"]})
    assert plain.tuning is None and "tuning" not in to_yaml(plain) and tuning.tuning is not None
    assert (tuning.tuning.rank, tuning.tuning.targets) == (8, ("q_proj",))
    assert set(flatten(tuning)) == set(recipe_options(tuning=True)) > set(recipe_options())
    path = tmp_path / "tuning.yaml"
    path.write_text(to_yaml(tuning))
    assert load_recipe(path) == tuning
    path.write_text("tuning:\n")
    assert load_recipe(path).tuning == TuningConfig()
    with pytest.raises(UserError, match=r"tuning\.rnak.*did you mean 'tuning\.rank'"):
        recipe_from({"tuning": {"rnak": 8}})


@pytest.mark.parametrize(("loss", "beta"), [("sigmoid", 0.1), ("norm", 5.0), ("ipo", 0.1), ("simpo", 2.0)])
def test_every_loss_of_pairs_has_a_beta_of_its_own(loss: Any, beta: float) -> None:
    assert TuningConfig(loss=loss).pair_beta == beta and TuningConfig(loss=loss, beta=0.3).pair_beta == 0.3


def test_annotations_are_ones_that_values_can_be_checked_against() -> None:
    """A new field of a type that `typed` does not know must fail here, not in a user's hands."""

    def leaves(annotation: Any) -> set[Any]:
        arguments = get_args(annotation)
        if get_origin(annotation) is Literal:
            return {type(argument) for argument in arguments}
        if is_dataclass(annotation):
            return set().union(*map(leaves, get_type_hints(annotation).values()))
        return set().union(*map(leaves, arguments)) if arguments else {annotation}

    hints = [hint for section in SECTIONS for hint in get_type_hints(section).values()]
    assert set().union(*map(leaves, hints)) <= {int, float, bool, str, type(None), Ellipsis}


def test_counts_may_be_written_short_in_yaml() -> None:
    recipe = recipe_from({"training": {"tokens": "15B", "seconds": "1.5k", "sample_prompt": "15B"}})
    assert (recipe.training.tokens, recipe.training.seconds) == (15_000_000_000, 1500.0)
    assert recipe.training.sample_prompt == "15B"
    with pytest.raises(UserError, match=r"tokens = '1\.5': expected a whole number"):
        recipe_from({"training": {"tokens": "1.5"}})


@pytest.mark.parametrize("kind", [ModelConfig, CorpusConfig, TrainingConfig, SamplingParams, EngineOptions, Recipe])
def test_a_keyword_that_no_field_has_is_refused_with_the_nearest(kind: type) -> None:
    real = fields(kind)[0].name
    with pytest.raises(UserError, match=f"{kind.__name__} has no '{real}s'; did you mean '{real}'"):
        kind(**{f"{real}s": 3})
    with pytest.raises(UserError, match=f"{kind.__name__} has no 'zzzzzzz' .there are {real}, "):
        kind(zzzzzzz=3)


def test_sizes_that_nobody_gave_follow_from_those_that_were() -> None:
    dense = load_recipe("nano", {"model.num_experts": 0}).model
    assert dense.intermediate_size == 352 and count_network(dense).parameters < 3e6
    assert load_recipe("nano", {"model.num_experts": 0, "model.intermediate_size": 96}).model.intermediate_size == 96
    mixed = load_recipe("nano", {"model.mlp_only_layers": [0], "model.hidden_size": 64}).model
    assert (mixed.intermediate_size, mixed.moe_intermediate_size) == (176, 64)
    sparse = recipe_from({"model": {"hidden_size": 128, "num_experts": 4}}).model
    assert (sparse.moe_intermediate_size, sparse.shared_expert_intermediate_size) == (32, 32)
    assert sparse.num_experts_per_tok == 4
    assert recipe_from({}).model == ModelConfig()


def test_a_step_has_a_bound_of_tokens() -> None:
    assert recipe_from({"training": {"gradient_accumulation": 65536}}).training.gradient_accumulation == 65536
    with pytest.raises(UserError, match="gradient_accumulation = 1000000000000: must be from 1 to 65,536"):
        recipe_from({"training": {"gradient_accumulation": 10**12}})
    with pytest.raises(UserError, match="must be at most 4,096 with micro-batches of 65,536 tokens"):
        recipe_from({"training": {"gradient_accumulation": 65536, "batch_size": 128}})


def test_names_of_earlier_releases_are_understood_in_files(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("training: {best_by: novels, pair_steps: 300, head_sample: 2K}")
    training = load_recipe(path).training
    assert (training.best_checkpoint_by, training.bigram_steps, training.sampled_vocab_size) == ("novels", 300, 2000)
    assert "best_by" not in to_yaml(load_recipe(path))
    path.write_text("training: {pair_steps: 300, bigram_steps: 20}")
    with pytest.raises(UserError, match=r"pair_steps is now called training\.bigram_steps, and both are given"):
        load_recipe(path)


def test_names_of_earlier_releases_are_refused_elsewhere_with_the_new_one() -> None:
    with pytest.raises(UserError, match=r"^training\.best_by is now called training\.best_checkpoint_by$"):
        recipe_from({}, {"training.best_by": "novels"})


def test_a_keyword_of_an_earlier_release_is_refused_with_the_new_one() -> None:
    with pytest.raises(UserError, match=r"^TrainingConfig has no 'pair_steps'; it is now called 'bigram_steps'$"):
        TrainingConfig(pair_steps=3)  # type: ignore[call-arg]


def test_no_former_name_is_in_use_again() -> None:
    former = [name for option in recipe_options().values() for name in option.former_names]
    assert former and not {*former} & {*recipe_options()} and len({*former}) == len(former)


def test_a_mistake_of_the_file_is_told_from_one_of_an_override(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("training: {steps: -1}")
    with pytest.raises(UserError, match=rf"^{path}: training\.steps = -1"):
        load_recipe(path, {"training.seed": 3})
    path.write_text("training: {steps: 1}")
    with pytest.raises(UserError, match=r"^training\.seed = -3"):
        load_recipe(path, {"training.seed": -3})
