"""A tuned model has the form of its base, which transformers reads as well."""

from pathlib import Path

import pytest
import torch
import transformers

from gossamer import hub
from gossamer.hub.checkpoint import open_checkpoint
from tuned_runs import begin, conversations, make_base, values_of, write_lines


@pytest.mark.parametrize("layout", ["qwen3_5_per_expert"])
def test_a_model_of_qwen35_is_written_as_it_was_read(layout: str, tmp_path: Path) -> None:
    made = make_base(tmp_path / "made", model_type="qwen3_5_moe_text", mlp_only_layers=())
    hub.export(made, tmp_path / "base", layout)
    data = write_lines(tmp_path / "data.jsonl", conversations(4))
    begin(values_of(tmp_path / "base", data, training__steps=1), tmp_path / "run")
    own, written = open_checkpoint(tmp_path / "base"), open_checkpoint(tmp_path / "run")
    assert written.stored.keys() == own.stored.keys() and written.layout == own.layout
    ids = torch.arange(8).unsqueeze(0)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model", dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, hub.load(tmp_path / "run")(ids).logits, atol=1e-4, rtol=1e-4)


def test_a_base_may_be_a_gguf_file(tmp_path: Path) -> None:
    hub.export_gguf(make_base(tmp_path / "base"), tmp_path / "base.gguf")
    data = write_lines(tmp_path / "data.jsonl", conversations(4))
    values = values_of(tmp_path / "base.gguf", data, training__steps=2)
    verdict = begin(values, tmp_path / "run")
    assert verdict is not None and verdict.after.loss < verdict.before.loss
    assert any(name.startswith("mtp.") for name in open_checkpoint(tmp_path / "run").stored)
