"""The account of a network: its layers, its embedding and its head, summed up by part.

Nothing is built. `network_of` reads gossamer's own configuration, `plan.other_families` those of other architectures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

from gossamer.cost.layer import Layer, layer_of
from gossamer.model.config import FULL, LINEAR, ModelConfig
from gossamer.model.layer_spec import layer_specs

__all__ = ["Counts", "Network", "Part", "count_network", "flops_by_part", "network_of"]


@dataclass(frozen=True)
class Part:
    """One part of a network.

    Attributes:
        name: its place in the checkpoint, such as `model.layers.3.self_attn`
        kind: `embedding`, `linear_attention`, `full_attention`, `router`, `experts`, `dense`, `norm`, `head` or `mtp`
        parameters: all parameters
        active_parameters: parameters that a single token is multiplied with
        forward_flops: FLOPs per token of the forward pass
        training_flops: FLOPs per token of the forward and the backward pass
    """

    name: str
    kind: str
    parameters: int
    active_parameters: int
    forward_flops: float
    training_flops: float


@dataclass(frozen=True)
class Counts:
    """The parts of a network with their sums, for sequences of one length."""

    parts: tuple[Part, ...]

    @property
    def parameters(self) -> int:
        """All parameters; a tied head is counted once."""
        return sum(part.parameters for part in self.parts)

    @property
    def active_parameters(self) -> int:
        """Parameters that one token passes: of the routed experts only its top k."""
        return sum(part.active_parameters for part in self.parts)

    @property
    def mtp(self) -> Counts:
        """The parts of the multi-token-prediction head."""
        return Counts(tuple(part for part in self.parts if part.kind == "mtp"))

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """All and active parameters of the network, and of its multi-token-prediction head alone; see `units.SIZES`."""
        return self.parameters, self.active_parameters, self.mtp.parameters, self.mtp.active_parameters

    @property
    def forward_flops(self) -> float:
        """FLOPs per token of the forward pass."""
        return sum(part.forward_flops for part in self.parts)

    @property
    def training_flops(self) -> float:
        """FLOPs per token of a training step."""
        return sum(part.training_flops for part in self.parts)

    def by_kind(self, mtp_share: float = 1.0, head_share: float = 1.0) -> dict[str, float]:
        """Return the training FLOPs per token of each kind of part; kinds without any are left out.

        Args:
            mtp_share: how often the multi-token-prediction head is applied, over how often it is counted
            head_share: share of the vocabulary that the output head is multiplied with
        """
        totals: dict[str, float] = {}
        for part in self.parts:
            flops = part.training_flops * (head_share if part.name.endswith("lm_head") else 1.0)
            totals[part.kind] = totals.get(part.kind, 0.0) + flops * (mtp_share if part.kind == "mtp" else 1.0)
        return {kind: flops for kind, flops in totals.items() if flops}


@dataclass(frozen=True)
class Network:
    """A network as everything that counts sees it.

    Attributes:
        name: what people call it
        hidden_size: width of the residual stream
        vocab_size: number of token ids
        tied: whether the output head is the embedding
        layers: the layers of the trunk, in order
        mtp_layers: the layers of multi-token prediction, each with a projection of two hidden vectors, norms, and one
            more use of the output head
        activation_config: the configuration by which `cost.memory` counts activations: gossamer's own, or for another
            architecture one whose layers have the same widths
    """

    name: str
    hidden_size: int
    vocab_size: int
    tied: bool
    layers: tuple[Layer, ...]
    mtp_layers: tuple[Layer, ...]
    activation_config: ModelConfig

    @cached_property
    def distinct_layers(self) -> tuple[tuple[Layer, int], ...]:
        """Each different layer of the trunk with how many of it there are."""
        return tuple(Counter(self.layers).items())

    @cached_property
    def has_linear_attention(self) -> bool:
        """Whether a layer of the trunk mixes tokens by linear attention."""
        return any(layer.mixer.kind == LINEAR for layer in self.layers)

    @cached_property
    def parameters(self) -> int:
        """All parameters."""
        return self.counts(1).parameters

    @cached_property
    def expert_parameters(self) -> int:
        """Parameters of all routed experts."""
        return sum(layer.feed_forward.expert_parameters for layer in (*self.layers, *self.mtp_layers))

    @property
    def vocabulary_parameters(self) -> int:
        """Parameters of the embedding and the output head."""
        return self.vocab_size * self.hidden_size * (1 if self.tied else 2)

    @cached_property
    def dense_parameters(self) -> int:
        """Parameters outside of the routed experts, the embedding and the output head."""
        return self.parameters - self.expert_parameters - self.vocabulary_parameters

    @cached_property
    def mtp_dense_parameters(self) -> int:
        """Parameters of the multi-token-prediction head outside of its routed experts."""
        return self.counts(1).mtp.parameters - sum(layer.feed_forward.expert_parameters for layer in self.mtp_layers)

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """All and active parameters of the network, and of its multi-token-prediction head alone; see `units.SIZES`."""
        return self.counts(1).sizes

    @cached_property
    def active_parameters(self) -> int:
        """Parameters that a token passes in the trunk, with the head and one row of the embedding: N of 6·N·D."""
        return sum(part.active_parameters for part in self.counts(1).parts if part.kind != "mtp")

    def counts(self, context: int) -> Counts:
        """Count every part of the network for sequences of `context` tokens."""
        return Counts(tuple(self._parts(context)))

    def flops(self, context: int, mtp_steps: int | None = None) -> dict[str, float]:
        """Return the training FLOPs per token of each kind of part, for sequences of `context` tokens.

        Args:
            context: length of a sequence
            mtp_steps: steps of multi-token prediction; None means one for each of its layers
        """
        share = 1.0 if mtp_steps is None else mtp_steps / max(1, len(self.mtp_layers))
        return self.counts(context).by_kind(mtp_share=share)

    def _parts(self, context: int) -> Iterator[Part]:
        hidden, head = self.hidden_size, self.vocab_size * self.hidden_size
        yield Part("model.embed_tokens", "embedding", head, hidden, 0.0, 0.0)
        for index, layer in enumerate(self.layers):
            yield from _layer_parts(f"model.layers.{index}", layer, context)
        yield _part("model.norm", "norm", hidden, 0)
        yield replace(_part("lm_head", "head", head), parameters=0 if self.tied else head)
        for index, layer in enumerate(self.mtp_layers):
            for part in self._mtp_parts("mtp" if index == 0 else f"mtp.{index}", layer, context):
                yield replace(part, kind="mtp")

    def _mtp_parts(self, name: str, layer: Layer, context: int) -> Iterator[Part]:
        hidden, head = self.hidden_size, self.vocab_size * self.hidden_size
        yield _part(f"{name}.fc", "mtp", 2 * hidden * hidden)
        yield _part(f"{name}.pre_fc_norm_embedding", "norm", hidden, 0)
        yield _part(f"{name}.pre_fc_norm_hidden", "norm", hidden, 0)
        yield from _layer_parts(f"{name}.layers.0", layer, context)
        yield _part(f"{name}.norm", "norm", hidden, 0)
        # The trunk's head, used once more: its parameters are counted there.
        yield replace(_part(f"{name}.lm_head", "mtp", head), parameters=0, active_parameters=0)


def _layer_parts(name: str, layer: Layer, context: int) -> Iterator[Part]:
    mixer, part = layer.mixer, layer.feed_forward
    place = f"{name}.{'self_attn' if mixer.kind == FULL else 'linear_attn'}"
    yield _part(f"{name}.input_layernorm", "norm", part.hidden_size, 0)
    flops = mixer.forward_flops(context), mixer.training_flops(context)
    yield Part(place, mixer.kind, mixer.parameters, mixer.parameters, *flops)
    yield _part(f"{name}.post_attention_layernorm", "norm", part.hidden_size, 0)
    if not part.num_experts:
        yield _part(f"{name}.mlp", "dense", part.shared_parameters)
        return
    yield _part(f"{name}.mlp.gate", "router", part.router_parameters)
    routed = _part(f"{name}.mlp.experts", "experts", part.active_expert_parameters)
    yield replace(routed, parameters=part.expert_parameters)
    yield _part(f"{name}.mlp.shared_expert", "experts", part.shared_parameters)


def _part(name: str, kind: str, parameters: int, multiplied: int | None = None) -> Part:
    """A part whose `parameters` a token passes, all of them in products unless `multiplied` gives another number."""
    flops = 2.0 * (parameters if multiplied is None else multiplied)
    return Part(name, kind, parameters, parameters, flops, 3 * flops)


@lru_cache(maxsize=64)
def network_of(config: ModelConfig, name: str = "") -> Network:
    """Return the account of a configuration's network."""
    specs = [replace(spec, name="") for spec in layer_specs(config)]
    accounts = {spec: layer_of(spec) for spec in dict.fromkeys(specs)}
    layers = tuple(accounts[spec] for spec in specs)
    return Network(
        name=name,
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        tied=config.tie_word_embeddings,
        layers=layers[: config.num_hidden_layers],
        mtp_layers=layers[config.num_hidden_layers :],
        activation_config=config,
    )


@lru_cache(maxsize=64)
def count_network(config: ModelConfig, context: int = 4096) -> Counts:
    """Count every part of a configuration's network for sequences of `context` tokens."""
    return network_of(config).counts(context)


_ACCOUNT_NAMES = {"full_attention": "attention", "router": "experts"}  # the other kinds keep their names


def flops_by_part(config: ModelConfig, context: int, mtp_steps: int, sampled_vocab_size: int = 0) -> dict[str, float]:
    """Return the FLOPs per token of a training step, by part of the network; parts without any are left out.

    Args:
        config: the network
        context: tokens of a row, which is counted as one document
        mtp_steps: how many times the multi-token-prediction head is applied; 0 means not at all
        sampled_vocab_size: tokens that the output head is multiplied with, more if a batch has more; 0 means all
    """
    found: dict[str, float] = {}
    head_share = min(sampled_vocab_size or config.vocab_size, config.vocab_size) / config.vocab_size
    for kind, flops in count_network(config, context).by_kind(mtp_steps, head_share).items():
        part = _ACCOUNT_NAMES.get(kind, kind)
        found[part] = found.get(part, 0.0) + flops
    return found
