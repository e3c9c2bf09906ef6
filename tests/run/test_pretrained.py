"""Runs that begin with the weights of a checkpoint."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

import gossamer
from fp8_files import quantize_files
from gossamer.cli import main
from gossamer.data.tokenizer import Tokenizer, char_tokenizer
from gossamer.errors import UserError
from gossamer.model.causal_lm import CausalLM
from gossamer.model.config import ModelConfig
from gossamer.run import loop
from gossamer.run.metrics import read_metrics
from gossamer.run.pretrained import pretrained_network
from gossamer.run.start import fresh_recipe, resumed_recipe
from gossamer.run.validate import evaluate_run
from gossamer.train.recipe import Recipe, load_recipe, to_yaml
from gossamer.train.step import Learner
from gossamer.train.world import SINGLE_PROCESS

TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"
EXPERTS = "model.layers.0.mlp.experts.gate_up_proj"
END_OF_ANSWER = {"eos_token_id": [1, 0]}


@pytest.fixture
def checkpoint(tiny_config: ModelConfig, corpus_file: Path, tmp_path: Path) -> Path:
    """A checkpoint of Qwen3.5 that transformers has saved in bfloat16, with a tokenizer and a chat template."""
    folder = tmp_path / "checkpoint"
    config = replace(tiny_config, model_type="qwen3_5_moe_text", num_nextn_predict_layers=0)
    torch.manual_seed(3)
    network = transformers.Qwen3_5MoeForCausalLM(transformers.AutoConfig.for_model(**config.to_dict()))
    network.to(torch.bfloat16).save_pretrained(folder)
    core = char_tokenizer([corpus_file.read_text()])
    Tokenizer(core._core, core.eot, chat_template=TEMPLATE).save(folder)
    (folder / "generation_config.json").write_text(json.dumps(END_OF_ANSWER))
    return folder


@pytest.fixture
def recipe_path(tiny_recipe: Recipe, tmp_path: Path) -> Path:
    """The file of a recipe whose network is another than the checkpoint's."""
    path = tmp_path / "recipe.yaml"
    path.write_text(to_yaml(replace(tiny_recipe, model=replace(tiny_recipe.model, hidden_size=64))))
    return path


def begin(recipe_path: Path, checkpoint: Path, run: Path, **overrides: Any) -> Recipe:
    """The recipe of a run that begins with the checkpoint."""
    values = {"training.init_from": str(checkpoint)} | {key.replace("__", "."): one for key, one in overrides.items()}
    return fresh_recipe(run, str(recipe_path), values)


def test_the_network_the_tokenizer_and_the_template_are_the_checkpoints(recipe_path, checkpoint, tmp_path) -> None:
    run = tmp_path / "run"
    recipe = begin(recipe_path, checkpoint, run)
    assert (recipe.model.model_type, recipe.model.hidden_size, recipe.model.vocab_size) == ("qwen3_5_moe_text", 32, 64)
    before = evaluate_run(checkpoint, paths=recipe.corpus.paths)
    loop.train(recipe, run)

    events = read_metrics(run)
    first = next(event for event in events if event["event"] == "eval")
    assert first["step"] == 0
    assert abs(first["loss"] - before["loss"]) < 0.1  # of other text of the same kind
    assert next(event for event in events if event["event"] == "end")["loss"] < first["loss"] - 0.3
    saved = gossamer.load(run)
    assert saved.lm_head.weight.dtype == torch.float32  # whatever the checkpoint was stored in
    assert json.loads((run / "model/config.json").read_text())["model_type"] == "qwen3_5_moe_text"
    assert Tokenizer.load(run).chat_template == TEMPLATE
    assert json.loads((run / "model/generation_config.json").read_text()) == END_OF_ANSWER
    assert transformers.AutoModelForCausalLM.from_pretrained(run / "model").config.model_type == "qwen3_5_moe_text"
    assert load_recipe(run / "config.yaml").training.init_from == str(checkpoint)


def test_the_first_validation_is_the_loss_of_the_stored_weights(recipe_path, checkpoint, tmp_path) -> None:
    """A learning rate of almost nothing leaves them as they are, so that the last validation says the same."""
    run = tmp_path / "run"
    recipe = begin(
        recipe_path, checkpoint, run, training__steps=1, optimizer__learning_rate=1e-12, optimizer__weight_decay=0
    )
    loop.train(recipe, run)
    validations = [event["loss"] for event in read_metrics(run) if event["event"] in ("eval", "end")]
    assert len(validations) == 2 and validations[0] == pytest.approx(validations[1], abs=1e-6)
    stored, learned = gossamer.load(checkpoint, torch.float32).state_dict(), gossamer.load(run).state_dict()
    for name, weight in stored.items():
        torch.testing.assert_close(learned[name], weight, atol=1e-6, rtol=0, msg=name)


def test_weights_in_fp8_are_dequantized_and_learned_from(recipe_path, checkpoint, tmp_path) -> None:
    run, before = tmp_path / "run", gossamer.load(checkpoint, torch.float32).state_dict()
    quantize_files(checkpoint, torch.bfloat16)
    loop.train(begin(recipe_path, checkpoint, run, training__steps=1, optimizer__learning_rate=1e-12), run)
    stored, learned = gossamer.load(checkpoint, torch.float32).state_dict(), gossamer.load(run).state_dict()
    for name, weight in stored.items():
        torch.testing.assert_close(learned[name], weight, atol=1e-6, rtol=0, msg=name)
    assert not torch.equal(stored[EXPERTS], before[EXPERTS])
    assert "quantization_config" not in json.loads((run / "model/config.json").read_text())


def test_a_resumed_run_keeps_its_checkpoint(recipe_path, checkpoint, tmp_path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(to_yaml(begin(recipe_path, checkpoint, tmp_path / "another")))
    with pytest.raises(UserError, match=rf"^--from is fixed for the run in {run}; leave it out"):
        resumed_recipe(run, None, {"training.init_from": str(tmp_path / "elsewhere")})


def test_resumed_it_ends_bit_for_bit_as_uninterrupted_and_without_the_checkpoint(
    recipe_path, checkpoint, tmp_path
) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    loop.train(begin(recipe_path, checkpoint, whole), whole)

    class Stop(Exception):
        pass

    def stop(progress: Any) -> None:
        if progress.step == 7:
            raise Stop

    with pytest.raises(Stop):
        loop.train(begin(recipe_path, checkpoint, halves), halves, on_step=stop)
    shutil.rmtree(checkpoint)
    loop.train(resumed_recipe(halves, None, {}), halves, resume=True)
    one, other = (load_file(run / "model/model.safetensors") for run in (whole, halves))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert json.loads((halves / "model/generation_config.json").read_text()) == END_OF_ANSWER


def test_the_first_validation_is_that_of_the_checkpoint_on_the_same_text(recipe_path, checkpoint, tmp_path) -> None:
    run, text = tmp_path / "run", tmp_path / "held_out.txt"
    text.write_text("line 5: the square of 5 is 25.\n")
    recipe = begin(recipe_path, checkpoint, run, corpus__validation_paths=(str(text),), training__steps=1)
    gossamer.save(gossamer.load(checkpoint, torch.float32), tmp_path / "float32", Tokenizer.load(checkpoint))
    before = evaluate_run(tmp_path / "float32", paths=(str(text),))
    loop.train(recipe, run)
    first = next(event for event in read_metrics(run) if event["event"] == "eval")
    assert first["loss"] == pytest.approx(before["loss"], abs=1e-5)


def test_a_recipe_without_a_warmup_gets_one(recipe_path, checkpoint, tmp_path) -> None:
    def warmup(**overrides: Any) -> int:
        return begin(recipe_path, checkpoint, tmp_path / "run", **overrides).schedule.warmup_steps

    assert warmup(training__steps=10_000) == 50 and warmup(training__steps=15) == 2
    assert warmup(schedule__warmup_steps=0) == 0 and warmup(schedule__warmup_steps=7) == 7


def test_routers_keep_their_bias(recipe_path, checkpoint, tmp_path) -> None:
    biased = gossamer.load(checkpoint, torch.float32)
    for number, layer in enumerate(biased.model.layers):
        layer.mlp.gate.e_score_correction_bias = torch.arange(4.0) + number
    gossamer.save(biased, tmp_path / "biased", Tokenizer.load(checkpoint))
    recipe = begin(recipe_path, tmp_path / "biased", tmp_path / "run")
    assert recipe.training.balance == "bias"
    learner = Learner(pretrained_network(recipe, SINGLE_PROCESS), recipe)
    for number, router in enumerate(learner.balance.routers):
        assert torch.equal(router.e_score_correction_bias, torch.arange(4.0) + number)
    with pytest.raises(UserError, match=r"^--training\.balance loss: routers of .* have a bias, which takes bias"):
        begin(recipe_path, tmp_path / "biased", tmp_path / "run", training__balance="loss")


def test_chance_begins_with_the_seed(recipe_path, checkpoint, tmp_path) -> None:
    recipe = begin(recipe_path, checkpoint, tmp_path / "run")

    def sampled() -> torch.Tensor:
        pretrained_network(recipe, SINGLE_PROCESS)
        return torch.rand(3)

    assert torch.equal(sampled(), sampled())


def test_a_multi_token_prediction_head_is_made_on_request(recipe_path, checkpoint, tmp_path, capsys) -> None:
    run = tmp_path / "run"
    assert begin(recipe_path, checkpoint, run).model.num_nextn_predict_layers == 0
    recipe = begin(recipe_path, checkpoint, run, model__num_nextn_predict_layers=1, training__steps=1)
    loop.train(recipe, run)
    assert "its multi-token-prediction head begins with random weights" in "".join(capsys.readouterr())
    made = gossamer.load(run)
    assert made.mtp is not None and made.mtp.fc.weight.std() > 0.01


def test_a_head_that_is_not_wanted_is_left_out(recipe_path, tiny_config, tmp_path, corpus_file, capsys) -> None:
    checkpoint, run = tmp_path / "checkpoint", tmp_path / "run"
    tokenizer = char_tokenizer([corpus_file.read_text()])
    gossamer.save(CausalLM(tiny_config), checkpoint, tokenizer)
    assert begin(recipe_path, checkpoint, run).model.num_nextn_predict_layers == 1
    recipe = begin(recipe_path, checkpoint, run, model__num_nextn_predict_layers=0, training__steps=1)
    loop.train(recipe, run)
    assert "head that is stored there is left out" in "".join(capsys.readouterr())
    assert gossamer.load(run).mtp is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model__hidden_size": 48}, r"^--model\.hidden_size = 48 contradicts the checkpoint .*, where it is 32; "),
        ({"model__num_experts": 8}, r"^--model\.num_experts = 8 contradicts "),
        ({"corpus__tokenizer": "bpe"}, r"^--tokenizer: a run that begins with --from has the tokenizer of the check"),
        ({"training__bigram_steps": 5}, r"^--training\.bigram_steps is for random weights"),
        ({"training__sequence_length": 1 << 20}, r"sequence_length = 1048576: must be <= model\.max_position_embe"),
    ],
)
def test_what_contradicts_the_checkpoint_is_refused(recipe_path, checkpoint, tmp_path, overrides, message) -> None:
    with pytest.raises(UserError, match=message):
        begin(recipe_path, checkpoint, tmp_path / "run", **overrides)
    assert not (tmp_path / "run").exists()


def test_what_equals_the_checkpoint_is_accepted(recipe_path, checkpoint, tmp_path) -> None:
    recipe = begin(recipe_path, checkpoint, tmp_path / "run", model__hidden_size=32, model__router_aux_loss_coef=0.5)
    assert recipe.model.router_aux_loss_coef == 0.5


def test_bad_checkpoints_are_refused_in_a_line(checkpoint, tmp_path, capsys) -> None:
    def refusal(*words: str) -> str:
        out = tmp_path / "out"
        assert main(["train", "--out", str(out), *words]) == 2
        assert not out.exists()
        return capsys.readouterr().err

    assert "no such folder" in refusal("--from", str(tmp_path / "nowhere"))
    assert "--budget chooses the network, and --from brings one" in refusal("--from", str(checkpoint), "--budget", "1m")
    assert "name the checkpoint that has, with --from DIR" in refusal("--recipe", "continue")
    (checkpoint / "tokenizer.json").rename(checkpoint / "elsewhere.json")
    assert "tokenizer" in refusal("--from", str(checkpoint))
    (checkpoint / "elsewhere.json").rename(checkpoint / "tokenizer.json")
    values = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(values | {"quantization_config": {"quant_method": "awq"}}))
    assert "awq" in refusal("--from", str(checkpoint)).lower()
    (checkpoint / "config.json").unlink()
    (checkpoint / "adapter_config.json").write_text("{}")
    assert "adapter" in refusal("--from", str(checkpoint))


def test_another_network_at_the_same_place_is_refused(recipe_path, checkpoint, tiny_config, tmp_path) -> None:
    run = tmp_path / "run"
    recipe = begin(recipe_path, checkpoint, run)
    shutil.rmtree(checkpoint)
    gossamer.save(CausalLM(replace(tiny_config, hidden_size=48)), checkpoint)
    with pytest.raises(UserError, match=r"holds another network than when the run began"):
        loop.train(replace(recipe, corpus=replace(recipe.corpus, tokenizer="char")), run)


def test_weights_that_are_no_numbers_are_refused_before_the_first_step(recipe_path, checkpoint, tmp_path) -> None:
    network = gossamer.load(checkpoint)
    with torch.no_grad():
        network.model.layers[0].mlp.shared_expert.down_proj.weight[0, 0] = float("nan")
    gossamer.save(network, checkpoint)
    run = tmp_path / "run"
    with pytest.raises(UserError, match=r"its loss on the held-out text is nan, so its weights are damaged$"):
        loop.train(begin(recipe_path, checkpoint, run), run)
    assert not any(event["event"] == "step" for event in read_metrics(run))


def test_text_has_to_be_named(checkpoint, tmp_path, capsys) -> None:
    assert main(["train", "--from", str(checkpoint), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == "gossamer: --from: name the text to learn from, with --data PATH\n"
