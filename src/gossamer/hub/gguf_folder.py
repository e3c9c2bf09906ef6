"""What a GGUF file says beside its weights, as the small files of a Hugging Face directory.

Everything that reads a model asks a folder for config.json, the tokenizer, chat templates and generation settings. A
GGUF file has all of them in its header. They are written once into a folder of the cache, with a note that says where
the weights are; `gossamer/hub/gguf_read.py` reads those in place.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors

from gossamer.cache import cached_folder, json_digest
from gossamer.data.tokenizer import Tokenizer
from gossamer.errors import UserError, shorten
from gossamer.files import cache_folder
from gossamer.hub.gguf_header import GgufHeader, read_gguf_header
from gossamer.hub.gguf_vocabulary import CONTROL, NORMAL, SPLITS, UNUSED, USER_DEFINED
from gossamer.model.config import FULL, LINEAR, ModelConfig
from gossamer.model.config_json import MODEL_TYPES
from gossamer.reading import read_object
from gossamer.typed import Range, convert

SUFFIX = ".gguf"
_MODEL_TYPES = {"qwen3next": "qwen3_next", "qwen35": "qwen3_5_text", "qwen35moe": "qwen3_5_moe_text"}
_NOTE = "gguf.json"
_VERSION = 1  # of what is written into the folder
_ENDS = ("<|im_end|>", "<|endoftext|>")  # end an answer in llama.cpp, whatever the keys say
_REQUIRED = object()
_Count = Annotated[int, Range(1, 1 << 40)]
_TokenId = Annotated[int, Range(0, (1 << 31) - 1)]


def gguf_folder(file: Path) -> Path:
    """Return a folder with all that a GGUF file holds but its weights, which `weights_of` finds.

    Raises:
        UserError: it is no whole GGUF file, another architecture, a tokenizer that is not known, or cannot be written.
    """
    file = file.resolve()
    status = file.stat()
    digest = json_digest(_VERSION, str(file), status.st_size, status.st_mtime_ns)

    def build(folder: Path) -> None:
        header = read_gguf_header(file)
        keys = _Keys(header.keys, file)
        config = _read_config(header, keys)
        tokenizer = _read_tokenizer(keys)
        tokenizer.save(folder)
        values = config.to_dict() | {"eos_token_id": tokenizer.eot_id}
        for name, content in (
            ("config.json", values),
            ("generation_config.json", {"eos_token_id": _end_ids(keys)}),
            (_NOTE, {"file": str(file)}),
        ):
            (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    return cached_folder(cache_folder() / "gguf" / digest, lambda folder: (folder / _NOTE).is_file(), build)


def weights_of(folder: Path) -> Path | None:
    """Return the GGUF file whose folder `gguf_folder` has made; None for any other folder."""
    note = folder / _NOTE
    return Path(str(read_object(note).get("file"))) if note.is_file() else None


@dataclass(frozen=True)
class _Keys:
    """The keys of a GGUF file, each with the type that it must have.

    Attributes:
        values: by name
        file: for messages
    """

    values: dict[str, Any]
    file: Path

    @property
    def architecture(self) -> str:
        """The name that the keys of the network begin with."""
        name = self.get("general.architecture", str)
        if name not in _MODEL_TYPES:
            known = ", ".join(_MODEL_TYPES)
            raise UserError(f"{self.file}: the architecture {shorten(name)} is another one; gossamer reads {known}")
        return str(name)

    def get(self, name: str, kind: Any, default: Any = _REQUIRED) -> Any:
        """Return the value of a key, or the default if it is missing."""
        if name not in self.values:
            if default is _REQUIRED:
                raise UserError(f"{self.file}: lacks the key {name}; convert the model again")
            return default
        try:
            return convert(self.values[name], kind, name)
        except UserError as error:
            raise UserError(f"{self.file}: {error}; convert the model again") from error

    def of_network(self, name: str, kind: Any, default: Any = _REQUIRED) -> Any:
        """Return the value of a key whose name begins with that of the architecture."""
        return self.get(f"{self.architecture}.{name}", kind, default)

    def require(self, holds: bool, problem: str) -> None:
        """Refuse a file about which something does not hold."""
        if not holds:
            raise UserError(f"{self.file}: {problem}")


# The network.


def _read_config(header: GgufHeader, keys: _Keys) -> ModelConfig:
    """Return the configuration of the network that a file describes."""
    keys.require("token_embd.weight" in header.tensors, "lacks the tensor token_embd.weight; download it again")
    fields = {
        "vocab_size": header.tensors["token_embd.weight"].shape[0],
        "tie_word_embeddings": "output.weight" not in header.tensors,
        **_network_fields(keys),
    }
    model_type = _MODEL_TYPES[keys.architecture]
    if model_type != "qwen3_5_text":
        fields |= {
            "num_experts": keys.of_network("expert_count", _Count),
            "num_experts_per_tok": keys.of_network("expert_used_count", _Count),
            "moe_intermediate_size": keys.of_network("expert_feed_forward_length", _Count),
            "shared_expert_intermediate_size": keys.of_network("expert_shared_feed_forward_length", _Count),
        }
    if (dense := keys.of_network("feed_forward_length", _Count, None)) is not None:
        fields["intermediate_size"] = dense
    known = {**MODEL_TYPES[model_type].defaults, **MODEL_TYPES[model_type].fixed}
    try:
        return ModelConfig(**known | fields | {"model_type": model_type})
    except UserError as error:
        raise UserError(f"{keys.file}: {error}") from error


def _network_fields(keys: _Keys) -> dict[str, Any]:
    """Return the fields of a `ModelConfig` that networks with and without experts have in common."""
    get = keys.of_network
    head, heads = get("attention.key_length", _Count), get("attention.head_count", _Count)
    width, value_heads = get("ssm.state_size", _Count), get("ssm.time_step_rank", _Count)
    scaling = get("rope.scaling.type", str, "none")
    keys.require(scaling == "none", f"rope.scaling.type is {shorten(scaling)}; gossamer computes none")
    keys.require(get("attention.value_length", int, head) == head, "its keys and values differ in width")
    keys.require(
        get("ssm.inner_size", int) == width * value_heads,
        "its key heads and value heads of linear attention differ in width",
    )
    mtp = get("nextn_predict_layers", Annotated[int, Range(0, 1)], 0)
    layers = get("block_count", _Count) - mtp
    linear = get("attention.recurrent_layers", tuple[bool, ...], None)
    return {
        "hidden_size": get("embedding_length", _Count),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": get("attention.head_count_kv", _Count, heads),
        "head_dim": head,
        "max_position_embeddings": get("context_length", _Count),
        "rms_norm_eps": _shortest(get("attention.layer_norm_rms_epsilon", float)),
        "rope_theta": _shortest(get("rope.freq_base", float, 10000.0)),
        "partial_rotary_factor": get("rope.dimension_count", _Count, head) / head,
        "full_attention_interval": get("full_attention_interval", _Count, 4),
        "layer_types": None if linear is None else tuple(LINEAR if one else FULL for one in linear[:layers]),
        "linear_conv_kernel_dim": get("ssm.conv_kernel", _Count),
        "linear_key_head_dim": width,
        "linear_value_head_dim": width,
        "linear_num_key_heads": get("ssm.group_count", _Count),
        "linear_num_value_heads": value_heads,
        "num_nextn_predict_layers": mtp,
    }


def _shortest(value: float) -> float:
    """Return a float32 as the number with the fewest digits that rounds to it: 1e-6, not 9.999999974752427e-07."""
    return float(str(np.float32(value)))


# The tokenizer.


def _read_tokenizer(keys: _Keys) -> Tokenizer:
    """Return the tokenizer, with the chat templates."""
    core = _byte_level_bpe(keys)
    eos, bos = _token(keys, "eos"), _token(keys, "bos")
    keys.require(eos is not None, "names no end-of-text token (tokenizer.ggml.eos_token_id); convert the model again")
    begins = bos is not None and keys.get("tokenizer.ggml.add_bos_token", bool, False)
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    config |= {"bos_token": bos, "eos_token": eos}
    if not (begins and bos == eos):  # with both, every text begins with it, as for tokenizers that are trained here
        config["add_bos_token"] = begins
        if begins:
            special = [(str(bos), keys.values["tokenizer.ggml.bos_token_id"])]
            core.post_processor = processors.TemplateProcessing(single=[str(bos), "$A"], special_tokens=special)
    return Tokenizer(core, str(eos), config, _chat_templates(keys))


def _byte_level_bpe(keys: _Keys) -> tokenizers.Tokenizer:
    """Return the vocabulary, merges and split of a file. llama.cpp normalizes no text, and neither does this."""
    kind, split = keys.get("tokenizer.ggml.model", str), keys.get("tokenizer.ggml.pre", str, "")
    keys.require(kind == "gpt2", f"its tokenizer is {shorten(kind)}; gossamer reads byte-level BPE, which is gpt2")
    known = ", ".join(SPLITS)
    keys.require(split in SPLITS, f"its tokenizer splits a text as {shorten(split)} does; gossamer knows {known}")
    tokens = keys.get("tokenizer.ggml.tokens", tuple[str, ...])
    types = keys.get("tokenizer.ggml.token_type", tuple[int, ...], (NORMAL,) * len(tokens))
    keys.require(len(types) == len(tokens), "tokenizer.ggml.token_type has another length than the tokens")
    vocabulary = {token: index for index, token in enumerate(tokens) if types[index] != UNUSED}
    merges = [tuple(merge.split(" ")) for merge in keys.get("tokenizer.ggml.merges", tuple[str, ...])]
    try:
        core = tokenizers.Tokenizer(models.BPE(vocabulary, merges))
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{keys.file}: not a tokenizer that can be read ({shorten(error, 300)})") from error
    words = pre_tokenizers.Split(Regex(SPLITS[split]), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.pre_tokenizer = pre_tokenizers.Sequence([words, byte_level])
    core.decoder = decoders.ByteLevel()
    named = list(zip(tokens, types, strict=True))
    core.add_special_tokens([AddedToken(token, normalized=False) for token, kind in named if kind == CONTROL])
    core.add_tokens([AddedToken(token, normalized=False) for token, kind in named if kind == USER_DEFINED])
    return core


def _token(keys: _Keys, name: str) -> str | None:
    """Return the token that a key names by its id; None if the key is missing."""
    key = f"tokenizer.ggml.{name}_token_id"
    index, tokens = keys.get(key, _TokenId, None), keys.values["tokenizer.ggml.tokens"]
    if index is None:
        return None
    keys.require(index < len(tokens), f"{key} = {index}, and there are {len(tokens)} tokens")
    return str(tokens[index])


def _end_ids(keys: _Keys) -> list[int]:
    """Return the tokens that end an answer: the end of a text first."""
    tokens, types = keys.values["tokenizer.ggml.tokens"], keys.values.get("tokenizer.ggml.token_type", [])
    control = {token: index for index, (token, kind) in enumerate(zip(tokens, types, strict=False)) if kind == CONTROL}
    named = [keys.get(f"tokenizer.ggml.{name}_token_id", _TokenId, None) for name in ("eos", "eot")]
    found = [*named, *(control.get(token) for token in _ENDS)]
    return list(dict.fromkeys(index for index in found if index is not None))


def _chat_templates(keys: _Keys) -> dict[str, str]:
    """Return the Jinja templates by name."""
    prefix = "tokenizer.chat_template"
    found = {"default": keys.get(prefix, str)} if prefix in keys.values else {}
    for key in keys.values:
        if match := re.fullmatch(rf"{re.escape(prefix)}\.(\w+)", key):
            found[match[1]] = keys.get(key, str)
    return found
