"""Adapters in PEFT's format: PEFT loads ours into transformers, and ours are read as PEFT reads its own."""

from __future__ import annotations

import copy
import json
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import gossamer
from gossamer.errors import UserError
from gossamer.hub.adapter import load_adapter, save_adapter
from gossamer.model.causal_lm import CausalLM
from gossamer.model.low_rank import TARGETS, LowRankConfig, add_low_rank, beside, merge_low_rank, targets_of
from hub_layouts import FAMILY

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:peft", "ignore::UserWarning:peft")

# Sizes that are all different: E 5, rank 6 or 3, hidden 32, experts 12, shared 24, keys 8, values 10.
SIZES = {"num_experts": 5, "moe_intermediate_size": 12, "linear_value_head_dim": 10}
LINEAR = ("in_proj_qkvz", "in_proj_ba", "out_proj")
EXPERTS = ("experts.gate_up_proj", "experts.down_proj")
every_kind = pytest.mark.parametrize("kind", FAMILY)


def sizes(kind: str) -> dict:
    return SIZES | FAMILY[kind] | ({} if kind != "qwen3_5_text" else {"num_experts": 0})


def adapted(model: CausalLM, targets: tuple[str, ...] = (), rank: int = 6) -> CausalLM:
    """A copy with an adapter that changes what it says."""
    model = copy.deepcopy(model)
    add_low_rank(model, LowRankConfig(rank=rank, alpha=9, targets=targets))
    torch.manual_seed(7)
    for target in targets_of(model):
        if target.low_rank is not None:
            torch.nn.init.normal_(target.low_rank.B, std=0.2)
    return model.requires_grad_(False)


@torch.no_grad()
def logits(model, tokens) -> torch.Tensor:
    return model(tokens).logits


def same(one: torch.Tensor, other: torch.Tensor, tolerance: float = 1e-4) -> None:
    assert float(other.abs().max()) > 0.1  # there is something to compare
    assert float((one - other).abs().max()) <= tolerance * max(1.0, float(other.abs().max()))


def differs(one: torch.Tensor, other: torch.Tensor) -> None:
    assert float((one - other).abs().max()) > 0.01


def their_base(folder: Path):
    network, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["mismatched_keys"], info
    return network.eval()


def their_adapter(base: Path, adapter: Path):
    network = peft.PeftModel.from_pretrained(their_base(base), str(adapter)).eval()
    result = network.load_adapter(str(adapter), "again")
    assert not result.unexpected_keys and not [key for key in result.missing_keys if "lora" in key], result
    return network


def loaded(base: CausalLM, adapter: Path) -> CausalLM:
    model = copy.deepcopy(base)
    load_adapter(model, adapter)
    return model


# Ours, read by PEFT.


@every_kind
@pytest.mark.parametrize("targets", [(), LINEAR, EXPERTS, EXPERTS[:1], EXPERTS[1:]], ids="-".join)
def test_peft_loads_ours_into_transformers(build, tmp_path, tokens, kind, targets) -> None:
    if kind == "qwen3_5_text" and targets and targets[0] in EXPERTS:
        pytest.skip("a dense network has no experts")
    base = build(**sizes(kind))
    gossamer.save(base, tmp_path / "base")
    ours = adapted(base, targets)
    save_adapter(ours, tmp_path / "adapter", tmp_path / "base")
    expected = logits(ours, tokens)
    differs(expected, logits(base, tokens))
    same(logits(their_adapter(tmp_path / "base", tmp_path / "adapter"), tokens), expected)
    same(logits(loaded(base, tmp_path / "adapter"), tokens), expected, 1e-5)


@every_kind
def test_the_file_is_as_peft_names_it(build, tmp_path, kind) -> None:
    """One scale for all modules, whatever their ranks; ranks that differ are named."""
    base = build(**sizes(kind))
    gossamer.save(base, tmp_path / "base")
    ours = adapted(base, rank=10)
    save_adapter(ours, tmp_path / "adapter", tmp_path / "base")
    config = peft.LoraConfig.from_pretrained(str(tmp_path / "adapter"))
    assert config.r == 10 and config.lora_alpha == 9
    assert config.rank_pattern.keys() == config.alpha_pattern.keys()
    for name, rank in config.rank_pattern.items():
        assert config.alpha_pattern[name] / rank == pytest.approx(0.9)
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
    assert any("in_proj_qkvz" in key for key in tensors) == (kind == "qwen3_next")
    # What serves or trains from the folder finds the network and the tokens there.
    assert json.loads((tmp_path / "adapter" / "config.json").read_text())["model_type"] == base.config.model_type
    model = gossamer.load(tmp_path / "adapter")
    torch.manual_seed(0)
    row = torch.randint(0, 64, (1, 9))
    same(logits(model, row), logits(ours, row), 1e-5)


def test_experts_apart_are_peft_s_conversion_of_them(build, tmp_path, tokens) -> None:
    base = build(**SIZES)
    gossamer.save(base, tmp_path / "base")
    ours = adapted(base)
    save_adapter(ours, tmp_path / "adapter", tmp_path / "base", apart=True)
    keys = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert "base_model.model.model.layers.0.mlp.experts.4.gate_proj.lora_A.weight" in keys
    assert not any("experts.lora" in key for key in keys)
    same(logits(their_adapter(tmp_path / "base", tmp_path / "adapter"), tokens), logits(ours, tokens))
    again = loaded(base, tmp_path / "adapter")
    same(logits(again, tokens), logits(ours, tokens), 1e-5)
    ranks = {t.low_rank.A.shape[-2] for t in targets_of(again) if t.kind == "experts.gate_up_proj"}
    assert ranks == {3}, "gates and ups that share their A keep it"


# PEFT's, read here.


def theirs(base: Path, folder: Path, **config):
    """transformers' network with an adapter of PEFT's, which is saved."""
    torch.manual_seed(2)
    network = peft.get_peft_model(their_base(base), peft.LoraConfig(**{"r": 4, "lora_alpha": 6} | config)).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.2)
    network.save_pretrained(folder)
    return network


PROJECTIONS = ["out_proj", "q_proj", "k_proj", "v_proj", "o_proj"]
PARAMETERS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("qwen3_next", {"target_modules": [*PROJECTIONS, "in_proj_qkvz", "in_proj_ba"]}),
        ("qwen3_next", {"target_modules": PROJECTIONS, "target_parameters": PARAMETERS}),
        ("qwen3_next", {"target_modules": PROJECTIONS, "use_rslora": True}),
        ("qwen3_next", {"target_modules": [], "target_parameters": PARAMETERS[:1]}),
        ("qwen3_next", {"target_modules": [], "target_parameters": PARAMETERS[1:], "use_rslora": True}),
        (
            "qwen3_next",
            {"target_modules": PROJECTIONS, "target_parameters": PARAMETERS,
             "rank_pattern": {"down_proj": 2, "q_.*": 3}, "alpha_pattern": {"layers.3.self_attn.o_proj": 5}},
        ),
        ("qwen3_next", {"target_modules": ["shared_expert.gate_proj", "shared_expert.up_proj", "q_proj"]}),
        ("qwen3_5_text", {"target_modules": ["in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "gate_proj"]}),
        ("qwen3_5_text", {"target_modules": ["in_proj_z", "in_proj_a", "up_proj", "down_proj"]}),
        ("qwen3_5_moe_text", {"target_modules": ["in_proj_qkv", "q_proj"], "target_parameters": PARAMETERS}),
        ("qwen3_5_moe_text", {"target_modules": ["shared_expert.gate_proj", "shared_expert.down_proj"]}),
    ],
)  # fmt: skip
def test_what_peft_saves_is_read(build, tmp_path, tokens, kind, config) -> None:
    base = build(**sizes(kind))
    gossamer.save(base, tmp_path / "base")
    network = theirs(tmp_path / "base", tmp_path / "adapter", **config)
    ours = loaded(base, tmp_path / "adapter")
    differs(logits(ours, tokens), logits(base, tokens))
    same(logits(ours, tokens), logits(network, tokens))


def as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """PEFT takes the rows of stacked experts for their columns, as it did before 0.19."""
    from peft.tuners.lora.layer import ParamWrapper

    update = ParamWrapper.update_layer

    def unswapped(self, *given, **named) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(self.get_base_layer(), "is_transposed", True)
            update(self, *given, **named)
        assert not self._did_swap_in_out_features

    monkeypatch.setattr(ParamWrapper, "update_layer", unswapped)


def edit(folder: Path, **changes) -> None:
    file = folder / "adapter_config.json"
    values = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


@pytest.mark.parametrize("parameters", [PARAMETERS, PARAMETERS[:1], PARAMETERS[1:]], ids=["both", "up", "down"])
def test_factors_of_experts_as_peft_had_them_before(build, tmp_path, tokens, monkeypatch, parameters) -> None:
    base = build(**SIZES)
    gossamer.save(base, tmp_path / "base")
    as_before(monkeypatch)
    network = theirs(tmp_path / "base", tmp_path / "adapter", target_modules=[], target_parameters=parameters)
    edit(tmp_path / "adapter", peft_version=None)
    same(logits(loaded(base, tmp_path / "adapter"), tokens), logits(network, tokens))


@pytest.mark.parametrize("is_old", [True, False])
def test_square_factors_need_a_version_or_others_that_are_not(build, tmp_path, tokens, monkeypatch, is_old) -> None:
    base = build(**SIZES | {"moe_intermediate_size": 16})  # 2 · 16 rows and as many columns
    gossamer.save(base, tmp_path / "base")
    if is_old:
        as_before(monkeypatch)
    for name, parameters in (("up", PARAMETERS[:1]), ("both", PARAMETERS)):
        network = theirs(tmp_path / "base", tmp_path / name, target_modules=[], target_parameters=parameters)
        edit(tmp_path / name, peft_version=None)
        if name == "both":
            same(logits(loaded(base, tmp_path / name), tokens), logits(network, tokens))
            continue
        refused(base, tmp_path / name, "peft_version", "32 rows", "0.19")
        edit(tmp_path / name, peft_version="0.18.1" if is_old else "0.21.2")
        same(logits(loaded(base, tmp_path / name), tokens), logits(network, tokens))


# What is refused.


def refused(base: CausalLM, folder: Path, *parts: str) -> None:
    model = copy.deepcopy(base)
    with pytest.raises(UserError) as caught:
        load_adapter(model, folder)
    message = str(caught.value)
    assert "\n" not in message
    assert all(part in message for part in parts), message
    assert all(target.low_rank is None for target in targets_of(model))


@pytest.fixture
def adapter(build, tmp_path) -> tuple[CausalLM, Path]:
    base = build(**SIZES)
    gossamer.save(base, tmp_path / "base")
    save_adapter(adapted(base), tmp_path / "adapter", tmp_path / "base")
    return base, tmp_path / "adapter"


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "lora_only"}, "lora_only"),
        ({"lora_bias": True}, "lora_bias"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"peft_type": "LOHA"}, "LOHA"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"a_field_of_tomorrow": 3}, "a_field_of_tomorrow"),
        ({"rank_pattern": {"(": 3}}, "regular expression"),
        ({"r": 0}, "1 or more"),
        ({"r": "six"}, "six"),
        ({"r": 7}, "another base"),
    ],
)
def test_other_kinds_of_adapters_are_refused_by_name(adapter, changes, part) -> None:
    base, folder = adapter
    edit(folder, **changes)
    refused(base, folder, "adapter", part)


def test_an_adapter_for_another_base_is_refused(build, adapter) -> None:
    base, folder = adapter
    refused(build(**SIZES, seed=3), folder, "another base")
    refused(build(**SIZES | {"hidden_size": 48}), folder, "another base")
    refused(build(**SIZES | {"num_hidden_layers": 3}), folder, "another base")
    narrow = copy.deepcopy(base).bfloat16()
    load_adapter(narrow, folder)
    assert all(target.low_rank is not None for target in targets_of(narrow))


def test_shapes_and_modules_are_held_to_the_network_without_a_sample_too(build, adapter) -> None:
    base, folder = adapter
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file(tensors, file)  # PEFT keeps no sample of the base
    refused(build(**SIZES | {"moe_intermediate_size": 20}), folder, "experts", "another base")
    refused(build(**SIZES | {"num_hidden_layers": 3}), folder, "modules are none", "layers.3")
    for key, part in (
        ("base_model.model.lm_head.lora_A.weight", "lm_head"),
        ("base_model.model.model.layers.0.linear_attn.out_proj.lora_magnitude_vector", "lora_magnitude_vector"),
        ("base_model.model.mtp.layers.0.self_attn.q_proj.lora_A.weight", "mtp.layers.0"),
        ("base_model.model.model.layers.0.mlp.gate.lora_A.weight", "one factor"),
    ):
        save_file(tensors | {key: torch.zeros(6, 32)}, file)
        refused(base, folder, part)
    gate = "base_model.model.model.layers.0.mlp.shared_expert_gate"
    save_file(tensors | {f"{gate}.lora_A.weight": torch.zeros(6, 32), f"{gate}.lora_B.weight": torch.zeros(1, 6)}, file)
    refused(base, folder, "shared_expert_gate", "none that gossamer adds to")


def test_folders_without_an_adapter_are_refused(build, adapter, tmp_path) -> None:
    base, folder = adapter
    refused(base, tmp_path / "base", "holds no adapter")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    refused(base, folder, "pickled")
    (folder / "adapter_model.bin").unlink()
    refused(base, folder, "lacks adapter_model.safetensors")
    (folder / "adapter_model.safetensors").write_bytes(b"nothing")
    refused(base, folder, "not a whole safetensors file")


def test_a_folder_without_its_base_is_refused(adapter, tmp_path) -> None:
    _, folder = adapter
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=re.escape("is not there; write its place in adapter_config.json")):
        gossamer.load(folder)
    edit(folder, base_model_name_or_path=str(folder))
    with pytest.raises(UserError, match="names itself"):
        gossamer.load(folder)


def test_an_adapter_of_a_model_with_an_adapter(adapter, tmp_path, tokens) -> None:
    """The first is added to the weights, the second lies beside them."""
    _, folder = adapter
    first = gossamer.load(folder)
    expected = logits(first, tokens)
    merge_low_rank(first)
    second = adapted(first, ("q_proj",))
    save_adapter(second, tmp_path / "second", folder)
    model = gossamer.load(tmp_path / "second")
    assert {target.kind for target in targets_of(model) if target.low_rank is not None} == {"q_proj"}
    same(logits(model, tokens), logits(second, tokens), 1e-5)
    differs(logits(model, tokens), expected)


@pytest.mark.parametrize("target", TARGETS)
def test_each_target_alone_there_and_back(build, tmp_path, tokens, target) -> None:
    base = build(**SIZES)
    gossamer.save(base, tmp_path / "base")
    ours = adapted(base, (target,), rank=2)
    for apart in (False, True):
        save_adapter(ours, tmp_path / "adapter", tmp_path / "base", apart=apart)
        same(logits(loaded(base, tmp_path / "adapter"), tokens), logits(ours, tokens), 1e-5)


# The drafting head beside an adapter.


def test_a_head_that_was_trained_lies_beside_the_adapter(build, tmp_path, tokens) -> None:
    base = build(**SIZES)
    gossamer.save(base, tmp_path / "base")
    ours = adapted(base)
    assert ours.mtp is not None
    save_adapter(ours, tmp_path / "adapter", tmp_path / "base")
    assert not (tmp_path / "adapter" / "drafts.safetensors").exists()
    ours.mtp.requires_grad_(True).fc.weight.data += 0.5
    save_adapter(ours, tmp_path / "adapter", tmp_path / "base")
    model = gossamer.load(tmp_path / "adapter")
    same(logits(model, tokens), logits(ours, tokens), 1e-5)
    assert model.mtp is not None and torch.equal(model.mtp.fc.weight, ours.mtp.fc.weight)
    shared = beside(base)  # a network beside another has a head of its own then
    load_adapter(shared, tmp_path / "adapter")
    assert shared.mtp is not None and base.mtp is not None
    assert torch.equal(base.mtp.fc.weight + 0.5, shared.mtp.fc.weight)
    gossamer.hub.export(tmp_path / "adapter", tmp_path / "merged")
    assert torch.equal(gossamer.load(tmp_path / "merged").mtp.fc.weight, ours.mtp.fc.weight)
    save_file({"mtp.fc.weight": torch.zeros(2, 2)}, tmp_path / "adapter" / "drafts.safetensors")
    refused(base, tmp_path / "adapter", "drafts.safetensors", "mtp.fc.weight")
    base.mtp = None
    refused(base, tmp_path / "adapter", "drafts.safetensors", "the base has none")
