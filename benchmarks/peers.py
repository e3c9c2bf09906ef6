"""The networks that are trained side by side: gossamer's, and the same and dense ones of transformers."""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from gossamer.cost.network import count_network
from gossamer.model.config import ModelConfig

GRAD_CLIP = 1.0
LEARNING_RATE = 1e-3


def random_tokens(vocab: int, rows: int, length: int) -> torch.Tensor:
    """Return random token ids, [rows, length] int64, the same each time."""
    return torch.randint(vocab, (rows, length), generator=torch.Generator().manual_seed(0))


def model_config(recipe: str, changes: dict[str, Any]) -> ModelConfig:
    """Return the network of a recipe without its multi-token-prediction head, which transformers does not have."""
    from gossamer.train.recipe import load_recipe

    overrides = {f"model.{key}": value for key, value in changes.items()}
    return load_recipe(recipe, {"model.num_nextn_predict_layers": 0} | overrides).model


@dataclass(frozen=True)
class Variant:
    """A way for gossamer to take its step that is not the one it chooses.

    Attributes:
        pytorch_alone: whether every operation runs as on a machine without a compiler
        operations: implementations by operation
        recompute: whether each block's activations are computed again in the backward pass
        fresh_memory: whether freed memory goes back to the system
        mapped_from: bytes from which a tensor gets a mapping of its own, returned when freed; 0 leaves it to glibc
        threads: threads of PyTorch and the native kernels; 0 means as many as there are
        compiled: whether the network runs under torch.compile
        sampled_vocab_size: tokens of the vocabulary that a step's head computes; 0: all
    """

    pytorch_alone: bool = False
    operations: Mapping[str, str] = field(default_factory=dict)
    recompute: bool = False
    fresh_memory: bool = False
    mapped_from: int = 0
    threads: int = 0
    compiled: bool = False
    sampled_vocab_size: int = 0


AS_CHOSEN = Variant()


def gossamer_step(config: ModelConfig, rows: int, length: int, variant: Variant = AS_CHOSEN) -> Callable[[], object]:
    """Return a whole training step as `gossamer train` takes it, with AdamW: losses, balancing, clipping, update."""
    from gossamer import device as devices
    from gossamer import ops
    from gossamer.data.packing import Batch
    from gossamer.model.causal_lm import CausalLM
    from gossamer.train.recipe import OptimizerConfig, Recipe, ScheduleConfig, TrainingConfig
    from gossamer.train.step import Learner

    devices.prepare_process()  # as the command does
    if not variant.fresh_memory:
        devices.keep_freed_memory()
    if variant.mapped_from:
        mmap_threshold = -3  # the number that glibc's malloc.h gives it
        ctypes.CDLL("libc.so.6").mallopt(mmap_threshold, variant.mapped_from)
    if variant.threads:
        torch.set_num_threads(variant.threads)
    devices.seed_everything(0)
    recipe = Recipe(
        model=replace(config, max_position_embeddings=max(length, config.max_position_embeddings)),
        optimizer=OptimizerConfig(kind="adamw", learning_rate=LEARNING_RATE, grad_clip=GRAD_CLIP),
        schedule=ScheduleConfig(),
        training=TrainingConfig(
            sequence_length=length,
            batch_size=rows,
            recompute=variant.recompute,
            sampled_vocab_size=variant.sampled_vocab_size,
        ),
    )
    learner = Learner(CausalLM(config).to(devices.default_device()), recipe)
    if variant.compiled:
        learner.model.compile()
    ids = random_tokens(config.vocab_size, rows, length)
    cu_seqlens = torch.arange(0, rows * length + 1, length, dtype=torch.int32)
    batch = Batch(ids, ids, cu_seqlens)
    operations = (ops.pytorch_only() if variant.pytorch_alone else {}) | dict(variant.operations)

    def step() -> object:
        with ops.forced(**operations):
            return learner.step([batch], LEARNING_RATE)

    return step


def transformers_step(
    config: Any, rows: int, length: int, compiled: bool = False, recompute: bool = False
) -> Callable[[], object]:
    """Return the same step with a network of transformers: losses, balancing of experts, clipping, fused AdamW."""
    import transformers

    from gossamer import device as devices

    transformers.utils.logging.set_verbosity_error()
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    device = devices.default_device()
    with device:
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    if recompute:
        model.gradient_checkpointing_enable()
        model.train()
    sparse = hasattr(config, "num_experts")
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    ids = random_tokens(config.vocab_size, rows, length).to(device)
    forward = torch.compile(model) if compiled else model
    dtype = devices.compute_dtype(device, "auto")
    switches = {"output_router_logits": True} if sparse else {}

    def step() -> object:
        with devices.autocast(device, dtype):
            loss = forward(input_ids=ids, labels=ids, use_cache=False, **switches).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), GRAD_CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    return step


def qwen3_next_step(
    config: ModelConfig, experts: str, rows: int, length: int, compiled: bool = False, recompute: bool = False
) -> Callable[[], object]:
    """Return a step of transformers' Qwen3-Next of the same sizes, with one of its implementations of the experts."""
    import transformers

    their_config = transformers.Qwen3NextConfig(**config.to_dict(), experts_implementation=experts)
    return transformers_step(their_config, rows, length, compiled, recompute)


def gossamer_forward(config: ModelConfig, rows: int, length: int) -> Callable[[], object]:
    """Return the forward pass without gradients, with logits of the last token alone: what a prompt costs."""
    from gossamer import device as devices
    from gossamer.model.causal_lm import CausalLM

    devices.prepare_process()
    devices.keep_freed_memory()
    devices.seed_everything(0)
    device = devices.default_device()
    config = replace(config, max_position_embeddings=max(length, config.max_position_embeddings))
    model = CausalLM(config).to(device).eval()
    ids = random_tokens(config.vocab_size, rows, length).to(device)
    dtype = devices.compute_dtype(device, "auto")

    @torch.inference_mode()
    def forward() -> object:
        with devices.autocast(device, dtype):
            return model.lm_head(model.hidden_states(ids)[:, -1:])

    return forward


def qwen3_next_forward(config: ModelConfig, experts: str, rows: int, length: int) -> Callable[[], object]:
    """Return the same forward pass with transformers' Qwen3-Next."""
    import transformers

    from gossamer import device as devices

    transformers.utils.logging.set_verbosity_error()
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    device = devices.default_device()
    their_config = transformers.Qwen3NextConfig(**config.to_dict(), experts_implementation=experts)
    with device:
        model = transformers.AutoModelForCausalLM.from_config(their_config, dtype=torch.float32).eval()
    ids = random_tokens(config.vocab_size, rows, length).to(device)
    dtype = devices.compute_dtype(device, "auto")

    @torch.inference_mode()
    def forward() -> object:
        with devices.autocast(device, dtype):
            return model(input_ids=ids, use_cache=False, logits_to_keep=1).logits

    return forward


def dense_config(config: ModelConfig, parameters: int) -> Any:
    """Return a dense Qwen3 of transformers with the same layers, width and heads, and about so many parameters."""
    import transformers

    attention = config.hidden_size * config.head_dim * (2 * config.num_attention_heads + 2 * config.num_key_value_heads)
    layers, embeddings = config.num_hidden_layers, 2 * config.vocab_size * config.hidden_size
    width = (parameters - embeddings - layers * attention) / (3 * config.hidden_size * layers)
    return transformers.Qwen3Config(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        intermediate_size=max(16, round(width / 16) * 16),
        max_position_embeddings=config.max_position_embeddings,
        tie_word_embeddings=False,
    )


def equal_active(config: ModelConfig) -> int:
    """Return the parameters of a dense network that uses as many on a token as this one.

    Of the embedding a token uses one row in both networks, so the embedding comes on top.
    """
    return count_network(config, 1).active_parameters + config.vocab_size * config.hidden_size


def dense_flops(config: Any, length: int) -> float:
    """Return the FLOPs per token of a training step of `dense_config`'s network in rows of `length` tokens."""
    heads, layers, hidden = config.num_attention_heads, config.num_hidden_layers, config.hidden_size
    attention = config.head_dim * (2 * heads + 2 * config.num_key_value_heads)
    matrices = config.vocab_size * hidden + layers * hidden * (3 * config.intermediate_size + attention)
    return 3 * (2.0 * matrices + 2.0 * layers * heads * config.head_dim * (length + 1))


def dense_step(config: ModelConfig, parameters: int, rows: int, length: int) -> Callable[[], object]:
    """Return a step of `dense_config`'s network."""
    return transformers_step(dense_config(config, parameters), rows, length)
