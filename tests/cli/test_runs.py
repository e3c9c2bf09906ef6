"""Verbs about a run: what they ask of train and hub."""

import json
import sys
import time
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from gossamer.cli import main
from gossamer.cli.runs import export
from gossamer.data.config import SetConfig
from gossamer.hub.layout import NAMED_LAYOUTS
from gossamer.report import write_report
from gossamer.train.recipe import Recipe, load_recipe, to_yaml
from stand_in import Calls, replace


def trained(calls: Calls) -> tuple[Recipe, Path, bool]:
    ((recipe, folder, resume, profile), rest) = calls.pop()
    assert not calls and not profile
    assert rest.pop("began") <= time.perf_counter()
    assert rest.pop("sized_by_budget") is (recipe.training.budget != "" and not resume)
    assert rest.pop("report") is write_report
    assert not rest
    return recipe, folder, resume


def test_train_starts_the_default_recipe_in_its_folder(training: Calls) -> None:
    assert main(["train"]) == 0
    assert trained(training) == (load_recipe("demo"), Path("runs/demo"), False)


def test_train_overrides_by_dotted_name_and_by_short_name(training: Calls) -> None:
    Path("a.txt").write_text("text")
    line = "train --recipe nano --data a.txt b.txt --data c.txt --tokenizer char --errors replace --device cpu --out x"
    line += " --model.num_experts 4 --training.steps=3 --optimizer.betas 0.5 0.6 --model.mlp_only_layers 0 2"
    line += " --optimizer.learning_rate 1e-2 --model.norm_topk_prob false --corpus.cache_dir null"
    assert main([*line.split(), "--training.sample_prompt", "1e-3"]) == 0
    recipe, folder, resume = trained(training)
    wanted = {
        "corpus.paths": [str(Path("a.txt").absolute()), "b.txt", "c.txt"],
        "corpus.tokenizer": "char",
        "corpus.errors": "replace",
        "training.device": "cpu",
        "model.num_experts": 4,
        "training.steps": 3,
        "optimizer.betas": [0.5, 0.6],
        "model.mlp_only_layers": [0, 2],
        "optimizer.learning_rate": 0.01,
        "model.norm_topk_prob": False,
        "training.sample_prompt": "1e-3",
    }
    assert recipe == load_recipe("nano", wanted)
    assert (folder, resume) == (Path("x"), False)


def test_train_mixes_sets(training: Calls) -> None:
    Path("a.txt").write_text("text")
    line = "train --out x --corpus.sets.a.paths a.txt b.txt --corpus.sets.a.weight 2 --corpus.validation_sets.far f.txt"
    assert main([*line.split(), "--corpus.sets={c: {paths: [c.txt], weight: 1e-1}}", "--training.steps", "3"]) == 0
    recipe, _, _ = trained(training)
    assert recipe.corpus.sets == {
        "c": SetConfig(("c.txt",), 0.1),
        "a": SetConfig((str(Path("a.txt").absolute()), "b.txt"), 2.0),
    }
    assert recipe.corpus.validation_sets == {"far": ("f.txt",)} and recipe.training.steps == 3


def test_train_names_the_run_after_the_recipes_file(training: Calls) -> None:
    Path("own.yaml").write_text("training: {steps: 2}\n")
    assert main(["train", "--recipe", "own.yaml"]) == 0
    recipe, folder, _ = trained(training)
    assert (recipe.training.steps, folder) == (2, Path("runs/own"))


def test_train_names_the_run_after_text_alone(training: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    Path("v1.2 of it").mkdir()
    Path("novel.txt").write_text("text")
    names = {
        "--data novel.txt v1.2": "novel",
        "--corpus.paths novel.txt": "novel",
        "--data ./": Path.cwd().name,
        "--data /": "demo",
        "--data hf:some/text:train": "hf-some-text-train",
        "--budget 1h --data novel.txt": "novel",
        "--recipe nano --data novel.txt": "nano",
        "--recipe qwen3.5-9b": "qwen3.5-9b",
    }
    for line, name in names.items():
        assert main(["train", *line.split()]) == 0
        assert training.pop()[0][1] == Path("runs", name), line
    assert main(["train", "--data", "v1.2 of it"]) == 0
    assert training.pop()[0][1] == Path("runs/v1.2-of-it")
    Path("runs/novel").mkdir(parents=True)
    Path("runs/novel/config.yaml").write_text("")
    assert main(["train", "--data", "novel.txt"]) == 2
    assert "runs/novel already holds a run; continue it with --resume" in capsys.readouterr().err


def test_a_budget_takes_the_recipe_that_it_chooses_from(training: Calls) -> None:
    Path("a.txt").write_text("text")
    assert main("train --budget 5eur --price 2.5 --training.currency EUR --data a.txt".split()) == 0
    recipe, folder, _ = trained(training)
    assert folder == Path("runs/a")
    assert (recipe.training.budget, recipe.training.price) == ("5eur", 2.5)
    assert recipe.model == load_recipe("budget").model
    assert main("train --budget 1h --corpus.sets.novels.paths a.txt".split()) == 0
    assert list(trained(training)[0].corpus.sets) == ["novels"]


def test_train_resumes_by_the_runs_own_recipe(run: str, training: Calls) -> None:
    own = load_recipe("nano", {"model.num_experts": 4})
    Path(run, "config.yaml").write_text(to_yaml(own))
    assert main(["train", "--out", run, "--resume", "--training.steps", "77"]) == 0
    recipe, folder, resume = trained(training)
    assert (recipe.model, recipe.training.steps, folder, resume) == (own.model, 77, Path(run), True)


def test_train_hands_on_that_a_profile_is_wanted(run: str, training: Calls) -> None:
    Path(run, "config.yaml").write_text(to_yaml(load_recipe("nano")))
    assert main(["train", "--out", run, "--resume", "--profile"]) == 0
    (((*_, resume, profile), _),) = training
    assert resume and profile


def test_train_refuses_a_changed_network_on_resume(
    run: str, training: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(run, "config.yaml").write_text(to_yaml(load_recipe("nano")))
    assert main(["train", "--out", run, "--resume", "--model.num_experts", "4"]) == 2
    assert capsys.readouterr().err.startswith(f"gossamer: --model.num_experts is fixed for the run in {run}; ")
    assert not training


def test_eval_answers_people_and_programs(
    run: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = replace(monkeypatch, "gossamer.run.validate", "evaluate_run")
    calls.answer = {"loss": 1.23456789, "tokens": 7}
    assert main(["eval", run, "--data", "a", "b", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == calls.answer
    assert main(["eval", run, "--errors", "replace", "--weights", "int8"]) == 0
    assert capsys.readouterr().out == "loss    1.23457\ntokens  7\n"
    assert calls == [
        ((Path(run),), {"paths": ("a", "b"), "errors": "strict", "device": "auto", "weights": "stored"}),
        ((Path(run),), {"paths": (), "errors": "replace", "device": "auto", "weights": "int8"}),
    ]


def test_report_prints_where_it_is(
    run: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = replace(monkeypatch, "gossamer.report", "write_report")
    comparisons = Calls()
    monkeypatch.setattr(sys.modules["gossamer.report"], "write_comparison", comparisons, raising=False)
    calls.answer, comparisons.answer = Path(run, "report.html"), Path("runs/comparison.html")
    assert main(["report", run]) == 0
    assert main(["report", run, "--out", "page.html"]) == 0
    assert capsys.readouterr().out == f"{run}/report.html\n" * 2
    assert calls == [((Path(run), None), {}), ((Path(run), Path("page.html")), {})]
    Path("runs/other").mkdir()
    assert main(["report", run, "runs/other"]) == 0
    assert main(["report", "--out=page.html", "runs/other", run]) == 0
    assert capsys.readouterr().out == "runs/comparison.html\n" * 2
    runs = [Path(run), Path("runs/other")]
    assert comparisons == [((runs, None), {}), ((runs[::-1], Path("page.html")), {})]


@pytest.mark.parametrize(
    ("line", "layout"),
    [
        ("export RUN out", None),
        ("export RUN --to hf out", None),
        ("export --to=hf RUN out", None),
        ("export RUN out --layout=stored", None),
        ("export RUN out --layout qwen3_5", "qwen3_5"),
    ],
)
def test_export_hands_on_its_target_and_layout(
    run: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str, layout: str | None
) -> None:
    calls = replace(monkeypatch, "gossamer.hub", "export")
    assert main(line.replace("RUN", run).split()) == 0
    assert capsys.readouterr().out == "out\n"
    assert calls == [((Path(run), Path("out"), layout), {})]


def test_export_for_llama_cpp(run: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    calls = replace(monkeypatch, "gossamer.hub", "export_gguf")
    assert main(["export", run, "out.gguf", "--to", "gguf"]) == 0
    assert capsys.readouterr().out == "out.gguf\n"
    assert calls == [((Path(run), Path("out.gguf")), {})]


def test_the_layouts_that_can_be_named_are_those_that_can_be_written() -> None:
    names = get_args(get_type_hints(export)["layout"])
    assert names == ("stored", *NAMED_LAYOUTS, "experts")


def test_export_of_a_gguf_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = replace(monkeypatch, "gossamer.hub", "export")
    file = tmp_path / "net.gguf"
    assert main(["export", str(file), "out"]) == 2
    assert f"no run {str(file)!r}" in capsys.readouterr().err
    file.write_bytes(b"GGUF")
    assert main(["export", str(file), "out"]) == 0
    assert calls[0][0][:2] == (file, Path("out"))
