import json
import re

import pytest

from gossamer import UserError, hub
from gossamer.cli import main
from gossamer.reading import read_object


def test_a_run_gives_its_model_and_a_directory_itself(tmp_path) -> None:
    run = tmp_path / "run"
    (run / "model").mkdir(parents=True)
    (run / "config.yaml").touch()
    (run / "model" / "config.json").write_text("{}")
    assert hub.find_model(run) == run / "model"
    assert hub.find_model(str(run / "model")) == run / "model"


def test_a_run_without_a_model_yet(tmp_path) -> None:
    (tmp_path / "config.yaml").touch()
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match=r"no model yet.*--resume"):
        hub.find_model(tmp_path)


def test_no_model_there(tmp_path) -> None:
    with pytest.raises(UserError, match=re.escape("holds no config.json")):
        hub.find_model(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        hub.find_model(tmp_path / "absent" / "run")
    with pytest.raises(UserError, match="hf download somebody/some-model"):
        hub.find_model("somebody/some-model")
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UserError, match="is a file"):
        hub.find_model(tmp_path / "model.safetensors")


@pytest.mark.parametrize(("content", "message"), [("{", "not JSON"), ("[1]", "no JSON object")])
def test_json_that_is_none(tmp_path, content, message) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=message):
        read_object(tmp_path / "config.json")


def test_an_object_of_json_is_read(tmp_path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"ä": 1}), encoding="utf-8")
    assert read_object(tmp_path / "a.json") == {"ä": 1}


@pytest.mark.parametrize("kind", ["qwen4_exp", "llama", "gemma3", "qwen3_moe"])
def test_another_architecture_is_refused_before_all_else(tmp_path, kind: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, "text_config": {}}))
    assert hub.find_model(tmp_path, of_any_kind=True) == tmp_path
    with pytest.raises(UserError, match=f"config.json: model_type '{kind}' is another architecture"):
        hub.find_model(tmp_path)
    for verb in ("sample", "eval", "serve", "chat", "export"):
        out = [str(tmp_path / "out")] if verb == "export" else []
        assert main([verb, str(tmp_path), *out]) == 2
