"""The family of networks that --budget chooses from."""

from itertools import pairwise

from gossamer.cost.network import count_network
from gossamer.cost.width_family import WIDTHS, sized, trunk_parameters
from gossamer.model.config import ModelConfig
from gossamer.train.recipe import BUDGET_RECIPE, load_recipe


def family():
    return [sized(ModelConfig(vocab_size=4096), width) for width in WIDTHS]


def test_everything_grows_with_the_width():
    for smaller, larger in pairwise(family()):
        assert smaller.num_hidden_layers <= larger.num_hidden_layers
        assert smaller.num_experts <= larger.num_experts
        assert trunk_parameters(smaller) < trunk_parameters(larger)
        assert count_network(smaller).parameters < count_network(larger).parameters


def test_it_reaches_from_below_nano_to_beyond_mini():
    nano, mini = (load_recipe(name).model for name in ("nano", "mini"))
    first, *_, last = family()
    assert trunk_parameters(first) < trunk_parameters(nano)
    assert trunk_parameters(last) > trunk_parameters(mini)


def test_every_size_has_full_attention_and_experts():
    for config in family():
        assert config.num_hidden_layers % config.full_attention_interval == 0
        assert 0 < config.num_experts_per_tok < config.num_experts


def test_the_budget_recipe_holds_one_of_the_family():
    model = load_recipe(BUDGET_RECIPE).model
    expected = sized(model, model.hidden_size)
    assert {name for name, value in vars(expected).items() if value != getattr(model, name)} <= {"intermediate_size"}


def test_what_has_no_size_stays():
    base = ModelConfig(vocab_size=99, rope_theta=5e5, num_nextn_predict_layers=0, tie_word_embeddings=True)
    config = sized(base, 256)
    assert (config.vocab_size, config.rope_theta, config.num_nextn_predict_layers) == (99, 5e5, 0)
    assert config.tie_word_embeddings
