"""A tiny base with a chat template, examples for it, and tunings that take a second."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from gossamer import hub
from gossamer.data.chat.chatml import with_chatml
from gossamer.data.tokenizer import Tokenizer, train_bpe
from gossamer.model.causal_lm import CausalLM
from gossamer.model.config import ModelConfig
from gossamer.run.start import resumed_recipe
from gossamer.run.stop import Progress
from gossamer.tune.examples import begun_material, resumed_material
from gossamer.tune.guard import Verdict
from gossamer.tune.run import tune

TEXT = ["what is 3 and 4? 7. who are you? a small model."]
CONFIG = ModelConfig(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, layer_types=("linear_attention", "full_attention"),
    num_attention_heads=2, num_key_value_heads=1, head_dim=16, linear_num_key_heads=1, linear_num_value_heads=2,
    linear_key_head_dim=8, linear_value_head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
    shared_expert_intermediate_size=16, initializer_range=0.1, max_position_embeddings=256, num_nextn_predict_layers=1,
)  # fmt: skip
Line = dict[str, Any]


def tokenizer(has_template: bool = True) -> Tokenizer:
    plain = train_bpe(TEXT, 260)
    return with_chatml(plain) if has_template else plain


def make_base(folder: Path, has_template: bool = True, **changes: Any) -> Path:
    """Write a network of random weights as a Hugging Face directory."""
    torch.manual_seed(5)
    made = tokenizer(has_template)
    hub.save(CausalLM(replace(CONFIG, vocab_size=made.vocab_size, **changes)), folder, made)
    return folder


def said(user: str, assistant: str) -> Line:
    return {"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]}


def conversations(count: int) -> list[Line]:
    return [said(f"what is {at} and {at}?", f"{2 * at}.") for at in range(count)]


def pairs(count: int) -> list[Line]:
    def answer(text: str) -> list[Line]:
        return [{"role": "assistant", "content": text}]

    prompts = [[{"role": "user", "content": f"what is {at}?"}] for at in range(count)]
    return [{"prompt": one, "chosen": answer("yes."), "rejected": answer("no no.")} for one in prompts]


def ratings(count: int) -> list[Line]:
    return [
        {"messages": line["prompt"], "completion": line["chosen" if at % 2 else "rejected"], "label": bool(at % 2)}
        for at, line in enumerate(pairs(count))
    ]


def write_lines(path: Path, lines: list[Line]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def values_of(base: Path, data: Path, **more: Any) -> dict[str, Any]:
    """Values of a tuning by dotted name, of which `more` has them with two underscores for the dot."""
    own = {
        "training.init_from": str(base),
        "corpus.paths": (str(data),),
        "corpus.cache_dir": str(data.parent / "cache"),
        "training.device": "cpu",
        "optimizer.learning_rate": 1e-2,
    } | {f"training.{name}_every": 0 for name in ("eval", "sample", "checkpoint")}
    return own | {key.replace("__", "."): value for key, value in more.items()}


def begin(values: Mapping[str, Any], out: Path, on_step: Callable[[Progress], None] | None = None) -> Verdict | None:
    return tune(lambda world: begun_material(None, values, world), "cpu", out, on_step=on_step)


def resume(values: Mapping[str, Any], out: Path) -> Verdict | None:
    recipe = resumed_recipe(out, None, values, tuning=True)
    return tune(lambda world: resumed_material(recipe, values), "cpu", out, resume=True)
