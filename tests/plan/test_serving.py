"""Serving: what is held and read, and what more sequences and longer ones change."""

from __future__ import annotations

import pytest

from gossamer.cost.network import Network
from gossamer.errors import UserError
from gossamer.plan import Catalogue, FittedEfficiency, Serving, network_from_json, plan_serving


@pytest.fixture
def ask(catalogue: Catalogue, shares: FittedEfficiency, released: Network):
    def found(batch: int, context: int, chips: int = 0, work: Network = released, price: float | None = 2.0) -> Serving:
        return plan_serving(work, catalogue.chip("h200"), chips, batch, context, shares.rates, price)

    return found


def test_state_and_cache_are_the_models(ask) -> None:
    # A linear layer: 2 MiB of float32 state, 48 KiB of its convolution's inputs; a full one: 512 numbers of k and of v.
    assert ask(1, 4096).caches == 36 * (2 * 2**20 + 2 * 8192 * 3) + 12 * 4096 * 2 * 512 * 2
    assert ask(8, 4096).caches == 8 * ask(1, 4096).caches


def test_one_sequence_is_bound_by_the_weights_it_reads(ask, catalogue: Catalogue, released: Network) -> None:
    one = ask(1, 1024, chips=4)
    read = 2 * released.active_parameters
    assert one.parts["experts"] + one.parts["other weights"] == pytest.approx(read / (4 * 4.8e12 * 0.8), rel=1e-3)
    assert ask(1, 1024, chips=4).weights == pytest.approx(2 * released.parameters, rel=1e-3)


def test_more_sequences_are_cheaper_longer_ones_dearer(ask) -> None:
    speeds = [ask(batch, 8192, chips=8).tokens_per_second for batch in (1, 8, 64, 512)]
    assert speeds == sorted(speeds)
    assert ask(64, 65536, chips=8).tokens_per_second < ask(64, 1024, chips=8).tokens_per_second
    service = ask(64, 8192, chips=8)
    assert service.dollars_per_million_tokens(service.tokens_per_second) == pytest.approx(
        8 * 2 / 3600 / service.tokens_per_second * 1e6
    )
    assert ask(64, 8192, price=None).dollars_per_million_tokens(1.0) is None


def test_long_contexts_cost_a_dense_network_more(ask) -> None:
    dense = network_from_json(
        {
            "model_type": "qwen3", "hidden_size": 5120, "num_hidden_layers": 64, "num_attention_heads": 64,
            "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 25600, "vocab_size": 151936,
        },
        "dense",
    )  # fmt: skip
    near, far = (
        ask(16, context, chips=8).tokens_per_second / ask(16, context, 8, dense).tokens_per_second
        for context in (1024, 65536)
    )
    assert far > 1.5 * near


def test_chips_that_do_not_hold_it(ask) -> None:
    with pytest.raises(
        UserError, match="takes 163 GB, which 1 × NVIDIA H200 SXM do not hold; the fewest that do are 2"
    ):
        ask(1, 4096, chips=1)
    assert ask(1, 4096).chips == 2
    with pytest.raises(UserError, match="which 64 × NVIDIA H200 SXM do not hold"):
        ask(10_000, 1_000_000)
