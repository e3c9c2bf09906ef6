"""Times: FLOPs where nothing else is slow, bytes where nothing else is, and what links and stages add."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.cost.layout import Layout
from gossamer.cost.network import Network, count_network, network_of
from gossamer.model.config import ModelConfig
from gossamer.plan import Catalogue, Chip, FittedEfficiency, Job, load_catalogue, network_from_json
from gossamer.plan.efficiency import ATTENTION, DELTA_RULE, Efficiency
from gossamer.plan.search import all_layouts
from gossamer.plan.timing import PARTS, StepTimer, micro_batches

ALL = Efficiency(1.0, 1.0, 1.0, 1.0)
JOB = Job(length=4096, batch=2**22, mtp_steps=1)


def changed(chip: Chip, **values: float) -> Chip:
    return replace(chip, **{name: replace(getattr(chip, name), value=value) for name, value in values.items()})


def step(work: Network, chip: Chip, layout: Layout, job: Job = JOB, rates: Efficiency = ALL) -> dict[str, float]:
    return StepTimer(work, chip, rates, job).parts(layout)


def test_without_slow_memory_products_take_their_flops(catalogue: Catalogue, released: Network) -> None:
    chip = changed(catalogue.chip("h100"), bandwidth=1e30)
    counts = count_network(ModelConfig(), JOB.length)
    found, batch, peak = step(released, chip, Layout(data=64)), JOB.batch / 64, chip.flops.value
    kinds = counts.by_kind()
    assert found["vocabulary"] == pytest.approx(batch * 2 * kinds["head"] / peak)  # of the trunk and of MTP
    # Within layers, the draft's too: products of mixers and shared experts, rules and scores beside.
    rules = sum(sum(layer.mixer.delta_rule_flops) * count for layer, count in released.distinct_layers)
    assert found["linear attention"] == pytest.approx(batch * rules / (peak * DELTA_RULE))
    scores = (
        2 * released.activation_config.num_attention_heads * released.activation_config.head_dim * (JOB.length + 1) / 2
    )
    assert found["attention"] == pytest.approx(batch * 13 * 3.5 * 2 * scores / (peak * ATTENTION))
    whole = sum(kinds.values()) - 2 * kinds["head"] - rules - 13 * 6 * scores - 12 * released.hidden_size**2
    tiles = 49 * 18 * released.hidden_size * 512 * 512 * 64 / 4096  # half a tile for each expert, one row
    router = 49 * 6 * released.hidden_size * (512 + 1)  # and the shared expert's gate, a product in name alone
    assert (found["products"] + found["experts"]) * peak / batch == pytest.approx(whole + tiles - router, rel=1e-6)


def test_without_slow_products_only_bytes_remain(catalogue: Catalogue, released: Network) -> None:
    chip = changed(catalogue.chip("h100"), flops=1e30)
    fast, slow = (
        step(released, chip, Layout(data=64)),
        step(released, chip, Layout(data=64), rates=replace(ALL, memory=0.5)),
    )
    for part in ("products", "experts", "vocabulary", "router and dispatch", "optimizer"):
        assert slow[part] == pytest.approx(2 * fast[part])


def test_fp8_speeds_layers_alone(catalogue: Catalogue, released: Network) -> None:
    chip = changed(catalogue.chip("h100"), bandwidth=1e30, fp8_flops=2 * catalogue.chip("h100").flops.value)
    plain, eight = (step(released, chip, Layout(data=64), replace(JOB, fp8=fp8)) for fp8 in (False, True))
    assert eight["products"] == pytest.approx(plain["products"] / 2)
    assert eight["vocabulary"] == plain["vocabulary"] and eight["attention"] == plain["attention"]


def test_recomputing_adds_a_forward_pass(catalogue: Catalogue, released: Network) -> None:
    chip = catalogue.chip("h100")
    plain, again = (step(released, chip, Layout(data=64, recompute=recompute)) for recompute in (False, True))
    assert again["products"] == pytest.approx(plain["products"] * 4 / 3)
    assert again["vocabulary"] == plain["vocabulary"]


def test_a_pipeline_waits(catalogue: Catalogue, released: Network) -> None:
    chip = catalogue.chip("h100")
    short, long = Layout(data=256, pipeline=4, spread_weights=False), Layout(data=16, pipeline=4, spread_weights=False)
    assert micro_batches(short, JOB) == 4 and micro_batches(long, JOB) == 64
    for layout, waiting in ((short, 3 / 4 / 4), (long, 3 / 64 / 4)):
        found = step(released, chip, layout)
        working = sum(found.values()) - sum(
            found.get(part, 0) for part in ("pipeline bubble", "weights and gradients", "optimizer")
        )
        assert found["pipeline bubble"] == pytest.approx(waiting * working)


def test_experts_beyond_a_node_use_the_network(catalogue: Catalogue, released: Network) -> None:
    chip = changed(catalogue.chip("h100"), network=1e8)
    inside, beyond = (step(released, chip, Layout(data=64, expert=expert)) for expert in (8, 16))
    assert beyond["expert exchange"] > 50 * inside["expert exchange"]


def test_exchange_hides_behind_computing(catalogue: Catalogue, released: Network) -> None:
    chip, layout = catalogue.chip("h100"), Layout(data=64, expert=8, spread_weights=False)
    half = changed(chip, link=chip.link.value / 2)
    exchange, slower = (step(released, one, layout)["expert exchange"] for one in (chip, half))
    assert slower == pytest.approx(2 * exchange)  # a tenth shows of either


DENSE = network_from_json(
    {
        "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256,
    },
    "dense",
)  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_layout_takes_longer_than_its_flops_and_less_on_a_faster_chip(data: st.DataObject) -> None:
    work = data.draw(st.sampled_from([DENSE, network_of(ModelConfig())]))
    chip = load_catalogue().chip(data.draw(st.sampled_from(["h100", "h20", "910c", "p800"])))
    layout = data.draw(st.sampled_from(list(all_layouts(work, 64, int(chip.node.value), JOB.length, JOB.batch))))
    assert layout.chips == 64
    found = step(work, chip, layout)
    assert set(found) <= set(PARTS) and all(seconds > 0 for seconds in found.values())
    least = sum(work.flops(JOB.length).values()) * JOB.batch / 64 / chip.flops.value
    assert sum(found.values()) > least
    for name in ("flops", "bandwidth", "link", "network"):
        faster = changed(chip, **{name: 2 * getattr(chip, name).value})
        assert sum(step(work, faster, layout).values()) <= sum(found.values()) * (1 + 1e-9)


def test_linear_attention_costs_more_than_6nd_says(
    catalogue: Catalogue, shares: FittedEfficiency, released: Network
) -> None:
    """A token of Qwen3-Next takes much longer than its active parameters' share of a dense network's token."""
    chip, layout = catalogue.chip("h100"), Layout(data=64)
    ours, dense = (sum(step(work, chip, layout, rates=shares.rates).values()) for work in (released, DENSE))
    assert ours / dense > 1.5 * released.active_parameters / DENSE.active_parameters
