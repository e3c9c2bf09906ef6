"""Tuning as TRL does it, on a checkpoint that gossamer wrote, and the judge of what either of them has tuned."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tuning_data import Task, read_rows

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
DELTANET = ["in_proj_qkvz", "in_proj_ba", "out_proj"]
# As parameters, since PEFT 0.21 takes modules of these names for the experts' and leaves them out.
SHARED = [f"mlp.shared_expert.{name}.weight" for name in ("gate_proj", "up_proj", "down_proj")]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
JUDGED_AT_ONCE = 16


def tune(task: Task, folder: Path, out: Path, after_step: Callable[[], None]) -> None:
    """Tune with TRL's own trainer, at the fastest settings that it has for short samples on a CPU.

    Batches are of samples of like length, since padding is then least. Nothing is computed twice, the experts are
    PyTorch's grouped products, AdamW is the fused one, and for pairs the reference log-probabilities are computed
    beforehand. Rows without padding need flash attention, which CPUs do not have.

    Args:
        task: what is tuned and how
        folder: the checkpoint and the data
        out: where the result is written
        after_step: called after each optimizer step
    """
    import datasets
    import trl

    datasets.disable_progress_bars()
    model, tokenizer = _load(folder)
    settings: dict[str, Any] = {
        "output_dir": str(out),
        "num_train_epochs": 1,
        "per_device_train_batch_size": task.batch,
        "learning_rate": task.learning_rate,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 1.0,
        "weight_decay": 0.0,
        "optim": "adamw_torch_fused",
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "seed": 0,
    }
    arguments: dict[str, Any] = {
        "model": model,
        "train_dataset": datasets.Dataset.from_list(read_rows(folder, task)),
        "processing_class": tokenizer,
        "peft_config": _lora(task, model) if task.lora else None,
        "callbacks": [_callback(after_step)],
    }
    if task.method == "dpo":
        trainer = trl.DPOTrainer(args=trl.DPOConfig(precompute_ref_log_probs=True, **settings), **arguments)
    else:
        trainer = trl.SFTTrainer(args=trl.SFTConfig(train_sampling_strategy="group_by_length", **settings), **arguments)
    trainer.train()
    trainer.model.save_pretrained(out)


def _load(folder: Path, weights: Path | None = None) -> tuple[Any, Any]:
    """Return the model and the tokenizer of a checkpoint, or other weights with its tokenizer."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        weights or folder, dtype=torch.float32, experts_implementation="grouped_mm"
    )
    return model, transformers.AutoTokenizer.from_pretrained(folder)


def _lora(task: Task, model: Any) -> Any:
    import peft

    experts_rank = max(1, task.rank // model.config.num_experts_per_tok)
    return peft.LoraConfig(
        r=task.rank,
        lora_alpha=2 * task.rank,
        lora_dropout=0.0,
        target_modules=[*ATTENTION, *DELTANET],
        target_parameters=[*SHARED, *EXPERTS],
        rank_pattern={r".*experts\.gate_up_proj": experts_rank, r".*experts\.down_proj": experts_rank},
        task_type="CAUSAL_LM",
    )


def _callback(after_step: Callable[[], None]) -> Any:
    import transformers

    class AfterStep(transformers.TrainerCallback):
        """Tells that an optimizer step is taken."""

        def on_step_end(self, *arguments: Any, **more: Any) -> None:
            after_step()

    return AfterStep()


@torch.inference_mode()
def held_out_loss(task: Task, folder: Path, tuned: Path) -> float:
    """Return the mean loss of the held-out answers' tokens (nats), as transformers computes it.

    Args:
        task: what was tuned
        folder: the checkpoint that it began with, and the data
        tuned: a Hugging Face directory, or PEFT's of an adapter
    """
    is_adapter = (tuned / "adapter_config.json").is_file()
    model, tokenizer = _load(folder, None if is_adapter else tuned)
    if is_adapter:
        import peft

        model = peft.PeftModel.from_pretrained(model, tuned).merge_and_unload()
    model.eval()
    rows = read_rows(folder, task, held_out=True)
    total, count = 0.0, 0
    for start in range(0, len(rows), JUDGED_AT_ONCE):
        ids, labels = _padded([labelled(tokenizer, row) for row in rows[start : start + JUDGED_AT_ONCE]])
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
        targets = labels[:, 1:]
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
        total, count = total + float(losses), count + int((targets != -100).sum())
    return total / count


def labelled(tokenizer: Any, row: dict[str, Any]) -> tuple[list[int], list[int]]:
    """Return the ids of a sample and its labels: the answer up to and with the end token of its turn."""
    answer = row["completion"] if "completion" in row else row["chosen"]
    prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
    whole = tokenizer.apply_chat_template([*row["prompt"], *answer], return_dict=False)
    end = len(whole) - whole[::-1].index(tokenizer.convert_tokens_to_ids("<|im_end|>"))
    whole = whole[:end]  # without the line end behind it, which is never generated
    return whole, [-100] * len(prompt) + whole[len(prompt) :]


def _padded(samples: list[tuple[list[int], list[int]]]) -> tuple[torch.Tensor, torch.Tensor]:
    """The ids and labels of samples, filled up behind their ends, which changes nothing before them."""
    width = max(len(ids) for ids, _ in samples)
    ids = [ids + [0] * (width - len(ids)) for ids, _ in samples]
    labels = [labels + [-100] * (width - len(labels)) for _, labels in samples]
    return torch.tensor(ids), torch.tensor(labels)


def count_targets(folder: Path, rows: list[dict[str, Any]]) -> int:
    """Return how many tokens the answers of some rows have, the end tokens of their turns among them."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return sum(label != -100 for row in rows for label in labelled(tokenizer, row)[1])
