"""A network of every kind of part, small enough to be written and read many times a second."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gossamer import CausalLM, ModelConfig
from gossamer.hub.layout import Layout, tensors_in

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 24,
    "mlp_only_layers": (1,),
    "initializer_range": 0.1,
}


@pytest.fixture
def build():
    """A network with random weights, norms included; keywords change the configuration."""

    def build(dtype: torch.dtype = torch.float32, seed: int = 0, **changes) -> CausalLM:
        torch.manual_seed(seed)
        model = CausalLM(ModelConfig(**SMALL | changes))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim == 1:
                    parameter.add_(torch.randn_like(parameter), alpha=0.1)
                if not name.endswith(("A_log", "dt_bias", "linear_attn.norm.weight")):
                    parameter.data = parameter.to(dtype)
        return model

    return build


@pytest.fixture
def same_weights():
    """Compares two networks bit for bit, types included."""

    def same_weights(one: CausalLM, other: CausalLM) -> bool:
        ours, theirs = dict(one.named_parameters()), dict(other.named_parameters())
        return ours.keys() == theirs.keys() and all(
            ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name]) for name in ours
        )

    return same_weights


@pytest.fixture
def write():
    """Writes a network as a checkpoint in any layout, whatever is written by the package."""

    def write(model: CausalLM, folder: Path, layout: Layout, change=None, **config) -> Path:
        folder.mkdir(exist_ok=True)
        parts = tensors_in(layout, model, model.config)
        tensors = {name: piece.read(parameter).contiguous() for name, (parameter, piece) in parts.items()}
        if change is not None:
            change(tensors)
        save_file(tensors, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(model.config.to_dict() | config))
        return folder

    return write


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(0, SMALL["vocab_size"], (2, 13), generator=torch.Generator().manual_seed(1))
