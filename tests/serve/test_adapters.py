"""Adapters beside the model that is served: each is a model of its own name, and the base stays what it is."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

import gossamer
from gossamer.data.tokenizer import Tokenizer, char_tokenizer
from gossamer.errors import UserError
from gossamer.hub.adapter import load_adapter, save_adapter
from gossamer.infer.options import EngineOptions
from gossamer.model.causal_lm import CausalLM
from gossamer.model.low_rank import LowRankConfig, add_low_rank, beside, targets_of
from gossamer.serve.engine_worker import EngineConfig, build_engine
from gossamer.serve.options import ServeOptions
from gossamer.serve.server import make_service
from live_service import Live, live

ASKED = {"max_tokens": 12, "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def adapter(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter for the model of the session, in the folder of a run."""
    model = gossamer.load(tiny)
    torch.manual_seed(4)
    add_low_rank(model, LowRankConfig(rank=2))
    for target in targets_of(model):
        assert target.low_rank is not None
        torch.nn.init.normal_(target.low_rank.B, std=0.2)
    folder = tmp_path_factory.mktemp("run")
    save_adapter(model, folder / "adapter", tiny)
    (folder / "adapter" / "generation_config.json").write_text('{"temperature": 0.3, "do_sample": true}')
    return folder


@pytest.fixture(scope="module")
def service(tiny: Path, adapter: Path) -> Iterator[Live]:
    options = EngineOptions(max_batch=4, page_size=16, snapshot_interval=32, prefill_chunk=32)
    config = EngineConfig("cpu", options, {"calm": adapter / "adapter"})
    with live(tiny, partial(build_engine, tiny, config), adapter=(f"calm={adapter}",)) as running:
        yield running


@torch.no_grad()
def continued(model: CausalLM, tokenizer: Tokenizer, prompt: str, count: int = 12) -> str:
    start = ids = tokenizer.encode(prompt)
    for _ in range(count):
        ids = [*ids, int(model(torch.tensor([ids])).logits[0, -1].argmax())]
    return tokenizer.decode(ids[len(start) :])


def test_both_are_models_and_say_what_their_networks_say(service, network, tiny, adapter) -> None:
    tokenizer, prompt = Tokenizer.load(tiny), "a text " * 9
    tuned = beside(network)
    load_adapter(tuned, adapter)
    expected = {"gossamer": continued(network, tokenizer, prompt), "calm": continued(tuned, tokenizer, prompt)}
    assert expected["gossamer"] != expected["calm"]
    for name in ("gossamer", "calm", "gossamer", "calm"):  # the second time from the prefix cache
        answer = service.post("/v1/completions", {"prompt": prompt, "model": name, **ASKED}).json()
        assert (answer["model"], answer["choices"][0]["text"]) == (name, expected[name])
    assert service.post("/v1/completions", {"prompt": prompt, **ASKED}).json()["model"] == "gossamer"


def test_names_in_lists_answers_and_refusals(service) -> None:
    models = {model["id"]: model for model in service.get("/v1/models").json()["data"]}
    assert list(models) == ["gossamer", "calm"]
    assert models["calm"]["sampling"]["temperature"] == 0.3 != models["gossamer"]["sampling"]["temperature"]
    assert service.get("/v1/models/calm").json()["id"] == "calm"
    assert service.say("hello", model="calm", max_tokens=3).json()["model"] == "calm"
    answer = service.say("hello", model="wild")
    assert answer.status_code == 404
    assert "'gossamer' and 'calm' are" in answer.json()["error"]["message"]


def test_streams_and_answers_of_the_other_api_name_it(service) -> None:
    streamed = service.say("hello", model="calm", max_tokens=3, stream=True).text
    assert '"model":"calm"' in streamed and '"model":"gossamer"' not in streamed
    body = {"input": "hello", "model": "calm", "max_output_tokens": 3}
    assert service.post("/v1/responses", body).json()["model"] == "calm"


@pytest.mark.parametrize(
    ("given", "part"),
    [
        (("calm",), "NAME=DIR"),
        (("=folder",), "NAME=DIR"),
        (("a=one", "a=two"), "another model is called a"),
        (("gossamer=one",), "another model is called gossamer"),
    ],
)
def test_other_forms_of_the_option_are_refused(given, part) -> None:
    with pytest.raises(UserError, match=part):
        ServeOptions(adapter=given)


def test_an_adapter_for_another_base_keeps_the_engine_from_starting(tiny, adapter, tmp_path) -> None:
    torch.manual_seed(9)
    other = CausalLM(gossamer.load(tiny).config)
    gossamer.save(other, tmp_path / "other", Tokenizer.load(tiny))
    with pytest.raises(UserError, match="another base"):
        build_engine(tmp_path / "other", EngineConfig("cpu", adapters={"calm": adapter / "adapter"}))


def test_an_adapter_with_another_tokenizer_is_refused(tiny, adapter, tmp_path) -> None:
    shutil.copytree(adapter / "adapter", tmp_path / "adapter")
    char_tokenizer(["abc"]).save(tmp_path / "adapter")
    options = ServeOptions(adapter=(f"calm={tmp_path / 'adapter'}",))
    with pytest.raises(UserError, match="another tokenizer than the model"):
        make_service(tiny, options, partial(build_engine, tiny, EngineConfig("cpu")))
