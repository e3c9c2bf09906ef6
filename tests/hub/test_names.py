import torch

from gossamer.hub.names import first_few, is_weight_file, load_dtype


def test_what_stays_wide() -> None:
    assert load_dtype("model.layers.0.linear_attn.A_log", torch.bfloat16) == torch.float32
    assert load_dtype("model.layers.0.linear_attn.norm.weight", torch.float64) == torch.float64
    assert load_dtype("model.norm.weight", torch.bfloat16) == torch.bfloat16


def test_weight_files(tmp_path) -> None:
    weights = ("model.safetensors", "model.safetensors.index.json", "model-00001-of-00002.safetensors")
    weights += ("model.safetensors-00001-of-00002.safetensors",)
    assert all(is_weight_file(tmp_path / name) for name in weights)
    assert not any(is_weight_file(tmp_path / name) for name in ("config.json", "model.md", "adapter.safetensors"))


def test_many_names_are_cut_after_the_first_few() -> None:
    assert first_few(["a", "b", "c"]) == "a, b, c"
    assert first_few("abcd") == "a, b, c, …"
