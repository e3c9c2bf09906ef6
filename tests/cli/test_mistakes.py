"""One line for every mistake on the command line, and nothing done.

Of `gossamer plan`, see test_chips.py.
"""

from pathlib import Path

import pytest

from gossamer.cli import main
from stand_in import Calls

VERBS = "train, tune, sample, eval, report, export, serve, chat, plan, doctor, certify"
MISTAKES = [
    (
        "",
        f"which verb? one of {VERBS} (gossamer --help)",
    ),
    ("trian", "unknown verb 'trian'; did you mean 'train'?"),
    ("--hepl", "unknown option '--hepl'; did you mean '--help'?"),
    (
        "foo x",
        "unknown verb 'foo'; there are train, tune, sample, eval, report, export, serve, chat, plan, doctor, certify",
    ),
    ("sample", "missing RUN (gossamer sample --help)"),
    ("export runs/mine", "missing OUT (gossamer export --help)"),
    ("sample runs/mien", "no run 'runs/mien'; did you mean 'runs/mine'?"),
    ("report", "missing RUN (gossamer report --help)"),
    ("report runs/mine --out", "--out needs one value"),
    ("report runs/mine runs/mien", "no run 'runs/mien'; did you mean 'runs/mine'?"),
    ("report zzz", "no run 'zzz' (a folder that `gossamer train` wrote)\n"),
    ("plan --model continue", "unknown model 'continue'"),
    ("export zzz out", "no run 'zzz' (a run's folder, a Hugging Face directory or a GGUF file)"),
    ("sample runs/mine more", "unexpected argument 'more'; did you mean --prompt more?"),
    ("doctor now", "unexpected argument 'now' (gossamer doctor --help)"),
    ("train --lr 1e-3", "unknown option '--lr'; did you mean '--optimizer.learning_rate'?"),
    ("tune", "missing BASE (gossamer tune --help)"),
    ("tune runs/mine", "--data: name the files with examples"),
    ("tune runs/mien --data x", "no run 'runs/mien'; did you mean 'runs/mine'?"),
    ("tune runs/mine --data x --rnak 8", "unknown option '--rnak'; did you mean '--rank'?"),
    ("tune runs/mine --data x --method rl", "--method rl: expected one of auto, sft, dpo, kto"),
    ("tune runs/mine --data x --model.vocab_size 8", "--model.vocab_size and --training.sequence_length follow from"),
    ("tune runs/mine --data x --resume --look 3", "--resume continues a run, and --plan and --look train nothing"),
    ("tune runs/mine --resume --out runs/mine", "--resume: no run in runs/mine (it has no config.yaml)"),
    ("tune runs/mine --data x --steps x", "--steps x: expected a whole number"),
    ("train --tuning.rank 8", "--tuning.rank is a value of gossamer tune, which teaches a model by examples"),
    ("train --steps 10", "unknown option '--steps'; did you mean '--training.steps'?"),
    ("sample runs/mine --tokens 3", "unknown option '--tokens'; did you mean '--max-tokens'?"),
    ("sample runs/mine --max-tokenz 3", "unknown option '--max-tokenz'; did you mean '--max-tokens'?"),
    ("sample runs/mine --zzz=3", "unknown option '--zzz' (gossamer sample --help)"),
    ("sample runs/mine --max-tokens x", "--max-tokens x: expected a whole number"),
    ("sample runs/mine --max-tokens=1.5", "--max-tokens 1.5: expected a whole number"),
    ("sample runs/mine --max-tokens 0", "--max-tokens = 0: must be from 1 to"),
    ("sample runs/mine --temperature=-1", "--temperature = -1: must be from 0 to 100"),
    ("sample runs/mine --temperature nan", "--temperature nan: expected a number"),
    ("sample runs/mine --top-p 1.5", "--top-p = 1.5: must be above 0 and at most 1"),
    ("sample runs/mine --top-p", "--top-p needs one value (write --top-p=-1 for one that begins with a dash)"),
    ("eval runs/mine --json=3", "--json 3: expected true or false"),
    ("eval runs/mine --data", "--data needs at least one value"),
    ("export runs/mine out --to pdf", "--to pdf: expected one of hf, gguf"),
    ("export runs/mine x.gguf", "x.gguf: names a GGUF file, but --to hf writes a folder; add --to gguf"),
    ("export runs/mine x.safetensors", "x.safetensors: names a file, but --to hf writes a folder; name that"),
    ("serve runs/mien", "no run 'runs/mien'; did you mean 'runs/mine'?"),
    ("serve runs/mine --host 0.0.0.0", "--host 0.0.0.0 lets other machines in: give --keys FILE"),
    ("serve runs/mine --port 99999", "--port = 99999: must be from 0 to 65,535"),
    ("serve runs/mine --max-queue=-1", "--max-queue = -1: must be from 0 to 1,000,000"),
    ("serve runs/mine --queue-timeout 0", "--queue-timeout = 0: must be above 0 and at most 1,000,000"),
    ("serve runs/mine --max-batch 0", "--max-batch = 0: must be from 1 to 65,536"),
    ("serve runs/mine --keys nowhere", "--keys nowhere: no such file; write a line with a key"),
    ("serve runs/mine", "runs/mine: holds no config.json"),
    ("chat runs/mine", "runs/mine: holds no config.json"),
    ("chat runs/mine --temperature=-1", "--temperature = -1: must be from 0 to 100"),
    ("chat runs/mine --top-p 0", "--top-p = 0: must be above 0 and at most 1"),
    ("chat runs/mine --max-tokens 0", "--max-tokens = 0: must be from 1 to"),
    ("doctor --jsn", "unknown option '--jsn'; did you mean '--json'?"),
    ("train --recipe dem", "no recipe 'dem'; did you mean 'demo'?"),
    ("train --recipe=", "no recipe ''"),
    ("train --model.vocab_size 100", "--model.vocab_size follows from the tokenizer"),
    ("train --training.step 3", "unknown option '--training.step'; did you mean '--training.steps'?"),
    ("train --num_experts 3", "unknown option '--num_experts'; did you mean '--model.num_experts'?"),
    ("train --training.steps 1e3", "--training.steps 1e3: expected a whole number"),
    ("train --training.seed null", "--training.seed null: expected a whole number"),
    ("train --training.steps 0", "training.steps = 0: must be from 1 to 1,000,000,000,000"),
    ("train --optimizer.betas 0.9", "--optimizer.betas needs 2 values"),
    ("train --optimizer.betas 0.9 x --resume", "--optimizer.betas 0.9 x: expected a list of 2, each a number"),
    ("train --model.mlp_only_layers 1 z", "--model.mlp_only_layers 1 z: expected a list, each a whole number"),
    ("train --model.norm_topk_prob maybe", "--model.norm_topk_prob maybe: expected true or false"),
    ("train --model.num_key_value_heads 3", "model.num_attention_heads = 2 is not a multiple of"),
    (
        "train --corpus.sets.a.weigth 2",
        "unknown option '--corpus.sets.a.weigth'; did you mean '--corpus.sets.a",
    ),
    ("train --corpus.sets.a.weight x", "--corpus.sets.a.weight x: expected a number"),
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
    ("train --budget 5usd --price 0", "training.price = 0: must be above 0 and at most 1,000,000,000"),
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
