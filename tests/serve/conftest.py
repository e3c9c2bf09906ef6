"""What all tests of a session share: a service around the engine's double, an untrained network, a browser."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch

import browser as browsers
import engine_double
from gossamer import hub
from gossamer.data.tokenizer import Tokenizer
from gossamer.model.causal_lm import CausalLM
from gossamer.model.config import ModelConfig
from live_service import Live, live


@pytest.fixture(scope="session", autouse=True)
def quick_engines() -> Iterator[None]:
    """Engines of services in this process fork from one that has imported PyTorch, instead of importing it each.

    A service in a process of its own starts its engine as it does for everybody.
    """
    forking = multiprocessing.get_context("forkserver")
    forking.set_forkserver_preload(["gossamer.serve.engine_worker", "gossamer.infer.engine"])
    with mock.patch(
        "gossamer.serve.engine_process.multiprocessing", SimpleNamespace(get_context=lambda method: forking)
    ):
        yield


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return engine_double.write_tokenizer(tmp_path_factory.mktemp("json"))


@pytest.fixture(scope="session")
def server(folder: Path) -> Iterator[Live]:
    with live(folder) as service:
        yield service


@pytest.fixture(scope="session")
def network() -> CausalLM:
    torch.manual_seed(3)
    config = ModelConfig(
        vocab_size=260, hidden_size=32, num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
        linear_num_key_heads=1, linear_num_value_heads=2, linear_key_head_dim=8, linear_value_head_dim=8,
        num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, shared_expert_intermediate_size=16,
        initializer_range=0.2, max_position_embeddings=2048, num_nextn_predict_layers=1,
    )  # fmt: skip
    return CausalLM(config).eval()


@pytest.fixture(scope="session")
def tiny(network: CausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = Tokenizer.load(engine_double.write_tokenizer(tmp_path_factory.mktemp("tokenizer")))
    folder = tmp_path_factory.mktemp("model") / "tiny"
    hub.save(network, folder, tokenizer)
    return folder


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    if reason := browsers.obstacle():
        pytest.skip(reason)
    from playwright.sync_api import expect

    expect.set_options(timeout=browsers.PATIENCE)
    with browsers.chromium() as browser:
        yield browser


@pytest.fixture
def visit(chromium: Any) -> Iterator[Callable[..., Any]]:
    """Opens the page of a service, as somebody new; whatever a script complains of fails the test."""
    contexts, complaints = [], []

    def opened(service: Live, **device: Any) -> Any:
        context = chromium.new_context(**(device or browsers.DESKTOP))
        context.set_default_timeout(browsers.PATIENCE)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.goto(service.url)
        return page

    yield opened
    for context in contexts:
        context.close()
    # The browser itself tells of every answer that is not 200: those that the tests ask for.
    assert [text for text in complaints if "Failed to load resource" not in text] == []


@pytest.fixture(scope="module")
def page_once(chromium: Any, server: Live) -> Iterator[Any]:
    """One page for the tests that leave no trace in it."""
    context = chromium.new_context()
    page = context.new_page()
    page.goto(server.url)
    page.locator("#model:text('gossamer')").wait_for()
    yield page
    context.close()
