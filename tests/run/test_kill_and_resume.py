"""The real trainer, killed again and again at any moment and resumed, ends where an undisturbed one ends."""

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from gossamer.run.checkpoint import newest_checkpoint
from gossamer.run.metrics import METRICS_FILE, read_metrics
from gossamer.train.recipe import to_yaml

pytestmark = pytest.mark.slow

SEED = 8
STEPS, EVERY = 90, 3  # of the run, and from checkpoint to checkpoint
KILLS = {"start": 5, "step": 6, "checkpoint": 11, "model": 3}
LEAST_KILLS, LEAST_HITS = 20, 4  # a hit is a kill that leaves half a checkpoint behind
HALF = {"checkpoint": "checkpoints/.tmp-*-step-*", "model": ".tmp-*-model"}  # names of what is being written
BY_THE_CLOCK = {"elapsed", "tokens_per_second", "mfu", "memory", "seconds", "flops", "device_seconds"}


@dataclass(frozen=True)
class Moment:
    """A moment to kill the trainer at.

    Attributes:
        kind: start, step, or what is being written: checkpoint or model
        count: steps logged, or things begun to be written, since the launch
        share: how far into the start-up, the step or the writing, 0 to 1
    """

    kind: str
    count: int
    share: float


@dataclass
class Trainer:
    """`gossamer train` as a user starts it.

    Attributes:
        recipe: file of the run's recipe
        run: its folder
        lasts: how long a start-up, a step and each writing take here (seconds)
        began: time of the newest launch (Unix seconds)
    """

    recipe: Path
    run: Path
    lasts: dict[str, float] = field(default_factory=dict)
    began: float = 0.0

    def launch(self) -> None:
        """Go on with the run, or begin it."""
        resume = (self.run / "config.yaml").exists()
        source = ["--resume"] if resume else ["--recipe", str(self.recipe)]
        command = [sys.executable, "-m", "gossamer.cli", "train", *source, "--out", str(self.run)]
        self.began = time.time()
        with self.run.with_suffix(".stderr").open("w") as told:
            self.process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=told)

    def finish(self) -> None:
        """Wait for the end of the run, which has to be a good one."""
        assert self.process.wait(timeout=600) == 0, self.run.with_suffix(".stderr").read_text()

    def measure(self) -> None:
        """Run undisturbed to the end, noting how long things take."""
        self.launch()
        looks, starting = 0, 0
        seen: dict[str, dict[Path, int]] = {kind: {} for kind in HALF}  # looks that have found this half-written
        while self.process.poll() is None:
            time.sleep(0.002)
            looks += 1
            starting += not (self.run / METRICS_FILE).exists()
            for kind, found in seen.items():
                for path in self.half_written(kind):
                    found[path] = found.get(path, 0) + 1
        a_look = (time.time() - self.began) / looks
        self.finish()
        end = next(event for event in read_metrics(self.run) if event["event"] == "end")
        self.lasts = {"start": starting * a_look, "step": end["elapsed"] / STEPS}
        self.lasts |= {kind: statistics.median(found.values()) * a_look for kind, found in seen.items()}

    def kill(self, moment: Moment) -> None:
        """Launch, wait for the moment, and kill."""
        self.launch()
        begun: set[Path] = set()
        while self.process.poll() is None and moment.kind != "start":
            if moment.kind in HALF:
                begun.update(self.half_written(moment.kind))
            if (len(begun) if moment.kind in HALF else self.steps_logged()) >= moment.count:
                break
            time.sleep(0.002)
        time.sleep(moment.share * self.lasts[moment.kind])
        self.process.kill()
        status = self.process.wait()
        assert status == -signal.SIGKILL, (
            f"ended by itself with {status}; {self.run.with_suffix('.stderr').read_text()}"
        )

    def half_written(self, kind: str) -> list[Path]:
        """What this launch is writing, or was when it was killed; what earlier ones have left behind is not meant."""
        return [path for path in self.run.glob(HALF[kind]) if _modified(path) >= self.began]

    def steps_logged(self) -> int:
        """Steps in metrics.jsonl since this launch."""
        lines = (self.run / METRICS_FILE).read_bytes().splitlines() if (self.run / METRICS_FILE).exists() else []
        count = 0
        for line in reversed(lines):
            if line.startswith((b'{"event": "start"', b'{"event": "resume"')):
                return count if line.endswith(b"}") and json.loads(line)["time"] >= self.began else 0
            count += line.startswith(b'{"event": "train"')
        return 0


def test_killed_at_random_moments_a_run_ends_bit_identical(tiny_recipe, tmp_path, capsys):
    training = replace(tiny_recipe.training, steps=STEPS, checkpoint_every=EVERY, eval_every=5, sample_every=10)
    file = tmp_path / "recipe.yaml"
    file.write_text(to_yaml(replace(tiny_recipe, training=training)))
    whole = Trainer(file, tmp_path / "whole")
    whole.measure()

    killed = Trainer(file, tmp_path / "killed", whole.lasts)
    hits = dict.fromkeys(HALF, 0)
    moments = _moments(random.Random(SEED))
    anew = 0
    for moment in moments:
        killed.kill(moment)
        for kind in HALF:
            hits[kind] += bool(killed.half_written(kind))
        newest = max((killed.run / "checkpoints").glob("step-*"), default=None)
        assert newest_checkpoint(killed.run) == newest, "what bears a checkpoint's name is whole"
        anew += newest is None
        if newest is not None:
            assert load_file(killed.run / "model" / "model.safetensors"), "the model is whole at any moment"
    killed.launch()
    killed.finish()

    with capsys.disabled():
        timing = ", ".join(f"{kind} {seconds:.3f} s" for kind, seconds in whole.lasts.items())
        writing = ", ".join(f"{count} while a {what} was being written" for what, count in hits.items())
        print(f"\n{len(moments)} kills ({anew} before the first checkpoint): {writing}; {timing}")
    assert len(moments) >= LEAST_KILLS
    assert hits["checkpoint"] >= LEAST_HITS
    assert anew < len(moments) // 2
    final = [(trainer.run / "model" / "model.safetensors").read_bytes() for trainer in (whole, killed)]
    assert final[0] == final[1]
    for event in ("train", "eval", "end", "experts", "sample"):
        assert _measured(killed.run, event) == _measured(whole.run, event), event
    assert [values["step"] for values in _measured(killed.run, "train")] == list(range(1, STEPS + 1))
    left = [*killed.run.glob("checkpoints/.tmp-*"), *killed.run.glob(".tmp-*-model")]
    assert not left, "what kills left behind has been swept up"
    assert (killed.run / "samples.txt").read_text() == (whole.run / "samples.txt").read_text()


def _moments(draw: random.Random) -> list[Moment]:
    """The first kills come before the first checkpoint, the others in any order."""
    most = {"start": 1, "step": 4, "checkpoint": 2, "model": 2}
    kinds = [kind for kind, count in KILLS.items() for _ in range(count)]
    draw.shuffle(kinds)
    early = [Moment("step", 1, draw.random()), Moment("checkpoint", 1, draw.random())]
    return early + [Moment(kind, draw.randint(1, most[kind]), draw.random()) for kind in kinds]


def _measured(run: Path, event: str) -> list[dict[str, object]]:
    """Everything of one kind of event that neither the clock nor the kills decide."""
    found = [values for values in read_metrics(run) if values["event"] == event]
    return [{key: value for key, value in values.items() if key not in BY_THE_CLOCK} for values in found]


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # renamed in the meantime
        return 0.0
