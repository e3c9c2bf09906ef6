"""What of a tuned run goes to other programs: its base with the adapter added to the weights, or the adapter alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import gossamer
from gossamer import UserError, hub
from gossamer.cli import main
from gossamer.data.tokenizer import train_bpe
from gossamer.hub.adapter import load_adapter, save_adapter
from gossamer.model.causal_lm import CausalLM
from gossamer.model.low_rank import LowRankConfig, add_low_rank, targets_of

ROW = torch.randint(0, 280, (1, 20), generator=torch.Generator().manual_seed(2))


@pytest.fixture
def run(build, tmp_path) -> tuple[Path, CausalLM]:
    """A tuned run on a base of its own, and the network that was tuned."""
    base = build(vocab_size=300, mlp_only_layers=(), num_experts=5)
    gossamer.save(base, tmp_path / "base", train_bpe(["the cat sat on the mat, the cat sat there"], 280))
    add_low_rank(base, LowRankConfig(rank=4))
    torch.manual_seed(3)
    for target in targets_of(base):
        assert target.low_rank is not None
        torch.nn.init.normal_(target.low_rank.B, std=0.2)
    save_adapter(base, tmp_path / "run" / "adapter", tmp_path / "base")
    (tmp_path / "run" / "config.yaml").touch()
    return tmp_path / "run", base.eval()


@torch.no_grad()
def same(one: CausalLM, other: CausalLM) -> None:
    torch.testing.assert_close(one(ROW).logits, other(ROW).logits, atol=2e-4, rtol=1e-3)


def test_the_run_is_a_model_wherever_one_is_asked_for(run, capsys) -> None:
    folder, tuned = run
    model = gossamer.load(folder)
    same(model, tuned)
    assert any(target.low_rank is not None for target in targets_of(model))
    assert main(["sample", str(folder), "--prompt", "the cat", "--max_tokens", "5", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.startswith("the cat")


def test_the_merged_model(run, tmp_path, caplog) -> None:
    folder, tuned = run
    with caplog.at_level("INFO", "gossamer"):
        hub.export(folder, tmp_path / "merged")
    assert "largest rounding" in caplog.text
    model = gossamer.load(tmp_path / "merged")
    same(model, tuned)
    assert all(target.low_rank is None for target in targets_of(model)) and model.mtp is not None
    assert (tmp_path / "merged" / "tokenizer.json").is_file()
    assert not (tmp_path / "merged" / "adapter_config.json").exists()


def test_the_merged_model_in_another_layout_and_as_gguf(run, tmp_path) -> None:
    folder, tuned = run
    hub.export(folder, tmp_path / "newer", "qwen3_5")
    same(gossamer.load(tmp_path / "newer"), tuned)
    pytest.importorskip("gguf")
    hub.export_gguf(folder, tmp_path / "merged.gguf")
    same(gossamer.load(tmp_path / "merged.gguf"), tuned)


@pytest.mark.parametrize("layout", ["stored", "experts"])
def test_the_adapter_alone(run, tmp_path, layout) -> None:
    folder, tuned = run
    arguments = ["export", str(folder), str(tmp_path / "alone"), "--to", "adapter", "--layout", layout]
    assert main(arguments) == 0
    keys = load_file(tmp_path / "alone" / "adapter_model.safetensors")
    assert any("experts.3.gate_proj" in key for key in keys) == (layout == "experts")
    model = gossamer.load(tmp_path / "base")
    load_adapter(model, tmp_path / "alone")
    same(model, tuned)
    with pytest.raises(UserError, match="not empty"):
        hub.export_adapter(folder, tmp_path / "alone")


def test_what_is_no_adapter_is_not_written_as_one(run, tmp_path, capsys) -> None:
    folder, _ = run
    with pytest.raises(UserError, match="holds a whole model and no adapter; --to hf"):
        hub.export_adapter(tmp_path / "base", tmp_path / "alone")
    assert main(["export", str(folder), str(tmp_path / "alone"), "--layout", "experts"]) == 2
    assert main(["export", str(folder), str(tmp_path / "alone"), "--to", "adapter", "--layout", "qwen3_5"]) == 2
    assert "something else" in capsys.readouterr().err
    assert not (tmp_path / "alone").exists()
