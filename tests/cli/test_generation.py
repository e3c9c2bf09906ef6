"""Verbs that let a model talk: what they ask of infer and serve."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from gossamer.cli import main
from gossamer.infer.options import EngineOptions
from gossamer.serve.engine_worker import EngineConfig
from gossamer.serve.options import ServeOptions
from stand_in import replace


def test_sample_writes_each_piece_as_it_comes(
    run: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[str] = []

    def pieces() -> Iterator[str]:
        for piece in ("To ", "be\n", "…"):
            yield piece
            seen.append(capsys.readouterr().out)

    calls = replace(monkeypatch, "gossamer.infer.generation", "sample_run")
    calls.answer = pieces()
    assert main(["sample", run, "--prompt", "null", "--max-tokens", "5", "--temperature", "0", "--seed=-3"]) == 0
    assert seen == ["To ", "be\n", "…"]
    assert capsys.readouterr().out == "\n"
    sampling = {"temperature": 0.0, "top_p": None, "seed": -3}
    assert calls == [((Path(run), "null", 5, sampling, "auto"), {})]


def test_serve_hands_on_its_options(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = replace(monkeypatch, "gossamer.serve.server", "serve")
    assert main(["serve", run, "--device", "cpu"]) == 0
    line = (
        "--port 0 --keys k --host :: --name n --cors http://a http://b --max-batch 2 --draft-length 0 --drain-timeout 1"
    )
    assert main(["serve", run, *line.split(), "--log-prompts", "--weights", "int8"]) == 0
    ((plain, _), (full, _)) = calls
    assert plain == (Path(run), ServeOptions(name="mine"), EngineConfig("cpu"))
    assert full[1] == ServeOptions(
        "::", 0, Path("k"), "n", cors=("http://a", "http://b"), drain_timeout=1.0, log_prompts=True
    )
    assert full[2] == EngineConfig("auto", EngineOptions(max_batch=2, draft_length=0, weights="int8"))


def test_chat_hands_on_its_options(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = replace(monkeypatch, "gossamer.serve.terminal", "chat")
    assert main(["chat", run, "--system", "Be brief.", "--seed", "3", "--max-tokens", "9"]) == 0
    sampling = {"temperature": None, "top_p": None, "seed": 3}
    assert calls == [((Path(run), "Be brief.", 9, sampling, "auto"), {})]
