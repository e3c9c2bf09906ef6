import torch
from hypothesis import given
from hypothesis import strategies as st

from gossamer.hub.names import first_few, is_weight_file, load_dtype, released_names

sizes = st.integers(1, 5)


@given(experts=sizes, width=sizes, hidden=sizes, down=st.booleans())
def test_the_experts_matrices_cover_the_stacked_parameter_once(experts, width, hidden, down) -> None:
    name = "mtp.layers.0.mlp.experts." + ("down_proj" if down else "gate_up_proj")
    shape = (experts, hidden, width) if down else (experts, 2 * width, hidden)
    parameter = torch.zeros(shape)
    pieces = [parameter[index] for _, index in released_names(name, parameter.shape)]
    for piece in pieces:
        assert piece.is_contiguous()
        assert piece.shape == ((hidden, width) if down else (width, hidden))
        piece += 1
    assert bool((parameter == 1).all())
    assert len({name for name, _ in released_names(name, parameter.shape)}) == len(pieces)


def test_the_gate_is_the_first_half() -> None:
    name = "model.layers.3.mlp.experts.gate_up_proj"
    assert list(released_names(name, torch.Size([1, 6, 2]))) == [
        ("model.layers.3.mlp.experts.0.gate_proj.weight", (0, slice(0, 3))),
        ("model.layers.3.mlp.experts.0.up_proj.weight", (0, slice(3, None))),
    ]


def test_everything_else_keeps_its_name() -> None:
    for name in ("model.layers.1.mlp.down_proj.weight", "model.layers.0.mlp.shared_expert.down_proj.weight"):
        assert list(released_names(name, torch.Size([4, 4]))) == [(name, ())]


def test_what_stays_wide() -> None:
    assert load_dtype("model.layers.0.linear_attn.A_log", torch.bfloat16) == torch.float32
    assert load_dtype("model.layers.0.linear_attn.norm.weight", torch.float64) == torch.float64
    assert load_dtype("model.norm.weight", torch.bfloat16) == torch.bfloat16


def test_weight_files(tmp_path) -> None:
    weights = ("model.safetensors", "model.safetensors.index.json", "model-00001-of-00002.safetensors")
    assert all(is_weight_file(tmp_path / name) for name in weights)
    assert not any(is_weight_file(tmp_path / name) for name in ("config.json", "model.md", "adapter.safetensors"))


def test_many_names_are_cut_after_the_first_few() -> None:
    assert first_few(["a", "b", "c"]) == "a, b, c"
    assert first_few("abcd") == "a, b, c, …"
