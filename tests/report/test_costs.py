"""What a run's page says of its cost, and what several runs had spent when they reached a loss."""

import json

import pytest

from gossamer.cost.ledger import LEDGER_FILE, Ledger
from gossamer.errors import UserError
from gossamer.report import write_comparison, write_report
from pages import START, Page, evaluation, record, train, whole_run


def ledger(price=None, **values):
    book = Ledger(device="a chip", devices=4, peak=1e12, price=price, **values)
    book.book_overhead("start", 90.0)
    for _ in range(3):
        book.book_step(True, 1000, {"experts": 3e8, "mtp": 1e8}, 180.0)
    book.book_step(False, 1000, {"experts": 3e8, "mtp": 1e8}, 180.0)
    return book


def page_of(folder, book, events=None):
    record(folder, whole_run() if events is None else events)
    (folder / LEDGER_FILE).write_bytes(book.to_json())
    return Page(write_report(folder).read_text(encoding="utf-8"))


def cells(page, label):
    """What follows a label in its table."""
    found = [text.strip() for text in page.text("td")]
    at = found.index(label)
    return found[at + 1 :]


def test_the_accounts_and_the_parts_of_a_run(tmp_path):
    page = page_of(tmp_path, ledger(price=2.0))
    assert cells(page, "useful")[:6] == ["3", "3,000", "1.20 TFLOP", "0.6", "67%", "1.20"]
    assert cells(page, "failed")[:6] == ["1", "1,000", "400 GFLOP", "0.2", "22%", "0.40"]
    assert cells(page, "start")[:6] == ["", "", "", "0.1", "11%", "0.20"]
    assert "repeated" not in [text.strip() for text in page.text("td")]
    assert cells(page, "experts")[:3] == ["300 MFLOP", "1.20 TFLOP", "75%"]
    assert cells(page, "MTP")[:3] == ["100 MFLOP", "400 GFLOP", "25%"]
    assert "On 4 × a chip, each measured at 1.00 TFLOP/s in float32." in page
    assert "1.80 USD" in page and "2.00 for a device-hour" in page


def test_what_is_not_known_is_left_out(tmp_path):
    page = page_of(tmp_path, ledger())
    assert "USD" not in page and "energy" not in page and "At the end" not in page
    unfinished = ledger(price=2.0, fraction=0.5, begun_after=7)
    unfinished.book_energy(3.6e6, 100.0)
    page = page_of(tmp_path / "more", unfinished)
    assert "Counted from step 7 on." in page
    assert "At the end, as things go: 3.20 TFLOP, 1.7 device-hours, 15.3 kWh, 3.40 USD." in page
    assert "1 kWh" in page and "known of 12% of the time" in page


def test_a_run_without_a_ledger_has_no_such_section(tmp_path):
    record(tmp_path, whole_run())
    assert "Cost" not in Page(write_report(tmp_path).read_text(encoding="utf-8")).text("h2")


def test_a_damaged_ledger_is_named(tmp_path):
    record(tmp_path, whole_run())
    (tmp_path / LEDGER_FILE).write_text("{")
    with pytest.raises(UserError, match=r"ledger\.json: not JSON"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def course(losses, **each):
    """Evaluations every ten steps; ``each``: what a step adds to flops and device_seconds."""
    events = [START, *(train(step) for step in range(1, 10 * len(losses) + 1))]
    for index, loss in enumerate(losses, start=1):
        events.append(evaluation(10 * index, loss) | {key: 10 * index * step for key, step in each.items()})
    return events


def compare(folder, **runs):
    for name, (events, book) in runs.items():
        record(folder / name, events)
        if book is not None:
            (folder / name / LEDGER_FILE).write_bytes(book.to_json())
    return Page(write_comparison([folder / name for name in runs]).read_text(encoding="utf-8"))


def goals(page, runs):
    """{loss: {line: figures of the runs}} of the section."""
    heads = [text for text in page.text("th") if text.startswith("loss ")]
    texts = [text.strip() for text in page.text("td")]
    begin = texts.index("FLOPs") - runs - 1
    found, at = {}, begin
    for head in heads:
        lines = found.setdefault(head, {})
        while at < len(texts) and texts[at] in ("tokens", "FLOPs", "device-hours", "money") and texts[at] not in lines:
            lines[texts[at]] = texts[at + 1 : at + 1 + runs]
            at += 1 + runs
    return found


def test_what_each_had_spent_at_a_loss(tmp_path):
    a = course([5.0, 4.0, 3.0, 2.0], flops=1e9, device_seconds=36.0)
    b = course([5.0, 3.0, 2.5], flops=2e9, device_seconds=36.0)
    page = compare(tmp_path, a=(a, ledger(price=1.0)), b=(b, ledger(price=3.0)))
    found = goals(page, 2)
    assert list(found) == ["loss 4.170", "loss 3.330", "loss 2.500"]
    assert found["loss 2.500"] == {
        "tokens": ["143K", "123K"],
        "FLOPs": ["35.0 GFLOP", "60.0 GFLOP"],
        "device-hours": ["0.35", "0.3"],
        "money": ["0.35 USD", "0.90 USD"],
    }
    assert "MFU" in page and "device-hours" in page


def test_a_loss_that_most_have_reached_counts_too(tmp_path):
    each = {"flops": 1e9, "device_seconds": 36.0}
    runs = {"a": ([5.0, 2.0], None), "b": ([5.0, 3.0], None), "c": ([5.0, 4.0], None)}
    page = compare(tmp_path, **{name: (course(losses, **each), book) for name, (losses, book) in runs.items()})
    found = goals(page, 3)
    assert list(found)[-2:] == ["loss 4.000", "loss 3.000"]
    assert found["loss 3.000"]["FLOPs"] == ["16.7 GFLOP", "20.0 GFLOP", "–"]
    assert "money" not in found["loss 3.000"], "nobody has a price"


def test_runs_from_before_costs_were_measured_have_tokens_alone(tmp_path):
    each = {"flops": 1e9, "device_seconds": 36.0}
    found = goals(compare(tmp_path, a=(course([5.0, 3.0]), None), b=(course([5.0, 3.0], **each), ledger(1.0))), 2)
    assert found["loss 3.000"]["tokens"] == ["81.9K", "81.9K"]
    assert found["loss 3.000"]["money"] == ["–", "0.20 USD"]
    assert json.loads((tmp_path / "b" / LEDGER_FILE).read_text())["price"] == 1.0
