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
        ({"eos_token_id": [3, 4], "temperature": None, "top_p": "much"}, {}, (3, 4)),
    ],
)
def test_a_checkpoint_recommends(tmp_path: Path, config: dict, values: dict, ends: tuple[int, ...]) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    assert generation_config(tmp_path) == (values, ends)


def test_a_checkpoint_need_not(tmp_path: Path) -> None:
    assert generation_config(tmp_path) == ({}, ())
    (tmp_path / "generation_config.json").write_text("[]")
    with pytest.raises(UserError, match="holds no JSON object"):
        generation_config(tmp_path)


def test_what_was_given_comes_first_then_the_checkpoint_then_ours() -> None:
    assert sampling_for_readers({}) == sampling_for_readers({}, {"temperature": None}) == SAMPLING
    assert sampling_for_readers({"temperature": 0.6}) == {"temperature": 0.6}
    assert sampling_for_readers({"top_k": 20}, {"temperature": 0.0, "seed": 1}) == {
        "top_k": 20, "temperature": 0.0, "seed": 1,
    }  # fmt: skip
    assert sampling_for_readers({}, {"top_p": 1.0}) == {"temperature": 0.8, "top_p": 1.0}
    assert SamplingParams(1, **SAMPLING).temperature == 0.8
