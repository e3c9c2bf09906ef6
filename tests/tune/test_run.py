"""Tunings from beginning to end: what is learned is said, and whatever stops a run is made up for."""

import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gossamer import hub
from gossamer.cost import budget
from gossamer.cost.ledger import read_ledger
from gossamer.data.chat.template import ChatTemplate
from gossamer.data.tokenizer import Tokenizer
from gossamer.errors import UserError
from gossamer.hub.checkpoint import open_checkpoint
from gossamer.infer.defaults import generation_config
from gossamer.infer.engine import Engine, EngineOptions
from gossamer.infer.request import Request, SamplingParams
from gossamer.run.metrics import read_metrics
from gossamer.train.recipe import load_recipe
from tuned_runs import begin, conversations, make_base, pairs, ratings, resume, said, values_of, write_lines

LINES = {"sft": conversations, "dpo": pairs, "kto": ratings, "lora": conversations}
LORA = {"tuning.lora": True, "tuning.rank": 2}
WEIGHTS = "adapter/adapter_model.safetensors", "model/model.safetensors"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "model")


def answer(model: Path, user: str) -> tuple[str, str | None]:
    """What the engine says to a user, as the service would ask it, and why it ends."""
    folder = hub.find_model(model)
    tokenizer, (_, ends) = Tokenizer.load(folder), generation_config(folder)
    prompt = ChatTemplate(tokenizer).render([{"role": "user", "content": user}]).ids
    engine = Engine(hub.load(model), tokenizer, EngineOptions(max_batch=1, cache_tokens=256))
    engine.submit(Request("one", prompt, SamplingParams(40, temperature=0.0, stop_token_ids=ends)))
    text, reason = "", None
    while engine.has_work:
        for delta in engine.step():
            text, reason = text + delta.text, delta.finish_reason
    return text, reason


def test_a_conversation_that_is_learned_is_said_and_ended_also_from_a_gguf_file(base: Path, tmp_path: Path) -> None:
    data = write_lines(tmp_path / "chat.jsonl", [said("who are you?", "a small model.")])
    verdict = begin(values_of(base, data, training__steps=25, optimizer__kind="adamw"), tmp_path / "run")
    assert verdict is not None and verdict.after.exact == 1.0 > verdict.before.exact and verdict.name == "seen"
    hub.export_gguf(tmp_path / "run", tmp_path / "model.gguf")
    for model in (tmp_path / "run", tmp_path / "model.gguf"):
        assert answer(model, "who are you?") == ("a small model.", "stop")
    (shown,) = verdict.answers
    assert (shown.wanted, shown.after) == ("a small model.", "a small model.") and shown.before != shown.after


@pytest.mark.parametrize("method", LINES)
def test_a_stopped_tuning_ends_bit_identical(method: str, base: Path, tmp_path: Path) -> None:
    data = write_lines(tmp_path / "data.jsonl", LINES[method](9))
    values = values_of(base, data, tuning__batch=4, tuning__epochs=2, training__checkpoint_every=2)
    values |= LORA if method == "lora" else {}
    whole = begin(values, tmp_path / "whole")

    def stop(progress: object) -> None:
        if progress.step == 3:  # type: ignore[attr-defined]
            signal.raise_signal(signal.SIGTERM)

    assert begin(values, tmp_path / "halves", stop) is None
    halves = resume(values, tmp_path / "halves")
    assert whole is not None and whole == halves
    weights = WEIGHTS[method != "lora"]
    first, second = (load_file(tmp_path / run / weights) for run in ("whole", "halves"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    accounts = read_ledger(tmp_path / "halves").accounts  # type: ignore[union-attr]
    assert bool(accounts["reference"].device_seconds) == (method in ("dpo", "kto"))
    assert (
        not accounts["repeated"].steps
        and accounts["useful"].steps == load_recipe(tmp_path / "whole" / "config.yaml").training.steps
    )


def test_the_run_is_as_one_of_train_and_its_model_as_its_base(base: Path, tmp_path: Path) -> None:
    data = write_lines(tmp_path / "data.jsonl", conversations(30))
    begin(values_of(base, data, tuning__batch=10, training__log_every=1, training__sample_every=2), tmp_path / "run")
    events = read_metrics(tmp_path / "run")
    kinds = {event["event"] for event in events}
    assert {"start", "train", "eval", "end", "experts", "checkpoint", "sample"} <= kinds
    assert [event["step"] for event in events if event["event"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert {event["set"] for event in events if event["event"] == "eval"} == {"held-out"}
    recipe = load_recipe(tmp_path / "run" / "config.yaml")
    assert recipe.tuning is not None and recipe.tuning.epochs == 2 and recipe.schedule.warmup_steps == 1
    written, own = open_checkpoint(tmp_path / "run"), open_checkpoint(base)
    assert written.stored.keys() == own.stored.keys() and written.layout == own.layout
    assert any(name.startswith("mtp.") for name in written.stored)
    kept = json.loads((tmp_path / "run" / "guard.json").read_text())
    assert kept["verdict"]["before"]["examples"] == 2 and len(kept["verdict"]["answers"]) == 2


def test_a_budget_ends_a_tuning_and_a_longer_one_continues_it(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "MIN_FLOPS", 1e6)
    data = write_lines(tmp_path / "data.jsonl", conversations(20))
    values = values_of(base, data, tuning__batch=4, training__budget="2e8flop")
    assert begin(values, tmp_path / "run") is not None
    ledger = read_ledger(tmp_path / "run")
    assert ledger is not None and ledger.work.steps > 1 and 1e8 < ledger.work.all_flops < 4e8
    with pytest.raises(UserError, match=r"^--epochs: the run ends by its budget; give --budget to continue it$"):
        resume({key: values[key] for key in set(values) - {"training.budget"}} | {"tuning.epochs": 9}, tmp_path / "run")
    with pytest.raises(UserError, match=r"is complete, it has taken its 2e8flop budget; continue it with a larger"):
        resume(values, tmp_path / "run")
    steps = ledger.work.steps
    assert resume(values | {"training.budget": "4e8flop"}, tmp_path / "run") is not None
    longer = read_ledger(tmp_path / "run")
    assert longer is not None and longer.work.steps > steps


def test_epochs_may_be_added_and_steps_take_their_place(base: Path, tmp_path: Path) -> None:
    data = write_lines(tmp_path / "data.jsonl", conversations(10))
    values = values_of(base, data, tuning__batch=4, tuning__epochs=1)
    begin(values, tmp_path / "run")
    resume(values | {"tuning.epochs": 2}, tmp_path / "run")
    own = load_recipe(tmp_path / "run" / "config.yaml")
    assert own.tuning is not None and (own.tuning.epochs, own.training.steps) == (2, 5)  # of 9 examples
    del values["tuning.epochs"]
    resume(values | {"training.steps": 7}, tmp_path / "run")
    own = load_recipe(tmp_path / "run" / "config.yaml")
    assert own.tuning is not None and (own.tuning.epochs, own.training.steps) == (None, 7)


def test_weights_of_bfloat16_are_written_as_such(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    hub.save(hub.load(base, torch.bfloat16), tmp_path / "narrow", Tokenizer.load(base))
    data = write_lines(tmp_path / "data.jsonl", conversations(6))
    begin(values_of(tmp_path / "narrow", data, training__steps=1), tmp_path / "run")
    types = {name: tensor.dtype for name, tensor in load_file(tmp_path / "narrow" / "model.safetensors").items()}
    assert types == {
        name: tensor.dtype for name, tensor in load_file(tmp_path / "run" / "model" / "model.safetensors").items()
    }
    assert torch.bfloat16 in types.values()


def test_a_base_without_a_template_gets_rows_for_the_tokens_of_one(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", has_template=False)
    data = write_lines(tmp_path / "data.jsonl", conversations(6))
    with pytest.raises(UserError, match=r"data\.jsonl:1: messages need a chat template, .*give --template chatml"):
        begin(values_of(base, data), tmp_path / "run")
    assert not (tmp_path / "run" / "config.yaml").exists()
    values = values_of(base, data, tuning__template="chatml", training__steps=1, optimizer__learning_rate=1e-9)
    begin(values, tmp_path / "run")
    old, new = hub.load(base), hub.load(tmp_path / "run")
    rows = old.config.vocab_size
    assert new.config.vocab_size == rows + 2 and Tokenizer.load(tmp_path / "run").vocab_size == rows + 2
    for before, after in zip(
        (old.model.embed_tokens.weight, old.lm_head.weight),
        (new.model.embed_tokens.weight, new.lm_head.weight),
        strict=True,
    ):
        torch.testing.assert_close(after[:rows], before, atol=1e-6, rtol=0)
        torch.testing.assert_close(after[rows:], before.mean(0).expand(2, -1), atol=1e-6, rtol=0)
    assert answer(tmp_path / "run", "who?")[1] in ("stop", "length")


def test_drafts_alone_leave_answers_as_they_are(base: Path, tmp_path: Path) -> None:
    data = write_lines(tmp_path / "data.jsonl", conversations(12))
    begin(values_of(base, data, tuning__drafts=True, tuning__epochs=1), tmp_path / "run")
    before = load_file(base / "model.safetensors")
    after = load_file(tmp_path / "run" / "model" / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith("mtp.") for name in changed)


def test_an_adapter_is_what_is_written_and_what_is_served(base: Path, tmp_path: Path) -> None:
    data = write_lines(tmp_path / "chat.jsonl", [said("who are you?", "a small model.")])
    values = values_of(base, data, training__steps=6) | {"tuning.lora": True, "optimizer.learning_rate": 0.03}
    verdict = begin(values, tmp_path / "run")
    assert verdict is not None and verdict.after.loss < verdict.before.loss - 0.5
    assert not (tmp_path / "run" / "model").exists()
    (shown,) = verdict.answers
    assert answer(tmp_path / "run", "who are you?")[0] == shown.after[:40] != shown.before[:40]
    with pytest.raises(UserError, match=r"^--lora: .*run is an adapter itself; make a model of it with gossamer"):
        begin(values | {"training.init_from": str(tmp_path / "run")}, tmp_path / "again")
    values = values_of(tmp_path / "run", data, training__steps=1, optimizer__learning_rate=1e-9)
    merged = begin(values, tmp_path / "merged")
    assert merged is not None and merged.before.loss == pytest.approx(verdict.after.loss, abs=1e-3)
