"""The report of a run: one file that stands alone, at any moment of the run's life, whatever the model has written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gossamer.errors import UserError
from gossamer.report import loss_curve_png, write_report
from pages import START, Page, evaluation, record, train, whole_run


def report(folder: Path, events: list[dict[str, Any]], config: str | None = None) -> Page:
    record(folder, events)
    if config is not None:
        (folder / "config.yaml").write_text(config)
    path = write_report(folder)
    assert path == folder / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def test_a_whole_run(tmp_path: Path) -> None:
    page = report(tmp_path / "demo", whole_run())
    assert page.text("h1") == ["demo"]
    for words in (
        "finished · 40 steps", "tales & fables", "cpu (a chip)", "2026-11-23", "validation loss 4.500",
        "bits per byte 2.250", "perplexity 90.02", "tokens 164K", "training time 1 min 40 s", "1,638 tokens/s",
        "parameters 57.0M", "9.13M active per token", "compute 9.83 TFLOP", "gossamer 0.1.0", "PyTorch 2.13.0",
    ):  # fmt: skip
        assert words in page, words
    assert page.text("h2") == ["Learning", "Experts", "Machine", "Samples"]
    titles = ["Loss", "Bits per byte", "Learning rate", "Gradient norm", "Multi-token prediction"]
    assert page.text("h3") == [*titles, "Load balance", "Throughput"]
    pictures = (
        3 * 7 + 3 * 3
    )  # each over tokens, over time and over steps; three span the page and have others for narrow screens
    assert page.tags.count("svg") == 2 * pictures, "each holds a second one, which cuts off what leaves the plot"
    assert [text.strip() for text in page.text("pre")] == ["a time", "once upon"], "newest first"


def test_the_page_stands_alone(tmp_path: Path) -> None:
    page = report(tmp_path, whole_run(), "model: {hidden_size: 256}\n")
    references = [value for name, value in page.attributes if name in ("src", "href", "xlink:href", "action", "srcset")]
    assert all(value == "data:," or (value or "").startswith("#") for value in references)
    assert "://" not in page.html
    assert "@import" not in page.html
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
    assert ("content", policy) in page.attributes
    assert "url(" not in page.html
    identifiers = [value for name, value in page.attributes if name == "id"]
    assert len(identifiers) == len(set(identifiers))


HOSTILE = "</pre><script>alert(1)</script><img src=x onerror=alert(2)> & &amp; \"'`${1} {{ 7*7 }} {% raw %}"


def test_what_comes_from_outside_is_shown_and_never_run(tmp_path: Path) -> None:
    events = [
        START | {"corpus": HOSTILE, "device": HOSTILE, "gossamer": HOSTILE},
        train(1),
        {"event": "sample", "step": 1, "text": HOSTILE},
    ]
    config = json.dumps({"description": HOSTILE, "model": {HOSTILE: HOSTILE}})
    page = report(tmp_path / "<b>run", events, config)
    plain = report(tmp_path / "plain", [START, train(1), {"event": "sample", "step": 1, "text": "x"}], "model: {a: 1}")
    assert page.tags.count("script") == plain.tags.count("script")
    assert "img" not in page.tags
    assert page.text("h1") == ["<b>run"]
    assert page.text("pre")[0].strip() == HOSTILE
    assert HOSTILE in page.text("dd")
    assert HOSTILE in page.text("dt")


def test_control_characters_and_broken_unicode_become_visible(tmp_path: Path) -> None:
    page = report(tmp_path, [{"event": "sample", "step": 1, "text": "  a\x00\x1b[31m\x7f\ud83d\tb\n\n"}])
    assert page.text("pre")[0].strip("\n") == "  a\u2400\u241b[31m\u2421?\tb"


def test_samples_are_limited_in_number_and_length(tmp_path: Path) -> None:
    samples = [{"event": "sample", "step": step, "text": f"[{step}]" + "x" * 9000} for step in range(100)]
    page = report(tmp_path, samples)
    shown = [int(text.strip()[1:].split("]")[0]) for text in page.text("pre")]
    assert len(shown) == 24
    assert shown == sorted(shown, reverse=True)
    assert (shown[0], shown[-1]) == (99, 0)
    assert "24 of 100" in page
    assert "more characters" in page
    assert len(page.html) < 200_000


def test_in_mid_flight(tmp_path: Path) -> None:
    page = report(tmp_path, [START, *(train(step) for step in range(1, 11))])
    assert "step 10 of 40" in page
    assert "width: 25.0%" in page.html
    assert "training loss 7.000" in page, "no evaluation yet: the newest step of ten stands for the loss"
    assert "validation loss" not in page
    assert "Bits per byte" not in page.text("h3")
    assert "Configuration" not in page.text("h2")


def test_the_measurement_at_the_end_counts_as_an_evaluation(tmp_path: Path) -> None:
    end = {**evaluation(40, 4.0), "event": "end"}
    page = report(tmp_path, [START, train(40), evaluation(20, 5.0), evaluation(40, 4.5), end])
    assert "validation loss 4.000" in page
    rows = [text for text in page.text("td") if "." in text]
    assert rows[-3:] == ["4.000", "54.60", "2.000"]
    assert page.tags.count("td") == 2 * 6
    loss, *_ = (json.loads(text) for text in page.text("script") if text.startswith("{"))
    assert loss["curves"][1]["values"] == [5.0, 4.0]


def test_the_end_is_told_apart_and_the_best_is_one_of_equals(tmp_path: Path) -> None:
    sizes = [(evaluation(20, 4.2), 1024), (evaluation(40, 4.5), 1024), ({**evaluation(40, 4.4), "event": "end"}, 9000)]
    page = report(tmp_path, [START, train(40), *(event | {"eval_tokens": size} for event, size in sizes)])
    assert "validation loss 4.400 over 9,000 tokens, best 4.200 at step 20 (4.500 at step 40, both over 1,024" in page
    assert page.text("th")[:4] == ["step", "tokens", "time", "over tokens"]
    loss, *_ = (json.loads(text) for text in page.text("script") if text.startswith("{"))
    assert loss["curves"][1]["values"] == [4.2, 4.5]
    better = [event | {"eval_tokens": size, "loss": event["loss"] - step} for step, (event, size) in enumerate(sizes)]
    assert "best" not in report(tmp_path, [START, train(40), *better]).text("span")


def test_a_prolonged_run_is_measured_by_its_configuration(tmp_path: Path) -> None:
    events = [START, train(40), {"event": "resume", "time": 1.0, "step": 40}, train(60)]
    assert "step 60 of 80" in report(tmp_path, events, "training: {steps: 80}")


def test_a_run_that_goes_on_after_its_end_is_not_finished(tmp_path: Path) -> None:
    end = whole_run()[-1]
    events = [START, evaluation(40, 4.5), end, {"event": "resume", "time": 1.0, "step": 40}]
    page = report(tmp_path, events)
    assert "finished" not in page
    assert "resumed 1×" in page
    page = report(tmp_path, [*events, train(41), {**end, "step": 41, "loss": 4.6}])
    assert "finished · 41 steps" in page
    assert "best 4.500 at step 40" in page


@pytest.mark.parametrize(
    "event",
    [START, {"event": "start", "step": 0}, train(1), evaluation(0, 8.3), {"event": "sample", "step": 0, "text": ""},
     {"event": "resume", "step": 3, "time": 5.0}, {"event": "end", "step": 4}, {"event": "train", "step": 5}],
    ids=lambda event: event["event"],
)  # fmt: skip
def test_a_single_event(tmp_path: Path, event: dict[str, Any]) -> None:
    page = report(tmp_path, [event])
    assert ("svg" in page.tags) == ("tokens" in event)
    assert ("No step has been measured yet." in page) == ("tokens" not in event)


def test_no_event_at_all(tmp_path: Path) -> None:
    assert "No step has been measured yet." in report(tmp_path, [])


def test_numbers_that_are_not_finite(tmp_path: Path) -> None:
    events = [
        START,
        *(train(step, loss=None if step > 30 else 3.0, grad_norm=None) for step in range(1, 41)),
        evaluation(40, None),
    ]
    page = report(tmp_path, events)
    assert "11 measured losses are not finite, the first at step 31." in page
    assert "training loss 3.000" in page
    assert "Gradient norm" not in page.text("h3")
    lost = report(tmp_path, [START, train(1, loss=None)])
    assert "1 measured loss is not finite, the first at step 1." in lost
    assert "Loss" not in lost.text("h3")
    assert "Throughput" in lost.text("h3")


def test_the_configuration_is_shown_by_section_and_as_text(tmp_path: Path) -> None:
    config = "description: a try\nseed: 3\nmodel:\n  sizes: {inner: 2}\n  tied: false\n  list: [1, null]\nempty: {}\n"
    page = report(tmp_path, [START], config)
    assert "a try" in page.text("p")
    assert [text.strip() for text in page.text("summary")] == ["general", "model", "config.yaml"]
    shown = list(zip(page.text("dt")[-4:], page.text("dd")[-4:], strict=True))
    assert shown == [("seed", "3"), ("sizes.inner", "2"), ("tied", "false"), ("list", "[1, null]")]
    assert page.text("pre")[-1].strip() == config.strip()


@pytest.mark.parametrize("config", ["a: [", "- 1\n- 2\n", "", "just words", "a: \x00", "!!python/object:os.system {}"])
def test_a_strange_configuration_does_no_harm(tmp_path: Path, config: str) -> None:
    page = report(tmp_path, [START], config)
    assert [text.strip() for text in page.text("pre")] == ([config.strip().replace("\x00", "\u2400")] if config else [])


def test_a_long_run_makes_a_small_page(tmp_path: Path) -> None:
    events = [
        train(step, loss=3 + (step * 7919 % 1000) / 1e3, grad_norm=1 + (step * 31 % 97) / 50)
        for step in range(1, 10_001)
    ]
    assert len(report(tmp_path, [START, *events]).html) < 500_000


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    for make in (write_report, lambda run: loss_curve_png(run, tmp_path / "loss.png")):
        with pytest.raises(UserError, match=r"has no metrics\.jsonl") as caught:
            make(tmp_path / "nowhere")
        assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_report_elsewhere(tmp_path: Path) -> None:
    record(tmp_path / "run", [START])
    assert write_report(tmp_path / "run", tmp_path / "new" / "page.html").read_text().startswith("<!DOCTYPE html>")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["metrics.jsonl"]
    with pytest.raises(UserError, match="is a folder; name the page's file"):
        write_report(tmp_path / "run", tmp_path / "new")


def test_a_report_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    report(tmp_path, [START])
    before = (tmp_path / "report.html").read_bytes()
    (tmp_path / "metrics.jsonl").write_text("damage\n{}\n")
    with pytest.raises(UserError, match="line 1"):
        write_report(tmp_path)
    assert (tmp_path / "report.html").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "report.html"]


def test_a_picture_of_the_loss(tmp_path: Path) -> None:
    for name, events in (("whole", whole_run()), ("single", [train(1)]), ("none", [START])):
        record(tmp_path / name, events)
        loss_curve_png(tmp_path / name, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes()[:4] == b"\x89PNG"


SETS = ("web", "code")


def measured(step: int, set: str, loss: float, event: str = "eval") -> dict[str, Any]:
    return evaluation(step, loss) | {"event": event, "set": set, "mtp_acceptance": [0.814, step / 100]}


def experts(step: int, dead: int = 1) -> dict[str, Any]:
    load = [[2.0, 1.0, 0.5, 0.5], [1.0, 1.0, 1.0, 1.0], [4.0, 0.0, 0.0, 0.0]]
    return {"event": "experts", "step": step, "tokens": 4096 * step, "max_over_mean": [2.0, 1.0, 4.0],
            "dead": [0, 0, dead], "entropy": [0.9, 1.0, 0.0], "load": load}  # fmt: skip


def full_run() -> list[dict[str, Any]]:
    events = [START, *(train(step, z_loss=0.1, memory=3 * 2**30 + step) for step in range(1, 41))]
    for step in (20, 40):
        events += [measured(step, name, 5.0 - step / 40, "end" if step == 40 else "eval") for name in SETS]
        events += [experts(step), {"event": "checkpoint", "step": step, "seconds": step / 10, "best": True}]
    events += [
        {"event": "skip", "step": 7, "reason": "loss is <nan>"},
        {"event": "resume", "step": 30, "time": 1_795_470_000.0},
    ]
    return events


def test_everything_that_can_be_measured(tmp_path: Path) -> None:
    page = report(tmp_path, full_run(), "model: {num_hidden_layers: 2}")
    assert page.text("h2")[:5] == ["Validation sets", "Learning", "Experts", "Machine", "Events"]
    assert page.text("h3") == [
        "Loss", "Validation loss", "Bits per byte", "Learning rate", "Gradient norm", "Accepted drafts", "z-loss",
        "Busiest expert over time", "Dead experts", "Routing entropy", "Load of every expert",
        "Throughput", "Peak memory", "Checkpoints",
    ]  # fmt: skip
    for words in (
        "validation loss 4.000 on web", "drafts accepted 81% then 40%", "peak memory 3.00 GiB",
        "checkpoint stalls 6 s 2 checkpoints, longest 4 s", "validation (web)", "81% · 40%",
        "At step 40: the busiest expert has 4.00× the mean load of its layer (the MTP head); 1 expert without a token; "
        "lowest routing entropy 0.00 of 1 (the MTP head).",
        "update skipped: loss is <nan> 7 28.7K 17.5 s", "resumed on 2026-11-23 21:40 UTC 30 123K 1 min 15 s",
    ):  # fmt: skip
        assert words in page, words
    assert page.text("td").count("web") == page.text("td").count("code") == 1 + 2, "newest figures, and each evaluation"
    loss, by_set, *_ = (json.loads(text) for text in page.text("script") if text.startswith("{"))
    assert [curve["label"] for curve in by_set["curves"]] == ["web", "code"]
    assert loss["marks"][0] == {
        "text": "step 7: update skipped: loss is <nan>",
        "tokens": 7 * 4096.0,
        "elapsed": 17.5,
        "steps": 7,
    }


def test_a_list_of_one_may_be_a_number(tmp_path: Path) -> None:
    page = report(tmp_path, [START, train(1), evaluation(1, 3.0) | {"mtp_acceptance": 0.5}])
    assert "drafts accepted 50% by multi-token prediction" in page


def test_half_measured_experts_do_no_harm(tmp_path: Path) -> None:
    for name, event in (
        ("none", {"max_over_mean": [None, None], "dead": [None], "entropy": [], "load": [[None], []]}),
        ("wrong", {"max_over_mean": "text", "dead": 3, "entropy": None, "load": [1.0, "x"]}),
        ("uneven", {"max_over_mean": [1.0, 3.0], "load": [[1.0], [2.0, None, 0.0]]}),
    ):
        page = report(tmp_path / name, [START, train(1), {"event": "experts", "step": 1} | event])
        assert ("Load of every expert" in page.text("h3")) == (name == "uneven")
        assert ("Experts" in page.text("h2")) == (name != "none")


def test_what_a_rollback_undid_is_no_result(tmp_path: Path) -> None:
    events = [START, *(train(step, loss=3.0) for step in range(1, 21)), evaluation(20, 2.0)]
    events += [*(train(step, loss=90.0) for step in range(21, 31)), evaluation(30, 80.0)]
    events += [{"event": "rollback", "step": 30, "to": 20}, *(train(step, loss=2.5) for step in range(21, 26))]
    page = report(tmp_path, events)
    assert "step 25 of 40" in page
    assert "validation loss 2.000 nats per token" in page
    assert "rolled back to step 20" in page
    assert "undone by a rollback" in page
    loss, *_ = (json.loads(text) for text in page.text("script") if text.startswith("{"))
    assert loss["curves"][0]["steps"] == [*range(1, 26)]
    assert max(loss["curves"][0]["values"]) <= 3.0


def test_many_incidents_are_limited(tmp_path: Path) -> None:
    events = [START, *(train(step) for step in range(1, 41))]
    events += [{"event": "skip", "step": 1 + step % 40, "reason": "x"} for step in range(500)]
    page = report(tmp_path, events)
    assert "60 of 500, evenly over the run." in page
    assert page.text("td").count("update skipped: x") == 60


def test_importing_it_is_cheap() -> None:
    heavy = "{'torch', 'numpy', 'matplotlib', 'jinja2', 'pydantic'}"
    code = f"import sys, gossamer.report; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
