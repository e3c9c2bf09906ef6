"""The engine as its caller sees it: what it refuses, how answers end, what it counts, what a failure costs."""

from __future__ import annotations

import logging
import math
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from engines import VOCAB, engine, greedy, ids, network, request, run, tokenizer, tokens
from gossamer import ops
from gossamer.data.tokenizer import char_tokenizer
from gossamer.errors import UserError
from gossamer.infer.engine import Engine, EngineOptions
from gossamer.infer.request import Grammar, Request, SamplingParams

PROMPT = tokens(20)


def answer(**sampling: Any) -> tuple[tuple[int, ...], str, Any]:
    """Tokens, text and the last delta of the greedy answer to PROMPT."""
    deltas = run(engine(), [request("x", PROMPT, sampling.pop("count", 12), **sampling)])["x"]
    assert [delta.finish_reason for delta in deltas[:-1]] == [None] * (len(deltas) - 1)
    return ids(deltas), "".join(delta.text for delta in deltas), deltas[-1]


def test_an_answer_as_long_as_was_asked_for() -> None:
    made, text, last = answer()
    assert made == greedy(network(), PROMPT, 12) and text == tokenizer().decode(made)
    assert last.finish_reason == "length"
    assert (last.usage.prompt_tokens, last.usage.completion_tokens, last.usage.cached_tokens) == (20, 12, 0)


def test_the_first_token_comes_with_the_step_that_computes_the_prompt() -> None:
    tried = engine()
    tried.submit(request("x", PROMPT[:5], 3))
    (delta,) = tried.step()
    assert delta.token_ids == greedy(network(), PROMPT[:5], 1)


def test_it_ends_before_a_stop_token_that_is_counted_but_not_shown() -> None:
    whole = greedy(network(), PROMPT, 12)
    stop = next(token for token in whole[4:] if token not in whole[:4])
    made, text, last = answer(stop_token_ids=(stop,))
    assert made == whole[: whole.index(stop)] and text == tokenizer().decode(made)
    assert last.finish_reason == "stop" and last.usage.completion_tokens == len(made) + 1


def test_the_end_of_text_ends_it_unless_it_is_to_be_ignored() -> None:
    eot = tokenizer().eot_id
    made, _, last = answer(ignore_eos=False, logit_bias={eot: 100.0})
    assert made == () and last.finish_reason == "stop" and last.usage.completion_tokens == 1
    made, text, last = answer(logit_bias={eot: 100.0}, count=3)
    assert made == (eot,) * 3 and text == "" and last.finish_reason == "length"


def test_a_stop_string_across_tokens_is_cut_off_and_nothing_of_it_was_shown() -> None:
    whole = tokenizer().decode(greedy(network(), PROMPT, 12))
    stop = whole[5:8]
    end = whole.index(stop)
    made, text, last = answer(stop=(stop, "not in it"))
    assert text == whole[:end] and last.finish_reason == "stop"
    assert len(made) == end + 3  # a token a character here: with those that spell the stop string


def test_what_might_have_become_a_stop_string_is_shown_when_it_did_not() -> None:
    whole = tokenizer().decode(greedy(network(), PROMPT, 12))
    _, text, last = answer(stop=(whole[-3:] + "X",))
    assert text == whole and last.finish_reason == "length"


def test_logprobs_are_of_the_models_own_distribution() -> None:
    asked = request("x", PROMPT, 8, logprobs=3, temperature=2.0, logit_bias={4: 3.0}, seed=0)
    deltas = run(engine(draft_length=2), [asked])["x"]
    made = ids(deltas)
    entries = [entry for delta in deltas for entry in delta.logprobs or ()]
    with torch.no_grad():
        expected = network()(torch.tensor([[*PROMPT, *made]])).logits[0].log_softmax(-1)
    assert [entry.token for entry in entries] == list(made)
    for place, entry in enumerate(entries, len(PROMPT) - 1):
        assert entry.logprob == pytest.approx(float(expected[place, entry.token]), abs=1e-4)
        assert [token for token, _ in entry.top] == expected[place].topk(3).indices.tolist()


@pytest.mark.parametrize("draft_length", [0, 2])
@pytest.mark.parametrize("how", [{}, {"temperature": 3.0, "seed": 1}, {"temperature": 3.0, "logit_bias": {7: 100.0}}])
def test_a_row_of_the_embedding_without_a_token_is_never_sampled(how: dict[str, Any], draft_length: int) -> None:
    few = char_tokenizer(["abcdef"])  # of 50 rows
    options = EngineOptions(max_batch=1, page_size=8, cache_tokens=128, draft_length=draft_length)
    deltas = run(Engine(network(), few, options), [request("x", PROMPT, 40, logprobs=20, **how)])["x"]
    assert len(ids(deltas)) == 40 and max(ids(deltas)) < few.vocab_size == 7
    told = [token for delta in deltas for token in delta.logprobs or ()]
    assert all(len(token.top) == 7 and math.isfinite(token.logprob) for token in told)
    if not how:
        logits = network()(torch.tensor([PROMPT])).logits[0, -1, :7]
        assert ids(deltas)[0] == int(logits.argmax()) and greedy(network(), PROMPT, 1) != ids(deltas)[:1]
        assert told[0].logprob == pytest.approx(float(logits.log_softmax(0).max()), abs=1e-4)


@pytest.mark.parametrize("draft_length", [0, 3])
def test_a_grammar_is_kept_to_and_ends_the_answer(draft_length: int) -> None:
    grammar = Grammar("regex", "(AB){3}[C-E]{2}")
    asked = request("x", PROMPT, 40, grammar=grammar, ignore_eos=False, temperature=1.0, seed=1)
    deltas = run(engine(draft_length=draft_length), [asked])["x"]
    text = "".join(delta.text for delta in deltas)
    assert text[:6] == "ABABAB" and len(text) == 8 and set(text[6:]) <= set("CDE")
    assert deltas[-1].finish_reason == "stop"


def refusals() -> list[Any]:
    params = SamplingParams(1)
    biased, stopping = SamplingParams(1, logit_bias={VOCAB: 1.0}), SamplingParams(1, stop_token_ids=(99,))
    unreadable, long = SamplingParams(1, grammar=Grammar("regex", "(")), SamplingParams(13)
    return [
        pytest.param(Request("x", (), params), "prompt is empty", id="empty"),
        pytest.param(Request("x", (VOCAB,), params), f"token id {VOCAB}", id="token"),
        pytest.param(Request("x", (-1,), params), "token id -1", id="negative"),
        pytest.param(Request("x", (1,), biased), f"token id {VOCAB}", id="bias"),
        pytest.param(Request("x", (1,), stopping), "token id 99", id="stop"),
        pytest.param(Request("x", (1,) * 500, long), r"500 \+ 13 tokens exceed the model's 512", id="long"),
        pytest.param(Request("x", (1,), unreadable), "grammar: regex", id="grammar"),
        pytest.param(Request("x", (1,) * 5, params, boundaries=(9,)), "boundary 9", id="boundary"),
    ]


@pytest.mark.parametrize(("asked", "words"), refusals())
def test_what_could_never_be_answered_is_refused(asked: Request, words: str) -> None:
    tried = engine()
    with pytest.raises(UserError, match=words):
        tried.submit(asked)
    assert not tried.has_work


def test_a_text_longer_than_the_cache_is_refused() -> None:
    tried = engine(cache_tokens=64)
    assert tried.max_length == 64
    with pytest.raises(UserError, match=r"60 \+ 5 tokens exceed the cache's 64"):
        tried.submit(request("x", tokens(60), 5))
    assert len(ids(run(tried, [request("x", tokens(60), 4)])["x"])) == 4


def test_an_id_is_free_again_when_its_answer_has_ended() -> None:
    tried = engine()
    tried.submit(request("x", PROMPT, 2))
    with pytest.raises(UserError, match="'x' is under way"):
        tried.submit(request("x", PROMPT, 2))
    while tried.has_work:
        tried.step()
    tried.submit(request("x", PROMPT, 2))


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_an_aborted_request_leaves_at_once_and_the_others_do_not_notice(steps: int) -> None:
    tried = engine(max_batch=2, prefill_chunk=8, prefix_cache_bytes=0)
    for name, prompt in (("a", PROMPT), ("b", tokens(30, seed=4)), ("c", PROMPT[:9])):
        tried.submit(request(name, prompt, 10))
    found: dict[str, list[int]] = {"a": [], "b": [], "c": []}
    for _ in range(steps):
        for delta in tried.step():
            found[delta.id] += delta.token_ids
    last = tried.abort("b")
    assert last is not None and last.finish_reason == "abort" and last.usage is not None
    assert tried.abort("b") is None and tried.abort("never seen") is None
    while tried.has_work:
        for delta in tried.step():
            found[delta.id] += delta.token_ids
    assert tuple(found["a"]) == greedy(network(), PROMPT, 10) and tuple(found["c"]) == greedy(network(), PROMPT[:9], 10)
    stats = tried.stats()
    assert stats.cache_tokens_used == 0 and stats.finished == {"abort": 1, "length": 2}


def test_memory_is_given_back() -> None:
    tried = engine(prefix_cache_bytes=30_000, cache_tokens=160, draft_length=2)
    for round in range(6):
        run(tried, [request(str(n), tokens(10 + 7 * n, seed=10 * round + n), 9) for n in range(5)])
        stats = tried.stats()
        assert stats.queued == stats.running == 0 and stats.snapshot_bytes <= 30_000
    scheduler = tried._scheduler
    while scheduler.cache.evict():
        pass
    assert scheduler.pages.num_free == scheduler.pages.total and len(scheduler._free_slots) == 4


def test_statistics_add_up() -> None:
    tried = engine(draft_length=0)
    run(tried, [request("a", PROMPT, 5)])
    run(tried, [request("b", PROMPT, 5)])
    stats = tried.stats()
    assert (stats.prefix_queries, stats.prefix_hits, stats.prefix_tokens) == (2, 1, 16)
    assert stats.prompt_tokens == 20 + 4 and stats.completion_tokens == 10
    assert stats.finished == {"length": 2} and stats.snapshots > 0 and stats.steps >= 10


def poisoned(tried: Any, token: int, how: str) -> None:
    """The model fails, or gives NaN, wherever the token is among the inputs."""
    take = tried._decoder.forward

    def fails(packed: Tensor, *rest: Any) -> Tensor:
        wrong = packed == token
        if how == "raises" and bool(wrong.any()):
            raise RuntimeError("no such luck")
        hidden: Tensor = take(packed, *rest)
        hidden[wrong] = math.nan
        return hidden

    tried._decoder.forward = fails


@pytest.mark.parametrize("how", ["raises", "gives nan"])
def test_a_request_that_fails_does_not_take_the_others_with_it(how: str, caplog: pytest.LogCaptureFixture) -> None:
    prompts = {"a": PROMPT[:7], "b": tokens(9, seed=2), "c": tokens(12, seed=3)}
    expected = {name: greedy(network(), prompt, 8) for name, prompt in prompts.items()}
    others = {token for name in "ac" for token in (*prompts[name], *expected[name])}
    bad = next(token for token in range(1, VOCAB) if token not in others)
    tried = engine(draft_length=0, prefix_cache_bytes=0)
    poisoned(tried, bad, how)
    with caplog.at_level(logging.CRITICAL, "gossamer"):
        found = run(tried, [request(name, (*prompt, *[bad] * (name == "b")), 8) for name, prompt in prompts.items()])
    assert found["b"][-1].finish_reason == "error" and found["b"][-1].error
    assert {name: ids(found[name]) for name in "ac"} == {name: expected[name] for name in "ac"}
    assert tried.stats().cache_tokens_used == 0 and not tried.has_work


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_batch": 0}, {"prefill_chunk": 0}, {"page_size": 0}, {"snapshot_interval": 10}, {"prefix_cache_bytes": -1},
        {"cache_tokens": 5}, {"draft_length": -1}, {"draft_length": "often"}, {"max_draft": 0},
    ],
    ids=str,
)  # fmt: skip
def test_options_that_do_not_fit_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        EngineOptions(**wrong)


def test_a_model_without_a_head_makes_no_drafts() -> None:
    model = network(heads=0)
    tried = engine(model, draft_length=3)
    assert ids(run(tried, [request("x", PROMPT, 6)])["x"]) == greedy(model, PROMPT, 6)
    assert tried.stats().drafted == 0


def test_a_head_that_fails_is_done_without(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    prompts = {str(n): tokens(9 + n, seed=n) for n in range(3)}
    tried = engine(draft_length=2)

    def fail(*_: object) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(tried._decoder, "propose", fail)
    for _ in range(2):  # the second time from the prefix cache
        found = run(tried, [request(id, prompt, 8) for id, prompt in prompts.items()])
        assert {id: ids(deltas) for id, deltas in found.items()} == {
            id: greedy(network(), prompt, 8) for id, prompt in prompts.items()
        }
    assert caplog.text.count("drafts failed") == 1 and tried.stats().drafted == 0


@pytest.mark.parametrize("drafts", [0, 2])
@pytest.mark.parametrize("through", ["native", "PyTorch alone"])
def test_a_text_whose_logits_are_not_finite_ends_alone_and_says_where(drafts: int, through: str) -> None:
    """What it leaves in memory spoils nobody's answer, neither beside it nor after it."""
    sound = deepcopy(network())
    sound.lm_head.weight.data[7] = 0.0  # nobody writes it
    broken = deepcopy(sound)
    broken.model.embed_tokens.weight.data[7] = float("nan")
    others = [
        request(str(seed), (token for token in tokens(20 + seed, seed) if token != 7), 9, logit_bias={7: -math.inf})
        for seed in range(4)
    ]
    bad, worse = request("bad", (3, 7, 5), 9), request("worse", (3, 7, *tokens(40)), 9)
    options = EngineOptions(max_batch=3, cache_tokens=192, page_size=16, draft_length=drafts)
    with ops.forced(**({} if through == "native" else ops.pytorch_only())):
        found = run(Engine(broken, tokenizer(), options), [bad, *others, worse])
        expected = run(Engine(sound, tokenizer(), options), others)
    for name in ("bad", "worse"):
        assert found[name][-1].finish_reason == "error"
        assert "not finite at the embedding: 32 of 1600 numbers of" in found[name][-1].error
    for one in others:
        assert ids(found[one.id]) == ids(expected[one.id]) and found[one.id][-1].finish_reason == "length"


def test_a_text_with_every_token_forbidden_is_not_the_models_fault() -> None:
    made = run(engine(), [request("x", PROMPT, 5, logit_bias=dict.fromkeys(range(VOCAB), -math.inf))])["x"]
    assert made[-1].error == "what the request forbids leaves no token that may come next"
