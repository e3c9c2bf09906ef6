"""`gossamer train --profile`: a trace that opens in the usual viewers."""

import gzip
import json
from dataclasses import replace

from gossamer.run import loop
from gossamer.run.profile import RECORDED, WARM_UP


def shortened(recipe, steps):
    return replace(recipe, training=replace(recipe.training, steps=steps, eval_every=0, checkpoint_every=0))


def test_a_run_and_its_resumption_leave_a_trace_each(tiny_recipe, tmp_path, capsys):
    run, steps = tmp_path / "run", WARM_UP + RECORDED
    loop.train(shortened(tiny_recipe, steps + 2), run, profile=True)
    loop.train(shortened(tiny_recipe, 2 * steps + 2), run, resume=True, profile=True)
    said = capsys.readouterr().err
    first, second = f"steps-{WARM_UP + 1}-{steps}", f"steps-{steps + 2 + WARM_UP + 1}-{2 * steps + 2}"
    assert {path.name for path in (run / "profile").iterdir()} == {
        f"{name}.pt.trace.json.gz" for name in (first, second)
    }
    for path in (run / "profile").iterdir():
        assert str(path) in said
        # Chrome's trace format: events with a name, a beginning and a duration in microseconds.
        trace = json.loads(gzip.decompress(path.read_bytes()))
        events = [event for event in trace["traceEvents"] if event.get("ph") == "X"]
        assert all(event["ts"] >= 0 and event["dur"] >= 0 for event in events)
        names = [event["name"] for event in events]
        assert sum(name.startswith("ProfilerStep#") for name in names) == RECORDED
        assert "Optimizer.step#AdamW.step" in names and "aten::mm" in names


def test_a_run_that_ends_before_says_so(tiny_recipe, tmp_path, capsys):
    run = tmp_path / "run"
    loop.train(shortened(tiny_recipe, WARM_UP - 1), run, profile=True)
    assert "no profile" in capsys.readouterr().err and not (run / "profile").exists()


def test_a_run_that_ends_within_the_recorded_steps_leaves_those(tiny_recipe, tmp_path, capsys):
    run = tmp_path / "run"
    loop.train(shortened(tiny_recipe, WARM_UP + 1), run, profile=True)
    assert [path.name for path in (run / "profile").iterdir()] == [
        f"steps-{WARM_UP + 1}-{WARM_UP + 1}.pt.trace.json.gz"
    ]


def test_without_the_flag_there_is_none(tiny_recipe, tmp_path):
    run = tmp_path / "run"
    loop.train(shortened(tiny_recipe, 2), run)
    assert not (run / "profile").exists()
