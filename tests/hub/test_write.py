"""Nothing is lost on the way to the disk and back, and nothing on the disk is ever half of two models."""

import errno
import json
import os
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

import gossamer
from gossamer import UserError, hub
from gossamer.hub import names, write

# Fixtures are functions without state here.
few = settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Tokenizer:
    eot_id = 7

    def __init__(self, text: str = "{}") -> None:
        self.text = text

    def save(self, folder: str | Path) -> None:
        (Path(folder) / "tokenizer.json").write_text(self.text)


def listing(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@few
@given(
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    shard_bytes=st.sampled_from([10**9, 20_000, 1]),
    changes=st.fixed_dictionaries(
        {},
        optional={
            "num_experts": st.sampled_from([0, 2, 5]),
            "mlp_only_layers": st.sampled_from([(), (0, 3)]),
            "tie_word_embeddings": st.booleans(),
            "attention_bias": st.just(True),
            "num_nextn_predict_layers": st.just(0),
            "layer_types": st.just(("full_attention", "full_attention", "linear_attention", "linear_attention")),
            "full_attention_interval": st.just(3),
            "rope_theta": st.just(5e5),
            "rms_norm_eps": st.just(1e-5),
        },
    ),
)
def test_a_round_trip_loses_nothing(build, same_weights, tmp_path_factory, dtype, shard_bytes, changes) -> None:
    folder = tmp_path_factory.mktemp("round") / "trip"
    model = build(dtype, **changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "_SHARD_BYTES", shard_bytes)
        gossamer.save(model, folder)
    loaded = gossamer.load(folder)
    assert loaded.config == model.config
    assert same_weights(loaded, model)
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == model.config.tie_word_embeddings
    assert (folder / names.INDEX).exists() == (shard_bytes != 10**9)


def test_what_is_written(build, tmp_path) -> None:
    model = build(torch.bfloat16)
    gossamer.save(model, tmp_path / "a" / "m", Tokenizer())
    folder = tmp_path / "a" / "m"
    assert listing(folder) == {"config.json", "model.safetensors", "tokenizer.json"}
    assert listing(tmp_path / "a") == {"m"}
    config = json.loads((folder / "config.json").read_text())
    assert config == model.config.to_dict() | {"dtype": "bfloat16", "eos_token_id": 7}
    with safe_open(folder / "model.safetensors", "pt") as file:
        stored, metadata = set(file.keys()), file.metadata()
    assert metadata == {"format": "pt"}
    assert {
        "lm_head.weight",
        "mtp.fc.weight",
        "mtp.layers.0.mlp.experts.3.down_proj.weight",
        "model.layers.0.mlp.experts.0.gate_proj.weight",
        "model.layers.1.mlp.gate_proj.weight",
        "model.layers.3.self_attn.q_norm.weight",
    } <= stored
    assert not any("gate_up" in name for name in stored)
    permissions = stat.S_IMODE((tmp_path / "a").stat().st_mode)
    assert stat.S_IMODE(folder.stat().st_mode) == permissions  # not a private temporary folder's


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
@pytest.mark.parametrize("shard_bytes", [10**9, 20_000])
def test_who_may_read_is_what_the_umask_says(build, tmp_path, monkeypatch, umask, shard_bytes) -> None:
    monkeypatch.setattr(write, "_SHARD_BYTES", shard_bytes)
    before = os.umask(umask)
    try:
        gossamer.save(build(), tmp_path / "m", Tokenizer())
        hub.export(tmp_path / "m", tmp_path / "exported")
    finally:
        os.umask(before)
    files = [*(tmp_path / "m").iterdir(), *(tmp_path / "exported").iterdir()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o666 & ~umask}


def test_a_tied_head_is_written_once(build, tmp_path) -> None:
    gossamer.save(build(tie_word_embeddings=True), tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")


def test_the_index_describes_the_shards(build, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(write, "_SHARD_BYTES", 40_000)
    model = build()
    gossamer.save(model, tmp_path)
    index = json.loads((tmp_path / names.INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(p.numel() * 4 for p in model.parameters())
    shards = sorted(tmp_path.glob("model-*-of-*.safetensors"))
    assert sorted(set(index["weight_map"].values())) == [shard.name for shard in shards]
    for shard in shards:
        tensors = load_file(shard)
        assert {name for name, file in index["weight_map"].items() if file == shard.name} == set(tensors)
        assert sum(tensor.numel() * 4 for tensor in tensors.values()) <= 40_000


def test_parameters_that_are_views_are_written_as_they_are(build, tmp_path, same_weights) -> None:
    model = build()
    model.model.layers[0].mlp.experts.down_proj = torch.nn.Parameter(torch.randn(4, 16, 32).transpose(1, 2))
    gossamer.save(model, tmp_path)
    assert same_weights(gossamer.load(tmp_path), model)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_routers_bias_is_kept_in_float32(build, tmp_path, tokens, dtype) -> None:
    model = build()
    bias = torch.tensor([0.0, 9.0, 0.1, 9.0])  # decides which experts are chosen
    without = model(tokens).logits
    model.model.layers[2].mlp.gate.e_score_correction_bias = bias
    gossamer.save(model, tmp_path)
    loaded = gossamer.load(tmp_path, dtype)
    assert torch.equal(loaded.model.layers[2].mlp.gate.e_score_correction_bias, bias)
    assert loaded.model.layers[0].mlp.gate.e_score_correction_bias is None
    if dtype is None:
        assert torch.equal(loaded(tokens).logits, model(tokens).logits)
        assert not torch.equal(loaded(tokens).logits, without)


# In the place of an older model.


@pytest.mark.parametrize(("before", "after"), [(10**9, 20_000), (20_000, 10**9), (20_000, 40_000), (10**9, 10**9)])
def test_another_model_is_replaced_and_other_files_stay(
    build, same_weights, tmp_path, monkeypatch, before, after
) -> None:
    monkeypatch.setattr(write, "_SHARD_BYTES", before)
    gossamer.save(build(seed=1), tmp_path, Tokenizer("old"))
    (tmp_path / "README.md").write_text("mine")
    monkeypatch.setattr(write, "_SHARD_BYTES", after)
    model = build(torch.bfloat16, num_nextn_predict_layers=0)
    gossamer.save(model, tmp_path, Tokenizer("new"))
    assert same_weights(gossamer.load(tmp_path), model)
    assert (tmp_path / "README.md").read_text() == "mine"
    assert (tmp_path / "tokenizer.json").read_text() == "new"
    gossamer.save(model, tmp_path / "fresh")
    assert listing(tmp_path) - {"README.md", "tokenizer.json", "fresh"} == listing(tmp_path / "fresh")


class Crash(BaseException):
    pass


@pytest.mark.parametrize(("before", "after"), [(10**9, 30_000), (30_000, 10**9), (30_000, 30_000), (10**9, 10**9)])
@pytest.mark.parametrize("changes", [{}, {"rms_norm_eps": 1e-5}])
def test_a_crash_at_any_moment_leaves_no_mixture(
    build, same_weights, tmp_path, monkeypatch, before, after, changes
) -> None:
    """What loads afterwards is the old model, the new one, or none."""
    old, new = build(seed=1), build(seed=2, **changes)
    survivors = set()
    for steps in range(100):
        folder = tmp_path / str(steps)
        with monkeypatch.context() as patch:
            patch.setattr(write, "_SHARD_BYTES", before)
            gossamer.save(old, folder, Tokenizer())
            patch.setattr(write, "_SHARD_BYTES", after)
            remaining = iter(range(steps))

            def crashing(function, remaining=remaining):
                def step(*args, **keys):
                    if next(remaining, None) is None:
                        raise Crash
                    return function(*args, **keys)

                return step

            patch.setattr(os, "replace", crashing(os.replace))
            patch.setattr(os, "fsync", crashing(os.fsync))
            patch.setattr(Path, "unlink", crashing(Path.unlink))
            patch.setattr(write, "save_file", crashing(write.save_file))
            try:
                gossamer.save(new, folder, Tokenizer())
            except Crash:
                finished = False
            else:
                finished = True
        try:
            found = gossamer.load(folder)
        except UserError as error:
            assert "config.json" in str(error)
            survivors.add("none")
        else:
            survivors.add("old" if same_weights(found, old) else "new" if same_weights(found, new) else "mixture")
            assert found.config == (old if same_weights(found, old) else new).config
        if finished:
            break
    assert finished
    assert {"old", "new"} <= survivors <= {"old", "new", "none"}
    if not changes and before == after == 10**9:
        assert "none" not in survivors  # a training run's next weights: readers always find a model


def test_leftovers_of_a_killed_process_are_swept(build, tmp_path) -> None:
    fresh, stale, other = (tmp_path / name for name in (".tmp-00000001-m", ".tmp-00000002-m", ".tmp-00000003-n"))
    for folder in (fresh, stale, other):
        folder.mkdir()
        (folder / "model.safetensors").touch()
    long_ago = time.time() - 2 * 24 * 3600
    for path in (stale, stale / "model.safetensors", other, other / "model.safetensors"):
        os.utime(path, (long_ago, long_ago))
    gossamer.save(build(), tmp_path / "m")
    assert listing(tmp_path) == {"m", fresh.name, other.name}


def test_a_link_to_a_folder(build, tmp_path, same_weights) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("elsewhere")
    gossamer.save(build(), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert same_weights(gossamer.load(tmp_path / "elsewhere"), build())
    assert listing(tmp_path) == {"elsewhere", "link"}


# Disks that refuse.


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        SafetensorError(f"I/O error: {os.strerror(errno.ENOSPC)} (os error {errno.ENOSPC})"),
    ],
)
def test_a_full_disk(build, same_weights, tmp_path, monkeypatch, error) -> None:
    gossamer.save(build(seed=1), tmp_path / "m")

    def full(tensors, path, metadata) -> None:
        Path(path).write_bytes(b"half")
        raise error

    monkeypatch.setattr(write, "save_file", full)
    with pytest.raises(UserError, match="disk is full"):
        gossamer.save(build(seed=2), tmp_path / "m")
    assert same_weights(gossamer.load(tmp_path / "m"), build(seed=1))
    assert listing(tmp_path) == {"m"}


def test_the_operating_system_refuses_in_the_middle(build, tmp_path) -> None:
    """A real refusal: files of this process may not grow beyond 64 KB."""
    gossamer.save(build(), tmp_path / "whole")
    script = f"""
        import resource, signal
        import gossamer
        model = gossamer.load({str(tmp_path / "whole")!r})
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
        try:
            gossamer.save(model, {str(tmp_path / "m")!r})
        except gossamer.UserError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    assert str(tmp_path / "m") in done.stdout
    assert "cannot be written" in done.stdout
    assert done.stdout.count("\n") == 1
    assert listing(tmp_path) == {"whole"}


def test_places_that_cannot_be_written(build, tmp_path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        gossamer.save(build(), tmp_path / "file")
    with pytest.raises(UserError, match="cannot be written"):
        gossamer.save(build(), tmp_path / "file" / "m")
