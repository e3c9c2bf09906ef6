"""What is sampled with where nobody says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gossamer.errors import UserError
from gossamer.infer.defaults import SAMPLING, generation_config, sampling_for_readers
from gossamer.infer.request import SamplingParams


@pytest.mark.parametrize(
    ("config", "values", "ends"),
    [
        ({}, {}, ()),
        ({"temperature": 0.6, "top_k": 20, "max_length": 9}, {"temperature": 0.6, "top_k": 20}, ()),
        ({"eos_token_id": 3, "temperature": 0.6, "do_sample": False}, {}, (3,)),
        ({"eos_token_id": [3, 4], "temperature": None}, {}, (3, 4)),
        ({"top_k": -1, "repetition_penalty": 1}, {"top_k": 0, "repetition_penalty": 1}, ()),
    ],
)
def test_a_checkpoint_recommends(tmp_path: Path, config: dict, values: dict, ends: tuple[int, ...]) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    assert generation_config(tmp_path) == (values, ends)


def test_a_checkpoint_need_not(tmp_path: Path) -> None:
    assert generation_config(tmp_path) == ({}, ())


@pytest.mark.parametrize(
    "config", [{"eos_token_id": [258, 256]}, {"eos_token_id": 258}, {"text_config": {"eos_token_id": [258, 256]}}, {}]
)
def test_without_the_file_the_ends_are_those_that_transformers_takes_from_config_json(tmp_path: Path, config) -> None:
    transformers = pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 300, **config}))
    theirs = transformers.GenerationConfig.from_model_config(config).eos_token_id
    theirs = theirs if isinstance(theirs, list) else [] if theirs is None else [theirs]
    assert generation_config(tmp_path)[1] == tuple(theirs)


def test_an_end_counts_whichever_file_names_it_if_the_network_has_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 300, "eos_token_id": [2, 300, 1]}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 5]}))
    assert generation_config(tmp_path)[1] == (1, 5, 2)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("eos_token_id", "</s>"), ("eos_token_id", [True]), ("eos_token_id", -1), ("top_p", "much"), ("top_k", 1.5),
        ("temperature", float("nan")), ("temperature", -1), ("min_p", True), ("top_k", float("inf")),
        ("top_k", 10**30), ("temperature", 1e300), ("eos_token_id", 10**30), ("do_sample", "yes"), ("min_p", [0.1]),
    ],
)  # fmt: skip
def test_what_no_sampler_takes_is_named_with_its_file(tmp_path: Path, name: str, value: object) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({name: value}))
    with pytest.raises(UserError, match=rf"generation_config\.json: {name}.* mend the file"):
        generation_config(tmp_path)


def test_a_file_that_holds_no_object_is_refused(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text("[]")
    with pytest.raises(UserError, match=r"no.* JSON object"):
        generation_config(tmp_path)


def test_what_was_given_comes_first_then_the_checkpoint_then_ours() -> None:
    assert sampling_for_readers({}) == sampling_for_readers({}, {"temperature": None}) == SAMPLING
    assert sampling_for_readers({"temperature": 0.6}) == {"temperature": 0.6}
    assert sampling_for_readers({"top_k": 20}, {"temperature": 0.0, "seed": 1}) == {
        "top_k": 20, "temperature": 0.0, "seed": 1,
    }  # fmt: skip
    assert sampling_for_readers({}, {"top_p": 1.0}) == {"temperature": 0.8, "top_p": 1.0}
    assert SamplingParams(1, **SAMPLING).temperature == 0.8
