"""The command line: what a verb is called with, and one line for every mistake."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import gossamer
from gossamer.cli import VERBS, main
from gossamer.data.config import SetConfig
from gossamer.errors import UserError
from gossamer.infer.options import EngineOptions
from gossamer.serve.build import EngineConfig
from gossamer.serve.options import ServeOptions
from gossamer.train.recipe import Recipe, field_types, load_recipe, recipe_from, recipe_names, to_yaml


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(tmp_path: Path) -> str:
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    return "runs/mine"


class Calls(list[tuple[tuple[Any, ...], dict[str, Any]]]):
    """Stands in for a verb's work and keeps what it was called with."""

    answer: Any = None
    error: BaseException | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.append((args, kwargs))
        if self.error is not None:
            raise self.error
        return self.answer


def replace(monkeypatch: pytest.MonkeyPatch, module: str, name: str) -> Calls:
    calls, stand_in = Calls(), ModuleType(module)
    setattr(stand_in, name, calls)
    monkeypatch.setitem(sys.modules, module, stand_in)
    parent, _, child = module.rpartition(".")
    monkeypatch.setattr(sys.modules.get(parent, gossamer), child, stand_in, raising=False)
    return calls


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return replace(monkeypatch, "gossamer.train.loop", "train")


def trained(calls: Calls) -> tuple[Recipe, Path, bool]:
    ((recipe, folder, resume, profile), rest) = calls.pop()
    assert not calls and not profile
    assert rest.pop("began") <= time.perf_counter()
    assert rest.pop("dial") is (recipe.training.budget != "" and not resume)
    assert not rest
    return recipe, folder, resume


# Mistakes.

MISTAKES = [
    (
        "",
        "which verb? one of train, sample, eval, report, export, serve, chat, plan, doctor, certify (gossamer --help)",
    ),
    ("trian", "unknown verb 'trian'; did you mean 'train'?"),
    ("--hepl", "unknown option '--hepl'; did you mean '--help'?"),
    ("foo x", "unknown verb 'foo'; there are train, sample, eval, report, export, serve, chat, plan, doctor, certify"),
    ("sample", "missing RUN (gossamer sample --help)"),
    ("export runs/mine", "missing OUT (gossamer export --help)"),
    ("sample runs/mien", "no run 'runs/mien'; did you mean 'runs/mine'?"),
    ("report", "missing RUN (gossamer report --help)"),
    ("report runs/mine --out", "--out needs one value"),
    ("report runs/mine runs/mien", "no run 'runs/mien'; did you mean 'runs/mine'?"),
    ("report zzz", "no run 'zzz' (a folder that `gossamer train` wrote)\n"),
    ("export zzz out", "no run 'zzz' (a folder that `gossamer train` wrote, or a Hugging Face directory)"),
    ("sample runs/mine more", "unexpected argument 'more'; did you mean --prompt more?"),
    ("doctor now", "unexpected argument 'now' (gossamer doctor --help)"),
    ("train --lr 1e-3", "unknown option '--lr'; did you mean '--optimizer.learning_rate'?"),
    ("train --steps 10", "unknown option '--steps'; did you mean '--training.steps'?"),
    ("sample runs/mine --tokens 3", "unknown option '--tokens'; did you mean '--max_tokens'?"),
    ("sample runs/mine --max-tokenz 3", "unknown option '--max-tokenz'; did you mean '--max_tokens'?"),
    ("sample runs/mine --zzz=3", "unknown option '--zzz' (gossamer sample --help)"),
    ("sample runs/mine --max_tokens x", "--max_tokens x: expected a whole number"),
    ("sample runs/mine --max-tokens=1.5", "--max_tokens=1.5: expected a whole number"),
    ("sample runs/mine --max_tokens 0", "--max_tokens 0: must be >= 1"),
    ("sample runs/mine --temperature=-1", "--temperature -1.0: must be >= 0"),
    ("sample runs/mine --temperature nan", "--temperature nan: expected a number"),
    ("sample runs/mine --top_p 1.5", "--top_p 1.5: must be above 0 and at most 1"),
    ("sample runs/mine --top_p", "--top_p needs one value (write --top_p=-1 for one that begins with a dash)"),
    ("eval runs/mine --json=3", "--json takes no value, got '3'"),
    ("eval runs/mine --data", "--data needs at least one value"),
    ("export runs/mine out --to pdf", "--to pdf: expected one of hf, gguf"),
    ("serve runs/mien", "no run 'runs/mien'; did you mean 'runs/mine'?"),
    ("serve runs/mine --host 0.0.0.0", "--host 0.0.0.0 lets other machines in: give --keys FILE"),
    ("serve runs/mine --port 99999", "--port 99999: must be 0 to 65535"),
    ("serve runs/mine --max_queue=-1", "--max_queue -1: must be >= 0"),
    ("serve runs/mine --queue_timeout 0", "--queue_timeout 0.0: must be > 0"),
    ("serve runs/mine --max_batch 0", "max_batch: 0 must be at least 1"),
    ("serve runs/mine --keys nowhere", "--keys nowhere: No such file or directory; write a line with a key"),
    ("serve runs/mine", "runs/mine: holds no config.json"),
    ("chat runs/mine", "runs/mine: holds no config.json"),
    ("chat runs/mine --temperature=-1", "--temperature -1.0: must be >= 0"),
    ("chat runs/mine --top_p 0", "--top_p 0.0: must be above 0 and at most 1"),
    ("chat runs/mine --max_tokens 0", "--max_tokens 0: must be >= 1"),
    ("doctor --jsn", "unknown option '--jsn'; did you mean '--json'?"),
    ("train --recipe dem", "no recipe 'dem'; did you mean 'demo'?"),
    ("train --recipe=", "no recipe ''"),
    ("train --model.vocab_size 100", "--model.vocab_size follows from the tokenizer"),
    ("train --training.step 3", "unknown option '--training.step'; did you mean '--training.steps'?"),
    ("train --num_experts 3", "unknown option '--num_experts'; did you mean '--model.num_experts'?"),
    ("train --training.steps 1e3", "--training.steps 1e3: expected a whole number"),
    ("train --training.seed null", "--training.seed null: expected a whole number"),
    ("train --training.steps 0", "training.steps = 0: must be >= 1"),
    ("train --optimizer.betas 0.9", "--optimizer.betas needs 2 values"),
    ("train --optimizer.betas 0.9 x --resume", "--optimizer.betas 0.9 x: expected a list of 2, each a number"),
    ("train --model.mlp_only_layers 1 z", "--model.mlp_only_layers 1 z: expected a list, each a whole number"),
    ("train --model.norm_topk_prob maybe", "--model.norm_topk_prob maybe: expected true or false"),
    ("train --model.num_key_value_heads 3", "model.num_attention_heads = 2 is not a multiple of"),
    (
        "train --corpus.sets.a.weigth 2",
        "unknown option '--corpus.sets.a.weigth'; did you mean '--corpus.sets.a",
    ),
    ("train --corpus.sets.a.weight x", "--corpus.sets.a.weight = 'x': expected a number"),
    ("train --corpus.sets.a.weight", "--corpus.sets.a.weight needs one value"),
    ("train --corpus.sets.a.weight 2", "corpus.sets.a: names no paths; give its files and folders"),
    ("train --corpus.sets [a", "--corpus.sets [a: not YAML; write {name: ...}"),
    (
        "train --corpus.sets 3",
        "--corpus.sets = 3: expected names, each with a section of paths, weight, v",
    ),
    ("train --errors ignore", "--errors ignore: expected one of strict, replace"),
    ("train --data a --corpus.paths b", "--data and --corpus.paths set the same value; give one of them"),
    ("train --budget 10", "training.budget '10': no amount with a unit; write it as 90s, 10m, 1h30m, 2d, 5usd or 1e17"),
    ("train --budget 10x", "training.budget '10x': unknown unit 'x'"),
    ("train --budget 5s", "training.budget '5s' is too small to train anything; the least is 20s"),
    ("train --budget 5usd", "training.budget '5usd': what does an hour of a device cost? --price gives it, in USD"),
    ("train --budget 5usd --price much", "--price much: expected a number"),
    ("train --budget 5usd --price 0", "training.price = 0.0: must be > 0"),
    ("train --budget 1m --training.steps 9", "--budget decides --training.steps; leave one of them out, or --recipe R"),
    ("train --budget 1m --model.num_experts 9", "--budget decides --model.num_experts; leave one of them out"),
    ("train --budget 1m --recipe nano", "--budget chooses the network, as does --recipe nano; give one of them, or"),
    ("train --budget 1m --training.budget 2m", "--budget and --training.budget set the same value; give one of them"),
    ("train --resume", "--resume: no run in runs/demo"),
    ("train --out runs", "runs is not empty and holds no run; choose another folder with --out DIR"),
]


@pytest.mark.parametrize(("line", "message"), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_a_mistake_gives_one_line_and_status_2(
    run: str, training: Calls, capfd: pytest.CaptureFixture[str], line: str, message: str
) -> None:
    before = sorted(Path().rglob("*"))
    assert main(line.split()) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(f"gossamer: {message}")
    assert err.endswith("\n") and err.count("\n") == 1
    assert sorted(Path().rglob("*")) == before
    assert not training


def test_a_prompt_without_its_option(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", run, "def main("]) == 2
    assert capsys.readouterr().err == "gossamer: unexpected argument 'def main('; did you mean --prompt 'def main('?\n"


def test_debug_shows_the_traceback_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "nowhere", "--debug"]) == 2
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert err.splitlines()[-1].startswith("gossamer: no run 'nowhere'")


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("two\nlines"), 2, "two lines"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(28, "No space left on device"), 2, "no space left on the disk"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 2, "no space left on the disk"),
        (PermissionError(13, "Permission denied", "runs/demo"), 2, "Permission denied: runs/demo"),
        (
            NotImplementedError("Could not run 'aten::topk' with arguments from the 'npu' backend. This could be"),
            2,
            "'npu' has no operator aten::topk; docs/new-chip.md says what to do about it",
        ),
        (MemoryError(), 2, "out of memory; training needs less with a smaller --training.batch_size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 2, "out of memory; "),
    ],
)
def test_what_fails_on_the_way_gives_one_line(
    training: Calls, capsys: pytest.CaptureFixture[str], error: BaseException, status: int, line: str
) -> None:
    training.error = error
    assert main(["train"]) == status
    err = capsys.readouterr().err
    assert err.startswith(f"gossamer: {line}") and err.count("\n") == 1


def test_a_programmers_mistake_is_not_dressed_up(training: Calls) -> None:
    training.error = RuntimeError("shapes do not match")
    with pytest.raises(RuntimeError, match="shapes do not match"):
        main(["train"])


# Help.


def test_help_lists_the_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(re.search(rf"^  {verb} +\w", out, re.MULTILINE) for verb in VERBS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"gossamer {gossamer.__version__}\n"


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_of_a_verb_has_a_help_with_type_and_default(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    out = capsys.readouterr().out
    options = re.split(r"\n  (?=--\w)", out)[1:]
    assert options
    for option in options:
        assert re.search(r"\((.*type: .*|default: \w+)\)", " ".join(option.split())), option


def test_train_help_names_every_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    assert f"comes with gossamer ({', '.join(recipe_names())})" in " ".join(capsys.readouterr().out.split())


def test_train_help_shows_every_value_with_the_chosen_recipes_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--recipe", "micro", "--help"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for key in field_types():
        assert key == "description" or f"--{key} " in out
    assert "routed experts of a layer; 0 for a dense network (type: int, default: 64)" in out


# Verbs.


def test_train_starts_the_default_recipe_in_its_folder(training: Calls) -> None:
    assert main(["train"]) == 0
    assert trained(training) == (recipe_from(load_recipe("demo")), Path("runs/demo"), False)


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
    assert recipe == recipe_from(load_recipe("nano"), wanted)
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
    }
    for line, name in names.items():
        assert main(["train", *line.split()]) == 0
        assert training.pop()[0][1] == Path("runs", name), line
    assert main(["train", "--data", "v1.2 of it"]) == 0
    assert training.pop()[0][1] == Path("runs/v1.2-of-it")
    Path("runs/novel").mkdir(parents=True)
    Path("runs/novel/config.yaml").write_text("")
    assert main(["train", "--data", "novel.txt"]) == 2
    assert "runs/novel already holds a run; --resume goes on with it" in capsys.readouterr().err


def test_options_take_dashes_for_underscores(training: Calls, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    line = "train --training.batch-size 3 --training.log-every=7 --corpus.cache_dir x"
    line += " --corpus.sets.my-own.validation-paths a --corpus.sets.my-own.paths b --corpus.validation-sets.far-off c"
    assert main(line.split()) == 0
    recipe, _, _ = trained(training)
    assert (recipe.training.batch_size, recipe.training.log_every, recipe.corpus.cache_dir) == (3, 7, "x")
    assert recipe.corpus.sets == {"my-own": SetConfig(("b",), 1.0, ("a",))}
    assert recipe.corpus.validation_sets == {"far-off": ("c",)}
    calls = replace(monkeypatch, "gossamer.infer.sample", "sample_run")
    calls.answer = iter(())
    assert main(["sample", run, "--max-tokens", "5", "--top-p=0.5", "--prompt=--top-k"]) == 0
    assert (calls[0][1]["tokens"], calls[0][1]["top_p"], calls[0][1]["prompt"]) == (5, 0.5, "--top-k")


def test_train_resumes_by_the_runs_own_recipe(run: str, training: Calls) -> None:
    own = recipe_from(load_recipe("nano"), {"model.num_experts": 4})
    Path(run, "config.yaml").write_text(to_yaml(own))
    assert main(["train", "--out", run, "--resume", "--training.steps", "77"]) == 0
    recipe, folder, resume = trained(training)
    assert (recipe.model, recipe.training.steps, folder, resume) == (own.model, 77, Path(run), True)


def test_train_hands_on_that_a_profile_is_wanted(run: str, training: Calls) -> None:
    Path(run, "config.yaml").write_text(to_yaml(recipe_from(load_recipe("nano"))))
    assert main(["train", "--out", run, "--resume", "--profile"]) == 0
    (((*_, resume, profile), _),) = training
    assert resume and profile


def test_train_refuses_a_changed_network_on_resume(
    run: str, training: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(run, "config.yaml").write_text(to_yaml(recipe_from(load_recipe("nano"))))
    assert main(["train", "--out", run, "--resume", "--model.num_experts", "4"]) == 2
    assert capsys.readouterr().err.startswith(f"gossamer: --model.num_experts is fixed for the run in {run}; ")
    assert not training


def test_sample_writes_each_piece_as_it_comes(
    run: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[str] = []

    def pieces() -> Iterator[str]:
        for piece in ("To ", "be\n", "…"):
            yield piece
            seen.append(capsys.readouterr().out)

    calls = replace(monkeypatch, "gossamer.infer.sample", "sample_run")
    calls.answer = pieces()
    assert main(["sample", run, "--prompt", "null", "--max_tokens", "5", "--temperature", "0", "--seed=-3"]) == 0
    assert seen == ["To ", "be\n", "…"]
    assert capsys.readouterr().out == "\n"
    wanted = {"prompt": "null", "tokens": 5, "temperature": 0.0, "top_p": None, "seed": -3, "device": "auto"}
    assert calls == [((Path(run),), wanted)]


def test_eval_answers_people_and_programs(
    run: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = replace(monkeypatch, "gossamer.train.evaluate", "evaluate_run")
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
    calls = replace(monkeypatch, "gossamer.train.report", "write_report")
    comparisons = Calls()
    monkeypatch.setattr(sys.modules["gossamer.train.report"], "write_comparison", comparisons, raising=False)
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


@pytest.mark.parametrize("line", ["export RUN out", "export RUN --to hf out", "export --to=hf RUN out"])
def test_export(run: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str) -> None:
    calls = replace(monkeypatch, "gossamer.hub", "export")
    assert main(line.replace("RUN", run).split()) == 0
    assert capsys.readouterr().out == "out\n"
    assert calls == [((Path(run), Path("out")), {})]


def test_export_for_llama_cpp(run: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    calls = replace(monkeypatch, "gossamer.hub", "export_gguf")
    assert main(["export", run, "out.gguf", "--to", "gguf"]) == 0
    assert capsys.readouterr().out == "out.gguf\n"
    assert calls == [((Path(run), Path("out.gguf")), {})]


def test_serve_hands_on_its_options(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = replace(monkeypatch, "gossamer.serve.server", "serve")
    assert main(["serve", run, "--device", "cpu"]) == 0
    line = "--port 0 --keys k --host :: --name n --cors http://a http://b --max_batch 2 --draft_length 0 --drain 1"
    assert main(["serve", run, *line.split(), "--log_prompts"]) == 0
    ((plain, _), (full, _)) = calls
    assert plain == (Path(run), ServeOptions(name="mine"), EngineConfig("cpu"))
    assert full[1] == ServeOptions("::", 0, Path("k"), "n", cors=("http://a", "http://b"), drain=1.0, log_prompts=True)
    assert full[2] == EngineConfig("auto", EngineOptions(max_batch=2, draft_length=0))


def test_chat_hands_on_its_options(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = replace(monkeypatch, "gossamer.serve.terminal", "chat")
    assert main(["chat", run, "--system", "Be brief.", "--seed", "3", "--max_tokens", "9"]) == 0
    sampling = {"temperature": None, "top_p": None, "seed": 3}
    assert calls == [((Path(run), "Be brief.", 9, sampling, "auto"), {})]


def test_a_budget_takes_the_recipe_that_it_chooses_from(training: Calls) -> None:
    Path("a.txt").write_text("text")
    assert main("train --budget 5eur --price 2.5 --training.currency EUR --data a.txt".split()) == 0
    recipe, folder, _ = trained(training)
    assert folder == Path("runs/a")
    assert (recipe.training.budget, recipe.training.price) == ("5eur", 2.5)
    assert recipe.model == recipe_from(load_recipe("budget")).model


def test_doctor_shows_the_device_and_every_operation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    states = {"chunked": "able", "triton": "no Triton here"}
    devices = SimpleNamespace(resolve=lambda name: name, describe=lambda device: {"device": device})
    operations = SimpleNamespace(describe=lambda device: {"rule": {"runs": "chunked", "implementations": states}})
    monkeypatch.setattr(gossamer, "device", devices, raising=False)
    monkeypatch.setattr(gossamer, "ops", operations, raising=False)
    assert main(["doctor", "--device", "chip"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"gossamer  {gossamer.__version__}",
        "device    chip",
        "rule      chunked (triton: no Triton here)",
    ]
    assert main(["doctor", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["ops"] == {"rule": {"runs": "chunked", "implementations": states}}
    assert answer["device"] == {"device": "auto"}


# Processes.


def test_help_answers_without_torch_and_a_mistake_without_jsonargparse() -> None:
    code = (
        "import sys, gossamer.cli as cli;"
        "assert cli.main(['--help']) == 0 and cli.main(['trian']) == 2;"
        "assert not {'torch', 'jsonargparse', 'numpy'} & set(sys.modules);"
        "assert cli.main(['sample', '--help']) == 0 and 'torch' not in sys.modules;"
        "assert cli.main(['train', '--training.step', '3']) == 2 and 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_reader_who_leaves_ends_the_program_quietly() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "gossamer.cli", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.wait(timeout=60) == 141
    assert process.stderr.read() == b""
    process.stderr.close()


def test_the_package_exports_lazily() -> None:
    assert gossamer.UserError is UserError
    assert {"load", "save", "CausalLM", "ModelConfig", "Tokenizer"} <= set(dir(gossamer))
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = gossamer.lod


def test_serve_hands_the_engine_its_weights(tmp_path, monkeypatch):
    handed = []
    monkeypatch.setattr("gossamer.serve.server.serve", lambda folder, options, config: handed.append(config))
    assert main(["serve", str(tmp_path), "--weights", "int8"]) == 0
    assert handed[0].options.weights == "int8"
