"""How a network learns: the optimizer, the learning rate over a run, and the run itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from gossamer.cost.budget import parse_budget
from gossamer.errors import UserError, names_meant
from gossamer.typed import Range, check_fields


def require(key: str, value: Any, condition: bool, allowed: str) -> None:
    if not condition:
        raise UserError(f"{key} = {value!r}: must be {allowed}")


_STEP_TOKENS = 1 << 28  # of an optimizer step; the largest that are known have a quarter of it
_Steps = Annotated[int, Range(0, 10**12)]
_SomeSteps = Annotated[int, Range(1, 10**12)]
_Text = Annotated[int, Range(2, 10**15)]  # tokens that an evaluation reads
_Share = Annotated[float, Range(0, 1)]
_Decay = Annotated[float, Range(0, 1, below=True)]
_Weight = Annotated[float, Range(0, 1_000_000)]


@names_meant
@dataclass(frozen=True)
class OptimizerConfig:
    """How a gradient becomes a step.

    Attributes:
        kind: muon (AdamW for what is no matrix) or adamw
        learning_rate: peak step size, for both kinds alike, reached after the warm-up (per optimizer step)
        embedding_lr_factor: the input embedding's step size, as a multiple of the others': of a large vocabulary few
            tokens are in a batch, so each row is seldom stepped
        momentum: decay of Muon's running mean (per optimizer step)
        betas: decay of AdamW's running mean and of its running square (per optimizer step)
        eps: added to the root of the running square (same unit as a gradient)
        weight_decay: decoupled decay, a multiple of the learning rate (per optimizer step)
        grad_clip: longest gradient, as the norm over all parameters; 0 never clips
    """

    kind: Literal["muon", "adamw"] = "muon"
    learning_rate: Annotated[float, Range(0, 1000, above=True)] = 3e-3
    embedding_lr_factor: Annotated[float, Range(0, 1_000_000, above=True)] = 1.0
    momentum: _Decay = 0.95
    betas: tuple[_Decay, _Decay] = (0.9, 0.95)
    eps: _Share = 1e-8
    weight_decay: Annotated[float, Range(0, 1000)] = 0.1
    grad_clip: Annotated[float, Range(0, 1e12)] = 1.0

    def __post_init__(self) -> None:
        check_fields(self, "optimizer.")


@names_meant
@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate over a run: it climbs in a straight line, may stay, and falls to a fraction of its peak.

    Attributes:
        kind: wsd (stays, then falls in a straight line) or cosine (falls all the way, along half a wave)
        warmup_steps: length of the climb from 0 (optimizer steps)
        decay_fraction: length of wsd's fall, at the end of the run (fraction of the run, 0 to 1)
        final_fraction: learning rate at the end (fraction of the peak, 0 to 1)
    """

    kind: Literal["wsd", "cosine"] = "wsd"
    warmup_steps: _Steps = 0
    decay_fraction: _Share = 0.3
    final_fraction: _Share = 0.0

    def __post_init__(self) -> None:
        check_fields(self, "schedule.")


@names_meant
@dataclass(frozen=True)
class TrainingConfig:
    """What a step is made of, how many there are, and what happens between them.

    Attributes:
        sequence_length: length of a row, documents packed into it (tokens)
        batch_size: rows that pass the network together, over all processes: a micro-batch (rows)
        gradient_accumulation: micro-batches that one optimizer step sums over
        packing: split (rows of long documents first, the rest cut where a row ends) or best_fit (documents whole)
        steps: length of the run (optimizer steps), unless tokens, seconds or budget is set
        tokens: length of the run (tokens); 0: by steps
        seconds: length of the run (seconds of training), whatever the machine's speed; 0: by tokens or steps
        budget: length of the run as 10m, 2h (of the clock, everything included), 5usd (of the price below) or 1e17flop
            (of training steps); empty: by seconds, tokens or steps
        seed: of the initial weights and of the documents' order
        precision: auto (bf16 where an accelerator has it), bf16 (fp32 weights, products in bfloat16) or fp32
        recompute: keep each block's input alone and compute it again in the backward pass: less memory, more time
        expert_parallel: processes that a layer's experts are spread over, of all processes
        head_sample: tokens that the output head is multiplied with in training: those of the micro-batch and, drawn
            evenly, a few for all others (see model/sampled_vocabulary.py); 0: the whole vocabulary
        pair_steps: steps of the embedding and the head alone, on the counts of neighbouring tokens, before the first of
            the network (see train/pairs.py)
        mtp_steps: tokens beyond the next that the multi-token-prediction head learns; 0 leaves it out
        mtp_decay: weight of each further step, as a multiple of the one before it
        mtp_trunk_gradient: the multi-token-prediction loss teaches the trunk, too
        mtp_loss_weight: weight of the multi-token-prediction loss beside the next-token loss
        balance: loss (model.router_aux_loss_coef), bias (a bias on the choice of experts, no loss) or none
        balance_rate: how far a bias moves (probability, per optimizer step)
        router_z_loss_weight: weight of the mean squared log-sum-exp of the routers' logits
        max_skips: steps in a row whose loss or gradient is not finite before the run goes back to a checkpoint
        eval_every: distance of evaluations (optimizer steps); 0 evaluates at the end alone
        eval_tokens: text that an evaluation during the run reads at most of each held-out set (tokens)
        final_eval_tokens: the same for the last evaluation (tokens)
        sample_every: distance of written samples (optimizer steps); 0 writes one at the end alone
        sample_prompt: text that a sample continues; empty: held-out words where documents are long, else it begins one
        sample_tokens: length of a sample (tokens)
        checkpoint_every: distance of checkpoints (optimizer steps); 0 writes one at the end alone
        keep_checkpoints: newest checkpoints that stay on disk, beside the best
        best_by: held-out set whose loss decides which checkpoint is the best; empty: the first
        log_every: distance of the lines in metrics.jsonl (optimizer steps)
        wandb_project: project of Weights & Biases that the numbers also go to; empty: none
        price: cost of one device for an hour (money), which the ledger counts; null: not known
        currency: label of that money
        device: auto, cpu, or a device type that PyTorch sees here, with an index if wanted (cuda:1)
    """

    sequence_length: Annotated[int, Range(2, 1 << 30)] = 512
    batch_size: Annotated[int, Range(1, 1 << 24)] = 8
    gradient_accumulation: Annotated[int, Range(1, 1 << 16)] = 1
    packing: Literal["split", "best_fit"] = "split"
    steps: _SomeSteps = 1000
    tokens: Annotated[int, Range(0, 10**18)] = 0
    seconds: Annotated[float, Range(0, 10**10)] = 0.0
    budget: str = ""
    seed: Annotated[int, Range(0, (1 << 63) - 1)] = 0
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    recompute: bool = False
    expert_parallel: Annotated[int, Range(1, 1 << 20)] = 1
    head_sample: Annotated[int, Range(0, 1 << 24)] = 0
    pair_steps: Annotated[int, Range(0, 1_000_000)] = 0
    mtp_steps: Annotated[int, Range(0, 64)] = 1
    mtp_decay: Annotated[float, Range(1e-6, 1)] = 0.6
    mtp_trunk_gradient: bool = True
    mtp_loss_weight: _Weight = 0.1
    balance: Literal["loss", "bias", "none"] = "loss"
    balance_rate: _Weight = 1e-3
    router_z_loss_weight: _Weight = 0.0
    max_skips: Annotated[int, Range(1, 1_000_000)] = 3
    eval_every: _Steps = 100
    eval_tokens: _Text = 65_536
    final_eval_tokens: _Text = 4_194_304
    sample_every: _Steps = 0
    sample_prompt: str = ""
    sample_tokens: Annotated[int, Range(1, 1 << 20)] = 128
    checkpoint_every: _Steps = 500
    keep_checkpoints: Annotated[int, Range(1, 1_000_000)] = 2
    best_by: str = ""
    log_every: _SomeSteps = 10
    wandb_project: str = ""
    price: Annotated[float, Range(0, 10**9, above=True)] | None = None
    currency: str = "USD"
    device: str = "auto"

    def __post_init__(self) -> None:
        check_fields(self, "training.")
        # All of a step's rows are drawn before it begins.
        accumulated, rows = self.gradient_accumulation, self.batch_size * self.sequence_length
        most = f"at most {max(1, _STEP_TOKENS // rows):,} with micro-batches of {rows:,} tokens"
        fits = accumulated == 1 or accumulated * rows <= _STEP_TOKENS
        require("training.gradient_accumulation", accumulated, fits, most)
        label = self.currency.isprintable() and 1 <= len(self.currency) <= 8
        require("training.currency", self.currency, label, "1 to 8 characters")
        if self.budget:
            parse_budget(self.budget, self.price, self.currency)
