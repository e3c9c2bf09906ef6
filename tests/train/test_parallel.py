"""Many processes do what one does: losses, gradient norms, loads, checkpoints. Real ones, started by torchrun."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from gossamer.errors import UserError
from gossamer.train.parallel import gathered_model, parallelize
from gossamer.train.world import World
from parallel_runs import CPU, Case, launch, preferences, run


@cache
def alone(case):
    """The same run on one process, without anything that only many need."""
    return run(replace(case, expert_parallel=1, recompute=False, first=1, resume="", save=""), World())


def assert_same(result, case, tolerance=1e-6):
    expected = alone(case)
    for name in ("losses", "norms", "held_out"):
        assert result[name] == pytest.approx(expected[name][case.first - 1 :], abs=tolerance, rel=tolerance), name
    for load, wanted in zip(result["loads"], expected["loads"][case.first - 1 :], strict=True):
        assert torch.allclose(torch.tensor(load), torch.tensor(wanted), atol=tolerance)
    assert result["gathered"] == pytest.approx(expected["held_out"][-1], abs=tolerance)


def test_two_processes_learn_what_one_does(tmp_path):
    spread = Case(expert_parallel=2, recompute=True, last=2, save=str(tmp_path))
    *results, tuned, experts, heard = launch(2, cases := [spread, Case("muon", bigram_steps=3, last=2)], tmp_path)
    for case, result in zip(cases, results, strict=True):
        assert_same(result, case)
    for method, steps in preferences(World()).items():
        for found, wanted in zip(tuned[method], steps, strict=True):
            assert found == pytest.approx(wanted, rel=1e-5, abs=1e-5), method
    assert max(experts.values()) < 1e-10, experts
    assert heard == {
        "sum": [2.0, 1.0],
        "max": 11,
        "on_main": {"rank": 0},
        "error": "no such corpus",
        "gather": ["0", "1"],
        "local": 3,
        "sharing": 2,
    }
    # What two have saved, one goes on with.
    onwards = replace(spread, first=3, last=4, expert_parallel=1, resume=results[0]["saved"], save="")
    assert_same(run(onwards, World()), onwards)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_every_way_to_spread_a_network_gives_one_process_curve(processes, tmp_path):
    cases = [
        Case(last=20),
        Case(recompute=True),
        Case(expert_parallel=2, last=20),
        Case(expert_parallel=2, recompute=True, experts=6),
        Case(tied=True),
        Case(mtp_steps=0, expert_parallel=2),
        Case(mtp_steps=1),
        Case(experts=0),
        Case("muon", last=6),
        Case("muon", expert_parallel=2, last=6),
        Case("muon", expert_parallel=2, recompute=True, experts=6),
    ]
    if processes == 4:
        cases += [Case(expert_parallel=4, last=20), Case("muon", expert_parallel=4, recompute=True)]
    *results, _, experts, _ = launch(processes, cases, tmp_path)
    for case, result in zip(cases, results, strict=True):
        assert_same(result, case)
    assert max(experts.values()) < 1e-10, experts


@pytest.mark.slow
def test_in_float32_and_with_weights_gathered_in_bfloat16(tmp_path):
    # Few steps: later, AdamW, whose steps are of one size however small a gradient is, has made rounding errors large.
    plain = Case(dtype="float32", expert_parallel=2, last=4)
    narrow = Case(dtype="float32", compute_dtype="bfloat16", last=4)
    results = launch(2, [plain, narrow], tmp_path)
    assert results[0]["losses"] == pytest.approx(alone(plain)["losses"], abs=1e-3)
    assert results[1]["losses"] == pytest.approx(alone(narrow)["losses"], abs=0.1)
    assert results[1]["losses"] != pytest.approx(alone(narrow)["losses"], abs=1e-6)


@pytest.mark.slow
def test_a_checkpoint_goes_on_with_any_number_of_processes(tmp_path):
    runs = {
        "adamw": Case(expert_parallel=2, last=3),
        "uneven": Case("muon", expert_parallel=2, experts=6, last=3),
        "tied": Case("muon", expert_parallel=4, tied=True, last=3),
    }

    def saving(case, folder):
        folder.mkdir()
        return replace(case, save=str(folder))

    def onwards(case, result, expert_parallel):
        return replace(case, first=4, last=6, expert_parallel=expert_parallel, resume=result["saved"])

    by_four = launch(4, [saving(case, tmp_path / name) for name, case in runs.items()], tmp_path)
    saved = Path(by_four[0]["saved"])
    assert len(list(saved.glob("*.distcp"))) == 4
    for processes in (1, 2):
        cases = [onwards(case, result, processes) for case, result in zip(runs.values(), by_four, strict=False)]
        results = [run(cases[0], World())] if processes == 1 else launch(processes, cases, tmp_path)
        for case, result in zip(cases, results, strict=False):
            assert_same(result, case)
    by_one = [
        run(saving(replace(case, expert_parallel=1), tmp_path / f"{name}-one"), World()) for name, case in runs.items()
    ]
    cases = [onwards(case, result, case.expert_parallel) for case, result in zip(runs.values(), by_one, strict=True)]
    for case, result in zip(cases, launch(4, cases, tmp_path), strict=False):
        assert_same(result, case)


def test_without_torchrun_a_process_is_alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    world = World.join(CPU)
    assert (world.rank, world.size, world.is_main) == (0, 1, True)
    model = Case().model()
    before = dict(model.named_parameters())
    parallelize(model, world, recompute=True)
    assert model.model.recompute
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    assert gathered_model(model, world) is model
    assert (world.max_over_ranks(3), world.call_on_main(lambda: 4), world.all_gather(5)) == (3, 4, [5])
    assert world.all_reduce(torch.ones(2)).tolist() == [1, 1]
    world.barrier()
    world.close()


@pytest.mark.parametrize("missing", ["RANK", "LOCAL_RANK", "MASTER_ADDR"])
def test_half_of_torchruns_variables_is_a_mistake(monkeypatch, missing):
    for name, value in {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "MASTER_ADDR": "x", "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv(missing)
    with pytest.raises(UserError, match=rf"{missing}.*torchrun"):
        World.join(CPU)


def test_every_process_needs_a_device_of_its_own(monkeypatch):
    for name, value in {"RANK": 2, "WORLD_SIZE": 4, "LOCAL_RANK": 2}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr("gossamer.device.device_count", lambda device: 2)
    with pytest.raises(UserError, match="torchrun --nproc-per-node 2"):
        World.join(torch.device("cuda"))


@pytest.mark.parametrize(
    ("processes", "experts", "wanted", "told"),
    [(4, 8, 3, "fits: 1, 2, 4$"), (6, 8, 4, "fits: 1, 2$"), (1, 8, 2, "fits: 1$"), (4, 0, 2, "no experts")],
)
def test_expert_parallelism_that_does_not_divide_is_refused(processes, experts, wanted, told):
    with pytest.raises(UserError, match=told):
        parallelize(Case(experts=experts).model(), World(size=processes), wanted)
