"""Text and runs whose names are no UTF-8, as on disks that other systems wrote."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from gossamer import hub
from gossamer.cli import main
from gossamer.report import loss_curve_png, write_report
from gossamer.run.loop import train
from gossamer.run.validate import evaluate_run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")


def test_a_run_of_such_names(tiny_recipe, tmp_path, capsys):
    place = tmp_path / os.fsdecode(b"\xff\xe9")
    place.mkdir()
    texts = place / os.fsdecode(b"texts\xfe")
    texts.mkdir()
    (texts / os.fsdecode(b"t\xfe.txt")).write_text(Path(tiny_recipe.corpus.paths[0]).read_text())
    recipe = replace(
        tiny_recipe,
        corpus=replace(tiny_recipe.corpus, paths=(str(texts),)),
        training=replace(tiny_recipe.training, steps=2),
    )
    run = place / os.fsdecode(b"run\xfd")
    train(recipe, run)
    train(replace(recipe, training=replace(recipe.training, steps=3)), run, resume=True)
    assert evaluate_run(run, device="cpu")["tokens"]
    assert "run\ufffd" in write_report(run).read_text(encoding="utf-8")
    loss_curve_png(run, place / "loss.png")
    hub.export(run, place / os.fsdecode(b"out\xfd"))
    capsys.readouterr()
    assert main(["eval", str(run), "--json", "--device", "cpu"]) == 0
    assert main(["sample", str(place / os.fsdecode(b"out\xfd")), "--max-tokens", "2", "--device", "cpu"]) == 0
    assert main(["plan", "--model", str(run), "--json"]) == 0
    assert main(["report", str(run / "no")]) == 2
