"""What the engine says is what the plain full forward pass says, whatever is done to be fast about it."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engines import VOCAB, engine, greedy, ids, network, request, run, tokens
from gossamer import ops
from gossamer.infer.engine import Engine
from gossamer.infer.request import Request, SamplingParams
from gossamer.infer.sampler import Sampler, sample

PROMPTS = [tokens(length, seed=length) for length in (1, 3, 20, 45, 70)]
ANSWER = 24  # tokens


@cache
def answers() -> list[tuple[int, ...]]:
    return [greedy(network(), prompt, ANSWER) for prompt in PROMPTS]


def foresee(engine: Engine, texts: dict[str, tuple[int, ...]], wrong: float, seed: int = 0) -> None:
    """Drafts that are right but for a share of them: random weights draft nothing that is ever accepted."""
    drafter, source = engine._drafter, random.Random(seed)
    assert drafter is not None
    propose = drafter.propose

    def guess(length: int) -> None:
        propose(length)
        for running in engine._scheduler.running:
            right = texts[running.id][len(running.tokens) :]
            known = [*right[: len(running.drafts)], *running.drafts[len(right) :]]
            running.drafts = [source.randrange(VOCAB) if source.random() < wrong else token for token in known]

    drafter.propose = guess  # type: ignore[method-assign]


@contextmanager
def implementations(which: str) -> Iterator[None]:
    with ops.forced(**(ops.pytorch_only() if which == "pytorch alone" else {})):
        yield


@pytest.mark.parametrize("memory", [1024, 128], ids=["room", "preempting"])
@pytest.mark.parametrize("prefix_cache_bytes", [0, 1 << 20], ids=["no-cache", "cache"])
@pytest.mark.parametrize("prefill_chunk", [7, 64])
@pytest.mark.parametrize("draft_length", [0, 1, 3, "auto"])
@pytest.mark.parametrize("max_batch", [1, 4])
@pytest.mark.parametrize("which", ["as chosen", "pytorch alone"])
def test_greedy_answers_are_those_of_the_full_forward(
    which: str, max_batch: int, draft_length: int | str, prefill_chunk: int, prefix_cache_bytes: int, memory: int
) -> None:
    slower = (max_batch, prefill_chunk, bool(prefix_cache_bytes)) == (4, 7, True) and draft_length in (0, 3)
    if which == "pytorch alone" and not slower:
        pytest.skip("one batch, chunk and cache are enough for the slower operations, with and without drafts")
    if max_batch == 1 and prefill_chunk == 7:
        pytest.skip("one chunk is enough where nobody runs beside: a prompt's chunks are the same in a batch")
    expected = answers()
    tried = engine(
        max_batch=max_batch, draft_length=draft_length, prefill_chunk=prefill_chunk, cache_tokens=memory,
        prefix_cache_bytes=prefix_cache_bytes,
    )  # fmt: skip
    if draft_length:
        foresee(tried, {str(n): (*PROMPTS[n], *expected[n]) for n in range(len(PROMPTS))}, wrong=0.3)
    with implementations(which):
        for _ in range(2 if prefix_cache_bytes else 1):  # the second time from the prefix cache
            found = run(tried, [request(str(n), prompt, ANSWER) for n, prompt in enumerate(PROMPTS)])
            assert [ids(found[str(n)]) for n in range(len(PROMPTS))] == expected
    stats = tried.stats()
    if draft_length in (1, 3):
        assert 0 < stats.accepted < stats.drafted
    if prefix_cache_bytes and memory == 1024:
        assert stats.prefix_hits >= 3 and stats.prefix_tokens > 0
    if memory == 128 and max_batch == 4:
        assert stats.preemptions > 0


def sampled(prompt: tuple[int, ...], sampling: SamplingParams) -> tuple[int, ...]:
    """Token by token from full forward passes."""
    sampler, text = Sampler(sampling, prompt), list(prompt)
    for _ in range(sampling.max_tokens):
        with torch.no_grad():
            logits = network()(torch.tensor([text])).logits[0, -1:]
        if sampler.has_adjustments:
            sampler.adjust(logits[0])
        token = sample(logits, [sampler], [len(text)])[0]
        sampler.count(token)
        text.append(token)
    return tuple(text[len(prompt) :])


SAMPLINGS = st.builds(
    SamplingParams,
    max_tokens=st.integers(1, 12),
    temperature=st.sampled_from([0.0, 0.5, 1.5]),
    top_k=st.sampled_from([0, 1, 5]),
    top_p=st.sampled_from([1.0, 0.7]),
    min_p=st.sampled_from([0.0, 0.2]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    presence_penalty=st.sampled_from([0.0, 0.5]),
    frequency_penalty=st.sampled_from([0.0, -0.4]),
    logit_bias=st.sampled_from([{}, {3: 4.0, 7: float("-inf")}]),
    seed=st.integers(0, 2**40),
    ignore_eos=st.just(True),
)


@settings(max_examples=25)
@given(
    requests=st.lists(st.tuples(st.integers(1, 40), SAMPLINGS, st.integers(0, 6)), min_size=1, max_size=5),
    draft_length=st.integers(0, 3),
    prefill_chunk=st.integers(1, 40),
    cache=st.sampled_from([0, 30_000, 1 << 20]),
    memory=st.sampled_from([64, 96, 1024]),
    wrong=st.floats(0, 1),
)
def test_sampled_answers_are_those_of_the_full_forward_whatever_runs_beside_them(
    requests: list[tuple[int, SamplingParams, int]], draft_length: int, prefill_chunk: int, cache: int, memory: int,
    wrong: float,
) -> None:  # fmt: skip
    """Prompts begin alike, so that they share prefixes; the requests come a few steps one after the other."""
    whole = tokens(40, seed=1)
    expected = {str(n): sampled(whole[:length], params) for n, (length, params, _) in enumerate(requests)}
    tried = engine(
        draft_length=draft_length, prefill_chunk=prefill_chunk, prefix_cache_bytes=cache, cache_tokens=memory
    )
    if draft_length:
        texts = {str(n): (*whole[:length], *expected[str(n)]) for n, (length, _, _) in enumerate(requests)}
        foresee(tried, texts, wrong)
    found: dict[str, list[int]] = {id: [] for id in expected}
    for number, (length, params, steps) in enumerate(requests):
        tried.submit(Request(str(number), whole[:length], params, boundaries=(length // 2,)))
        for delta in (delta for _ in range(steps) for delta in tried.step()):
            found[delta.id] += delta.token_ids
    while tried.has_work:
        for delta in tried.step():
            found[delta.id] += delta.token_ids
    assert {id: tuple(made) for id, made in found.items()} == expected


def test_a_second_prompt_goes_on_from_the_first_ones_answer() -> None:
    first = tokens(30)
    answer = greedy(network(), first, 20)
    second = (*first, *answer, *tokens(9, seed=5))
    tried = engine(draft_length=2)
    run(tried, [request("a", first, 20)])
    found = run(tried, [request("b", second, 10)])["b"]
    assert ids(found) == greedy(network(), second, 10)
    assert found[-1].usage is not None and found[-1].usage.cached_tokens == 30 + 20 - 1  # all but the last token


def test_a_snapshot_lies_behind_every_message() -> None:
    prompt = tokens(45)
    tried = engine(page_size=8, snapshot_interval=64)
    run(tried, [request("a", prompt, 1, boundaries=(13, 29))])
    for shared, expected in ((13, 13), (14, 13), (29, 29), (35, 29), (44, 40)):
        other = (*prompt[:shared], *tokens(3, seed=8))
        found = run(tried, [request("b", other, 3)])["b"]
        assert ids(found) == greedy(network(), other, 3)
        assert found[-1].usage is not None and found[-1].usage.cached_tokens == expected


@pytest.mark.parametrize("shared", [8, 13, 16, 39])
def test_drafts_after_a_shared_prefix_are_those_without_it(shared: int) -> None:
    """The head looks a token ahead: what it kept of the last shared token belongs to the other text."""
    prompt, other = tokens(40), (*tokens(40)[:shared], *tokens(12, seed=3))
    made: list[list[list[int]]] = []
    for first in ([], [request("a", prompt, 4, boundaries=(shared,))]):
        tried = engine(draft_length=2)
        run(tried, first)
        tried.submit(request("b", other, 6))
        made.append([])
        while tried.has_work:
            tried.step()
            made[-1] += [list(running.drafts) for running in tried._scheduler.running if running.is_decoding]
    assert made[0] == made[1] and any(made[0])
    assert tried.stats().prefix_hits == 1


def test_drafts_are_the_heads_own() -> None:
    """One step deep: the likeliest token by the head after the trunk's hidden states of the plain forward pass."""
    prompt, model = tokens(20), network()
    tried = engine(draft_length=1)
    tried.submit(request("a", prompt, 10))
    checked = 0
    while tried.has_work:
        tried.step()
        for running in tried._scheduler.running:
            if not running.is_decoding or len(running.tokens) + 1 == running.max_length:
                continue  # nothing to draft yet, or no room for a draft and the token behind it
            text = torch.tensor([running.tokens])
            with torch.no_grad():
                hidden = model(text, labels=text).drafts[0][0, -2]
                assert running.drafts == [int(model.lm_head(hidden).argmax())]
            checked += 1
    assert checked > 5


def test_speculation_leaves_the_distribution_as_it_is() -> None:
    """The first two tokens of many answers, drafted by guesses of which half are wrong, against the model's own."""
    prompt, model, draws = tokens(6), network(), 3000
    with torch.no_grad():
        first = (model(torch.tensor([prompt])).logits[0, -1] / 0.5).softmax(-1)
        pairs = torch.tensor([[*prompt, token] for token in range(VOCAB)])
        second = (model(pairs).logits[:, -1] / 0.5).softmax(-1)
    joint = (first[:, None] * second).flatten()
    likeliest = divmod(int(joint.argmax()), VOCAB)
    tried = engine(draft_length=2, max_batch=16, cache_tokens=16 * 16)
    foresee(tried, {str(n): (*prompt, *likeliest, 0, 0, 0) for n in range(draws)}, wrong=0.5)
    made = run(tried, [request(str(n), prompt, 4, temperature=0.5, seed=n) for n in range(draws)])
    assert tried.stats().accepted > draws / 20
    counts = torch.zeros(VOCAB * VOCAB)
    for deltas in made.values():
        a, b, *_ = ids(deltas)
        counts[a * VOCAB + b] += 1
    common = joint * draws >= 10
    seen = torch.cat([counts[common], counts[~common].sum()[None]])
    expected = torch.cat([joint[common], joint[~common].sum()[None]]) * draws
    chi2, freedom = float(((seen - expected) ** 2 / expected).sum()), len(seen) - 1
    assert chi2 < freedom + 4 * (2 * freedom) ** 0.5  # four standard deviations


def test_a_request_does_not_see_its_neighbors() -> None:
    asked = request("x", tokens(25, seed=2), 20, temperature=0.9, seed=7)
    alone = ids(run(engine(), [asked])["x"])
    for seed in range(4):
        others = [request(str(n), tokens(5 + 9 * n, seed=seed), 15, temperature=1.0) for n in range(3)]
        assert ids(run(engine(draft_length=seed), [*others[:2], asked, *others[2:]])["x"]) == alone


@pytest.mark.parametrize("draft_length", [0, 2])
@pytest.mark.parametrize("which", ["as chosen", "pytorch alone"])
def test_weights_in_bfloat16_answer_as_the_same_weights_in_float32(which: str, draft_length: int) -> None:
    """Nothing is rounded again: prompts of every length go through the native layers and through the modules."""
    narrow = network(dtype=torch.bfloat16)
    wide = copy.deepcopy(narrow).float()
    tried = engine(narrow, draft_length=draft_length, prefill_chunk=96)
    prompts = {str(length): tokens(length, seed=length) for length in (5, 90)}
    with implementations(which):
        found = run(tried, [request(id, prompt, 12) for id, prompt in prompts.items()])
    assert {id: ids(deltas) for id, deltas in found.items()} == {
        id: greedy(wide, prompt, 12) for id, prompt in prompts.items()
    }
    assert narrow.lm_head.weight.dtype == torch.bfloat16
    with torch.no_grad():
        text = torch.tensor([prompts["90"]])
        torch.testing.assert_close(narrow(text).logits, wide(text).logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(narrow(text, text).loss, wide(text, text).loss)
