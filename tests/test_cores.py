"""Cores that a process may use: all that it is bound to, or what its control groups' quotas allow."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.cores import cpu_quota, usable_cores


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("limit", "cores"),
    [("max 100000", math.inf), ("50000 100000", 0.5), ("150000 100000", 1.5), ("junk", math.inf), ("1 0", math.inf)],
)
def test_version_2(tmp_path: Path, limit: str, cores: float) -> None:
    put(tmp_path / "proc/self/cgroup", "0::/pod/box\n")
    put(tmp_path / "sys/fs/cgroup/pod/box/cpu.max", limit)
    assert cpu_quota(tmp_path) == cores


def test_a_group_above_limits_too(tmp_path: Path) -> None:
    put(tmp_path / "proc/self/cgroup", "0::/pod/box\n")
    put(tmp_path / "sys/fs/cgroup/pod/box/cpu.max", "400000 100000")
    put(tmp_path / "sys/fs/cgroup/pod/cpu.max", "100000 100000")
    assert cpu_quota(tmp_path) == 1


def test_in_a_container_whose_path_is_the_hosts(tmp_path: Path) -> None:
    put(tmp_path / "proc/self/cgroup", "0::/../../docker/0123\n")
    put(tmp_path / "sys/fs/cgroup/cpu.max", "200000 100000")
    assert cpu_quota(tmp_path) == 2


def test_the_quota_of_cgroups_version_1_is_found(tmp_path: Path) -> None:
    put(tmp_path / "proc/self/cgroup", "5:memory:/x\n4:cpu,cpuacct:/box\n")
    put(tmp_path / "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us", "25000\n")
    put(tmp_path / "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_period_us", "100000\n")
    assert cpu_quota(tmp_path) == 0.25
    assert usable_cores(tmp_path) == 1


@given(st.text(max_size=40))
def test_any_text_gives_a_number_of_cores(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    root = tmp_path_factory.mktemp("root")
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(text.replace("\x00", ""), encoding="utf-8", errors="replace")
    assert 1 <= usable_cores(root) <= (os.cpu_count() or 1)


def test_this_machine_has_a_core_to_use() -> None:
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
