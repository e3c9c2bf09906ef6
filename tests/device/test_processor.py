"""The identity of a processor, read from files as they are on several makers' machines."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gossamer import device as devices
from gossamer.device.processor import read_processor

X86 = """processor\t: 0
vendor_id\t: {vendor}
cpu family\t: {family}
model\t\t: {model}
model name\t: {name}
siblings\t: {siblings}
cpu cores\t: {cores}
flags\t\t: fpu sse2 {flags}

processor\t: 1
vendor_id\t: GenuineIntel
flags\t\t: avx512f
"""
ARM = """processor\t: 0
BogoMIPS\t: 243.75
Features\t: fp asimd {flags}
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x3
CPU part\t: 0xd0c
"""


def found(tmp_path: Path, text: str, **values: object) -> devices.Processor:
    (tmp_path / "cpuinfo").write_text(text.format(**values))
    return read_processor(tmp_path / "cpuinfo")


def test_one_name_for_two_generations_gives_two_keys(tmp_path: Path) -> None:
    amd = {"vendor": "AuthenticAMD", "name": "AMD EPYC", "family": 25, "siblings": 2, "cores": 2}
    zen3 = found(tmp_path, X86, **amd, model=1, flags="avx avx2")
    zen4 = found(tmp_path, X86, **amd, model=17, flags="avx avx2 avx512f")
    assert zen3.key(2) == "AMD family 25 model 1, AVX2, 2 threads"
    assert zen4.key(1) == "AMD family 25 model 17, AVX-512, 1 thread"
    assert zen3.describe(2) == "AMD EPYC, family 25 model 1, AVX2, 2 threads"


def test_a_virtual_machine_that_hides_the_widest_unit_is_another_processor(tmp_path: Path) -> None:
    xeon = {"vendor": "GenuineIntel", "name": "Intel(R) Xeon(R) CPU @ 2.50GHz", "family": 6, "model": 106}
    seen = {
        str(found(tmp_path, X86, **xeon, siblings=16, cores=8, flags=flags))
        for flags in ("avx avx2 avx512f", "avx avx2", "")
    }
    assert seen == {f"Intel family 6 model 106, {unit}" for unit in ("AVX-512", "AVX2", "SSE2")}
    assert found(tmp_path, X86, **xeon, siblings=16, cores=8, flags="").threads_per_core == 2


@pytest.mark.parametrize(("flags", "unit"), [("", "NEON"), ("sve", "SVE")])
def test_an_arm_processor_has_no_family_but_a_part(tmp_path: Path, flags: str, unit: str) -> None:
    assert str(found(tmp_path, ARM, flags=flags)) == f"ARM family 8 model 3340, {unit}"


def test_without_a_file_or_with_a_strange_one_there_is_still_a_key(tmp_path: Path) -> None:
    for one in (read_processor(tmp_path / "none"), found(tmp_path, "cpu family : many\n\nrest")):
        assert one.family is None and one.threads_per_core == 1
        assert one.key(4).endswith("4 threads")
        assert "None" not in one.describe(4)


def test_this_machines_devices_are_named_after_it() -> None:
    key = devices.device_key(torch.device("cpu"))
    assert key == devices.processor().key(torch.get_num_threads())
    assert devices.processor().vectors in devices.device_name(torch.device("cpu"))
