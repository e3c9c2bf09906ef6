"""`make demo` where there is a run already."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")
@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({}, ["train", "make"]),
        ({"model/config.json": "{}", "metrics.jsonl": '{"event": "train", "step": 1}\n'}, ["sample", "train", "make"]),
        ({"model/config.json": "{}", "metrics.jsonl": '{"event": "end", "step": 1}\n'}, ["sample", "make"]),
    ],
    ids=["without a model", "stopped", "finished"],
)
def test_it_suggests_what_works(tmp_path: Path, files: dict[str, str], told: list[str]) -> None:
    for name, text in (files | {"run/config.yaml": ""}).items():
        path = tmp_path / "run" / name.removeprefix("run/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    # As if everything were installed.
    options = ["VENV=venv", "-o", "venv/.installed", f"DEMO_OUT={tmp_path}/run"]
    done = subprocess.run(["make", "-s", "-C", ROOT, "demo", *options], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    lines = [line.split() for line in done.stderr.splitlines() if line.startswith("  ")]
    assert [words[words[0].endswith("gossamer")] for words in lines] == told
