"""How a network learns: the optimizer, the learning rate over a run, the run itself, and tuning on examples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from gossamer.cost.budget import parse_budget
from gossamer.errors import FieldError
from gossamer.typed import (
    RESUMABLE,
    SET_BY_BUDGET,
    Flag,
    Formerly,
    Metavar,
    Range,
    Unit,
    check_fields,
    reject_unknown_fields,
)

_MAX_STEP_TOKENS = 1 << 28  # of an optimizer step; the largest that are known have a quarter of it
_Steps = Annotated[int, Range(0, 10**12), Unit("steps")]
_EvalTokens = Annotated[int, Range(2, 10**15), Unit("tokens")]
_Fraction = Annotated[float, Range(0, 1)]
_Decay = Annotated[float, Range(0, 1, excludes_maximum=True)]
_Weight = Annotated[float, Range(0, 1_000_000)]
_Price = Annotated[float, Range(0, 10**9, excludes_minimum=True), Metavar("PRICE")]


@reject_unknown_fields
@dataclass(frozen=True)
class OptimizerConfig:
    """How a gradient becomes a step.

    Attributes:
        kind: muon (with AdamW for all that is no matrix) or adamw
        learning_rate: peak learning rate, reached after the warmup; the same for both kinds
        embedding_lr_factor: learning rate of the input embedding, as a multiple of the others': a batch holds few
            tokens of a large vocabulary, so each row is seldom updated
        momentum: decay of Muon's running mean in each step
        betas: decay of AdamW's running mean and of its running square in each step
        eps: added to the root of AdamW's running square
        weight_decay: decoupled weight decay, as a multiple of the learning rate
        grad_clip: maximum norm of the gradient over all parameters; 0 never clips
    """

    kind: Literal["muon", "adamw"] = "muon"
    learning_rate: Annotated[float, Range(0, 1000, excludes_minimum=True), SET_BY_BUDGET] = 3e-3
    embedding_lr_factor: Annotated[float, Range(0, 1_000_000, excludes_minimum=True)] = 1.0
    momentum: _Decay = 0.95
    betas: tuple[_Decay, _Decay] = (0.9, 0.95)
    eps: _Fraction = 1e-8
    weight_decay: Annotated[float, Range(0, 1000)] = 0.1
    grad_clip: Annotated[float, Range(0, 1e12)] = 1.0

    def __post_init__(self) -> None:
        check_fields(self)


@reject_unknown_fields
@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate over a run: it rises in a straight line, may stay, and falls to a fraction of its peak.

    Attributes:
        kind: wsd (the rate stays, then falls in a straight line) or cosine (it falls all the way, along half a wave)
        warmup_steps: length of the warmup, from 0 to the peak
        decay_fraction: length of wsd's decay at the end, as a fraction of the run
        final_fraction: learning rate at the end, as a fraction of the peak
    """

    kind: Literal["wsd", "cosine"] = "wsd"
    warmup_steps: Annotated[_Steps, SET_BY_BUDGET] = 0
    decay_fraction: _Fraction = 0.3
    final_fraction: _Fraction = 0.0

    def __post_init__(self) -> None:
        check_fields(self)


@reject_unknown_fields
@dataclass(frozen=True)
class TrainingConfig:
    """What a step is made of, how many steps there are, and what happens between them.

    Attributes:
        sequence_length: length of a row; documents are packed into rows
        batch_size: rows of a micro-batch, which pass the network together, over all processes
        gradient_accumulation: micro-batches whose gradients one optimizer step sums
        packing: split (rows of long documents first, the rest cut where a row ends) or best_fit (whole documents)
        steps: number of optimizer steps after which the run ends. Of the four that can end it, budget decides if it is
            set, else seconds, else tokens, else steps
        tokens: number of tokens after which the run ends; 0: steps decide
        seconds: seconds of training after which the run ends, whatever the machine's speed; 0: tokens or steps decide
        budget: what the run may spend before it ends: 10m or 2h (of the clock, everything included), 5usd (at the price
            below) or 1e17flop (of training steps); empty: seconds, tokens or steps decide
        init_from: a run's folder, a Hugging Face directory or a GGUF file; the network begins with its weights, and the
            run has its network and its tokenizer. Empty: random weights
        seed: seed of the initial weights and of the documents' order
        precision: auto (bf16 where an accelerator has it), bf16 (fp32 weights, products in bfloat16) or fp32
        recompute: keep only the input of each block and compute the block again in the backward pass, which takes less
            memory and more time
        expert_parallel: processes, of all there are, that the experts of a layer are spread over
        sampled_vocab_size: tokens that the output head is multiplied with in training: those of the micro-batch, and a
            uniform sample that stands for all others (sampled softmax); 0: the whole vocabulary
        bigram_steps: steps that the embedding and the head learn alone, from the counts of neighboring tokens, before
            the first step of the network
        mtp_steps: tokens beyond the next that the multi-token-prediction head learns; 0 leaves the head out
        mtp_decay: weight of each further of these tokens, as a multiple of the one before it
        mtp_trunk_gradient: the multi-token-prediction loss trains the trunk, too
        mtp_loss_weight: weight of the multi-token-prediction loss beside the next-token loss
        balance: how experts are kept equally busy: loss (model.router_aux_loss_coef), bias (on the router's choice, no
            loss) or none
        balance_rate: change of the bias in each step, as a probability
        router_z_loss_weight: weight of the mean squared log-sum-exp of the routers' logits
        max_skips: steps in a row without a finite loss and gradient, after which the run goes back to a checkpoint
        eval_every: interval between evaluations; 0 evaluates at the end only
        eval_tokens: maximum text that an evaluation during the run reads of each validation set
        final_eval_tokens: maximum text that the last evaluation reads of each validation set
        sample_every: interval between written samples; 0 writes one at the end only
        sample_prompt: text that a sample continues; empty: words of the validation text where documents are long, else
            the sample begins a document
        sample_tokens: length of a sample
        checkpoint_every: interval between checkpoints; 0 writes one at the end only
        keep_checkpoints: newest checkpoints that stay on disk, beside the best
        best_checkpoint_by: validation set whose loss decides which checkpoint is the best; empty: the first
        log_every: interval between the lines in metrics.jsonl
        wandb_project: project of Weights & Biases that the metrics also go to; empty: none
        price: cost of one device for an hour, which the ledger counts (default: not known)
        currency: currency of the price
        device: auto, cpu, or a device type that PyTorch sees here, with an index if wanted (cuda:1)
    """

    sequence_length: Annotated[int, Range(2, 1 << 30), Unit("tokens")] = 512
    batch_size: Annotated[int, Range(1, 1 << 24), Unit("rows"), SET_BY_BUDGET] = 8
    gradient_accumulation: Annotated[int, Range(1, 1 << 16), SET_BY_BUDGET] = 1
    packing: Literal["split", "best_fit"] = "split"
    steps: Annotated[int, Range(1, 10**12), Unit("steps"), RESUMABLE, SET_BY_BUDGET] = 1000
    tokens: Annotated[int, Range(0, 10**18), Unit("tokens"), RESUMABLE, SET_BY_BUDGET] = 0
    seconds: Annotated[float, Range(0, 10**10), Unit("seconds"), RESUMABLE, SET_BY_BUDGET] = 0.0
    budget: Annotated[str, RESUMABLE] = ""
    init_from: Annotated[str, Metavar("DIR"), Flag("from")] = ""
    seed: Annotated[int, Range(0, (1 << 63) - 1)] = 0
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    recompute: bool = False
    expert_parallel: Annotated[int, Range(1, 1 << 20)] = 1
    sampled_vocab_size: Annotated[int, Range(0, 1 << 24), Unit("tokens"), Formerly("head_sample")] = 0
    bigram_steps: Annotated[int, Range(0, 1_000_000), Unit("steps"), Formerly("pair_steps")] = 0
    mtp_steps: Annotated[int, Range(0, 64), Unit("tokens")] = 1
    mtp_decay: Annotated[float, Range(1e-6, 1)] = 0.6
    mtp_trunk_gradient: bool = True
    mtp_loss_weight: _Weight = 0.1
    balance: Literal["loss", "bias", "none"] = "loss"
    balance_rate: _Weight = 1e-3
    router_z_loss_weight: _Weight = 0.0
    max_skips: Annotated[int, Range(1, 1_000_000), Unit("steps")] = 3
    eval_every: Annotated[_Steps, RESUMABLE, SET_BY_BUDGET] = 100
    eval_tokens: Annotated[_EvalTokens, RESUMABLE] = 65_536
    final_eval_tokens: Annotated[_EvalTokens, RESUMABLE] = 4_194_304
    sample_every: Annotated[_Steps, RESUMABLE, SET_BY_BUDGET] = 0
    sample_prompt: Annotated[str, RESUMABLE] = ""
    sample_tokens: Annotated[int, Range(1, 1 << 20), Unit("tokens"), RESUMABLE] = 128
    checkpoint_every: Annotated[_Steps, RESUMABLE, SET_BY_BUDGET] = 500
    keep_checkpoints: Annotated[int, Range(1, 1_000_000), RESUMABLE] = 2
    best_checkpoint_by: Annotated[str, Metavar("SET"), Formerly("best_by")] = ""
    log_every: Annotated[int, Range(1, 10**12), Unit("steps"), RESUMABLE] = 10
    wandb_project: str = ""
    price: Annotated[_Price | None, RESUMABLE, Flag("price")] = None
    currency: Annotated[str, RESUMABLE] = "USD"
    device: Annotated[str, RESUMABLE, Flag("device")] = "auto"

    def __post_init__(self) -> None:
        check_fields(self)
        # All rows of a step are read before it begins.
        rows = self.batch_size * self.sequence_length
        if self.gradient_accumulation > 1 and self.gradient_accumulation * rows > _MAX_STEP_TOKENS:
            allowed = f"at most {max(1, _MAX_STEP_TOKENS // rows):,} with micro-batches of {rows:,} tokens"
            raise FieldError("gradient_accumulation", f" = {self.gradient_accumulation}: must be {allowed}")
        if not (self.currency.isprintable() and 1 <= len(self.currency) <= 8):
            raise FieldError("currency", f" = {self.currency!r}: must be 1 to 8 characters")
        if self.budget:
            parse_budget(self.budget, self.price, self.currency)


_BETAS = {"sigmoid": 0.1, "norm": 5.0, "ipo": 0.1, "simpo": 2.0}
_Examples = Annotated[int, Range(1, 1 << 20), Unit("examples")]
_Share = Annotated[float, Range(0, 1, excludes_maximum=True)]


@reject_unknown_fields
@dataclass(frozen=True)
class TuningConfig:
    """What a model is tuned for, on which of its weights, and how the examples become rows.

    Attributes:
        method: sft (supervised tuning), dpo (pairs of a chosen and a rejected answer), kto (answers that are rated), or
            auto: what the examples are for
        lora: learn low-rank adapters beside frozen weights, in place of the weights
        rank: rank of the adapters; those of routed experts have this divided by the experts of a token
        alpha: what the rank divides for the scale of an adapter
        targets: weights that adapters stand beside, as q_proj, in_proj_qkvz or experts.down_proj; none: all that can
            have one
        drafts: with lora, learn the multi-token-prediction head as well; alone, learn nothing else, so that answers
            stay what they are and drafts get better
        base: the weights that adapters learn beside: stored, as the base has them, or int8, rounded as gossamer serve
            --weights int8 does
        loss: of pairs: sigmoid (arXiv 2305.18290), norm (sigmoid of means over tokens, arXiv 2411.15124), ipo (arXiv
            2310.12036) or simpo (without a reference, arXiv 2405.14734)
        beta: weight of the log-probabilities in the loss of pairs and of ratings (default: 0.1; 5 for norm, 2 for
            simpo)
        gamma: margin between the answers of a pair that simpo asks for
        sft_weight: weight of the chosen answers' own loss beside that of the pairs
        epochs: passes over the examples after which the run ends, unless its steps, tokens, seconds or budget are given
            (default: 2, or 1 for dpo and kto)
        batch: examples whose gradients one optimizer step sums: samples, or pairs of them
        row_tokens: tokens of a micro-batch, in which examples stand side by side without padding; it changes speed and
            memory alone (default: what memory allows)
        context: maximum length of an example (default: the model's, at most 4096)
        too_long: what becomes of longer examples: drop, cut (at the end, if a target is left) or refuse
        hold_out: share of the examples that are held out, to measure the model before and after; 200 at most
        keep: text that the model must not get worse on, files and folders (default: the held-out text of a base that is
            a run)
        max_regression: how many bits per byte worse the model may get on that text before the exit status is 1
        template: chat template: stored (the base's) or chatml, for a base that has none
        turns: how a conversation of several answers is learned: exact (each in the context that serving builds), last
            (the last answer alone) or joined (the whole transcript as one sample)
    """

    method: Annotated[Literal["auto", "sft", "dpo", "kto"], Flag("method")] = "auto"
    lora: Annotated[bool, Flag("lora")] = False
    rank: Annotated[int, Range(1, 1 << 16), Flag("rank")] = 16
    alpha: Annotated[float, Range(0, 1_000_000, excludes_minimum=True), Flag("alpha")] = 32.0
    targets: Annotated[tuple[str, ...], Metavar("LAYER"), Flag("targets")] = ()
    drafts: Annotated[bool, Flag("drafts")] = False
    base: Annotated[Literal["stored", "int8"], Flag("base")] = "stored"
    loss: Annotated[Literal["sigmoid", "norm", "ipo", "simpo"], Flag("loss")] = "sigmoid"
    beta: Annotated[Annotated[float, Range(0, 1_000_000, excludes_minimum=True)] | None, Flag("beta")] = None
    gamma: Annotated[float, Range(0, 1_000_000), Flag("gamma")] = 0.5
    sft_weight: Annotated[float, Range(0, 1_000_000), Flag("sft_weight")] = 0.0
    epochs: Annotated[Annotated[int, Range(1, 1_000_000)] | None, RESUMABLE, Flag("epochs")] = None
    batch: Annotated[_Examples, Flag("batch")] = 16
    row_tokens: Annotated[Annotated[int, Range(2, 1 << 28), Unit("tokens")] | None, Flag("row_tokens")] = None
    context: Annotated[Annotated[int, Range(2, 1 << 28), Unit("tokens")] | None, Flag("context")] = None
    too_long: Annotated[Literal["drop", "cut", "refuse"], Flag("too_long")] = "drop"
    hold_out: Annotated[_Share, Flag("hold_out")] = 0.05
    keep: Annotated[tuple[str, ...], Metavar("PATH"), Flag("keep")] = ()
    max_regression: Annotated[float, Range(0, 1000), Unit("bits per byte"), RESUMABLE, Flag("max_regression")] = 0.02
    template: Annotated[Literal["stored", "chatml"], Flag("template")] = "stored"
    turns: Annotated[Literal["exact", "last", "joined"], Flag("turns")] = "exact"

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def pair_beta(self) -> float:
        """The value of `beta`, that of the loss where none is given."""
        return _BETAS[self.loss] if self.beta is None else self.beta
