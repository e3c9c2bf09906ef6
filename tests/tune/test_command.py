"""`gossamer tune` as a user types it: mistakes are one line, what got worse is exit status 1, samples are shown."""

import json
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from gossamer.cli import main
from gossamer.run.start import require_free
from tuned_runs import conversations, make_base, pairs, ratings, said, write_lines


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("plain") / "model", has_template=False)


def call(base: Path, data: Path, *words: str) -> int:
    cache = ["--corpus.cache_dir", str(data.parent / "cache")]
    return main(["tune", str(base), "--data", str(data), "--device", "cpu", *cache, *words])


USER = {"role": "user", "content": "who?"}
SILENT = {"messages": [USER, {"role": "assistant", "content": " "}]}
MISTAKES: list[tuple[list[dict[str, Any]], list[str], str]] = [
    ([*conversations(2), *pairs(1)], [], ":3: "),
    ([{"messages": [USER]}], [], ":1: "),
    ([{"question": "who?"}], [], ":1: no form of data has these keys (question)"),
    ([*conversations(2), SILENT], [], ":3: messages.1: the answer is empty; leave the line out"),
    ([{"messages": [USER], "completion": [SILENT["messages"][1]], "label": True}], [], "every rated answer is empty"),
    (conversations(3), ["--look", "1", "--json"], "--look shows samples to people, and trains nothing; leave --json"),
    (conversations(3), ["--look", "1", "--plan"], "--look shows samples to people, and trains nothing; leave --plan"),
    (conversations(3), ["--method", "dpo"], ":1: messages: these keys are data for sft, not for dpo"),
    (conversations(3), ["--context", "8", "--too_long", "refuse"], ":1: a sample of "),
    (conversations(3), ["--context", "8"], ":1: no sample fits into 8 tokens"),
    (conversations(3), ["--row_tokens", "8"], "--row_tokens 8: the longest example has"),
    (conversations(3), ["--lora", "--targets", "q_prj"], "targets: unknown 'q_prj'; did you mean 'q_proj'?"),
    (conversations(3), ["--lora", "--rank", "64"], "rank = 64: must be from 1 to "),
    (conversations(3), ["--template", "chatml"], "--template chatml: "),
    (conversations(3), ["--keep", "nowhere"], "nowhere"),
    (conversations(3), ["--recipe", "demo"], "--recipe demo: trains from text; name one for gossamer tune"),
    ([line | {"label": False} for line in ratings(6)], [], "no rated answer is good"),
]


@pytest.mark.parametrize(("lines", "words", "message"), MISTAKES, ids=lambda value: str(value)[:30])
def test_a_mistake_is_one_line_and_leaves_nothing(
    lines: list[dict[str, Any]],
    words: list[str],
    message: str,
    base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = write_lines(tmp_path / "data.jsonl", lines)
    assert call(base, data, "--out", str(tmp_path / "run"), *words) == 2
    told = capsys.readouterr().err.strip()
    assert told.startswith("gossamer: ") and message in told and "\n" not in told, told
    require_free(tmp_path / "run")


def test_an_adapter_is_no_place_for_new_tokens(plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_lines(tmp_path / "data.jsonl", conversations(3))
    assert call(plain, data, "--template", "chatml", "--lora", "--out", str(tmp_path / "run")) == 2
    assert "its tokens need rows of embedding and head, which an adapter cannot hold" in capsys.readouterr().err


def test_a_rate_that_is_far_too_high_is_exit_status_1_with_everything_written(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, text = write_lines(tmp_path / "data.jsonl", conversations(12)), tmp_path / "old.txt"
    text.write_text("what is 3 and 4? 7. who are you? a small model.\n" * 20)
    words = ["--keep", str(text), "--learning_rate", "1.0", "--steps", "3", "--json", "--out", str(tmp_path / "run")]
    assert call(base, data, *words) == 1
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert "kept text" in found["regressions"] and "worse: +" in told.err
    assert found["after"]["kept_bits_per_byte"] > found["before"]["kept_bits_per_byte"] + 0.02
    for name in ("model/model.safetensors", "report.html", "guard.json", "ledger.json", "checkpoints"):
        assert (tmp_path / "run" / name).exists(), name
    assert "Worse than it may be: kept text" in (tmp_path / "run" / "report.html").read_text()


def test_a_plan_says_what_a_run_takes_and_the_run_how_right_it_was(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_lines(tmp_path / "data.jsonl", conversations(12))
    words = ["--steps", "2", "--price", "3", "--out", str(tmp_path / "run")]
    assert call(base, data, *words, "--plan", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["fits"] and plan["steps"] == 2 and plan["examples"] == 11 and 0 < plan["targets"] < plan["tokens"]
    assert plan["training_seconds"] > 0 and plan["money"] == pytest.approx(3 * plan["seconds"] / 3600)
    assert call(base, data, *words) in (0, 1)
    assert "planned: " in capsys.readouterr().err
    planned = json.loads((tmp_path / "run" / "guard.json").read_text())["planned"]
    assert planned["planned_seconds"] == plan["training_seconds"] and planned["memory"] > 0
    monkeypatch.setattr("gossamer.device.memory_bytes", lambda device: 1 << 20)
    assert call(base, data, "--plan", "--out", str(tmp_path / "other")) == 1
    told = capsys.readouterr().out
    assert call(base, data, "--out", str(tmp_path / "other")) == 2
    assert "tuning would take about " in capsys.readouterr().err and not (tmp_path / "other").exists()
    assert "memory: about " in told and "a smaller --row_tokens or --context, or --lora, needs less" in told
    assert "time" not in told


def test_samples_are_shown_with_what_is_learned_marked(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_lines(tmp_path / "data.jsonl", [said("who\x1b[2J?", "a small model.")])
    assert call(base, data, "--look", "3", "--out", str(tmp_path / "run")) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[1] == "" and ":1, " in shown[2] and shown[2].endswith(" learned")
    assert "| <|im_start|>user" in shown and "| who\\x1b[2J?<|im_end|>" in shown
    assert shown[-1] == "+ a small model.<|im_end|>" and not any("\x1b" in line for line in shown)
    monkeypatch.setattr(sys, "stdout", colored := StringIO())
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    assert call(base, data, "--look", "1", "--out", str(tmp_path / "run")) == 0
    assert "\x1b[32m" in colored.getvalue()
    assert not (tmp_path / "run").exists()


def test_pairs_and_ratings_are_shown_by_their_sides(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for lines, sides in ((pairs(3), ("chosen", "rejected")), (ratings(3), ("rated good", "rated bad"))):
        data = write_lines(tmp_path / "data.jsonl", lines)
        assert call(base, data, "--look", "3", "--hold_out", "0", "--out", str(tmp_path / "run")) == 0
        shown = capsys.readouterr().out
        assert all(f", {side}, " in shown for side in sides), shown
