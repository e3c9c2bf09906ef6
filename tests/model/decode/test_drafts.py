"""Drafts of a multi-token-prediction head: the native call against one step of the head after the other."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engines import network
from exactness import implementations, seeds
from gossamer import ops
from gossamer.model.causal_lm import CausalLM
from gossamer.model.config import ModelConfig
from gossamer.model.decode.decoder import Decoder
from gossamer.model.decode.drafts import DraftSampling
from gossamer.model.decode.pool import StatePool
from gossamer.ops.sequences import Sequences
from model_configs import configs


@pytest.mark.parametrize("implementation", implementations("draft_tokens", but="reference"))
@settings(max_examples=40)
@given(configs(), st.sampled_from([torch.float32, torch.bfloat16]), st.data(), st.integers(1, 4), seeds)
def test_draft_tokens(
    implementation: str, config: ModelConfig, dtype: torch.dtype, data: st.DataObject, count: int, seed: int
) -> None:
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
    model = model.to(dtype)
    sampling = DraftSampling(
        tuple(wanted), temperatures, torch.randint(-(2**62), 2**62, (count, max(wanted)), generator=generator)
    )
    next_token_ids = torch.randint(config.vocab_size, (sum(lengths),), generator=generator)
    hidden = torch.randn(sum(lengths), config.hidden_size, generator=generator)
    held = torch.randn(2, room * count, page_size, config.num_key_value_heads, config.head_dim, generator=generator)
    found = []
    for name in ("reference", implementation):
        pool = StatePool(config, count, room * count, page_size, 4, torch.device("cpu"), torch.float32)
        head_pages = pool.kv_pages[len(config.mixers)]
        for pages, values in zip(head_pages, held, strict=True):
            pages.copy_(values)
        with ops.forced(draft_tokens=name):
            drafts = Decoder(model, pool).propose(next_token_ids, hidden, sequences, sampling)
        assert [len(tokens) for tokens in drafts] == wanted
        found.append((drafts, head_pages))
    assert found[0][0] == found[1][0]
    for expected, actual in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_a_filled_draft_cache_has_the_keys_and_values_of_a_forward_pass() -> None:
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=50, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=24,
        linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=12,
        num_experts=6, num_experts_per_tok=2, moe_intermediate_size=20, shared_expert_intermediate_size=16,
    )  # fmt: skip
    model = CausalLM(config).eval().requires_grad_(False)
    sequences = Sequences((0, 1), (0, 0), (3, 0), (9, 4), ((2, 0, 4), (3,)), 4)
    next_token_ids, hidden = torch.randint(50, (13,)), torch.randn(13, 48)
    pages = []
    for fills in (False, True):
        pool = StatePool(config, 2, 5, 4, 4, torch.device("cpu"), torch.float32)
        decoder = Decoder(model, pool)
        assert decoder._head is not None
        (decoder.fill_draft_cache if fills else decoder._head.forward)(next_token_ids, hidden, sequences)
        pages.append(torch.stack(pool.kv_pages[2]))
    assert float(pages[0].abs().max()) > 0
    torch.testing.assert_close(*pages, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("implementation", implementations("draft_tokens"))
def test_tokens_that_lie_apart_in_memory_are_read_where_they_lie(implementation: str) -> None:
    model = network()
    next_token_ids, hidden = torch.arange(8).view(4, 2), torch.randn(4, 2, model.config.hidden_size)
    sequences = Sequences(tuple(range(4)), (0,) * 4, (0,) * 4, (1,) * 4, tuple((n,) for n in range(4)), 4)
    sampling = DraftSampling((2,) * 4, torch.zeros(4), torch.zeros(4, 2, dtype=torch.int64))
    drafts = []
    for ids, states in ((next_token_ids[:, 1], hidden[:, 1]), (next_token_ids[:, 1].clone(), hidden[:, 1].clone())):
        pool = StatePool(model.config, 4, 4, 4, 4, torch.device("cpu"), torch.float32)
        with ops.forced(draft_tokens=implementation):
            drafts.append(Decoder(model, pool).propose(ids, states, sequences, sampling))
    assert drafts[0] == drafts[1]
