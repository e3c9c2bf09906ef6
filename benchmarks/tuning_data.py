"""What is tuned in benchmarks/tuning.py: a small network, questions about the standard library, and the tasks."""

from __future__ import annotations

import json
import random
import runpy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parents[1]
NUM_HELD_OUT = 64


@dataclass(frozen=True)
class Task:
    """Something that a model is tuned to, in the same way by both.

    Attributes:
        title: its name in tables
        method: sft or dpo
        lora: whether adapters learn, beside frozen weights
        learning_rate: of AdamW, constant
        batch: samples or pairs of an optimizer step
        rank: of the adapters
    """

    title: str
    method: Literal["sft", "dpo"]
    lora: bool = False
    learning_rate: float = 1e-3
    batch: int = 16
    rank: int = 16

    @property
    def unit(self) -> str:
        """What is counted per second."""
        return "pairs" if self.method == "dpo" else "target tokens"


TASKS = {
    "sft": Task("SFT, all weights", "sft"),
    "lora": Task("SFT, LoRA with experts", "sft", lora=True),
    "dpo": Task("DPO, all weights", "dpo", learning_rate=1e-5),
}


def write_base(folder: Path, recipe: str, vocab_size: int) -> int:
    """Write an untrained network of a recipe, with a tokenizer and a chat template; return its parameters."""
    import torch

    from gossamer import hub
    from gossamer.data.chat.chatml import with_chatml
    from gossamer.data.tokenizer import train_bpe
    from gossamer.model.causal_lm import CausalLM
    from gossamer.train.recipe import load_recipe

    texts = [message["content"] for conversation in conversations() for message in conversation]
    tokenizer = with_chatml(train_bpe(texts, vocab_size))
    torch.manual_seed(0)
    overrides = {"model.vocab_size": tokenizer.vocab_size, "model.num_nextn_predict_layers": 0}
    model = CausalLM(load_recipe(recipe, overrides).model)
    hub.save(model, folder, tokenizer)
    return sum(parameter.numel() for parameter in model.parameters())


def conversations() -> list[list[dict[str, str]]]:
    """Return questions about the standard library with their answers, in an order that mixes its modules."""
    script = runpy.run_path(str(ROOT / "recipes" / "docstrings.py"))
    found: list[list[dict[str, str]]] = script["all_conversations"]()
    random.Random(0).shuffle(found)
    return found


def write_rows(folder: Path, count: int) -> None:
    """Write `count` questions to learn from and some that are held out, each with an answer and as a pair.

    The rejected answer of a pair is that of another question.
    """
    rows = conversations()[: count + NUM_HELD_OUT]
    for method in ("sft", "dpo"):
        lines = []
        for place, (question, answer) in enumerate(rows):
            pair = {"chosen": [answer], "rejected": [rows[place - 1][1]]}
            lines.append(json.dumps({"prompt": [question]} | ({"completion": [answer]} if method == "sft" else pair)))
        rows_file(folder, method, held_out=True).write_text("\n".join(lines[:NUM_HELD_OUT]) + "\n")
        rows_file(folder, method).write_text("\n".join(lines[NUM_HELD_OUT:]) + "\n")


def rows_file(folder: Path, method: str, held_out: bool = False) -> Path:
    """Return the file of what is learned from, or of what is held out."""
    return folder / f"{method}{'-held-out' if held_out else ''}.jsonl"


def read_rows(folder: Path, task: Task, held_out: bool = False) -> list[dict[str, Any]]:
    """Return the samples or pairs of such a file."""
    return [json.loads(line) for line in rows_file(folder, task.method, held_out).read_text().splitlines()]
