"""What becomes of a command line as a whole: help, errors on the way and exit statuses."""

import re
import subprocess
import sys

import pytest

import gossamer
from gossamer.cli import VERBS, main
from gossamer.errors import UserError
from stand_in import Calls


def test_help_lists_the_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(re.search(rf"^  {verb} +\w", out, re.MULTILINE) for verb in VERBS)


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"gossamer {gossamer.__version__}\n"


def test_debug_shows_the_traceback_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "nowhere", "--debug"]) == 2
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert err.splitlines()[-1].startswith("gossamer: no run 'nowhere'")


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("two\nlines"), 2, "two lines"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(28, "No space left on device"), 2, "no space left on the disk"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 2, "no space left on the disk"),
        (PermissionError(13, "Permission denied", "runs/demo"), 2, "Permission denied: runs/demo"),
        (
            NotImplementedError("Could not run 'aten::topk' with arguments from the 'npu' backend. This could be"),
            2,
            "'npu' has no operator aten::topk; docs/new-chip.md says what to do about it",
        ),
        (MemoryError(), 2, "out of memory; training needs less with a smaller --training.batch_size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 2, "out of memory; "),
    ],
)
def test_what_fails_on_the_way_gives_one_line(
    training: Calls, capsys: pytest.CaptureFixture[str], error: BaseException, status: int, line: str
) -> None:
    training.error = error
    assert main(["train"]) == status
    err = capsys.readouterr().err
    assert err.startswith(f"gossamer: {line}") and err.count("\n") == 1


def test_a_programmers_mistake_is_not_dressed_up(training: Calls) -> None:
    training.error = RuntimeError("shapes do not match")
    with pytest.raises(RuntimeError, match="shapes do not match"):
        main(["train"])


def test_help_answers_without_torch_and_a_mistake_without_numpy() -> None:
    code = (
        "import sys, gossamer.cli as cli;"
        "assert cli.main(['--help']) == 0 and cli.main(['trian']) == 2;"
        "assert not {'torch', 'numpy', 'argparse', 'docstring_parser'} & set(sys.modules);"
        "assert cli.main(['sample', '--help']) == 0 and 'torch' not in sys.modules;"
        "assert cli.main(['train', '--training.step', '3']) == 2 and 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_a_reader_who_leaves_ends_the_program_quietly() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "gossamer.cli", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.wait(timeout=300) == 141
    assert process.stderr.read() == b""
    process.stderr.close()
