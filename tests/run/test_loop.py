"""A run from beginning to end, stopped and resumed."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gossamer import device as devices
from gossamer.errors import UserError
from gossamer.report import write_report
from gossamer.run import loop, metrics, samples
from gossamer.run.checkpoint import newest_checkpoint
from gossamer.run.metrics import read_metrics
from gossamer.train.recipe import load_recipe, to_yaml
from gossamer.train.step import Learner

needs_bfloat16 = pytest.mark.skipif(
    not devices.has_fast_bfloat16(torch.device("cpu")), reason="this CPU has no bfloat16 units"
)


def weights(run):
    return load_file(run / "model" / "model.safetensors")


def assert_same_weights(one, other):
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def test_a_run_leaves_everything_a_user_expects(tiny_recipe, tmp_path):
    run = tmp_path / "run"
    loop.train(tiny_recipe, run, report=write_report)
    for name in ("config.yaml", "metrics.jsonl", "samples.txt", "report.html", "model/config.json"):
        assert (run / name).stat().st_size > 0, name
    assert list((run / "tensorboard").iterdir())
    events = read_metrics(run)
    losses = [event["loss"] for event in events if event["event"] == "train"]
    modes = {path.stat().st_mode for path in run.rglob("*") if path.is_file()}
    assert modes == {(tmp_path / "text.txt").stat().st_mode}, "readable for all that the umask lets read"
    assert len(losses) == 12
    assert losses[-1] < losses[0] - 0.5
    assert events[0]["event"] == "start"
    end = next(event for event in events if event["event"] == "end")
    assert end["tokens"] == 12 * 2 * 64
    assert 0 < end["bits_per_byte"] < 8
    saved = load_recipe(run / "config.yaml")
    assert saved.model.vocab_size == len(set((tmp_path / "text.txt").read_text())) + 1


def test_every_event_that_a_run_writes_is_listed():
    lines = re.findall(r"^    ([a-z]+(?:, [a-z]+)*)  +\S", metrics.__doc__, re.MULTILINE)
    listed = [name for line in lines for name in line.split(", ")]
    code = "".join(path.read_text() for path in Path(loop.__file__).parent.glob("*.py"))
    written = re.findall(r"\b(?:write|record_evaluation)\(\s*\"([a-z]+)\"", code)
    assert sorted(listed) == sorted(set(written))


def test_a_resumed_run_ends_bit_identical(tiny_recipe, tmp_path):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    loop.train(tiny_recipe, whole)
    half = replace(tiny_recipe, training=replace(tiny_recipe.training, steps=12))
    stopped = _stop_after(7, half, halves)
    assert stopped == 7
    loop.train(tiny_recipe, halves, resume=True)
    assert_same_weights(whole, halves)
    assert _curve(whole) == _curve(halves)


def test_on_step_is_called_after_each_step_and_after_all_that_is_due_then(tiny_recipe, tmp_path):
    run, seen = tmp_path / "run", []

    def on_step(progress):
        events = read_metrics(run)
        seen.append((progress, [event["event"] for event in events if event["step"] == progress.step]))

    loop.train(tiny_recipe, run, on_step=on_step)
    assert [progress.step for progress, _ in seen] == list(range(1, 13))
    assert [progress.tokens for progress, _ in seen] == [128 * step for step in range(1, 13)]
    assert [progress.fraction for progress, _ in seen] == pytest.approx([step / 12 for step in range(1, 13)])
    elapsed = [progress.elapsed for progress, _ in seen]
    assert elapsed == sorted(elapsed) and elapsed[0] > 0
    events = {progress.step: names for progress, names in seen}
    assert events[1] == ["train"] and events[5] == ["train", "checkpoint"]
    assert events[4][:2] == ["train", "eval"] and events[12] == ["train"], "the last validation comes afterwards"
    with pytest.raises(KeyError):
        loop.train(tiny_recipe, tmp_path / "other", on_step=lambda progress: {}[progress.step])


def test_gradient_accumulation_sums_the_micro_batches(tiny_recipe, tmp_path):
    """Two micro-batches of one row take the same step as one of two rows, however many targets each row holds."""
    accumulated = replace(
        tiny_recipe, training=replace(tiny_recipe.training, batch_size=1, gradient_accumulation=2, steps=1)
    )
    together = replace(tiny_recipe, training=replace(tiny_recipe.training, steps=1))
    coefficient = {"router_aux_loss_coef": 0.0}  # balanced over a micro-batch, so not the same
    for name, recipe in (("apart", accumulated), ("together", together)):
        loop.train(replace(recipe, model=replace(recipe.model, **coefficient)), tmp_path / name)
    first, second = _curve(tmp_path / "apart")[0], _curve(tmp_path / "together")[0]
    assert first == pytest.approx(second, rel=1e-5)


def test_resume_with_another_corpus_is_refused(tiny_recipe, tmp_path, corpus_file):
    run = tmp_path / "run"
    loop.train(replace(tiny_recipe, training=replace(tiny_recipe.training, steps=2)), run)
    corpus_file.write_text(corpus_file.read_text() + "line 400: the square of 400 is 160000.\n")
    longer = replace(tiny_recipe, training=replace(tiny_recipe.training, steps=4))
    with pytest.raises(UserError, match="changed"):
        loop.train(longer, run, resume=True)


def test_resume_of_a_finished_run_says_so(tiny_recipe, tmp_path):
    run = tmp_path / "run"
    short = replace(tiny_recipe, training=replace(tiny_recipe.training, steps=2))
    loop.train(short, run)
    before = (run / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"--training\.steps"):
        loop.train(short, run, resume=True)
    assert (run / "metrics.jsonl").read_bytes() == before


def test_a_run_killed_before_its_first_checkpoint_begins_again(tiny_recipe, tmp_path, capsys):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    recipe = replace(tiny_recipe, training=replace(tiny_recipe.training, sample_every=2))
    loop.train(recipe, whole)

    def die(progress):
        if progress.step == 4:
            raise SystemExit

    with pytest.raises(SystemExit):
        loop.train(recipe, killed, on_step=die)
    assert len(_curve(killed)) == 4 and not (killed / "checkpoints").exists()
    capsys.readouterr()
    loop.train(recipe, killed, resume=True)
    assert f"{killed} was stopped before its first checkpoint: beginning again" in capsys.readouterr().err
    assert_same_weights(whole, killed)
    assert _curve(whole) == _curve(killed)
    assert [event["event"] for event in read_metrics(killed)].count("start") == 1
    assert (killed / "samples.txt").read_text() == (whole / "samples.txt").read_text()
    assert len(list((killed / "tensorboard").iterdir())) == 1


def test_a_run_that_the_device_cannot_hold_is_refused_before_it_reads_or_builds(tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "memory_bytes", lambda device: 1 << 20)
    for place, name in ((loop, "prepare"), (Learner, "from_seed")):
        monkeypatch.setattr(place, name, lambda *given, **named: pytest.fail("too late"))
    message = r"^training would take about [\d.,]+ [MG]iB of memory, and cpu has 1\.00 MiB; "
    with pytest.raises(UserError, match=message):
        loop.train(tiny_recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_vocabulary_that_the_device_cannot_hold_is_refused_before_the_network_is_built(
    tiny_recipe, tmp_path, monkeypatch
):
    estimates = iter([0, 1 << 50])
    estimated = loop.estimate_peak
    monkeypatch.setattr(loop, "estimate_peak", lambda *given: replace(estimated(*given), weights=next(estimates)))
    monkeypatch.setattr(Learner, "from_seed", lambda *given: pytest.fail("too late"))
    with pytest.raises(UserError, match=r"^training would take about 1\.00 PiB"):
        loop.train(tiny_recipe, tmp_path / "run")


def test_a_run_that_may_just_not_fit_is_warned_of(tiny_recipe, tmp_path, monkeypatch, caplog):
    needed = loop.estimate_peak(tiny_recipe, torch.device("cpu")).needed
    monkeypatch.setattr(devices, "memory_bytes", lambda device: int(needed / 1.05))
    loop.train(replace(tiny_recipe, training=replace(tiny_recipe.training, steps=1)), tmp_path / "run")
    assert "that is more than the device has" in caplog.text


def test_a_finished_run_says_what_to_do_next(tiny_recipe, tmp_path, capsys):
    training = replace(tiny_recipe.training, steps=1, sample_prompt="line 1")
    loop.train(replace(tiny_recipe, training=training), tmp_path / "a run")
    told = capsys.readouterr().err
    assert told.endswith(f"what it writes: gossamer sample '{tmp_path}/a run' --prompt 'line 1'\n")


def test_a_prompt_for_other_text_costs_no_run_and_is_not_recommended(tiny_recipe, tmp_path, capsys, caplog):
    training = replace(tiny_recipe.training, steps=2, sample_every=1, sample_prompt="ROMEO:")
    loop.train(replace(tiny_recipe, training=training), tmp_path / "run")
    assert "samples begin without training.sample_prompt: character 'R'" in caplog.text
    told = capsys.readouterr().err.splitlines()
    (words,) = [line.partition(": ")[2] for line in told if line.startswith("samples continue held-out words")]
    assert told[-1].endswith(f"--prompt {words}")
    samples = (tmp_path / "run" / "samples.txt").read_text()
    assert "ROMEO" not in samples and samples.count(f"\n{words[1:-1]}") == 2


WAITS_AFTER_FIVE_STEPS = """
import sys, time
from pathlib import Path
from gossamer.run.loop import train
from gossamer.train.recipe import load_recipe
wait = lambda progress: time.sleep(600) if progress.step == 5 else None
train(load_recipe(sys.argv[1]), Path(sys.argv[2]), on_step=wait)
"""


def test_a_killed_run_resumes_to_the_same_end(tiny_recipe, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    recipe = replace(tiny_recipe, training=replace(tiny_recipe.training, steps=8, checkpoint_every=3, eval_every=0))
    loop.train(recipe, whole)
    file = tmp_path / "recipe.yaml"
    file.write_text(to_yaml(recipe))
    command = [sys.executable, "-c", WAITS_AFTER_FIVE_STEPS, str(file), str(killed)]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while newest_checkpoint(killed) is None and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    loop.train(recipe, killed, resume=True)
    assert_same_weights(whole, killed)
    assert _curve(whole) == _curve(killed)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_end_saves_and_ends_in_peace(tiny_recipe, tmp_path, number):
    run, before = tmp_path / "run", signal.signal(number, signal.SIG_DFL)  # nohup's way lets SIGHUP pass
    try:
        assert _stop_after(5, tiny_recipe, run, number) == 5
    finally:
        signal.signal(number, before)
    assert len(_curve(run)) == 5
    assert weights(run)


def test_a_run_goes_on_when_nobody_reads_what_it_says(tiny_recipe, tmp_path):
    file, run = tmp_path / "recipe.yaml", tmp_path / "run"
    file.write_text(to_yaml(replace(tiny_recipe, training=replace(tiny_recipe.training, steps=4))))
    command = [sys.executable, "-m", "gossamer.cli", "train", "--recipe", str(file), "--out", str(run)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    process.stderr.readline()
    process.stderr.close()
    assert process.wait(timeout=120) == 0
    assert len(_curve(run)) == 4 and (run / "report.html").is_file()


def test_a_run_can_be_as_long_as_a_number_of_tokens_or_seconds(tiny_recipe, tmp_path):
    by_tokens = replace(tiny_recipe, training=replace(tiny_recipe.training, tokens=5 * 128))
    loop.train(by_tokens, tmp_path / "tokens")
    assert len(_curve(tmp_path / "tokens")) == 5
    by_seconds = replace(tiny_recipe, training=replace(tiny_recipe.training, seconds=0.8, steps=1))
    loop.train(by_seconds, tmp_path / "seconds")
    end = next(event for event in read_metrics(tmp_path / "seconds") if event["event"] == "end")
    assert 0.8 <= end["elapsed"] < 20
    with pytest.raises(UserError, match=r"continue it with a larger --training\.seconds"):
        loop.train(by_seconds, tmp_path / "seconds", resume=True)
    longer = replace(by_seconds, training=replace(by_seconds.training, seconds=end["elapsed"] + 0.5))
    loop.train(longer, tmp_path / "seconds", resume=True)
    assert read_metrics(tmp_path / "seconds")[-1]["step"] > end["step"]


@pytest.mark.parametrize(
    "changed",
    [
        {"recompute": True},
        {"mtp_steps": 3, "mtp_trunk_gradient": False},
        {"mtp_steps": 0},
        {"balance": "bias", "router_z_loss_weight": 1e-3},
        {"packing": "best_fit"},
        pytest.param({"precision": "bf16"}, marks=needs_bfloat16),
    ],
    ids=str,
)
def test_every_ingredient_learns(tiny_recipe, tmp_path, changed):
    recipe = replace(tiny_recipe, training=replace(tiny_recipe.training, **changed))
    loop.train(recipe, tmp_path / "run")
    events = read_metrics(tmp_path / "run")
    losses = _curve(tmp_path / "run")
    assert losses[-1] < losses[0] - 0.4
    end = next(event for event in events if event["event"] == "end")
    assert len(end.get("mtp_acceptance", [])) == changed.get("mtp_steps", 1)


def test_recomputation_changes_no_bit(tiny_recipe, tmp_path):
    for name, recompute in (("kept", False), ("again", True)):
        training = replace(tiny_recipe.training, recompute=recompute, steps=3)
        loop.train(replace(tiny_recipe, training=training), tmp_path / name)
    assert_same_weights(tmp_path / "kept", tmp_path / "again")
    kept, again = (_values(tmp_path / name, "aux_loss") for name in ("kept", "again"))
    assert kept == again, "the balancing loss is counted once"


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_several_processes_learn_what_one_does(tiny_recipe, tmp_path, processes):
    """In float32, twenty steps: every loss within 1e-5; then one process continues from their checkpoint."""
    training = replace(tiny_recipe.training, batch_size=4, steps=20, eval_every=10, checkpoint_every=10)
    recipe = replace(tiny_recipe, training=replace(training, expert_parallel=2))
    file = tmp_path / "recipe.yaml"
    file.write_text(to_yaml(recipe))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [*launcher, "-m", "gossamer.cli", "train", "--recipe", str(file), "--out", str(tmp_path / "together")]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    alone = replace(recipe, training=training)
    loop.train(alone, tmp_path / "alone")
    assert _curve(tmp_path / "together") == pytest.approx(_curve(tmp_path / "alone"), abs=1e-5)
    assert _ends(tmp_path / "together") == pytest.approx(_ends(tmp_path / "alone"), abs=1e-4)
    loop.train(replace(alone, training=replace(training, steps=22)), tmp_path / "together", resume=True)
    assert len(_curve(tmp_path / "together")) == 22


def _ends(run):
    return [event["loss"] for event in read_metrics(run) if event["event"] in ("eval", "end")]


def test_the_last_evaluation_goes_on_where_those_before_it_ended(tiny_recipe, tmp_path):
    training = replace(tiny_recipe.training, final_eval_tokens=1024)
    for name, every in (("curve", 4), ("end", 0)):
        loop.train(replace(tiny_recipe, training=replace(training, eval_every=every)), tmp_path / name)
    events = [event for event in read_metrics(tmp_path / "curve") if event["event"] in ("eval", "end")]
    assert [(event["event"], event["step"]) for event in events] == [
        ("eval", 4),
        ("eval", 8),
        ("eval", 12),
        ("end", 12),
    ]
    *curve, end = [event["eval_tokens"] for event in events]
    assert len(set(curve)) == 1 and 200 < curve[0] <= 256 and 900 < end <= 1024
    (whole,) = [event for event in read_metrics(tmp_path / "end") if event["event"] in ("eval", "end")]
    for name in ("loss", "bits_per_byte", "eval_tokens", "mtp_acceptance"):
        assert events[-1][name] == pytest.approx(whole[name], rel=1e-6), "read in two parts"
    assert events[-1]["loss"] != pytest.approx(events[-2]["loss"], rel=1e-6), "other text"


def test_an_unknown_set_to_judge_by_is_refused(tiny_recipe, tmp_path):
    recipe = replace(tiny_recipe, training=replace(tiny_recipe.training, best_checkpoint_by="novel"))
    with pytest.raises(UserError, match="best_checkpoint_by"):
        loop.train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def _values(run, name):
    return [event[name] for event in read_metrics(run) if event["event"] == "train"]


def _curve(run):
    return _values(run, "loss")


def _stop_after(step, recipe, run, number=signal.SIGINT):
    """Train until a signal arrives after `step` steps; returns the step of the newest checkpoint then."""

    def send(progress):
        if progress.step == step:
            os.kill(os.getpid(), number)

    assert threading.current_thread() is threading.main_thread()
    with pytest.raises(KeyboardInterrupt) if number == signal.SIGINT else nullcontext():
        loop.train(recipe, run, on_step=send)
    return int(newest_checkpoint(run).name.removeprefix("step-"))


def test_nothing_that_a_run_can_do_without_ends_it(tiny_recipe, tmp_path, monkeypatch, capsys):
    """Samples, boards and the report fail, and the run is as whole as one where they do not."""
    recipe = replace(tiny_recipe, training=replace(tiny_recipe.training, sample_every=5))
    loop.train(recipe, tmp_path / "whole")
    saved = []

    def fail(*arguments, **options):
        raise RuntimeError("it fails")

    def failing_sample(*arguments, **options):
        saved.append((tmp_path / "run" / "model" / "config.json").exists())
        raise RuntimeError("it fails")
        yield

    monkeypatch.setattr(samples, "sample_text", failing_sample)
    monkeypatch.setattr(samples.SampleWriter, "suggested_prompt", fail)
    monkeypatch.setattr(metrics.TensorBoard, "show", fail)
    loop.train(recipe, tmp_path / "run", report=fail)
    told = capsys.readouterr().err
    assert "no sample after step 5 (RuntimeError: it fails); the run itself is whole" in told
    assert "no report after step 12 (RuntimeError: it fails)" in told
    assert saved[-1], "the run was saved before its last sample"
    assert_same_weights(tmp_path / "whole", tmp_path / "run")
    assert _curve(tmp_path / "whole") == _curve(tmp_path / "run")


def test_a_run_killed_between_a_save_and_its_sample_makes_up_for_it(tiny_recipe, tmp_path, monkeypatch):
    recipe = replace(tiny_recipe, training=replace(tiny_recipe.training, sample_every=5))
    loop.train(recipe, tmp_path / "whole")

    def die(*given):
        raise SystemExit

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(samples, "sample_text", die)
        loop.train(recipe, tmp_path / "killed")
    assert (tmp_path / "killed" / "checkpoints" / "step-00000005").exists()
    loop.train(recipe, tmp_path / "killed", resume=True)
    assert (tmp_path / "killed" / "samples.txt").read_text() == (tmp_path / "whole" / "samples.txt").read_text()
