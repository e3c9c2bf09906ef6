"""What the planner counts is what the model counts, and what published networks are said to have."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.cost.network import count_network, network_of
from gossamer.errors import UserError
from gossamer.model.config import ModelConfig
from gossamer.plan import load_catalogue, network_from_json
from gossamer.plan.arguments import planned_network
from gossamer.plan.published_runs import load_published_runs
from gossamer.train.recipe import load_recipe
from model_configs import configs


@settings(max_examples=60)
@given(config=configs(), context=st.integers(1, 5000))
def test_parameters_and_flops_are_the_models(config: ModelConfig, context: int) -> None:
    work, counts = network_of(config), count_network(config, context)
    assert work.parameters == counts.parameters
    assert work.sizes == counts.sizes
    assert work.flops(context) == pytest.approx({part: flops for part, flops in counts.by_kind().items() if flops})


def test_drafts_of_several_steps_and_of_none() -> None:
    work = network_of(ModelConfig())
    once = work.flops(4096)["mtp"]
    assert work.flops(4096, mtp_steps=3)["mtp"] == pytest.approx(3 * once)
    assert "mtp" not in work.flops(4096, mtp_steps=0)


@pytest.mark.parametrize("name", ["80b-a3b", "qwen3.5-9b", "qwen3.5-35b-a3b"])
def test_a_preset_is_planned_as_its_config_json(name: str) -> None:
    planned, from_file = planned_network(name), network_from_json(load_recipe(name).model.to_dict(), name)
    assert (planned.name, planned.layers, planned.mtp_layers) == (name, from_file.layers, from_file.mtp_layers)
    assert planned.sizes == from_file.sizes


# Parameters in billions, all and active, as their makers state them; active ones without embedding or as rounded.
STATED = {
    "smollm2-135m": (0.135, 0.135),
    "smollm2-1.7b": (1.71, 1.71),
    "smollm3-3b": (3.08, 3.08),
    "olmo3-7b": (7.3, 6.9),
    "olmo2-32b": (32.2, 31.7),
    "deepseek-67b": (67.0, 66.6),
    "llama3.1-8b": (8.03, 7.5),
    "llama3.1-405b": (405.9, 403.7),
    "deepseek-v2": (236, 21),
    "ling-plus": (290, 28.8),
    "deepseek-v3": (671, 37),
    "dots.llm1": (142, 14),
    "pangu-ultra-moe": (718, 39),
}


@pytest.mark.parametrize("name", STATED)
def test_published_networks_have_the_sizes_that_are_stated(name: str) -> None:
    [run] = [run for run in load_published_runs(load_catalogue())[0] if run.name == name]
    total, active = STATED[name]
    drafts = sum(layer.feed_forward.expert_parameters
                 for layer in run.network.mtp_layers)  # fmt: skip
    assert (run.network.parameters - drafts) / 1e9 == pytest.approx(total, rel=0.02)
    assert run.network.active_parameters / 1e9 == pytest.approx(active, rel=0.06)


LLAMA = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 100,
}  # fmt: skip


def test_a_sliding_window_sees_fewer_keys() -> None:
    sliding = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
    plain, windowed = network_from_json(LLAMA, "plain"), network_from_json(LLAMA | sliding, "windowed")
    seen = [sum(min(position + 1, 16) for position in range(length)) / length for length in (10, 200)]
    [(layer, _), _] = windowed.distinct_layers
    assert [layer.mixer.mean_keys(10), layer.mixer.mean_keys(200)] == pytest.approx(seen)
    assert windowed.flops(10) == plain.flops(10)
    assert windowed.flops(200)["full_attention"] < plain.flops(200)["full_attention"]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_type": "lama"}, r"^net: model_type 'lama' is not counted; did you mean 'llama'\?"),
        ({"hidden_size": None}, "^net: no key 'hidden_size'"),
        ({"vocab_size": "many"}, "^net: vocab_size = 'many': expected a whole number"),
        ({"num_hidden_layers": -2}, "^net: num_hidden_layers = -2: must be from 1 to 4,096"),
    ],
)
def test_a_config_that_cannot_be_counted(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        network_from_json(LLAMA | change, "net")
