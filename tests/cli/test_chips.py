"""`gossamer plan`: what it answers, and one line for every mistake; what `gossamer doctor` shows."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

import gossamer
from gossamer.cli import main

LLAMA = {
    "model_type": "llama", "hidden_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 8,
    "num_key_value_heads": 2, "intermediate_size": 4096, "vocab_size": 32000,
}  # fmt: skip
SHORT = ["--count", "64", "--model", "small"]  # layouts are soon found


def test_one_chip_is_told_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *SHORT, "--chip", "h20", "--tokens", "1e12"]) == 0
    out = capsys.readouterr().out
    for words in ("64 × NVIDIA H20", "device-hours", "tokens/s", "MFU", "$", "MWh", "expert exchange", "activations"):
        assert words in out
    assert max(map(len, out.splitlines())) <= 120


def test_several_are_compared_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind, begin in (("png", b"\x89PNG"), ("svg", b"<?xml")):
        assert main(["plan", *SHORT, "--chip", "h20,h200", "--compare", "p800,h20", "--out", f"chips.{kind}"]) == 0
        assert (tmp_path / f"chips.{kind}").read_bytes().startswith(begin)
    rows = [line.split()[0] for line in capsys.readouterr().out.splitlines() if " to " in line]
    assert rows == ["h20", "h200", "p800"] * 2


def test_json_of_a_hugging_face_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "config.json").write_text(json.dumps(LLAMA))
    found = []
    for name in ("net", "net/config.json"):
        assert main(["plan", "--model", name, "--chip", "h100", "--count", "8", "--price", "2", "--json"]) == 0
        [plan] = json.loads(capsys.readouterr().out)["plans"]
        found.append(plan)
    assert found[0] | {"model": "net/config.json"} == found[1]
    assert found[0]["dollars"] == pytest.approx(2 * found[0]["device_hours"])


def test_serving_and_fine_tuning(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--serve", "--chip", "h20,h200", "--json"]) == 0
    services = json.loads(capsys.readouterr().out)["serving"]
    assert [service["chip"] for service in services] == ["h20", "h200"]
    assert main(["plan", "--serve", "--chip", "h20"]) == 0
    assert "sequences of 32,768 tokens" in capsys.readouterr().out
    memory = []
    for kind in ("full", "lora"):
        assert main(["plan", *SHORT, "--finetune", kind, "--tokens", "1e9", "--batch-tokens", "1048576", "--json"]) == 0
        [plan] = json.loads(capsys.readouterr().out)["plans"]
        memory.append(plan["layouts"][0]["memory"]["optimizer"])
    assert memory[1] < 0.1 * memory[0]


def test_adapters_cost_two_thirds_of_the_whole_network(capsys: pytest.CaptureFixture[str]) -> None:
    flops = []
    for kind in ("full", "lora"):
        words = ["plan", *SHORT, "--finetune", kind, "--tokens", "1B", "--batch-tokens", "1M"]
        assert main([*words, "--json"]) == 0
        [plan] = json.loads(capsys.readouterr().out)["plans"]
        assert plan["tokens"] == 1e9 and plan["batch_tokens"] == 10**6
        flops.append(sum(plan["training_flops_per_token"].values()))
        assert main(words) == 0
        out = capsys.readouterr().out
        assert f"by {6 if kind == 'full' else 4}·N·D" in out and ("adapters of" in out) == (kind == "lora")
    assert flops[1] == pytest.approx(2.005 / 3 * flops[0])


@pytest.mark.parametrize(
    "words, message",
    [
        ("--chip p80", "unknown chip 'p80'; did you mean 'p800'?"),
        ("--chip ,", "which chip? one of h100, h200"),
        ("--compare h20,h2o", "unknown chip 'h2o'; did you mean 'h20'?"),
        ("--model smal", "unknown model 'smal'; did you mean 'small'?"),
        ("--model none.json", "unknown model 'none.json'"),
        ("--model .", ".: holds no config.json"),
        ("--count 0", "--count = 0: must be from 1 to 1,048,576"),
        ("--count -5", "--count = -5: must be from 1 to 1,048,576"),
        ("--count 2000000", "--count = 2000000: must be from 1 to 1,048,576"),
        ("--tokens 0", "--tokens = 0: must be from 1 to 1e+20"),
        ("--sequence-length 1", "--sequence-length = 1: must be from 2 to"),
        ("--batch-tokens 100", "--batch-tokens 100: must be >= --sequence-length 4,096"),
        ("--mtp-steps -1", "--mtp-steps = -1: must be from 0 to 64"),
        ("--price 0", "--price = 0: must be above 0 and at most"),
        ("--catalogue none.yaml", "none.yaml: no such file"),
        ("--certificate none.json", "none.json: no such file"),
        ("--out chips.gif", "--out chips.gif: must end in .png, .svg or .pdf"),
        ("--out none/chips.png", "--out none/chips.png: there is no folder none"),
        ("--serve --out chips.png", "--out draws training plans"),
        ("--serve --batch 0", "--batch = 0: must be from 1 to"),
        ("--serve --count 1", "80b-a3b with 64 sequences of 32,768 tokens takes"),
        (
            "--count 4 --chip h20",
            "80b-a3b does not fit 4 × NVIDIA H20 in any layout; the fewest chips",
        ),
    ],
)
def test_one_line_for_a_mistake(words: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *words.split()]) == 2
    out, error = capsys.readouterr()
    assert error.startswith(f"gossamer: {message}") and error.count("\n") == 1
    assert not out and not list(tmp_path.iterdir())


def test_doctor_shows_the_device_and_every_operation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    states = {"chunked": "able", "triton": "no Triton here"}
    devices = SimpleNamespace(
        resolve=lambda name: name, describe=lambda device: {"device": device}, prepare_process=lambda: None
    )
    operations = SimpleNamespace(describe=lambda device: {"rule": {"runs": "chunked", "implementations": states}})
    monkeypatch.setattr(gossamer, "device", devices, raising=False)
    monkeypatch.setattr(gossamer, "ops", operations, raising=False)
    assert main(["doctor", "--device", "chip"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"gossamer  {gossamer.__version__}",
        "device    chip",
        "rule      chunked (triton: no Triton here)",
    ]
    assert main(["doctor", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["ops"] == {"rule": {"runs": "chunked", "implementations": states}}
    assert answer["device"] == {"device": "auto"}
