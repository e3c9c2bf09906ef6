"""The estimate against what real steps take: the tensors that live, and the peak of a process of its own."""

import json
import os
import subprocess
import sys
import textwrap
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from gossamer import device as devices
from gossamer import ops
from gossamer.cli import ENVIRONMENT
from gossamer.cost.network import count_network
from gossamer.data.packing import Batch
from gossamer.errors import UserError
from gossamer.model.causal_lm import CausalLM
from gossamer.ops import native
from gossamer.run.memory import MemoryEstimate, estimate_peak, require_weights
from gossamer.train.recipe import Recipe, load_recipe
from gossamer.train.step import Learner

CPU = torch.device("cpu")
MIB = 1 << 20


class LivingTensors(TorchDispatchMode):
    """Bytes of the tensors that operations have made and that are still there, and the most there have been."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, torch.Tensor):
                self.add(tensor.untyped_storage())
        return out

    def add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self.sizes:
            self.sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.remove, key)

    def remove(self, key: int) -> None:
        self.now -= self.sizes.pop(key)


def random_batches(recipe: Recipe) -> list[Batch]:
    training, batches = recipe.training, []
    for _ in range(training.gradient_accumulation):
        rows, length = training.batch_size, training.sequence_length
        ids = torch.randint(0, recipe.model.vocab_size, (rows, length))
        batches.append(Batch(ids, ids.clone(), torch.arange(0, rows * length + 1, length, dtype=torch.int32)))
    return batches


def living_tensors(recipe: Recipe) -> int:
    """Peak bytes of all tensors over two steps: the first makes the optimizer's state."""
    model = CausalLM(recipe.model)
    learner = Learner(model, recipe)
    living = LivingTensors()
    with living:
        for parameter in model.parameters():
            living.add(parameter.untyped_storage())
        for _ in range(2):
            learner.step(random_batches(recipe), 1e-3)
    return living.peak


def recipe_of(name: str, **changes) -> Recipe:
    return load_recipe(name, {"training.device": "cpu", "training.precision": "fp32"} | changes)


SMALL = {"training.sequence_length": 128, "training.batch_size": 4, "model.num_hidden_layers": 4}
KINDS = {
    "muon": {},
    "adamw": {"optimizer.kind": "adamw"},
    "recompute": {"training.recompute": True, "training.batch_size": 16},
    "accumulation": {"training.gradient_accumulation": 2},
    "dense": {"model.num_experts": 0, "model.intermediate_size": 512},
    "many experts": {"model.num_experts": 64},
    "three drafts": {"training.mtp_steps": 3},
    "no drafts": {"training.mtp_steps": 0},
    "head apart": {"training.mtp_trunk_gradient": False},
    "tied": {"model.tie_word_embeddings": True, "model.vocab_size": 20_000},
}
NATIVE = pytest.mark.skipif(bool(native.obstacle(CPU)), reason="there are no native kernels here")
WAYS = [pytest.param({}, marks=NATIVE, id="native"), pytest.param(ops.pytorch_only(), id="pytorch")]


def check_tensors(recipe: Recipe, tolerance: float) -> None:
    assert estimate_peak(recipe, CPU).tensors == pytest.approx(living_tensors(recipe), rel=tolerance)


@NATIVE
@pytest.mark.parametrize("kind", KINDS)
def test_tensors_of_a_step(kind) -> None:
    check_tensors(recipe_of("nano", **(SMALL | KINDS[kind])), 0.03)


@pytest.mark.parametrize("kind", ["muon", "recompute", "dense", "three drafts"])
def test_tensors_of_a_step_through_pytorch_alone(kind) -> None:
    with ops.forced(**ops.pytorch_only()):
        check_tensors(recipe_of("nano", **(SMALL | KINDS[kind])), 0.03)


@pytest.mark.parametrize("way", WAYS)
def test_tensors_under_autocast(way, monkeypatch) -> None:
    monkeypatch.setattr(devices, "compute_dtype", lambda device, precision: torch.bfloat16)
    with ops.forced(**way):
        check_tensors(recipe_of("nano", **(SMALL | {"model.num_hidden_layers": 2})), 0.03)


# The whole process, its base and the heap's holes included.

MEASURE = """
    import json, resource, sys
    import torch
    sys.path.insert(0, sys.argv[1])
    from test_memory import CPU, random_batches, recipe_of
    from gossamer import device as devices
    from gossamer.model.causal_lm import CausalLM
    from gossamer.run.memory import estimate_peak
    from gossamer.train.step import Learner

    devices.keep_freed_memory()
    recipe = recipe_of(sys.argv[2], **json.loads(sys.argv[3]))
    before = devices.peak_memory(CPU)
    estimate = estimate_peak(recipe, CPU)
    learner = Learner(CausalLM(recipe.model), recipe)
    for _ in range(3):
        learner.step(random_batches(recipe), 1e-3)
    print(json.dumps({"before": before, "peak": devices.peak_memory(CPU), "total": estimate.total}))
"""


def check_process(name: str, changes: dict) -> None:
    arguments = [str(Path(__file__).parent), name, json.dumps(changes)]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEASURE), *arguments],
        capture_output=True, text=True, env=ENVIRONMENT | os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    print(f"{name} {changes}: measured {measured['peak'] / MIB:.0f} MiB, estimated {measured['total'] / MIB:.0f}")
    assert measured["peak"] > measured["before"]
    assert measured["total"] == pytest.approx(measured["peak"], rel=0.15)


LINUX = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the heap is modeled after Linux's glibc")


@LINUX
def test_peak_of_a_process() -> None:
    check_process("nano", {"training.sequence_length": 512, "training.batch_size": 4, "training.recompute": True})


@LINUX
@pytest.mark.slow
@pytest.mark.parametrize(
    "name, changes",
    [
        ("micro", {}),  # weights as much as activations
        ("micro", {"training.batch_size": 1, "optimizer.kind": "adamw"}),  # optimizer state
        ("micro", {"training.recompute": True}),
        ("micro", {"training.batch_size": 2, "training.gradient_accumulation": 2}),
        ("nano", {"training.sequence_length": 1024, "training.batch_size": 16}),  # activations
        ("nano", {"training.sequence_length": 512, "training.batch_size": 8}),
        ("nano", {"training.sequence_length": 1024, "training.batch_size": 16, "training.recompute": True}),
        ("micro", {"model.num_experts": 256, "model.num_hidden_layers": 4, "training.batch_size": 2}),  # experts
        ("demo", {"training.mtp_steps": 3, "training.batch_size": 16}),
    ],
)
def test_peaks_of_processes(name, changes) -> None:
    check_process(name, changes)


# What the estimate says.


def estimate(**changes) -> MemoryEstimate:
    return estimate_peak(recipe_of("nano", **changes), CPU)


def test_recomputation_takes_less_and_more_rows_more() -> None:
    rows = {"training.batch_size": 64}
    assert estimate(**rows, **{"training.recompute": True}).tensors < 0.7 * estimate(**rows).tensors
    assert estimate(**rows).activations == pytest.approx(8 * estimate().activations, rel=0.1)


def test_processes_share_weights_and_rows() -> None:
    recipe = recipe_of("micro")
    alone, shared = estimate_peak(recipe, CPU), estimate_peak(recipe, CPU, world_size=4)
    assert shared.weights == alone.weights // 4
    assert shared.optimizer == pytest.approx(alone.optimizer / 4, abs=4)
    assert shared.activations < alone.activations / 2


def test_the_released_size_is_estimated_without_its_memory() -> None:
    recipe = load_recipe("80b-a3b", {"training.precision": "fp32"})
    found = estimate_peak(recipe, CPU)
    assert found.weights == 4 * count_network(recipe.model).parameters
    assert not found.fits(CPU)


def test_describe_and_fits(monkeypatch) -> None:
    found = MemoryEstimate(300 * MIB, 300 * MIB, 400 * MIB, 10 * MIB, 0, 0, 300 * MIB, 512 * MIB, "cpu")
    assert found.describe() == (
        "about 1.28 GiB of memory at the peak: weights 300 MiB, gradients 300 MiB, optimizer 400 MiB, base 300 MiB; "
        "512 MiB more while a checkpoint is written"
    )
    monkeypatch.setattr(devices, "memory_bytes", lambda device: 2000 * MIB)
    assert found.fits(CPU)
    assert not found.fits(CPU, ranks_per_device=2)
    monkeypatch.setattr(devices, "memory_bytes", lambda device: 1500 * MIB)
    assert not found.fits(CPU)  # a checkpoint's copies are too much
    assert replace(found, device_type="cuda").fits(torch.device("cuda"))  # there they lie in the host's memory


def test_what_is_too_much_for_any_error_of_the_estimate_is_refused(monkeypatch) -> None:
    found = MemoryEstimate(600 * MIB, 0, 0, 0, 0, 0, 0, 400 * MIB, "cpu")
    monkeypatch.setattr(devices, "memory_bytes", lambda device: 1000 * MIB)
    found.require(CPU)
    replace(found, weights=740 * MIB).require(CPU)
    with pytest.raises(
        UserError, match=r"^training would take about 1\.13 GiB of memory, and cpu has 1,000 MiB; a small"
    ):
        replace(found, weights=760 * MIB).require(CPU)
    with pytest.raises(UserError, match=r"^training would take about 1\.95 GiB"):
        found.require(CPU, ranks_per_device=2)


def test_what_the_weights_alone_exceed_is_refused_before_a_network_is_laid_out(monkeypatch) -> None:
    config = recipe_of("nano").model
    needed = 12 * count_network(config).parameters  # weights, gradients and one running mean in float32
    monkeypatch.setattr(devices, "memory_bytes", lambda device: needed)
    require_weights(config, 1, CPU)
    require_weights(config, 2, CPU, ranks_per_device=2)
    with pytest.raises(UserError, match=r"^training would take more than .* and cpu has"):
        require_weights(config, 1, CPU, ranks_per_device=2)
    monkeypatch.setattr(CausalLM, "__init__", lambda *_: pytest.fail("laid out"))
    with pytest.raises(UserError, match="smaller model"):
        require_weights(replace(config, num_hidden_layers=4096, layer_types=None), 1, CPU)
