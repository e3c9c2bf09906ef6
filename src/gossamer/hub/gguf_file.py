"""Writing a network as one GGUF file, which llama.cpp and the programs built on it read."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gossamer.errors import UserError
from gossamer.files import disk_errors, replacing
from gossamer.hub.find import ADAPTER, find_model
from gossamer.hub.gguf_folder import weights_of
from gossamer.hub.gguf_tensors import QWEN3NEXT, QWEN35, QWEN35MOE, architecture_of, gguf_tensors
from gossamer.hub.gguf_vocabulary import Vocabulary, read_vocabulary
from gossamer.hub.names import EMBEDDING, tensors_of
from gossamer.hub.read import load, merged
from gossamer.hub.write import SAVE_ELSEWHERE
from gossamer.model.config import ModelConfig
from gossamer.model.layer_spec import layer_specs
from gossamer.reading import text_of_name, user_path

_TYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_FILE_TYPES = {torch.float32: "ALL_F32", torch.bfloat16: "MOSTLY_BF16", torch.float16: "MOSTLY_F16"}


def export_gguf(run: str | Path, file: str | Path) -> None:
    """Write the model of a run, or of a checkpoint, with its tokenizer, as a GGUF file for llama.cpp.

    Its architecture is `qwen35` for a dense network, and for one with experts `qwen3next` or `qwen35moe`, as the model
    type says. Matrices stay in the type in which they are stored, except that float64 becomes float32; what llama.cpp
    needs in float32 is written so. The multi-token-prediction head is included. `llama-quantize` of llama.cpp makes
    narrower types.

    Args:
        run: a run's folder, a Hugging Face directory or a GGUF file
        file: new; its name ends in .gguf

    Raises:
        UserError: there is no whole model in `run`; llama.cpp does not compute this network or know its tokenizer; the
            package `gguf` is missing; or `file` exists or cannot be written. No half-written file is left.
    """
    gguf = _library()
    source, target = find_model(run), user_path(file)
    if target.suffix != ".gguf":
        raise UserError(f"{file}: name a file that ends in .gguf")
    if target.exists():
        raise UserError(f"{file}: exists; name a new file")
    model = merged(load(source))
    parameters = {name: tensor.detach() for name, tensor in tensors_of(model).items()}
    architecture = architecture_of(model.config, list(parameters))
    vocabulary = read_vocabulary(source, model.config.vocab_size)
    place = target.resolve()
    with disk_errors(place.parent, SAVE_ELSEWHERE):
        place.parent.mkdir(parents=True, exist_ok=True)
        with replacing(place) as temporary:
            writer = gguf.GGUFWriter(temporary, architecture)
            writer.add_type(gguf.GGUFType.MODEL)
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
            _describe_network(writer, model.config, architecture)
            writer.add_string("general.name", text_of_name(_name(source)))
            writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES.get(parameters[EMBEDDING].dtype, "ALL_F32")])
            _describe_tokenizer(writer, vocabulary)
            _write_tensors(writer, parameters, model.config, architecture)


def _name(folder: Path) -> str:
    """Return what a model is called: as its run, its directory or its GGUF file."""
    if (file := weights_of(folder)) is not None:
        return file.stem
    return folder.parent.name if folder.name in ("model", ADAPTER) else folder.name


def _library() -> Any:
    """Return the package `gguf`, which is optional."""
    try:
        return import_module("gguf")
    except ImportError as error:
        raise UserError(
            "--to gguf needs a package that is not installed; install it with: pip install 'gossamer[gguf]'"
        ) from error


def _describe_network(writer: Any, config: ModelConfig, architecture: str) -> None:
    """Write the keys that llama.cpp's `load_arch_hparams` reads for this architecture, and those of every one."""
    layers = layer_specs(config)
    writer.add_block_count(len(layers))
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.rotary_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_ssm_conv_kernel(config.linear_conv_kernel_dim)
    writer.add_ssm_state_size(config.linear_key_head_dim)
    writer.add_ssm_group_count(config.linear_num_key_heads)
    writer.add_ssm_time_step_rank(config.linear_num_value_heads)
    writer.add_ssm_inner_size(config.linear_value_dim)
    writer.add_full_attention_interval(config.full_attention_interval)
    # The published package has no method for this key yet.
    writer.add_array(f"{architecture}.attention.recurrent_layers", [layer.is_linear for layer in layers])
    if architecture != QWEN3NEXT:
        writer.add_rope_dimension_sections(_rope_sections(config.rotary_dim))
    if architecture != QWEN35MOE:
        writer.add_feed_forward_length(config.intermediate_size)
    if architecture != QWEN35:
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
        writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)
    if config.num_nextn_predict_layers:
        writer.add_nextn_predict_layers(config.num_nextn_predict_layers)


def _rope_sections(rotary_dim: int) -> list[int]:
    """Return how many pairs of rotating dimensions follow time, height and width, and nothing: 11, 11, 10, 0 of 32.

    The pairs take turns. For text the three positions are one, so that sections change nothing, as long as every pair
    has one of the three.
    """
    pairs = rotary_dim // 2
    return [(pairs + 2) // 3, (pairs + 1) // 3, pairs // 3, 0]


def _describe_tokenizer(writer: Any, vocabulary: Vocabulary) -> None:
    """Write the keys of the tokenizer."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    writer.add_eos_token_id(vocabulary.eos)
    if vocabulary.eot is not None:
        writer.add_eot_token_id(vocabulary.eot)
    if vocabulary.bos is not None:
        writer.add_bos_token_id(vocabulary.bos)
    writer.add_add_bos_token(vocabulary.add_bos)
    if vocabulary.chat_templates:
        named = [{"name": name, "template": text} for name, text in vocabulary.chat_templates.items()]
        writer.add_chat_template(named)


def _write_tensors(writer: Any, parameters: dict[str, Tensor], config: ModelConfig, architecture: str) -> None:
    """Write the names and shapes of all tensors, then the tensors one by one, so that only one is copied at a time."""
    kinds = _library().GGMLQuantizationType
    stored = [(one, tensor) for name, tensor in parameters.items() for one in gguf_tensors(name, config, architecture)]
    for one, tensor in stored:
        described = one.read(tensor.to("meta"))
        size = described.numel() * described.itemsize
        writer.add_tensor_info(one.name, tuple(described.shape), None, size, raw_dtype=kinds[_TYPES[described.dtype]])
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for one, tensor in stored:
            # NumPy has no bfloat16, so bytes are written, whatever the type.
            writer.write_tensor_data(one.read(tensor).view(torch.uint8).numpy())
    finally:
        writer.close()
