"""The operations of drafting: a token of each row of logits, and the drafts of a multi-token-prediction head."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from exactness import implementations, seeds
from gossamer import ops
from gossamer.model.causal_lm import CausalLM
from gossamer.model.config import ModelConfig
from gossamer.model.decoder import Decoder
from gossamer.model.pool import StatePool
from gossamer.ops.draft_tokens import Draws
from gossamer.ops.sequences import Sequences
from model_configs import configs

keys = st.integers(-(2**63), 2**63 - 1)


def random_logits(rows: int, count: int, spread: float, seed: int) -> Tensor:
    return torch.randn(rows, count, generator=torch.Generator().manual_seed(seed)) * spread


@pytest.mark.parametrize("implementation", implementations("draw", but="reference"))
@given(
    st.lists(st.tuples(keys, st.sampled_from([0.0, 1e-30, 0.3, 1.0, 5.0])), min_size=1, max_size=5),
    st.integers(1, 300),
    st.sampled_from([0.0, 1.0, 30.0]),
    st.sampled_from([0.0, 0.5, 0.9]),
    seeds,
)
def test_draw(
    implementation: str, rows: list[tuple[int, float]], count: int, spread: float, forbidden: float, seed: int
) -> None:
    logits = random_logits(len(rows), count, spread, seed)
    logits[:, 1:][
        torch.rand(len(rows), count - 1, generator=torch.Generator().manual_seed(seed)) < forbidden
    ] = -math.inf
    drawn = []
    for name in ("reference", implementation):
        with ops.forced(draw=name):
            drawn.append(ops.draw(logits, torch.tensor([t for _, t in rows]), torch.tensor([key for key, _ in rows])))
    assert torch.equal(*drawn)


@pytest.mark.parametrize("implementation", implementations("draw"))
def test_draws_are_from_the_softmax(implementation: str) -> None:
    logits, temperature, draws = random_logits(1, 200, 2.0, 0), 0.7, 40_000
    generator = torch.Generator().manual_seed(1)
    random_keys = torch.randint(-(2**62), 2**62, (draws,), generator=generator)
    with ops.forced(draw=implementation):
        tokens = ops.draw(logits.repeat(draws, 1), torch.full((draws,), temperature), random_keys)
    expected = (logits[0] / temperature).softmax(-1) * draws
    counts, common = torch.bincount(tokens, minlength=200), expected >= 10
    chi2 = float(((counts - expected)[common] ** 2 / expected[common]).sum())
    freedom = int(common.sum())
    assert chi2 < freedom + 4 * (2 * freedom) ** 0.5  # four standard deviations
    assert abs(float((counts - expected)[~common].sum())) < 4 * float(expected[~common].sum()) ** 0.5


@pytest.mark.parametrize("implementation", implementations("draw"))
def test_two_distributions_that_are_alike_mostly_give_the_same_token(implementation: str) -> None:
    """At least with probability (1 − d) / (1 + d), with d half the sum of the probabilities' differences."""
    draws = 5000
    one = random_logits(1, 100, 1.0, 0)
    other = one + random_logits(1, 100, 0.3, 1)
    distance = float((one.softmax(-1) - other.softmax(-1)).abs().sum()) / 2
    random_keys = torch.randint(-(2**62), 2**62, (draws,), generator=torch.Generator().manual_seed(1))
    with ops.forced(draw=implementation):
        a, b = (ops.draw(x.repeat(draws, 1), torch.ones(draws), random_keys) for x in (one, other))
    share = float((a == b).float().mean())
    assert share > (1 - distance) / (1 + distance) - 0.02 and distance > 0.1


@pytest.mark.parametrize("implementation", implementations("draw"))
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_nothing_is_drawn_where_the_largest_logit_is_not_finite(implementation: str, wrong: float) -> None:
    logits = random_logits(3, 70, 1.0, 0)
    logits[1] = wrong if wrong == -math.inf else logits[1]
    logits[1, 66] = wrong
    with ops.forced(draw=implementation):
        for temperature in (0.0, 1.0):
            tokens = ops.draw(logits, torch.full((3,), temperature), torch.arange(3)).tolist()
            assert tokens[1] == -1 and tokens[0] >= 0 and tokens[2] >= 0


@pytest.mark.parametrize("implementation", implementations("draft_tokens", but="reference"))
@settings(max_examples=40)
@given(configs(), st.data(), st.integers(1, 4), seeds)
def test_draft_tokens(implementation: str, config: ModelConfig, data: st.DataObject, count: int, seed: int) -> None:
    """Networks of every kind, sequences with any pasts: the same drafts, and the same keys and values behind them."""
    if not config.num_nextn_predict_layers:
        return
    page_size, room = 4, 5
    wanted = data.draw(st.lists(st.integers(1, 4), min_size=count, max_size=count))
    lengths = data.draw(st.lists(st.integers(1, 3), min_size=count, max_size=count))
    past = data.draw(st.lists(st.integers(0, 9), min_size=count, max_size=count))
    temperatures = torch.tensor(data.draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=count, max_size=count)))
    order = data.draw(st.permutations(range(room * count)))
    tables = tuple(tuple(order[room * n : room * (n + 1)]) for n in range(count))
    sequences = Sequences(tuple(range(count)), (0,) * count, tuple(past), tuple(lengths), tables, page_size)
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = CausalLM(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.3 if "norm" in name or "A_log" in name else parameter.shape[-1] ** -0.5)
    draws = Draws(
        tuple(wanted), temperatures, torch.randint(-(2**62), 2**62, (count, max(wanted)), generator=generator)
    )
    following = torch.randint(config.vocab_size, (sum(lengths),), generator=generator)
    hidden = torch.randn(sum(lengths), config.hidden_size, generator=generator)
    held = torch.randn(2, room * count, page_size, config.num_key_value_heads, config.head_dim, generator=generator)
    found = []
    for name in ("reference", implementation):
        pool = StatePool(config, count, room * count, page_size, 4, torch.device("cpu"), torch.float32)
        head_pages = pool.pages[len(config.mixers)]
        for pages, values in zip(head_pages, held, strict=True):
            pages.copy_(values)
        with ops.forced(draft_tokens=name):
            drafts = Decoder(model, pool).propose(following, hidden, sequences, draws)
        assert [len(tokens) for tokens in drafts] == wanted
        found.append((drafts, head_pages))
    assert found[0][0] == found[1][0]
    for expected, actual in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_places_that_are_only_remembered_have_the_keys_and_values_of_those_that_are_passed() -> None:
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=50, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=24,
        linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=12,
        num_experts=6, num_experts_per_tok=2, moe_intermediate_size=20, shared_expert_intermediate_size=16,
    )  # fmt: skip
    model = CausalLM(config).eval().requires_grad_(False)
    sequences = Sequences((0, 1), (0, 0), (3, 0), (9, 4), ((2, 0, 4), (3,)), 4)
    following, hidden = torch.randint(50, (13,)), torch.randn(13, 48)
    pages = []
    for way in ("draft", "remember"):
        pool = StatePool(config, 2, 5, 4, 4, torch.device("cpu"), torch.float32)
        getattr(Decoder(model, pool), way)(following, hidden, sequences)
        pages.append(torch.stack(pool.pages[2]))
    assert float(pages[0].abs().max()) > 0
    torch.testing.assert_close(*pages, rtol=1e-5, atol=1e-5)
