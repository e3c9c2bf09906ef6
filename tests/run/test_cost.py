"""The ledger of real runs: whole ones, stopped and killed ones, and some with steps that failed."""

import json
import math
import signal
from dataclasses import replace

import pytest

from gossamer import cli
from gossamer import device as devices
from gossamer.cost.energy import EnergyMeter
from gossamer.cost.ledger import LEDGER_FILE, read_ledger
from gossamer.cost.network import count_network
from gossamer.errors import UserError
from gossamer.run import cost, loop
from gossamer.run.cost import CostMeter
from gossamer.run.metrics import read_metrics
from gossamer.train.recipe import to_yaml

STEP_TOKENS = 2 * 64


@pytest.fixture(autouse=True)
def written_at_every_line(monkeypatch):
    monkeypatch.setattr(cost, "_WRITE_EVERY", 0.0)


def priced(recipe, **training):
    return replace(recipe, training=replace(recipe.training, price=36.0, **training))


def steps(run):
    accounts = read_ledger(run).accounts
    return {name: accounts[name].steps for name in ("useful", "repeated", "failed")}


def dies_after(step):
    def on_step(progress):
        if progress.step == step:
            raise SystemExit

    return on_step


def test_a_whole_run(tiny_recipe, tmp_path, capsys):
    loop.train(priced(tiny_recipe), tmp_path / "run")
    told, ledger = capsys.readouterr().err, read_ledger(tmp_path / "run")
    assert steps(tmp_path / "run") == {"useful": 12, "repeated": 0, "failed": 0}
    counts = tiny_recipe.model
    assert ledger.work.tokens == 12 * STEP_TOKENS
    vocabulary = len(set((tmp_path / "text.txt").read_text())) + 1
    each = count_network(replace(counts, vocab_size=vocabulary), 64).training_flops
    assert ledger.work.all_flops == pytest.approx(12 * STEP_TOKENS * each)
    assert all(ledger.accounts[name].device_seconds > 0 for name in ("start", "evaluation", "samples", "checkpoints"))
    events = read_metrics(tmp_path / "run")
    elapsed = next(event["elapsed"] for event in events if event["event"] == "end")
    assert ledger.work.device_seconds >= elapsed
    assert ledger.money == pytest.approx(ledger.device_hours * 36.0)
    assert 0 < ledger.mfu < 1 and ledger.fraction == 1 and ledger.estimate().money == pytest.approx(ledger.money)
    spent = [(event["flops"], event["device_seconds"]) for event in events if event["event"] in ("eval", "end")]
    assert spent == sorted(spent)
    assert [flops for flops, _ in spent] == [pytest.approx(step * STEP_TOKENS * each) for step in (4, 8, 12)]
    assert "peak: " in told and "FLOP/s per device, measured" in told
    assert "cost: 1,536 tokens, " in told and " USD\n" in told


def test_work_that_a_kill_loses_is_repeated(tiny_recipe, tmp_path, monkeypatch):
    """Killed after step 8, continued from the checkpoint after step 5."""
    run = tmp_path / "run"

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(CostMeter, "__exit__", lambda *given: None)  # nothing is written at a kill
        loop.train(tiny_recipe, run, on_step=dies_after(8))
    before = read_ledger(run)
    assert steps(run) == {"useful": 8, "repeated": 0, "failed": 0}
    monkeypatch.setattr(cost, "_PEAK_AFTER", math.inf)
    monkeypatch.setattr(devices, "peak_rate", lambda *given: pytest.fail("it is known"))
    loop.train(priced(tiny_recipe), run, resume=True)
    ledger = read_ledger(run)
    assert steps(run) == {"useful": 12, "repeated": 3, "failed": 0}
    assert ledger.peak == before.peak
    assert ledger.total.device_seconds > before.total.device_seconds
    (end,) = [event for event in read_metrics(run) if event["event"] == "end"]
    assert end["flops"] == pytest.approx(ledger.work.all_flops), "what was lost has been paid for"


def test_a_run_that_begins_again_repeats_all(tiny_recipe, tmp_path):
    with pytest.raises(SystemExit):
        loop.train(tiny_recipe, tmp_path / "run", on_step=dies_after(4))
    loop.train(tiny_recipe, tmp_path / "run", resume=True)
    assert steps(tmp_path / "run") == {"useful": 12, "repeated": 4, "failed": 0}


def test_a_stopped_run_repeats_nothing_and_tells_its_estimate(tiny_recipe, tmp_path):
    def stop(progress):
        if progress.step == 6:
            signal.raise_signal(signal.SIGTERM)

    loop.train(priced(tiny_recipe), tmp_path / "run", on_step=stop)
    ledger = read_ledger(tmp_path / "run")
    assert ledger.fraction == 0.5
    assert ledger.estimate().tokens == 2 * ledger.work.tokens
    assert ledger.estimate().money > ledger.money
    loop.train(priced(tiny_recipe), tmp_path / "run", resume=True)
    assert steps(tmp_path / "run") == {"useful": 12, "repeated": 0, "failed": 0}


def test_skipped_steps_and_those_that_a_rollback_undoes_have_failed(tiny_recipe, tmp_path, monkeypatch):
    taken = loop.Learner.step
    calls = []

    def step(self, batches, rate):
        measured = taken(self, batches, rate)
        calls.append(rate)
        if len(calls) in (3, 7, 8, 9):  # as if: the weights of these steps are thrown away by the rollback
            measured.is_taken = False
        return measured

    monkeypatch.setattr(loop.Learner, "step", step)
    loop.train(priced(tiny_recipe), tmp_path / "run")
    # 3 failed; 6 was taken and undone; 7, 8 and 9 failed; then back to the checkpoint after step 5.
    assert steps(tmp_path / "run") == {"useful": 7, "repeated": 0, "failed": 5}


def test_a_ledger_that_was_removed_keeps_what_the_checkpoint_knows(tiny_recipe, tmp_path):
    run = tmp_path / "run"
    loop.train(replace(tiny_recipe, training=replace(tiny_recipe.training, steps=5)), run)
    (run / LEDGER_FILE).unlink()
    (place,) = (run / "checkpoints").glob("step-*")
    state = json.loads((place / "progress.json").read_text())
    assert state["ledger"]["steps"] == 5
    loop.train(tiny_recipe, run, resume=True)
    assert steps(run)["useful"] == 12, "the checkpoint knows of the work that led to it"


def test_a_run_from_before_there_were_ledgers_counts_from_where_it_goes_on(tiny_recipe, tmp_path, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(CostMeter, "snapshot", lambda self: None)
        loop.train(replace(tiny_recipe, training=replace(tiny_recipe.training, steps=5)), run)
    (run / LEDGER_FILE).unlink()
    loop.train(tiny_recipe, run, resume=True)
    assert steps(run)["useful"] == 7
    assert read_ledger(run).begun_after == 5


def test_a_damaged_ledger_stops_a_resume_before_anything_is_changed(tiny_recipe, tmp_path):
    run = tmp_path / "run"
    loop.train(replace(tiny_recipe, training=replace(tiny_recipe.training, steps=5)), run)
    (run / LEDGER_FILE).write_text("{")
    before = (run / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"ledger\.json: not JSON"):
        loop.train(tiny_recipe, run, resume=True)
    assert (run / "metrics.jsonl").read_bytes() == before


def test_another_device_is_measured_anew(tiny_recipe, tmp_path, monkeypatch):
    run = tmp_path / "run"
    loop.train(replace(tiny_recipe, training=replace(tiny_recipe.training, steps=5)), run)
    monkeypatch.setattr(devices, "device_name", lambda device: "another")
    monkeypatch.setattr(devices, "peak_rate", lambda device, dtype, again=False: 1e15)
    loop.train(tiny_recipe, run, resume=True)
    ledger = read_ledger(run)
    assert (ledger.device, ledger.peak) == ("another", 1e15)
    assert ledger.work.possible_flops > 1e14, "each step beside the peak of the device that took it"


def test_a_peak_that_was_measured_while_the_machine_was_busy_is_raised_by_the_steps(tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "peak_rate", lambda device, dtype, again=False: 1e3)
    loop.train(tiny_recipe, tmp_path / "run")
    shares = [event["mfu"] for event in read_metrics(tmp_path / "run") if event["event"] == "train"]
    assert shares and max(shares) <= 1
    ledger = read_ledger(tmp_path / "run")
    assert ledger.peak > 1e6 and ledger.mfu <= 1


def test_a_cpus_peak_is_measured_at_later_moments_too(tiny_recipe, tmp_path, monkeypatch):
    from gossamer.train.world import SINGLE_PROCESS

    rates = iter([1e9, 8e8, 5e9])
    asked = []

    def rate(device, dtype, again=False):
        asked.append(again)
        return next(rates)

    monkeypatch.setattr(devices, "peak_rate", rate)
    monkeypatch.setattr(cost, "_PEAK_AFTER", 0.0)
    with CostMeter(tmp_path, tiny_recipe, SINGLE_PROCESS, 0.0) as book:
        peaks = [book.ledger.peak]
        for _ in range(2):
            book.update(0.5)
            peaks.append(book.ledger.peak)
        book._peak_pause = 60.0
        book.update(0.5)
    assert peaks == [1e9, 1e9, 5e9] and asked == [False, True, True]


def test_energy_is_counted_where_it_is_reported(tiny_recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(EnergyMeter, "_read", lambda self: {"a": 0.0})
    monkeypatch.setattr(EnergyMeter, "joules", lambda self: 360.0)
    monkeypatch.setattr(cost, "_ENERGY_EVERY", math.inf)
    loop.train(tiny_recipe, tmp_path / "run")
    ledger = read_ledger(tmp_path / "run")
    assert ledger.joules >= 12 * 360 and ledger.joules % 360 == 0
    assert 0 < ledger.energy_share <= 1
    assert "Wh" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("price", "complaint"),
    [
        ("0", "training.price = 0: must be above 0 and at most 1,000,000,000"),
        ("-2.5", "training.price = -2.5: must be above 0 and at most 1,000,000,000"),
        ("cheap", "--training.price cheap: expected a number or null"),
        ("nan", "--training.price nan: expected a number or null"),
        ("inf", "--training.price inf: expected a number or null"),
        ("true", "--training.price true: expected a number or null"),
    ],
)
def test_a_bad_price_is_one_line_and_nothing_is_begun(tiny_recipe, tmp_path, capsys, price, complaint):
    file, run = tmp_path / "recipe.yaml", tmp_path / "run"
    file.write_text(to_yaml(tiny_recipe))
    assert cli.main(["train", "--recipe", str(file), "--out", str(run), "--training.price", price]) == 2
    assert capsys.readouterr().err == f"gossamer: {complaint}\n"
    assert not run.exists()


def test_the_head_counts_as_often_as_it_is_applied(tiny_recipe, tmp_path):
    from gossamer.train.world import SINGLE_PROCESS

    def each(**training):
        recipe = replace(tiny_recipe, training=replace(tiny_recipe.training, **training))
        return CostMeter(tmp_path, recipe, SINGLE_PROCESS, 0.0).flops.get("mtp", 0.0)

    assert each(mtp_steps=3) == 3 * each() > 0
    assert each(mtp_steps=0) == each(mtp_loss_weight=0.0) == 0
