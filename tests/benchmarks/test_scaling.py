"""scaling.py: the grid goes on where it stopped, and the fit finds a law that was there."""

from __future__ import annotations

import itertools
import json
import math
import random
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import scaling
import scaling_fit

from gossamer.cost.scaling import Law, Text
from gossamer.train import recipe

TRUE = Law(E=0.75, A=0.15, alpha=0.4, B=0.9, beta=0.3, gamma=1.2, R=12.0, c0=2.0)
TEXTS = {"novels": Text(16e6, 2.0), "python": Text(8e6, 1.5), "shakespeare": Text(1e6, 2.3)}


def runs(noise: float = 0.0) -> list[dict[str, Any]]:
    draw = random.Random(0)
    grid = [("novels", size, length) for size in (1e5, 5e5, 2e6) for length in (5e5, 2e6, 8e6)]
    grid += [(text, 3e5, length) for text in ("python", "shakespeare") for length in (1e6, 4e6)]
    found = []
    for corpus, size, length in grid:
        text = TEXTS[corpus]
        bits = TRUE.bits_per_byte(size, length, text) * math.exp(draw.gauss(0, noise))
        found.append(
            {
                "corpus": corpus,
                "tokenizer": "bpe",
                "width": 64,
                "recipe": "x",
                "trunk_parameters": size,
                "bytes": length,
                "unique_bytes": text.unique_bytes,
                "compressed_bits": text.compressed_bits,
                "bits_per_byte": bits,
            }
        )
    return found


@pytest.mark.parametrize(("noise", "error"), [(0.0, 0.01), (0.01, 0.03)])
def test_the_fit_predicts_between_and_a_little_beyond_its_runs(noise: float, error: float) -> None:
    law = scaling_fit.fit(runs(noise), c0=2.0)
    for size, length in itertools.product((2e5, 1e6, 3e6), (1e6, 5e6, 15e6)):
        text = TEXTS["novels"]
        predicted, true = (one.bits_per_byte(size, length, text) for one in (law, TRUE))
        assert predicted == pytest.approx(true, rel=error)


def test_one_bad_run_does_not_carry_the_others_away() -> None:
    spoilt = runs(0.005)
    spoilt[4]["bits_per_byte"] *= 1.3
    law = scaling_fit.fit(spoilt, c0=2.0)
    text = TEXTS["novels"]
    assert law.bits_per_byte(1e6, 4e6, text) == pytest.approx(TRUE.bits_per_byte(1e6, 4e6, text), rel=0.03)


def test_errors_are_of_runs_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    written: list[Law] = []
    monkeypatch.setattr(scaling_fit, "write_law", lambda law: written.append(law) or tmp_path)
    scaling_fit.fit_and_write(runs(0.01))
    (law,) = written
    assert 0.002 < law.error < 0.03, "a fit's own residuals would be smaller than the noise"
    assert law.runs == 13 and law.texts == ("novels (bpe)", "python (bpe)", "shakespeare (bpe)")
    assert law.trunk_parameters == (1e5, 2e6) and law.bytes == (5e5, 8e6)
    with pytest.raises(SystemExit, match="3 runs"):
        scaling_fit.fit_and_write(runs()[:3])


def test_the_grid_trains_what_is_not_recorded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    begun: list[dict[str, Any]] = []

    def run(command: list[str], **_: Any) -> SimpleNamespace:
        values = json.loads(command[-1])
        begun.append(values)
        return SimpleNamespace(stdout=json.dumps(values | {"tokens": 1, "elapsed": 1.0, "bits_per_byte": 2.0}))

    monkeypatch.setattr(scaling.subprocess, "run", run)
    file = tmp_path / "scaling" / "runs.jsonl"
    line = ["scaling.py", "--novels", "n", "--runs", str(file)]
    monkeypatch.setattr(sys, "argv", [*line, "--only", "0", "2", "14"])
    scaling.main()
    assert [(values["corpus"], values["width"]) for values in begun] == [("novels", 128), ("novels", 64)]
    monkeypatch.setattr(sys, "argv", [*line, "--only", "0", "2", "1"])
    scaling.main()
    assert len(begun) == 3 and len(file.read_text().splitlines()) == 3


def test_the_fingerprint_is_of_what_is_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    before = scaling.fingerprint()
    original = recipe.load_recipe("budget")

    def changed(section: str, key: str, value: Any) -> str:
        copy = recipe.recipe_from({}, recipe.flatten(original) | {f"{section}.{key}": value})
        monkeypatch.setattr(recipe, "load_recipe", lambda name: copy)
        return scaling.fingerprint()

    assert changed("training", "final_eval_tokens", 77) == before
    assert changed("optimizer", "learning_rate", 0.5) != before
    assert changed("training", "mtp_steps", 2) != before
