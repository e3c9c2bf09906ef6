"""Counters of energy: what they say, their turning over, and that nothing is made up where there are none."""

import pytest
import torch

from gossamer import device as devices
from gossamer.cost import energy
from gossamer.cost.energy import EnergyMeter
from gossamer.device import measure

CPU = torch.device("cpu")


@pytest.fixture
def zone(tmp_path, monkeypatch):
    """Makes a counter, or sets it (microjoules)."""
    monkeypatch.setattr(energy, "_RAPL", tmp_path)

    def put(folder, name, microjoules, most=1_000_000_000):
        (tmp_path / folder).mkdir(exist_ok=True)
        for file, value in (("name", name), ("energy_uj", microjoules), ("max_energy_range_uj", most)):
            (tmp_path / folder / file).write_text(f"{value}\n")

    return put


def test_packages_and_memory_count_and_what_they_hold_does_not(zone):
    names = {"intel-rapl:0": "package-0", "intel-rapl:0:0": "core", "intel-rapl:0:1": "dram", "intel-rapl:1": "psys"}
    for folder, name in names.items():
        zone(folder, name, 5_000_000)
    meter = EnergyMeter(CPU)
    for folder, name in names.items():
        zone(folder, name, 7_000_000)
    assert meter.is_known
    assert meter.joules() == pytest.approx(4.0)
    assert meter.joules() == 0


def test_a_counter_turns_over(zone):
    zone("intel-rapl:0", "package-0", 998_000_000)
    meter = EnergyMeter(CPU)
    zone("intel-rapl:0", "package-0", 1_000_000)
    assert meter.joules() == pytest.approx(3.0)


def test_without_a_counter_nothing_is_known(zone, tmp_path):
    meter = EnergyMeter(CPU)
    assert not meter.is_known and meter.joules() is None
    zone("intel-rapl:0", "package-0", 1)
    meter = EnergyMeter(CPU)
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
    assert meter.is_known and meter.joules() is None


def test_a_machine_is_counted_once(zone):
    zone("intel-rapl:0", "package-0", 1)
    meter = EnergyMeter(CPU, counted=False)
    assert meter.is_known and meter.joules() == 0


def test_an_accelerator_has_its_own_counter(monkeypatch):
    readings = iter([10.0, 12.5, None, 20.0])
    monkeypatch.setattr(devices, "energy", lambda device: next(readings))
    meter = EnergyMeter(torch.device("meta"))
    assert meter.joules() == 2.5
    assert meter.joules() is None and meter.joules() is None


class Library:
    """NVIDIA's management library."""

    def __init__(self, status=0):
        self.status = status

    def nvmlInit_v2(self):
        return 0

    def nvmlDeviceGetHandleByUUID(self, name, handle):
        assert name == b"GPU-1-2"
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, handle, used):
        used._obj.value = 2500
        return self.status


@pytest.mark.parametrize(("status", "joules"), [(0, 2.5), (3, None)])
def test_nvidia_tells_millijoules(monkeypatch, status, joules):
    class Module:
        @staticmethod
        def get_device_properties(device):
            return type("Properties", (), {"uuid": "1-2"})

    measure._nvml.cache_clear()
    monkeypatch.setattr(measure.ctypes, "CDLL", lambda name: Library(status))
    monkeypatch.setattr(torch, "get_device_module", lambda device: Module)
    assert devices.energy(torch.device("cuda", 0)) == joules
    measure._nvml.cache_clear()


def test_without_the_library_nothing_is_known(monkeypatch):
    def missing(name):
        raise OSError(name)

    measure._nvml.cache_clear()
    monkeypatch.setattr(measure.ctypes, "CDLL", missing)
    assert devices.energy(torch.device("cuda", 0)) is None


def test_a_peak_is_measured_without_touching_what_training_draws():
    before = torch.get_rng_state()
    assert devices.peak_rate(CPU, torch.float32) > 1e8
    assert torch.equal(torch.get_rng_state(), before)
