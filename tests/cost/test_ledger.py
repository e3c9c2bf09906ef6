"""Every device-second on one account, and sums that can be checked by hand."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.cost.ledger import LEDGER_FILE, OVERHEADS, STEPS, Ledger, Work, read_ledger
from gossamer.errors import UserError

PARTS = {"experts": 6.0, "head": 4.0}  # FLOPs per token


def ledger(**values):
    """Two devices of 1000 FLOP/s each, for 7.2 a device-hour."""
    return Ledger(**{"device": "chip", "devices": 2, "peak": 1000.0, "price": 7.2} | values)


def test_a_step_is_booked_on_all_devices():
    book = ledger()
    book.book_step(True, 100, PARTS, 1.0)
    book.book_step(False, 100, PARTS, 0.5)
    book.book_overhead("evaluation", 0.5)
    assert book.useful == Work(1, 100, {"experts": 600.0, "head": 400.0}, 2.0, 2000.0)
    assert book.accounts["failed"].steps == 1
    assert book.mfu == 2000 / 3000
    assert book.utilization == 1000 / 4000
    assert book.device_hours == 4 / 3600
    assert book.money == pytest.approx(7.2 * 4 / 3600)
    assert replace(book, price=None).money is None


def test_a_higher_peak_counts_for_all_that_these_devices_have_done():
    book = ledger()
    book.book_step(True, 100, PARTS, 1.0)
    book.raise_peak(500.0)
    assert (book.peak, book.mfu) == (1000.0, 0.5), "no lower one"
    book.raise_peak(2000.0)
    assert (book.peak, book.mfu) == (2000.0, 0.25)
    book.set_devices("faster", 1, "float32", 8000.0)
    book.book_step(True, 100, PARTS, 1.0)
    assert book.mfu == 2000 / (4000 + 8000)
    again = Ledger.from_json(book.to_json())
    for one in (book, again):
        one.raise_peak(16_000.0)
        assert one.mfu == 2000 / (4000 + 16_000), "what another device could have done stays"


@given(st.lists(st.tuples(st.floats(1e-3, 1e3), st.floats(1.0, 1e6)), min_size=1, max_size=9))
def test_no_share_is_above_one_if_every_faster_step_raises_the_peak(steps):
    book = ledger(devices=1)
    for seconds, speed in steps:
        book.book_step(True, int(speed * seconds) + 1, {"head": 1.0}, seconds)
        book.raise_peak((int(speed * seconds) + 1) / seconds)
    assert book.mfu <= 1 + 1e-9


def test_what_was_done_after_a_checkpoint_is_lost_once():
    book = ledger()
    for _ in range(5):
        book.book_step(True, 100, PARTS, 1.0)
    saved = book.useful
    for _ in range(2):
        book.book_step(True, 100, PARTS, 1.0)
    book.rewind(saved, "repeated")
    assert (book.useful.steps, book.accounts["repeated"].steps) == (5, 2)
    for _ in range(3):
        book.book_step(True, 100, PARTS, 1.0)
    book.rewind(saved, "failed")
    assert [book.accounts[name].steps for name in STEPS] == [5, 2, 3]
    assert book.work == Work(10, 1000, {"experts": 6000.0, "head": 4000.0}, 20.0, 20_000.0)


def test_a_ledger_older_than_the_checkpoint_loses_nothing():
    book = ledger()
    book.rewind(Work(5, 500, {"head": 5.0}, 1.0, 1.0), "repeated")
    assert book.useful.steps == 5 and book.accounts["repeated"] == Work()


def test_the_estimate_goes_on_as_so_far_without_the_start():
    book = ledger(fraction=0.25)
    assert book.estimate() is None, "no step yet"
    book.book_overhead("start", 10.0)
    book.book_step(True, 100, PARTS, 4.0)
    book.book_overhead("checkpoints", 1.0)
    book.book_energy(36.0, 15.0)
    estimate = book.estimate()
    seconds = 2 * (10 + 4 * (4 + 1))
    assert (estimate.tokens, estimate.flops) == (400, 4000)
    assert estimate.device_hours == pytest.approx(seconds / 3600)
    assert estimate.money == pytest.approx(seconds / 3600 * 7.2)
    assert estimate.energy == pytest.approx(36 / 30 * seconds / 3.6e6)
    book.fraction = 1.0
    assert book.estimate().device_hours == book.device_hours


def test_energy_that_is_not_reported_is_not_invented():
    book = ledger()
    book.book_step(True, 100, PARTS, 4.0)
    book.book_energy(None, 4.0)
    assert book.kilowatt_hours is None
    book.book_energy(3.6e6, 1.0)
    assert (book.kilowatt_hours, book.energy_share) == (1.0, 0.25)


seconds_of_the_clock = st.integers(0, 10**12).map(lambda microseconds: microseconds * 1e-6)
accounts = st.sampled_from(["useful", "failed", *OVERHEADS, "back", "lost"])
bookings = st.lists(st.tuples(accounts, seconds_of_the_clock, st.integers(0, 9)))


@given(bookings)
def test_no_time_and_no_work_is_lost_or_counted_twice(moves):
    book, seconds, steps, saved = ledger(), 0.0, 0, Work()
    for what, time, number in moves:
        if what in ("back", "lost"):
            book.rewind(saved, "repeated" if what == "back" else "failed")
            continue
        seconds += time
        if what in OVERHEADS:
            book.book_overhead(what, time)
        else:
            steps += 1
            book.book_step(what != "failed", number, PARTS, time)
        if number == 0:
            saved = book.useful
    assert book.total.device_seconds == pytest.approx(2 * seconds, rel=1e-6, abs=1e-3)
    assert book.work.steps == steps
    assert book.work.all_flops == pytest.approx(10 * book.work.tokens)
    assert Ledger.from_json(book.to_json()) == book


def test_the_file_has_the_sums_too(tmp_path):
    assert read_ledger(tmp_path) is None
    book = ledger(fraction=0.5)
    book.book_step(True, 100, PARTS, 1.0)
    (tmp_path / LEDGER_FILE).write_bytes(book.to_json())
    assert read_ledger(tmp_path) == book
    record = json.loads((tmp_path / LEDGER_FILE).read_text())
    assert record["total"]["flops"] == 1000.0 and record["estimate"]["tokens"] == 200


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"accounts": 3}', '{"accounts": {"useful": {"step": 1}}}', '{"peak": "fast"}',
                '{"accounts": {"useful": {"flops": {"head": "many"}}}}', '{"earlier_possible": {"useful": "much"}}',
                '{"earlier_possible": 3}', "\xff"],
)  # fmt: skip
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / LEDGER_FILE).write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"ledger\.json: .*; restore or delete it"):
        read_ledger(tmp_path)
