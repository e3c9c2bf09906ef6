"""How a network learns: the optimizer, the learning rate over a run, and the run itself."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from gossamer.errors import UserError


def require(key: str, value: Any, condition: bool, allowed: str) -> None:
    if not condition:
        raise UserError(f"{key} = {value!r}: must be {allowed}")


@dataclass(frozen=True)
class OptimizerConfig:
    """How a gradient becomes a step.

    Attributes:
        learning_rate: peak step size, reached after the warm-up (per optimizer step)
        betas: decay of AdamW's running mean and of its running square (per optimizer step)
        eps: added to the root of the running square (same unit as a gradient)
        weight_decay: decoupled decay, a multiple of the learning rate (per optimizer step)
        grad_clip: longest gradient, as the norm over all parameters; 0 never clips
    """

    learning_rate: float = 3e-3
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    grad_clip: float = 1.0

    def __post_init__(self) -> None:
        require("optimizer.learning_rate", self.learning_rate, self.learning_rate > 0, "> 0")
        require("optimizer.betas", list(self.betas), all(0 <= beta < 1 for beta in self.betas), "two numbers in [0, 1)")
        for name in ("eps", "weight_decay", "grad_clip"):
            require(f"optimizer.{name}", getattr(self, name), getattr(self, name) >= 0, ">= 0")


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate over a run: it climbs in a straight line, stays, and falls to a fraction of its peak.

    Attributes:
        warmup_steps: length of the climb from 0 (optimizer steps)
        decay_fraction: length of the fall, at the end of the run (fraction of all steps, 0 to 1)
        final_fraction: learning rate of the last step (fraction of the peak, 0 to 1)
    """

    warmup_steps: int = 0
    decay_fraction: float = 0.3
    final_fraction: float = 0.0

    def __post_init__(self) -> None:
        require("schedule.warmup_steps", self.warmup_steps, self.warmup_steps >= 0, ">= 0")
        for name in ("decay_fraction", "final_fraction"):
            require(f"schedule.{name}", getattr(self, name), 0 <= getattr(self, name) <= 1, "in [0, 1]")


@dataclass(frozen=True)
class TrainingConfig:
    """What a step is made of, how many there are, and what happens between them.

    Attributes:
        sequence_length: length of a row, documents packed into it (tokens)
        batch_size: rows that pass the network together, a micro-batch (rows)
        gradient_accumulation: micro-batches that one optimizer step sums over
        steps: length of the run (optimizer steps)
        seed: of the initial weights and of the documents' order
        mtp_loss_weight: weight of the multi-token-prediction loss beside the next-token loss
        eval_every: distance of evaluations (optimizer steps); 0 evaluates at the end alone
        eval_tokens: validation text that an evaluation during the run reads at most (tokens)
        final_eval_tokens: validation text that the last evaluation reads at most (tokens)
        sample_every: distance of written samples (optimizer steps); 0 writes one at the end alone
        sample_prompt: text that a sample continues
        sample_tokens: length of a sample (tokens)
        checkpoint_every: distance of checkpoints (optimizer steps); 0 writes one at the end alone
        keep_checkpoints: newest checkpoints that stay on disk
        log_every: distance of the lines in metrics.jsonl (optimizer steps)
        device: auto, cpu, or a device type that PyTorch sees here, with an index if wanted (cuda:1)
    """

    sequence_length: int = 512
    batch_size: int = 8
    gradient_accumulation: int = 1
    steps: int = 1000
    seed: int = 0
    mtp_loss_weight: float = 0.1
    eval_every: int = 100
    eval_tokens: int = 65_536
    final_eval_tokens: int = 4_194_304
    sample_every: int = 0
    sample_prompt: str = ""
    sample_tokens: int = 128
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    log_every: int = 10
    device: str = "auto"

    def __post_init__(self) -> None:
        least = {
            "sequence_length": 2,
            "seed": 0,
            "mtp_loss_weight": 0,
            "eval_every": 0,
            "eval_tokens": 2,
            "final_eval_tokens": 2,
            "sample_every": 0,
            "checkpoint_every": 0,
        }
        for name, value in asdict(self).items():
            if not isinstance(value, str):
                require(f"training.{name}", value, value >= least.get(name, 1), f">= {least.get(name, 1)}")
