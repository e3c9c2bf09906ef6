"""Loading takes the memory of the model, not also that of its files: measured in a process of its own."""

import json
import subprocess
import sys
import textwrap
from dataclasses import astuple, dataclass
from pathlib import Path

import pytest

# VmHWM is the highest resident size so far, in KB, mapped files included: what ru_maxrss reports, but not inherited
# from the process that forks.
MEASURE = """
    import json, sys
    import torch
    import gossamer.hub.write
    from gossamer import CausalLM, ModelConfig
    from gossamer.hub import names

    def peak():
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))

    action, saves = sys.argv[1], [json.loads(argument) for argument in sys.argv[2:]]
    # Allocates what the first operations need, so that the difference is the model's alone.
    torch.randn(64, 64) @ torch.randn(64, 64)
    CausalLM
    before, grown = peak(), 0
    for folder, config, shard_bytes in saves:
        model = None  # that of the save before
        if action == "save":
            model = CausalLM(ModelConfig(**config), random_weights=False)
            for parameter in model.parameters():
                parameter.data.fill_(0.01)
            before = peak()
            gossamer.hub.write._SHARD_BYTES = shard_bytes
            gossamer.hub.save(model, folder)
        else:
            model = gossamer.hub.load(folder)
        grown = max(grown, peak() - before)
    print(json.dumps({"grown": grown, "peak": peak(), "size": sum(p.nbytes for p in model.parameters())}))
"""
WIDE = {
    "hidden_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 8,
    "num_experts": 64,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 128,
    "shared_expert_intermediate_size": 128,
}

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="measured as Linux does")


@dataclass(frozen=True)
class Save:
    """A model of equal weights, in files of at most `shard_bytes`."""

    folder: str
    config: dict[str, int | str]
    shard_bytes: int


def measure(action: str, *saves: Save) -> dict[str, int]:
    """Save or load models one after the other in a process of its own: by how many bytes it grows, and its peak."""
    arguments = [json.dumps(astuple(one)) for one in saves]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEASURE), action, *arguments], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def check(megabytes: int, *saves: Save) -> dict[str, int]:
    """Whether saving takes no copy of the model, and loading little more than it; what loading has taken."""
    saved = measure("save", *saves)
    assert saved["size"] > megabytes << 20
    assert saved["grown"] < 0.1 * saved["size"]  # tensors are written from where they lie
    for one in saves:
        assert (Path(one.folder) / "model.safetensors.index.json").exists() == (one.shard_bytes < saved["size"])
    loaded = measure("load", *saves)
    assert loaded["size"] == saved["size"]
    assert loaded["grown"] < 1.3 * loaded["size"]
    return loaded


def test_200_megabytes_are_saved_and_loaded_in_windows(tmp_path) -> None:
    """Mostly one tensor, the embedding: it, too, is read in windows. Flat projections cost no more than others."""
    config = WIDE | {"num_hidden_layers": 1, "vocab_size": 40_000}
    flat = config | {"model_type": "qwen3_5_moe_text"}
    check(200, Save(str(tmp_path / "sharded"), flat, 10**8), Save(str(tmp_path / "whole"), config, 10**10))


@pytest.mark.slow
@pytest.mark.parametrize("shard_bytes", [2 * 10**8, 10**10])
def test_a_gigabyte(tmp_path, shard_bytes) -> None:
    """The whole process, Python and PyTorch included, stays below 1.3 times the checkpoint."""
    loaded = check(1000, Save(str(tmp_path / "m"), WIDE | {"num_hidden_layers": 8, "vocab_size": 151_936}, shard_bytes))
    assert loaded["peak"] < 1.3 * loaded["size"]
