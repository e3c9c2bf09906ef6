"""Loading takes the memory of the model, not also that of its files: measured in a process of its own."""

import json
import subprocess
import sys
import textwrap
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

    folder, action, config, shard_bytes = sys.argv[1:]
    gossamer.hub.write._SHARD_BYTES = int(shard_bytes)
    # Allocates what the first operations need, so that the difference is the model's alone.
    torch.randn(64, 64) @ torch.randn(64, 64)
    CausalLM
    if action == "save":
        model = CausalLM(ModelConfig(**json.loads(config)), random_weights=False)
        for parameter in model.parameters():
            parameter.data.fill_(0.01)
        before = peak()
        gossamer.hub.save(model, folder)
    else:
        before = peak()
        model = gossamer.hub.load(folder)
    print(json.dumps({"before": before, "peak": peak(), "size": sum(p.nbytes for p in model.parameters())}))
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


def measure(folder: Path, action: str, config: dict[str, int | str], shards: int) -> dict[str, int]:
    arguments = [str(folder), action, json.dumps(config), str(shards)]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEASURE), *arguments], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def check(folder: Path, config: dict[str, int | str], megabytes: int, shard_bytes: int, sharded: bool) -> None:
    saved = measure(folder, "save", config, shard_bytes)
    assert saved["size"] > megabytes << 20
    assert saved["peak"] - saved["before"] < 0.1 * saved["size"]  # tensors are written from where they lie
    assert (folder / "model.safetensors.index.json").exists() == sharded
    loaded = measure(folder, "load", config, shard_bytes)
    assert loaded["size"] == saved["size"]
    assert loaded["peak"] - loaded["before"] < 1.3 * loaded["size"]


@pytest.mark.parametrize("sharded", [False, True])
def test_200_megabytes_are_saved_and_loaded_in_windows(tmp_path, sharded) -> None:
    """Mostly one tensor, the embedding: it, too, is read in windows. Flat projections cost no more than others."""
    check(
        tmp_path / "m",
        WIDE | {"num_hidden_layers": 1, "vocab_size": 40_000} | ({"model_type": "qwen3_5_moe_text"} if sharded else {}),
        200,
        10**8 if sharded else 10**10,
        sharded,
    )


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True])
def test_a_gigabyte(tmp_path, sharded) -> None:
    """The whole process, Python and PyTorch included, stays below 1.3 times the checkpoint."""
    folder = tmp_path / "m"
    config = WIDE | {"num_hidden_layers": 8, "vocab_size": 151_936}
    check(folder, config, 1000, 2 * 10**8 if sharded else 10**10, sharded)
    loaded = measure(folder, "load", config, 0)
    assert loaded["peak"] < 1.3 * loaded["size"]
