"""Several runs on one page: told apart, compared only where figures can be compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gossamer.errors import UserError
from gossamer.report import write_comparison
from pages import START, Page, evaluation, record, train, whole_run


def course(losses: dict[int, float], speed: float = 1.0, set: str | None = None, **start: Any) -> list[dict[str, Any]]:
    """A run that was evaluated at some steps; ``speed`` 2 takes half the time."""
    events = [START | start, *(train(step, elapsed=step / speed) for step in range(1, max(losses) + 1))]
    named = {} if set is None else {"set": set}
    return [*events, *(evaluation(step, loss) | {"elapsed": step / speed} | named for step, loss in losses.items())]


def compare(folder: Path, out: Path | None = None, **runs: list[dict[str, Any]]) -> Page:
    for name, events in runs.items():
        record(folder / name, events)
    path = write_comparison([folder / name for name in runs], out)
    assert path == (out or folder / "comparison.html")
    return Page(path.read_text(encoding="utf-8"))


def row(page: Page, label: str) -> list[str]:
    """The figures of the line with that label, of two runs."""
    cells = [text.strip() for text in page.text("td")]
    at = cells.index(label)
    return cells[at + 1 : at + 3]


def test_runs_side_by_side(tmp_path: Path) -> None:
    page = compare(tmp_path, a=course({10: 4.0, 40: 2.0}), b=course({10: 3.5, 20: 3.0, 30: 2.5}, speed=2.0))
    assert page.text("h1") == ["2 runs compared"]
    assert row(page, "validation loss") == ["2.000", "2.500"]
    assert row(page, "bits per byte") == ["1.000", "1.250"]
    assert row(page, "tokens") == ["164K", "123K"]
    assert row(page, "tokens/s") == ["4,096", "8,192"]
    assert row(page, "training time") == ["40 s", "15 s"]
    # a comes to 2.5 three quarters of the way from step 10 to 40, 32.5; b with its last evaluation.
    assert row(page, "tokens to loss 2.500") == ["133K", "123K"]
    assert row(page, "time to loss 2.500") == ["32.5 s", "15 s"]
    assert "tales & fables · cpu (a chip) · validation on held-out" in page
    assert row(page, "parameters") == ["57.0M", "57.0M"]
    assert [value for name, value in page.attributes if (name, value) == ("class", "best")] == ["best"] * 8
    tables = [json.loads(text) for text in page.text("script") if text.startswith("{")]
    assert [[curve["label"] for curve in table["curves"]] for table in tables] == [["a", "b"]] * len(tables)
    assert all([curve["color"] for curve in table["curves"]] == ["train", "validation"] for table in tables)


def test_results_over_different_amounts_of_text_are_told(tmp_path: Path) -> None:
    def measured_over(last: int) -> list[dict[str, Any]]:
        events = [event | {"eval_tokens": 100} for event in course({10: 4.0, 40: 2.0}) if event["event"] == "eval"]
        return [START, train(40), *events, events[-1] | {"event": "end", "loss": 1.9, "eval_tokens": last}]

    words = "measured over different amounts of validation text"
    page = compare(tmp_path, a=measured_over(900), b=measured_over(500))
    assert words in page and "1.900 over 900 tokens" in page and "over 500 tokens" in page
    assert row(page, "tokens to loss 2.000") == ["164K", "164K"], "the end is no point of the curve"
    assert words not in compare(tmp_path / "same", a=measured_over(900), b=measured_over(900))


def test_figures_that_cannot_be_compared_are_not(tmp_path: Path) -> None:
    page = compare(tmp_path, a=course({10: 4.0, 40: 2.0}, set="web"), b=course({10: 3.0}, set="code"))
    assert "no validation set in common, so their losses are of different texts: a (web), b (code)." in page
    assert not [label for label in page.text("td") if "to loss" in label]
    assert ("class", "best") not in page.attributes
    same = compare(
        tmp_path, c=course({10: 4.0}, set="web") + course({10: 1.0}, set="code")[1:], d=course({10: 3.0}, set="code")
    )
    assert row(same, "validation loss") == ["1.000", "3.000"], "on the set that both have"
    other = compare(tmp_path, e=course({10: 4.0}), f=course({10: 4.0}, corpus="poems", device="cuda:0"))
    assert "different corpora" in other
    assert row(other, "corpus") == ["tales & fables", "poems"]
    assert row(other, "device") == ["cpu (a chip)", "cuda:0"]


def test_other_tokens_other_losses(tmp_path: Path) -> None:
    for name, size in (("a", 100), ("b", 200)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(f"model: {{vocab_size: {size}, layers: 3}}\ndescription: {name}\n")
    page = compare(tmp_path, a=course({10: 4.0}), b=course({10: 3.0}))
    assert "compare bits per byte, not the loss of a token" in page
    assert page.text("h3")[0] == "Bits per byte"
    assert page.text("h2")[-1] == "What differs in the configuration"
    assert [text for text in page.text("td") if "." in text][-1] == "model.vocab_size"
    assert page.text("td")[-2:] == ["100", "200"]


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    page = compare(tmp_path, out=tmp_path / "new" / "page.html", **{"x/demo": [START], "y/demo": whole_run(), "z": []})
    assert {"x/demo", "y/demo"} <= {text.strip() for text in page.text("span")}


def test_runs_in_which_nothing_was_measured(tmp_path: Path) -> None:
    page = compare(tmp_path, a=[START], b=[])
    assert page.text("h2") == ["Results"]
    assert "svg" not in page.tags
    assert row(page, "parameters") == ["57.0M", "–"]


def test_names_are_shown_and_never_run(tmp_path: Path) -> None:
    events = course({10: 4.0}, corpus="<img src=x>")
    page = compare(tmp_path, **{"<b>": events, "c": course({10: 4.0})})
    assert "b" not in page.tags and "img" not in page.tags
    assert "<img src=x>" in page
    assert "://" not in page.html


def test_a_run_given_twice_too_many_or_none_are_refused(tmp_path: Path) -> None:
    folders = [tmp_path / str(index) for index in range(13)]
    for folder in folders:
        record(folder, [START])
    with pytest.raises(UserError, match="is given twice"):
        write_comparison([folders[0], tmp_path / "1" / ".." / "0"])
    with pytest.raises(UserError, match="13 runs are too many"):
        write_comparison(folders)
    with pytest.raises(UserError, match=r"has no metrics\.jsonl"):
        write_comparison([folders[0], tmp_path])
    assert not (tmp_path / "comparison.html").exists()
    write_comparison(folders[:12])
    page = Page((tmp_path / "comparison.html").read_text())
    looks = [value for name, value in page.attributes if name == "style"]
    assert len(looks) == 12
    assert page.html.count('<span class="dashed"') == 6, "six colors, whole and dashed"


def test_a_page_lies_beside_its_first_run_wherever_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(tmp_path / "a", [START])
    record(tmp_path / "b", [START])
    monkeypatch.chdir(tmp_path / "a")
    assert write_comparison([Path(), Path("../b")]) == tmp_path / "comparison.html"
