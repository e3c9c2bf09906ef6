"""tuning.py: both learn the same tokens of the same samples, ratios are over TRL, and tables have what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tuning
import tuning_data
import tuning_trl

from gossamer.data.chat.chatml import with_chatml
from gossamer.data.chat.records import read_records
from gossamer.data.chat.samples import build_examples
from gossamer.data.tokenizer import train_bpe

QUESTIONS = [
    [{"role": "user", "content": f"What is {number}?"}, {"role": "assistant", "content": f"It is {number * 7}."}]
    for number in range(tuning_data.NUM_HELD_OUT + 5)
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tuning_data, "conversations", lambda: QUESTIONS)
    tuning_data.write_rows(tmp_path, 5)
    with_chatml(train_bpe([message["content"] for item in QUESTIONS for message in item], 300)).save(tmp_path)
    return tmp_path


def test_rows_are_split_and_pairs_have_another_answer(folder: Path) -> None:
    task = tuning_data.TASKS["dpo"]
    rows, held_out = (tuning_data.read_rows(folder, task, held_out=part) for part in (False, True))
    assert (len(rows), len(held_out)) == (5, tuning_data.NUM_HELD_OUT)
    assert all(row["chosen"] != row["rejected"] for row in rows + held_out)
    assert not {json.dumps(row["prompt"]) for row in rows} & {json.dumps(row["prompt"]) for row in held_out}


def test_the_judge_counts_the_tokens_that_gossamer_learns(folder: Path) -> None:
    from transformers import AutoTokenizer

    from gossamer.data.tokenizer import Tokenizer

    task = tuning_data.TASKS["sft"]
    rows = tuning_data.read_rows(folder, task)
    examples = build_examples(
        read_records([str(tuning_data.rows_file(folder, "sft"))]), Tokenizer.load(folder), context=256
    ).examples
    theirs = [tuning_trl.labelled(AutoTokenizer.from_pretrained(folder), row) for row in rows]
    for example, (ids, labels) in zip(examples, theirs, strict=True):
        assert example.samples[0].input_ids.tolist() == ids and example.samples[0].labels.tolist() == labels
    targets = sum(example.samples[0].num_targets for example in examples)
    assert tuning_trl.count_targets(folder, rows) == targets


@pytest.fixture
def record() -> dict[str, Any]:
    ours = {"seconds": 1.0, "slowest": 1.5, "per_second": 400.0, "peak_bytes": 2**30, "loss": 2.0}
    theirs = {"seconds": 4.0, "slowest": 5.0, "per_second": 100.0, "peak_bytes": 2**32, "loss": 2.25}
    plan = {"seconds": 1.1, "peak_bytes": 0.9 * 2**30}
    results = {tuning.OURS: ours, tuning.THEIRS: theirs}
    return {"task": "SFT", "unit": "target tokens", "results": results, "untuned_loss": 8.3, "plan": plan}


def test_ratios_are_over_trl(record: dict[str, Any]) -> None:
    found = tuning.ratios(record)
    assert found["speed over TRL"] == 4.0 and found["memory of TRL's"] == 0.25 and found["loss above TRL's"] == -0.25
    assert found["foretold time of the real"] == pytest.approx(1.1)
    assert found["foretold memory of the real"] == pytest.approx(0.9)


def test_the_table_has_what_was_measured(record: dict[str, Any]) -> None:
    text = tuning.report(record)
    assert "target tokens/s" in text and "400.0" in text and "4,096" in text and "8.3000" in text
