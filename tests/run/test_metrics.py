"""The record of a run: what is written is read back, through kills, resumes and numbers that are not finite."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gossamer.errors import UserError
from gossamer.run.metrics import MetricsWriter, read_metrics, scalars


class SilentBoard:
    """In place of TensorBoard where only the JSON lines are looked at: it starts a thread and a file each time."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __getattr__(self, name: str) -> object:
        return lambda *args, **kwargs: None


@pytest.fixture
def no_board(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter", SilentBoard)


def write_run(folder: Path, steps: int) -> None:
    with MetricsWriter(folder) as writer:
        writer.write("start", 0, corpus="tales", parameters=10)
        for step in range(1, steps + 1):
            writer.write("train", step, loss=1.0 / step, tokens=8 * step)


def test_events_come_back_in_order_and_are_on_disk_before_close(tmp_path: Path, no_board: None) -> None:
    writer = MetricsWriter(tmp_path / "new" / "run")
    writer.write("start", 0, time=5.0, corpus="tales")
    writer.write("train", 1, loss=2.5, tokens=64, mtp_loss=None)
    assert read_metrics(tmp_path / "new" / "run") == [
        {"event": "start", "time": 5.0, "step": 0, "corpus": "tales"},
        {"event": "train", "step": 1, "loss": 2.5, "tokens": 64},
    ]
    writer.close()
    writer.close()


def test_start_and_resume_know_the_time(tmp_path: Path, no_board: None) -> None:
    with MetricsWriter(tmp_path) as writer:
        writer.write("start", 0)
        writer.write("resume", 3)
        writer.write("train", 4)
    start, resume, train = read_metrics(tmp_path)
    assert 1.7e9 < start["time"] <= resume["time"]
    assert "time" not in train


def test_numbers_of_numpy_and_torch(tmp_path: Path, no_board: None) -> None:
    with MetricsWriter(tmp_path) as writer:
        writer.write("train", 1, a=np.float32(0.5), b=np.int64(3), c=torch.tensor(0.25), d=torch.tensor([7]), e=True)
    assert read_metrics(tmp_path) == [{"event": "train", "step": 1, "a": 0.5, "b": 3, "c": 0.25, "d": 7, "e": True}]


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, np.float32("nan"), torch.tensor(math.inf)])
def test_a_number_that_is_not_finite_is_null(tmp_path: Path, no_board: None, number: object) -> None:
    with MetricsWriter(tmp_path) as writer:
        writer.write("train", 1, loss=number)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line, parse_constant=refuse) == {"event": "train", "step": 1, "loss": None}
    assert read_metrics(tmp_path)[0]["loss"] is None


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(exclude_categories=()), max_size=40))
def test_any_text_survives(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.utils.tensorboard.SummaryWriter", SilentBoard)
        with MetricsWriter(folder) as writer:
            writer.write("sample", 1, text=text)
    assert [event["text"] for event in read_metrics(folder)] == [text]
    assert (folder / "metrics.jsonl").read_bytes().count(b"\n") == 1


def test_a_torn_last_line_is_forgotten_wherever_it_tore(tmp_path: Path, no_board: None) -> None:
    write_run(tmp_path, 2)
    path = tmp_path / "metrics.jsonl"
    whole, events = path.read_bytes(), read_metrics(tmp_path)
    before_last = whole.rindex(b"\n", 0, -1) + 1
    for end in range(before_last, len(whole) - 1):
        path.write_bytes(whole[:end])
        assert read_metrics(tmp_path) == events[:-1], whole[before_last:end]
    path.write_bytes(whole[:-1])  # nothing but the newline is missing: the event is whole
    assert read_metrics(tmp_path) == events


def test_a_resume_after_a_torn_line_starts_a_new_one(tmp_path: Path, no_board: None) -> None:
    write_run(tmp_path, 3)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    with MetricsWriter(tmp_path, resume_step=3) as writer:
        writer.write("resume", 2, time=1.0)
    kinds = [(event["event"], event["step"]) for event in read_metrics(tmp_path)]
    assert kinds == [("start", 0), ("train", 1), ("train", 2), ("resume", 2)]


@pytest.mark.parametrize(
    "damage",
    [
        b"{",
        b"\x00\x00",
        b"\xff",
        b"[]",
        b'{"event": "train"}',
        b'{"event": "train", "step": "1"}',
        b"[" * 99999,
        b'{"event": "train", "step": 2, "tokens": 9223372036854775808}',
    ],
    ids=["torn", "zeros", "bytes", "list", "no step", "step as text", "deep", "beyond 64 bits"],
)
def test_damage_in_the_middle_names_file_and_line(tmp_path: Path, no_board: None, damage: bytes) -> None:
    write_run(tmp_path, 3)
    path = tmp_path / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = damage + b"\n"
    path.write_bytes(b"".join(lines))
    for attempt in (lambda: read_metrics(tmp_path), lambda: MetricsWriter(tmp_path, resume_step=1)):
        with pytest.raises(UserError, match=r"metrics\.jsonl, line 3, is damaged") as caught:
            attempt()
        assert "\n" not in str(caught.value)
    assert path.read_bytes() == b"".join(lines), "a refused resume must leave the file alone"


@pytest.mark.parametrize(("resume_step", "left"), [(0, 1), (2, 3), (5, 6), (9, 6)])
def test_resume_drops_what_came_after_the_checkpoint(
    tmp_path: Path, no_board: None, resume_step: int, left: int
) -> None:
    write_run(tmp_path, 5)
    MetricsWriter(tmp_path, resume_step=resume_step).close()
    assert [event["step"] for event in read_metrics(tmp_path)] == list(range(left))
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"], "no temporary file is left behind"


def test_a_new_run_does_not_overwrite_another(tmp_path: Path, no_board: None) -> None:
    write_run(tmp_path, 1)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match="--resume"):
        MetricsWriter(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_no_metrics(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no metrics\.jsonl"):
        read_metrics(tmp_path)


def test_tensorboard_shows_the_numbers_without_double_points(tmp_path: Path) -> None:
    write_run(tmp_path, 4)
    with MetricsWriter(tmp_path, resume_step=2) as writer:
        writer.write("train", 3, loss=9.0, tokens=24)
        writer.write("eval", 3, loss=math.inf, bits_per_byte=1.5)
        writer.write("sample", 3, text="# not a headline\nhalf of \ud83d a pair")
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(point.step, point.value) for point in board.Scalars("train/loss")] == [(1, 1.0), (2, 0.5), (3, 9.0)]
    assert board.Scalars("eval/bits_per_byte")[0].value == 1.5
    assert math.isinf(board.Scalars("eval/loss")[0].value)
    assert "train/tokens" not in board.Tags()["scalars"]
    text = board.Tensors("sample/text_summary")[0].tensor_proto.string_val[0].decode()
    assert text == "    # not a headline\n    half of ? a pair"


def test_lists_of_numbers(tmp_path: Path, no_board: None) -> None:
    with MetricsWriter(tmp_path) as writer:
        writer.write("eval", 1, mtp_acceptance=[0.5, np.float32(0.25), math.nan], set="code", rates=(1, 2))
        writer.write(
            "experts", 1, load=torch.tensor([[1.0, math.inf], [0.5, 1.5]]), dead=np.array([0, 2]), nested=[[1]]
        )
    assert read_metrics(tmp_path) == [
        {"event": "eval", "step": 1, "mtp_acceptance": [0.5, 0.25, None], "set": "code", "rates": [1, 2]},
        {"event": "experts", "step": 1, "load": [[1.0, None], [0.5, 1.5]], "dead": [0, 2], "nested": [[1]]},
    ]


def write_rollbacks(folder: Path) -> None:
    """Steps 1 to 6, back to 3, again to 5, back to 4, again to 6."""
    with MetricsWriter(folder) as writer:
        for first, last, back in ((1, 6, 3), (4, 5, 4), (5, 6, None)):
            for step in range(first, last + 1):
                writer.write("train", step, loss=float(last))
            if back is not None:
                writer.write("rollback", last, to=back)


@pytest.mark.parametrize(
    ("resume_step", "left"),
    [(2, "1 2"), (3, "1 2 3 4 5 6 to3"), (4, "1 2 3 4 5 6 to3 4 5 to4"), (5, "1 2 3 4 5 6 to3 4 5 to4 5")],
)
def test_resume_drops_what_came_after_the_newest_course(
    tmp_path: Path, no_board: None, resume_step: int, left: str
) -> None:
    write_rollbacks(tmp_path)
    MetricsWriter(tmp_path, resume_step=resume_step).close()
    events = read_metrics(tmp_path)
    assert " ".join(f"to{event['to']}" if "to" in event else str(event["step"]) for event in events) == left


def test_tensorboard_forgets_what_a_rollback_undid(tmp_path: Path) -> None:
    write_rollbacks(tmp_path)
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    losses = [(point.step, point.value) for point in board.Scalars("train/loss")]
    assert losses == [(1, 6.0), (2, 6.0), (3, 6.0), (4, 5.0), (5, 6.0), (6, 6.0)]


def test_boards_name_sets_steps_and_layers() -> None:
    record = {"step": 3, "tokens": 5, "loss": 2.0, "set": "code", "mtp_acceptance": [0.8, math.nan], "best": True}
    names = scalars("eval", record)
    assert list(names) == ["eval/code/loss", "eval/code/mtp_acceptance/1", "eval/code/mtp_acceptance/2"]
    assert names["eval/code/mtp_acceptance/1"] == 0.8
    experts = scalars("experts", {"dead": [0, 2], "load": [[1.0], [1.0]], "long": [1.0] * 129})
    assert experts == {"experts/dead/0": 0, "experts/dead/1": 2}


class FakeWandb(ModuleType):
    """In place of Weights & Biases: keeps what it is given."""

    class errors:
        class Error(Exception):
            pass

    def __init__(self, refuse: str | None = None) -> None:
        super().__init__("wandb")
        self.refuse, self.begun, self.logged, self.metrics, self.ended = refuse, [], [], [], []
        self.described: dict[str, object] = {}

    def init(self, **settings: object) -> FakeWandb:
        if self.refuse is not None:
            raise self.errors.Error(self.refuse)
        self.begun.append(settings)
        self.config = SimpleNamespace(update=lambda values, allow_val_change: self.described.update(values))
        return self

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.metrics.append((name, step_metric))

    def log(self, values: dict[str, float]) -> None:
        self.logged.append(values)

    def finish(self, exit_code: int) -> None:
        self.ended.append(exit_code)


def test_weights_and_biases_gets_the_same_numbers(
    tmp_path: Path, no_board: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    with MetricsWriter(tmp_path / "demo", wandb_project="tales") as writer:
        writer.write("start", 0, parameters=10, corpus="fables", time=5.0)
        writer.write("train", 1, loss=2.5, tokens=64)
        writer.write("sample", 1, text="once")
        writer.write("eval", 1, loss=2.0, set="code", mtp_acceptance=[0.5])
        writer.write("rollback", 1, to=0)
        writer.close()
    with pytest.raises(RuntimeError), MetricsWriter(tmp_path / "demo", 0, wandb_project="tales"):
        raise RuntimeError
    assert wandb.described == {"parameters": 10, "corpus": "fables", "time": 5.0}
    assert wandb.logged == [
        {"train/loss": 2.5, "step": 1},
        {"eval/code/loss": 2.0, "eval/code/mtp_acceptance/1": 0.5, "step": 1},
        {"rollback/to": 0, "step": 1},
    ]
    assert wandb.metrics[:2] == [("step", None), ("*", "step")]
    first, second = wandb.begun
    assert first == second, "a resumed run is the same run there too"
    assert (first["project"], first["name"], first["resume"]) == ("tales", "demo", "allow")
    assert len(str(first["id"])) == 16
    assert wandb.ended == [0, 1]


@pytest.mark.parametrize(
    ("module", "message"),
    [(None, "pip install wandb"), (FakeWandb("No API key."), "No API key; WANDB_MODE=offline keeps the numbers here")],
    ids=["missing", "no key"],
)
def test_weights_and_biases_that_cannot_begin(
    tmp_path: Path, no_board: None, monkeypatch: pytest.MonkeyPatch, module: ModuleType | None, message: str
) -> None:
    write_run(tmp_path, 3)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    monkeypatch.setitem(sys.modules, "wandb", module)
    with pytest.raises(UserError, match=message) as caught:
        MetricsWriter(tmp_path, resume_step=1, wandb_project="tales")
    assert "\n" not in str(caught.value)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_importing_it_is_cheap() -> None:
    code = "import sys, gossamer.run.metrics; print(sorted({'torch', 'tensorboard', 'numpy'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
