"""Parts of the engine by themselves: pages, the prefix cache, text with stop strings, the length of drafts."""

from __future__ import annotations

import itertools
import random
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engines import tokenizer
from gossamer.infer.draft_length import DraftLength
from gossamer.infer.prefix_cache import Entry, PageAllocator, PrefixCache
from gossamer.infer.running_request import StopStringFilter
from gossamer.model.decode.pool import StateSnapshot


def test_a_page_is_free_when_nobody_holds_it() -> None:
    pages = PageAllocator(4)
    first = pages.allocate(3)
    pages.share(first[:1])
    pages.release(first)
    assert pages.num_free == 3
    pages.release(first[:1])
    assert pages.num_free == 4
    with pytest.raises(AssertionError, match="free already"):
        pages.release(first[:1])
    with pytest.raises(AssertionError, match="5 pages wanted"):
        pages.allocate(5)


def entry(pages: PageAllocator, length: int) -> Entry:
    held = pages.allocate(1)
    made = Entry(length, tuple(held), StateSnapshot((), (torch.zeros(25),)), length - 1, None)
    return made


def test_the_longest_beginning_is_found_and_the_least_used_given_up() -> None:
    pages = PageAllocator(8)
    cache = PrefixCache(pages, capacity=3 * 100)
    entries = {length: entry(pages, length) for length in (2, 4, 6)}
    for length, one in entries.items():
        cache.add(range(length), one)
        pages.release(one.pages)  # who computed it has gone; the cache holds on
    assert cache.find(range(5)) is entries[4] and cache.find(range(7)) is entries[6]
    assert cache.find(range(6)) is entries[4]  # not the whole text: a token is left to compute
    assert cache.find([0, 1, 9, 9]) is entries[2] and cache.find([5, 5, 5]) is None and cache.find([0, 1]) is None
    fourth = entry(pages, 3)
    cache.add([7, 7, 7], fourth)
    assert cache.find(range(7)) is entries[4]  # 6 was used longest ago
    assert cache.nbytes == 300 and len(cache) == 3 and pages.num_free == 8 - 3


def test_what_does_not_fit_is_not_kept() -> None:
    pages = PageAllocator(2)
    cache = PrefixCache(pages, capacity=99)
    cache.add([1, 2], entry(pages, 2))
    assert len(cache) == 0 and not cache.evict()


@given(st.lists(st.sampled_from("ABC"), max_size=14), st.lists(st.text("ABC", min_size=1, max_size=4), max_size=3))
def test_text_ends_before_the_first_stop_string_and_nothing_shown_is_taken_back(
    characters: list[str], stops: list[str]
) -> None:
    whole, out, shown = "".join(characters), StopStringFilter(tokenizer(), stops), ""
    for position, token in enumerate(tokenizer().encode(whole)):
        shown += out.push(token)
        soonest = [end for stop in stops for end in range(position + 2) if whole[:end].endswith(stop)]
        assert out.has_stopped == bool(soonest)
        if out.has_stopped:
            end = position + 1
            assert shown == whole[: min(whole[:end].find(stop) for stop in stops if stop in whole[:end])]
            assert out.finish() == ""
            return
        assert whole.startswith(shown)
    assert shown + out.finish() == whole


def simulate(lengths: DraftLength, cost: dict[int, float], acceptance: float, steps: int, batch: int = 1) -> list[int]:
    """Lengths chosen over time, where a step with so many drafts takes so long and each draft is right so often."""
    chosen, generator = [], torch.Generator().manual_seed(0)
    for _ in range(steps):
        length = lengths.length(batch)
        chosen.append(length)
        accepted = 0
        while accepted < length and float(torch.rand((), generator=generator)) < acceptance:
            accepted += 1
        lengths.record_acceptance(length, accepted)
        lengths.record_seconds(batch, length, verify=cost[length], draft=0.0 if length else None)
    return chosen


def test_drafts_that_pay_are_made() -> None:
    chosen = simulate(DraftLength("auto", 4), {n: 1 + 0.1 * n for n in range(5)}, acceptance=0.95, steps=400)
    assert sum(length >= 3 for length in chosen[100:]) > 280


@pytest.mark.parametrize(("acceptance", "price"), [(0.0, 0.05), (0.5, 0.8), (0.97, 1.5)])
def test_drafts_that_do_not_pay_are_given_up(acceptance: float, price: float) -> None:
    chosen = simulate(DraftLength("auto", 4), {n: 1 + price * n for n in range(5)}, acceptance, steps=3000)
    assert sum(length > 0 for length in chosen) < 60


def test_trials_of_what_does_not_pay_are_ever_rarer() -> None:
    chosen = simulate(DraftLength("auto", 4), {n: 1 + 0.8 * n for n in range(5)}, acceptance=0.5, steps=20_000)
    begins = [step for step in range(16, len(chosen)) if chosen[step] and not any(chosen[step - 16 : step])]
    waits = [later - sooner for sooner, later in itertools.pairwise(begins)]
    assert waits == sorted(waits) and len(waits) > 5 and waits[-1] > 4000
    assert sum(length > 0 for length in chosen[2000:]) < 0.005 * 18_000


def test_drafts_that_begin_to_pay_are_found_and_those_that_cease_to_are_given_up() -> None:
    lengths, cost = DraftLength("auto", 4), {n: 1 + 0.3 * n for n in range(5)}
    assert simulate(lengths, cost, acceptance=0.1, steps=500)[-50:].count(0) > 40
    assert simulate(lengths, cost, acceptance=0.95, steps=2000)[-50:].count(0) < 10
    assert simulate(lengths, cost, acceptance=0.0, steps=300)[-50:].count(0) > 40


def share_of_speed(seed: int, acceptance: float) -> float:
    """The speed beside that without drafts, on a machine whose speed changes, where drafts do not pay."""
    chance, lengths, speed, seconds = random.Random(seed), DraftLength("auto", 4), 1.0, 0.0
    cost = {0: 1.0, 1: 1.9, 2: 2.3, 3: 2.8, 4: 3.4}  # of a step of small networks: one without drafts is the best
    tokens, steps = 0, 4000
    for _ in range(steps):
        if chance.random() < 0.02:
            speed = chance.choice([0.7, 1.0, 1.4, 2.0])  # another program comes or goes
        length, accepted = lengths.length(1), 0
        while accepted < length and chance.random() < acceptance:
            accepted += 1
        lengths.record_acceptance(length, accepted)
        measured = [speed * part * cost[length] * chance.choice([1.0, 1.0, 1.0, 1.1, 1.5]) for part in (0.7, 0.3)]
        lengths.record_seconds(1, length, measured[0] if length else sum(measured), measured[1] if length else None)
        seconds, tokens = seconds + cost[length], tokens + 1 + accepted
    return tokens / seconds


@pytest.mark.parametrize("acceptance", [0.3, 0.5, 0.6])
def test_drafts_that_do_not_pay_cost_little_on_a_machine_whose_speed_changes(acceptance: float) -> None:
    """One run in hundreds may be unlucky in a trial, so the mean counts."""
    shares = [share_of_speed(seed, acceptance) for seed in range(12)]
    assert statistics.mean(shares) > 0.97 and min(shares) > 0.85


def test_what_pays_alone_may_not_pay_in_a_batch() -> None:
    lengths = DraftLength("auto", 3)
    assert simulate(lengths, {n: 1 + 0.1 * n for n in range(4)}, 0.9, 200, batch=1)[-10:].count(0) == 0
    assert simulate(lengths, {n: 1 + 2.0 * n for n in range(4)}, 0.9, 200, batch=16)[-10:].count(0) >= 9


def test_a_fixed_length_stays() -> None:
    assert set(simulate(DraftLength(2, 4), {2: 9.0}, 0.0, 50)) == {2}
