"""README.md: what it tells to type works, and what it says there is, is there."""

import re
from pathlib import Path

import pytest
import torch

import gossamer
from gossamer.data.tokenizer import char_tokenizer
from gossamer.infer.generation import sample_run
from gossamer.train.recipe import recipe_names

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_python_runs_as_pasted_after_a_demo_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "import gossamer" in block]
    monkeypatch.chdir(tmp_path)
    tokenizer = char_tokenizer([code])
    config = gossamer.ModelConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, linear_num_key_heads=1, linear_num_value_heads=2, linear_key_head_dim=8,
        linear_value_head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
    )  # fmt: skip
    gossamer.save(gossamer.CausalLM(config), "runs/demo/model", tokenizer)
    values: dict[str, object] = {}
    exec(code, values)
    out = values["out"]
    assert all(torch.isfinite(getattr(out, name)) for name in ("loss", "mtp_loss", "aux_loss"))
    assert "".join(sample_run(Path("exported"), "def ", 3, {}, "cpu")).startswith("def ")


@pytest.mark.parametrize(("command", "tuning"), [("train", False), ("tune BASE", True)])
def test_every_recipe_is_listed(command: str, tuning: bool) -> None:
    (row,) = [line for line in README.splitlines() if line.startswith(f"| `gossamer {command} --recipe NAME")]
    assert sorted(re.findall(r"`([\w.-]+)`", row.partition("recipes)")[2])) == recipe_names(tuning)
