"""Grammars that cost too much are refused or given up, and nobody else's text waits for them."""

from __future__ import annotations

import time
from functools import cache
from typing import Any

import pytest

from engines import engine, greedy, ids, network, request, run, tokenizer, tokens
from gossamer.infer.grammar import GrammarError, Grammars, Matcher
from gossamer.infer.request import Delta, Grammar

CHAIN = "start: r0\n" + "".join(f"r{n}: r{n + 1}\n" for n in range(3000)) + 'r3000: "a"\n'
MANY = "start: " + " | ".join(f'"w{n}x"' for n in range(20_000))


@cache
def grammars() -> Grammars:
    return Grammars(tokenizer(), network().config.vocab_size)


def first_tokens(matcher: Matcher) -> list[int]:
    return [int(token) for token in matcher.allowed().nonzero().flatten()]


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        pytest.param("lark", CHAIN, "nested too deeply", id="a chain of rules, which overflows the stack"),
        pytest.param("lark", 'start: "' + "a" * 300_000 + '"', "too long", id="a long literal"),
        pytest.param("json_schema", '{"a":' * 5000 + "1" + "}" * 5000, "recursion limit", id="a deep schema"),
        pytest.param("lark", "start: " + "(" * 5000 + '"a"' + ")" * 5000, "too deeply nested", id="deep brackets"),
        pytest.param("regex", "(", "unclosed group", id="no expression"),
        pytest.param("regex", "(?=a)b", "look-around", id="what the library cannot"),
        pytest.param("regex", "\ud800", "half of a surrogate pair", id="no text"),
        pytest.param("json_schema", '{"type": "nothing"}', "nothing", id="no schema"),
    ],
)
def test_what_cannot_be_compiled_is_refused_in_a_line(kind: Any, text: str, words: str) -> None:
    began = time.monotonic()
    with pytest.raises(GrammarError, match=words) as refusal:
        grammars().matcher(Grammar(kind, text))
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 400 and time.monotonic() - began < 60
    assert first_tokens(grammars().matcher(Grammar("regex", "A"))) == tokenizer().encode("A")


@pytest.mark.parametrize(
    ("kind", "text"), [("lark", MANY), ("regex", "a{1000000}"), ("regex", "(a|b|ab){1,2000}(x|y){500}c.{9000}")]
)
def test_what_is_too_much_at_some_token_says_so_or_goes_on(kind: Any, text: str) -> None:
    began = time.monotonic()
    try:
        matcher = grammars().matcher(Grammar(kind, text))
        for _ in range(20):
            if matcher.has_ended or not (allowed := first_tokens(matcher)):
                break
            matcher.consume(allowed[0])
    except GrammarError as error:
        assert str(error).startswith("grammar: ") and "\n" not in str(error)
    assert time.monotonic() - began < 120


def test_a_token_that_is_not_allowed_is_an_error_and_changes_nothing() -> None:
    matcher = grammars().matcher(Grammar("regex", "AB"))
    a, b = tokenizer().encode("A") + tokenizer().encode("B")
    with pytest.raises(ValueError, match=f"token {b} breaks the grammar"):
        matcher.consume(b)
    matcher.consume(a)
    matcher.consume(b)
    assert matcher.has_ended


def slowly(matcher: Matcher, steps: int) -> Matcher:
    """As if its process took so many steps of the engine for every token."""
    worker, asked = matcher._worker, [0]
    send, answered = worker.send, worker.has_answered

    def send_late(message: bytes, limit: float) -> None:
        asked[0] = 0
        send(message, limit)

    def has_answered() -> bool:
        asked[0] += 1
        return asked[0] > steps and answered()

    worker.send = send_late  # type: ignore[method-assign]
    worker.has_answered = has_answered  # type: ignore[method-assign]
    matcher.__class__ = type("Slow", (Matcher,), {"is_quick": property(lambda self: False)})
    read_mask = matcher._read_mask

    def read() -> None:
        read_mask()
        matcher._is_quick = False

    matcher._read_mask = read  # type: ignore[method-assign]
    matcher._is_quick = False
    return matcher


@pytest.mark.parametrize("draft_length", [0, 2])
def test_a_slow_grammar_holds_up_no_one_but_itself(draft_length: int) -> None:
    tried = engine(draft_length=draft_length)
    grammar = Grammar("regex", "(AB){3}[C-E]{2}")
    alone = ids(run(engine(), [request("g", tokens(20), 40, grammar=grammar, ignore_eos=False)])["g"])
    other = tokens(9, seed=2)
    tried.submit(request("g", tokens(20), 40, grammar=grammar, ignore_eos=False), slowly(tried.matcher(grammar), 3))
    tried.submit(request("o", other, 40))
    found: dict[str, list[Delta]] = {"g": [], "o": []}
    steps_of_other = 0
    while tried.has_work:
        for delta in tried.step():
            found[delta.id].append(delta)
            steps_of_other += delta.id == "o" and not found["g"][3:]
    assert ids(found["o"]) == greedy(network(), other, 40) and found["o"][-1].finish_reason == "length"
    assert ids(found["g"]) == alone and found["g"][-1].finish_reason == "stop"
    assert steps_of_other > 3  # it went on while the grammar was thought about


def test_a_grammar_that_fails_under_way_ends_its_request_alone() -> None:
    tried = engine()
    matcher = tried.matcher(Grammar("regex", "[A-Z]*"))
    tried.submit(request("g", tokens(20), 40, grammar=Grammar("regex", "[A-Z]*")), matcher)
    tried.submit(request("o", tokens(9), 8))
    found: dict[str, list[Delta]] = {"g": [], "o": []}
    while tried.has_work:
        for delta in tried.step():
            found[delta.id].append(delta)
        matcher._worker.close()
    last = found["g"][-1]
    assert (last.finish_reason, last.cause) == ("error", "grammar") and last.error
    assert ids(found["o"]) == greedy(network(), tokens(9), 8)


def test_what_leaves_no_token_is_told_apart_from_logits_that_are_not_finite() -> None:
    everything = {token: float("-inf") for token in range(network().config.vocab_size)}
    (delta,) = run(engine(), [request("x", tokens(5), 3, logit_bias=everything)])["x"]
    assert (delta.finish_reason, delta.cause) == ("error", "grammar")
    broken = engine()
    broken._decoder.logits = lambda hidden: hidden @ hidden.new_full((hidden.shape[-1], 300), float("nan"))
    (delta,) = run(broken, [request("x", tokens(5), 3)])["x"]
    assert (delta.finish_reason, delta.cause) == ("error", "logits") and "not finite" in str(delta.error)
