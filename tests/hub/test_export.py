"""What of a run is exported, and that nothing else is touched."""

import json
from pathlib import Path

import pytest
import torch

import gossamer
from gossamer import UserError, hub


def listing(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def run(build, tmp_path) -> Path:
    gossamer.save(build(torch.bfloat16), tmp_path / "run" / "model")
    (tmp_path / "run" / "model" / "tokenizer.json").write_text("{}")
    (tmp_path / "run" / "config.yaml").touch()
    (tmp_path / "run" / "model" / "generation_config.json").write_text("{}")
    (tmp_path / "run" / "model" / "notes.txt").write_text("private")
    return tmp_path / "run"


def test_an_export_has_the_models_files_alone(run, tmp_path, same_weights) -> None:
    target = tmp_path / "exported"
    hub.export(run, target)
    expected = {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json"}
    assert listing(target) == expected
    for name in expected:
        assert (target / name).read_bytes() == (run / "model" / name).read_bytes()
    with pytest.raises(UserError, match="not empty"):
        hub.export(run, target)  # it may be another run's


def test_a_model_without_a_tokenizer_is_exported_and_told(run, tmp_path, caplog) -> None:
    hub.export(run, tmp_path / "with")
    assert "no tokenizer" not in caplog.text
    (run / "model" / "tokenizer.json").unlink()
    hub.export(run, tmp_path / "without")
    assert f"{run / 'model'}: holds no tokenizer, so {tmp_path / 'without'} has none" in caplog.text


def test_export_keeps_what_the_tokens_mean(run, tmp_path) -> None:
    config = json.loads((run / "model" / "config.json").read_text())
    tokens = {"bos_token_id": 1, "eos_token_id": [2, 3], "pad_token_id": None}
    (run / "model" / "config.json").write_text(json.dumps(config | tokens))
    hub.export(run, tmp_path / "exported")
    exported = json.loads((tmp_path / "exported" / "config.json").read_text())
    assert exported == config | {"bos_token_id": 1, "eos_token_id": [2, 3]}


def test_export_overwrites_nothing_else(run, tmp_path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years")
    with pytest.raises(UserError, match="not empty"):
        hub.export(run, tmp_path / "mine")
    assert listing(tmp_path / "mine") == {"thesis.tex"}
    with pytest.raises(UserError, match="not empty"):
        hub.export(run, run / "model")
    with pytest.raises(UserError, match="not empty"):
        hub.export(run, run)
    with pytest.raises(UserError, match="no such folder"):
        hub.export(tmp_path / "absent", tmp_path / "exported")
    assert not (tmp_path / "exported").exists()
    (tmp_path / "empty").mkdir()
    hub.export(run, tmp_path / "empty")
    assert (tmp_path / "empty" / "config.json").exists()
