"""How the native kernels are built and cached, and what runs without them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.ops.native import library
from gossamer.ops.native.layout import rows_in_place

needs_compiler = pytest.mark.skipif(not (shutil.which("c++") or shutil.which("g++")), reason="no C++ compiler")
DESCRIBE = """
import json, os, sys
import torch
from gossamer import ops
from gossamer.ops.native import library

for environment in json.loads(sys.argv[1]):
    os.environ |= environment
    library.load.cache_clear()
    print(ops.describe(torch.device("cpu"))["delta_rule"], flush=True)
    for stream in (sys.stdout, sys.stderr):
        print("---", file=stream, flush=True)
"""


def describe_each(*environments: dict[str, str]) -> list[tuple[str, str]]:
    """Describe the delta rule in a fresh process, once in each environment: standard output and standard error."""
    done = subprocess.run(
        [sys.executable, "-c", DESCRIBE, json.dumps(environments)], capture_output=True, text=True, check=True
    )
    out, said = (text.split("---\n")[:-1] for text in (done.stdout, done.stderr))
    return list(zip(out, said, strict=True))


def describe(cache: Path, **environment: str) -> tuple[str, str]:
    """Describe the delta rule in a fresh process with one environment."""
    return describe_each({"GOSSAMER_CACHE": str(cache)} | environment)[0]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A cache with a library, and what was printed while it was built, by a compiler that links what was built before.

    That is the library that all tests use. Its folder is the one that the real compiler would use, because its name
    follows from the sources and from what the compiler says about itself.
    """
    cache = tmp_path_factory.mktemp("cache")
    assert not isinstance(library.load(), str)
    compiler = library._compiler()
    kernels = library._folder(compiler) / "kernels.so"
    link = f'for last; do :; done; case " $* " in *" -shared "*) cp {kernels} "$last";; *) : >"$last";; esac'
    out, said = describe(cache, CXX=compiler_that(cache, link, f'exec {compiler[0]} "$@"'))
    (cache / "compiler").unlink()
    assert "'runs': 'native'" in out
    return cache, said


def libraries(cache: Path) -> list[Path]:
    return list(cache.glob("native/*/kernels.so"))


@needs_compiler
def test_built_once_and_announced(built: tuple[Path, str]) -> None:
    cache, said = built
    announced, told = said.splitlines()
    assert "building the native CPU kernels" in announced and "took longest" in told
    [kernels] = libraries(cache)
    before = kernels.stat()
    out, said = describe(cache)
    assert "'runs': 'native'" in out and said == ""
    assert [kernels] == libraries(cache) and kernels.stat() == before
    assert {path.name for path in (cache / "native").iterdir()} == {kernels.parent.name, "building"}


@needs_compiler
def test_a_damaged_library_is_never_mapped(built: tuple[Path, str], tmp_path: Path) -> None:
    """Mapping a truncated library, as a full disk leaves it, ends the process by SIGBUS; here rebuilding it fails."""
    kinds = ("gone", "digest", "empty", "zeros", "cut")
    for damage in kinds:
        shutil.copytree(built[0] / "native", tmp_path / damage / "native")
        [kernels] = libraries(tmp_path / damage)
        content = kernels.read_bytes()
        if damage == "digest":
            (kernels.parent / "kernels.sha256").unlink()
        elif damage == "gone":
            kernels.unlink()
        else:
            half = content[: len(content) // 2]
            kernels.write_bytes({"cut": half, "zeros": half + bytes(len(content) - len(half)), "empty": b""}[damage])
    # A compiler that says the same about itself but cannot build, so that the test is quick.
    real = shutil.which("c++") or shutil.which("g++")
    same = compiler_that(tmp_path, "exit 1", f'exec {real} "$@"')
    found = describe_each(*({"GOSSAMER_CACHE": str(tmp_path / damage), "CXX": same} for damage in kinds))
    for damage, (out, said) in zip(kinds, found, strict=True):
        assert "'runs': 'chunked'" in out, damage
        told = said.splitlines()
        assert "damaged" in told[0] and "PyTorch's own functions are used instead" in told[-1], damage


@needs_compiler
def test_processors_of_one_name_do_not_share_a_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder's name follows from the extensions that the compiler uses, not from the processor's name alone."""
    real = shutil.which("c++") or shutil.which("g++")
    narrow = compiler_that(tmp_path, f'exec {real} "$@" -mno-avx512f -DOTHER', f'exec {real} "$@" -DOTHER')
    usual = library._folder(library._compiler())
    monkeypatch.setenv("CXX", narrow)
    assert library._folder(library._compiler()) != usual


WAITING = """
import os, threading, time, torch
from gossamer.ops import native

def of_other_threads():
    others = set(os.listdir("/proc/self/task")) - {str(threading.get_native_id())}
    return sum(int(open(f"/proc/self/task/{task}/schedstat").read().split()[0]) for task in others) / 1e6

x = torch.ones(1 << 16)
x.add_(x)  # PyTorch's threads are there before the kernels
assert native.obstacle(x.device) == ""
x.add_(x)
before = of_other_threads()
for _ in range(20):
    x.add_(1.0)
    time.sleep(0.01)
print(of_other_threads() - before)
"""


@needs_compiler
@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="needs Linux")
def test_threads_that_wait_leave_the_processor(built: tuple[Path, str]) -> None:
    """Threads sleep soon, between PyTorch's own regions as well, unless the user wants them to spin.

    The program imports PyTorch first. What is compared is the milliseconds of processor time that the other threads use
    in twenty small regions and the waits between them.
    """
    inherited = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    environment = inherited | {"GOSSAMER_CACHE": str(built[0]), "OMP_NUM_THREADS": "2"}
    brief, long = (
        float(
            subprocess.run(
                [sys.executable, "-c", WAITING], env=environment | more, capture_output=True, check=True
            ).stdout
        )
        for more in ({}, {"GOMP_SPINCOUNT": "100000000"})
    )
    if long < 20:
        pytest.skip("PyTorch's threads do not wait as libgomp's do")
    assert brief < long / 4


def compiler_that(tmp_path: Path, does: str, asked: str = "echo '#define X 1'") -> str:
    """Write a compiler that runs the script `does`, and `asked` when it is asked for its macros."""
    script = tmp_path / "compiler"
    script.write_text(f'#!/bin/sh\ncase " $* " in *" -dM "*) {asked}; exit 0;; esac\n{does}\n')
    script.chmod(0o755)
    return str(script)


FAILURES = {
    "a message": "echo 'x.cpp:1: error: no such thing' >&2; exit 1",
    "no message": "exit 1",
    "no library": 'for last; do :; done; echo junk >"$last"',
}


@pytest.fixture(scope="module")
def troubles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str, str]]:
    """Where something is wrong, the cache and what is described there, all of it by one process."""
    real = shutil.which("c++") or shutil.which("g++") or "c++"
    caches = {name: tmp_path_factory.mktemp("cache") for name in (*FAILURES, "cut", "no compiler", "no folder")}
    (caches["no folder"] / "native").write_text("a file where the folder should be")
    compilers = {name: compiler_that(caches[name], script) for name, script in FAILURES.items()}
    # A linker on a full disk can succeed and leave a file that kills the process that maps it.
    short = 'for last; do :; done; head -c 5000 /bin/sh >"$last"'
    compilers["cut"] = compiler_that(caches["cut"], short, f'exec {real} "$@"')
    compilers |= {"no compiler": "no-such-compiler", "no folder": real}
    found = describe_each(*({"GOSSAMER_CACHE": str(caches[name]), "CXX": compilers[name]} for name in caches))
    return {name: (caches[name], *told) for name, told in zip(caches, found, strict=True)}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failed_build_is_told_in_one_line(troubles: dict[str, tuple[Path, str, str]], failure: str) -> None:
    """The compiler fails with a message, fails without one, or makes a file that is no library."""
    cache, out, said = troubles[failure]
    assert "'runs': 'chunked'" in out
    building, told = said.splitlines()
    assert "building" in building and "PyTorch's own functions are used instead" in told
    assert {path.name for path in cache.glob("native/*")} == {"building"}  # the lock


@needs_compiler
def test_a_library_that_cannot_be_loaded_is_deleted(troubles: dict[str, tuple[Path, str, str]]) -> None:
    cache, out, said = troubles["cut"]
    assert "'runs': 'chunked'" in out and "cannot be loaded" in said
    assert not libraries(cache)


def test_without_a_compiler_pytorch_serves(troubles: dict[str, tuple[Path, str, str]]) -> None:
    _, out, said = troubles["no compiler"]
    assert "'runs': 'chunked'" in out and "no C++ compiler" in out
    assert said == ""


def test_a_cache_that_cannot_be_written_is_told_in_one_line(troubles: dict[str, tuple[Path, str, str]]) -> None:
    _, out, said = troubles["no folder"]
    assert "'runs': 'chunked'" in out
    assert "native CPU kernels are not available" in said.splitlines()[-1]


@settings(max_examples=60)
@given(
    batch=st.integers(1, 3), length=st.integers(0, 4), heads=st.integers(1, 3), width=st.integers(1, 4), data=st.data()
)
def test_rows_in_place(batch: int, length: int, heads: int, width: int, data: st.DataObject) -> None:
    """Reading by the returned stride finds every token's numbers, for any part of any tensor."""
    before, after = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3))
    wide = torch.arange(batch * length * (before + heads * width + after), dtype=torch.float32)
    wide = wide.view(batch, length, before + heads * width + after)
    x = wide[..., before : before + heads * width].unflatten(-1, (heads, width))
    if data.draw(st.booleans(), "other order"):
        x = x.transpose(2, 3)
    rows, stride = rows_in_place(x)
    found = torch.as_strided(rows, (batch * length, heads * width), (stride, 1))
    assert torch.equal(found, x.reshape(batch * length, heads * width))
