"""The networks that are trained against each other: gossamer by a recipe, and dense ones of transformers with AdamW.

Each trains on the same tokens of the same corpus in a process of its own, by a clock that runs only while it takes
steps: batches count, evaluations do not. Each is measured over the whole validation text in rows of the length that it
trains on.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal
from unittest import mock

import environment  # (before PyTorch; every contestant's process inherits it)
import numpy as np
import torch
import torch.nn.functional as F
from peers import dense_config, dense_flops, equal_active
from torch import Tensor, nn

from gossamer.cost.network import count_network, flops_by_part
from gossamer.data.dataset import prepare
from gossamer.train.recipe import Recipe


@dataclass(frozen=True)
class Progress:
    """How far a contestant has come.

    Attributes:
        seconds: seconds of training
        steps: optimizer steps
        tokens: tokens read in training
        flops: FLOPs of the products of training
        loss: mean loss over the whole validation text, in nats per token
        set_up: seconds before the first step, which no clock counts
        done: whether its schedule is at its end
    """

    seconds: float
    steps: int
    tokens: int
    flops: float
    loss: float
    set_up: float
    done: bool


class Contestant(ABC):
    """A network with its optimizer and its schedule.

    Args:
        seconds: length of its schedule, unless it has a number of steps of its own
    """

    flops_per_token: float
    flops_before: float = 0.0  # FLOPs before the network's first step
    tokens_per_step: int

    def __init__(self, seconds: float, steps: int = 0) -> None:
        self.budget, self.steps_in_all = seconds, steps
        self.seconds, self.steps = 0.0, 0

    @property
    def fraction(self) -> float:
        """The fraction of the schedule that is behind it, 0 to 1."""
        return self.steps / self.steps_in_all if self.steps_in_all else min(1.0, self.seconds / self.budget)

    def advance(self, until: float) -> None:
        """Take steps until the clock shows `until` or the schedule is at its end."""
        while self.fraction < 1 and self.seconds < until:
            began = time.perf_counter()
            self.step()
            self.seconds += time.perf_counter() - began
            self.steps += 1

    @abstractmethod
    def step(self) -> None:
        """Take the next step of the schedule."""

    @abstractmethod
    def validation_loss(self) -> float:
        """Return the mean loss over the whole validation text, in nats per token."""


class Gossamer(Contestant):
    """What `gossamer train` does between two evaluations, by a recipe."""

    def __init__(self, recipe: Recipe, seconds: float) -> None:
        from gossamer import device as devices
        from gossamer import ops
        from gossamer.data.packing import TrainBatches, validation_batches
        from gossamer.model.causal_lm import CausalLM
        from gossamer.train.step import Learner

        super().__init__(seconds)
        devices.prepare_process()  # as the command does
        devices.keep_freed_memory()
        training, device = recipe.training, devices.resolve(recipe.training.device)
        ops.describe(device)  # builds the native kernels if nobody has yet
        self.dataset = prepare(recipe.corpus, progress=False)
        recipe = replace(recipe, model=replace(recipe.model, vocab_size=self.dataset.tokenizer.vocab_size))
        devices.seed_everything(training.seed)
        self.recipe, self.learner = recipe, Learner(CausalLM(recipe.model).to(device), recipe)
        rows, length = training.batch_size, training.sequence_length
        self.batches = TrainBatches(self.dataset.train, rows, length, training.seed, training.packing)
        validation = next(iter(self.dataset.validation.values()))
        self.validation_batches = list(validation_batches(validation, rows, length))
        self.tokens_per_step = rows * length * training.gradient_accumulation
        flops = flops_by_part(recipe.model, length, training.mtp_steps, training.sampled_vocab_size)
        self.flops_per_token = math.fsum(flops.values())

    def step(self) -> None:
        from gossamer.train.bigrams import start_from_bigrams
        from gossamer.train.schedule import learning_rate_factor

        learner, rate = self.learner, self.recipe.optimizer.learning_rate
        if self.steps == 0 and (bigram_steps := self.recipe.training.bigram_steps):
            found = start_from_bigrams(learner.model, learner.optimizers, self.dataset.train, bigram_steps, rate)
            self.flops_before = found.flops
        factor = learning_rate_factor(self.steps + 1, self.fraction, self.recipe.schedule)
        batches = [next(self.batches) for _ in range(self.recipe.training.gradient_accumulation)]
        learner.step(batches, rate * factor)

    def validation_loss(self) -> float:
        from gossamer.run.validate import evaluate

        return evaluate(self.learner.model, self.validation_batches, self.dataset.tokenizer.num_bytes_per_token()).loss


@dataclass(frozen=True)
class Dense:
    """A dense network of transformers and how it is trained: with AdamW and half a cosine, as nanoGPT does it.

    Attributes:
        kind: `qwen3` or `gpt2`
        learning_rate: the peak
        rows: rows of a batch
        length: tokens of a row
        size: size of a qwen3: `active` for as many parameters as the recipe's network uses on a token, `total` for as
            many as it has in all
        final_fraction: the learning rate at the end, as a fraction of the peak
        steps: length of the schedule; 0 means that it goes by time
        warmup: steps of warm-up
        betas: those of AdamW
        weight_decay: that of AdamW
    """

    kind: str
    learning_rate: float
    rows: int = 8
    length: int = 256
    size: Literal["active", "total"] = "active"
    final_fraction: float = 0.0
    steps: int = 0
    warmup: int = 50
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1


class Peer(Contestant):
    """A dense network of transformers, trained on windows of the text that begin anywhere, as those of nanoGPT do.

    Args:
        shape: the recipe whose layers, width and heads a qwen3 takes over
    """

    def __init__(self, dense: Dense, shape: Recipe, seed: int, seconds: float) -> None:
        super().__init__(seconds, dense.steps)
        self.dense, self.random = dense, torch.Generator().manual_seed(seed)
        self.dataset = prepare(shape.corpus, progress=False)
        shard = next(iter(self.dataset.train.token_files.values()))
        self.text, self.rest = _text(shard), _text(next(iter(self.dataset.validation.values())))
        torch.manual_seed(seed)
        self.model, self.flops_per_token = _network(dense, shape, self.dataset.tokenizer.vocab_size)
        decayed = [p for p in self.model.parameters() if p.ndim > 1]
        others = [p for p in self.model.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": dense.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=dense.learning_rate, betas=dense.betas, fused=True)
        self.tokens_per_step = dense.rows * dense.length

    def step(self) -> None:
        dense = self.dense
        fall = 0.5 * (1 + np.cos(np.pi * self.fraction))
        factor = min(1.0, (self.steps + 1) / dense.warmup) * (dense.final_fraction + (1 - dense.final_fraction) * fall)
        for group in self.optimizer.param_groups:
            group["lr"] = dense.learning_rate * factor
        starts = torch.randint(len(self.text) - dense.length, (dense.rows,), generator=self.random)
        windows = torch.stack([self.text[start : start + dense.length + 1] for start in starts.tolist()])
        self._loss(windows).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _loss(self, windows: Tensor) -> Tensor:
        """Mean loss of [rows, T + 1] ids."""
        logits = self.model(input_ids=windows[:, :-1], use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())

    @torch.no_grad()
    def validation_loss(self) -> float:
        self.model.eval()
        total, length = 0.0, self.dense.length
        for windows in _windows(self.rest, length, 16):
            total += float(self._loss(windows)) * (windows.numel() - len(windows))
        self.model.train()
        return total / (len(self.rest) - 1)


def _text(shard: Any) -> Tensor:
    """All documents of a file of tokens, one after the other, as int64."""
    return torch.from_numpy(np.asarray(shard.tokens).astype(np.int64))


def _windows(text: Tensor, length: int, rows: int) -> Iterator[Tensor]:
    """Windows that predict every token but the first once: [rows, length + 1], and the rest in a shorter one."""
    whole = (len(text) - 1) // length
    windows = text[: whole * length + 1].unfold(0, length + 1, length)
    yield from windows.split(rows)
    if (len(text) - 1) % length:
        yield text[whole * length :][None]


def _network(dense: Dense, shape: Recipe, vocab_size: int) -> tuple[nn.Module, float]:
    """The network and its FLOPs per token in training."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    warnings.filterwarnings("ignore")
    if dense.kind == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=vocab_size, n_positions=dense.length, n_embd=128, n_layer=4, n_head=4, resid_pdrop=0.0,
            embd_pdrop=0.0, attn_pdrop=0.0, activation_function="gelu",
        )  # fmt: skip
        model = transformers.GPT2LMHeadModel(config)
        matrices = sum(p.numel() for name, p in model.named_parameters() if p.ndim > 1 and "wpe" not in name)
        flops = 3 * (2.0 * matrices + 2.0 * config.n_layer * config.n_embd * (dense.length + 1))
        return model, flops
    sparse = replace(shape.model, vocab_size=vocab_size)
    total = count_network(sparse, dense.length).parameters
    config = dense_config(sparse, equal_active(sparse) if dense.size == "active" else total)
    return transformers.Qwen3ForCausalLM(config), dense_flops(config, dense.length)


class Runner:
    """A contestant in a process of its own.

    Args:
        build: `Gossamer` or `Peer`; it is called in the new process with `arguments`
    """

    def __init__(self, name: str, build: Callable[..., Contestant], *arguments: Any) -> None:
        self.name, self.progress = name, list[Progress]()
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, build, arguments), daemon=True)
        with mock.patch.dict(os.environ, environment.AS_USERS_HAVE_THEM if build is Peer else {}):
            self._process.start()
        theirs.close()

    def advance(self, until: float) -> Progress:
        """Train until its clock shows `until` seconds, then measure.

        Raises:
            RuntimeError: the contestant failed.
        """
        self._pipe.send(until)
        answer = self._pipe.recv()
        if isinstance(answer, str):
            raise RuntimeError(f"{self.name}: {answer}")
        self.progress.append(Progress(**answer))
        return self.progress[-1]

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join()


def _serve(pipe: Any, build: Callable[..., Contestant], arguments: tuple[Any, ...]) -> None:
    began = time.perf_counter()
    try:
        one = build(*arguments)
        set_up = time.perf_counter() - began
        while True:
            one.advance(pipe.recv())
            tokens = one.steps * one.tokens_per_step
            flops = one.flops_before + tokens * one.flops_per_token
            found = Progress(one.seconds, one.steps, tokens, flops, one.validation_loss(), set_up, one.fraction >= 1)
            pipe.send(asdict(found))
    except EOFError:
        return
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")
