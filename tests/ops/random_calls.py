"""Calls of every operation and of the network with arguments that mostly fit, made from a number.

`python tests/ops/random_calls.py FIRST COUNT` makes COUNT of them, each through every implementation, and prints the
number of each before it is made: if the process dies, the last number says which call it was. A call must give a result
or a UserError, and the same through all implementations.
"""

from __future__ import annotations

import faulthandler
import random
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))

from engines import CONFIG, VOCAB
from gossamer import ops
from gossamer.errors import UserError
from gossamer.model import decode
from gossamer.model.causal_lm import CausalLM
from gossamer.model.decode.decoder import Decoder
from gossamer.model.decode.drafts import DraftSampling
from gossamer.model.decode.pool import StatePool
from gossamer.model.mtp import MTPTraining
from gossamer.ops.delta_step import DeltaState, DeltaWeights
from gossamer.ops.matrix import Int8Matrix
from gossamer.ops.sequences import Sequences

CPU = torch.device("cpu")
DTYPES = (
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
    torch.complex64,
)
NARROW = (torch.bfloat16, torch.float16)
STRANGE: tuple[Any, ...] = (
    None, "1", 0.5, 3, True, float("nan"), [], (), {}, [1.0], (0, 1), torch.tensor(1.0), torch.zeros(0),
    torch.ones(2, 3, 4, 5, 6), torch.tensor([0, 1]), torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    torch.quantize_per_tensor(torch.ones(2, 3), 0.1, 0, torch.qint8), torch.ones(2, 2, dtype=torch.int8),
    Int8Matrix(torch.ones(32, dtype=torch.int8), torch.tensor(1.0)),
    Int8Matrix(torch.ones(2, 3, dtype=torch.int8), torch.ones(2)),
    Int8Matrix(None, None),  # type: ignore[arg-type]
)  # fmt: skip
ODD = (-1, 0, 1, 2, 7, 100, 2**31, 2**40, -(2**63))


class Made:
    """A call: what is called, by which operations' implementations, and what its arguments are."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.name = self.random.choice(list(CALLS))
        self.comparable = True
        self.function, self.arguments = CALLS[self.name](self)
        if self.random.random() < 0.8:
            for name in self.random.sample(
                list(self.arguments), min(len(self.arguments), self.random.choice((1, 1, 2)))
            ):
                self.arguments[name] = self.spoilt(self.arguments[name])

    def floats(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def whole(self, low: int, high: int) -> int:
        return self.random.randint(low, high)

    def ids(self, below: int, *shape: int) -> Tensor:
        return torch.randint(below, shape, generator=self.generator)

    def edges(self, total: int) -> Tensor | None:
        if self.random.random() < 0.5:
            return None
        inner = sorted(self.whole(0, total) for _ in range(self.whole(0, 3)))
        return torch.tensor([0, *inner, total], dtype=self.random.choice((torch.int64, torch.int32)))

    def sequences(self, slots: int, pages: int, page_size: int, max_tokens: int) -> Sequences:
        number = self.whole(1, min(3, slots))
        sampled = self.random.sample(range(slots), number)
        own = pages // number
        tables = tuple(tuple(range(n * own, (n + 1) * own)) for n in range(number))
        lengths = tuple(self.whole(1, max_tokens) for _ in sampled)
        past = tuple(self.whole(0, own * page_size - length - max_tokens) for length in lengths)
        return Sequences(
            tuple(sampled), tuple(self.whole(0, max_tokens) for _ in sampled), past, lengths, tables, page_size
        )

    def spoilt(self, value: Any) -> Any:
        if self.random.random() < 0.2:
            return self.random.choice(STRANGE)
        if isinstance(value, Tensor):
            return self.spoilt_tensor(value)
        if isinstance(value, Sequences):
            return self.spoilt_sequences(value)
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            field = self.random.choice(value._fields)
            return value._replace(**{field: self.spoilt(getattr(value, field))})
        if isinstance(value, (bool, type(None))):
            return value
        if isinstance(value, tuple):
            return tuple(self.random.choice((*ODD, *STRANGE)) for _ in value)
        return self.random.choice((*ODD, 0.5, -0.5, float("nan"), float("inf"), "1", True))

    def spoilt_tensor(self, x: Tensor) -> Any:
        if x.is_meta or x.is_sparse:
            return x
        if x.dtype == torch.int64 and x.numel() and self.random.random() < 0.5:
            x = x.clone()
            x.view(-1)[self.whole(0, x.numel() - 1)] = self.random.choice((*ODD, VOCAB, -100, 10**6))
            return x
        dimension = self.whole(0, x.ndim - 1) if x.ndim else 0
        match self.random.choice(
            "type type meta view step wide expand less more none empty drop add sparse list".split()
        ):
            case "type":
                return x.to(self.random.choice(DTYPES))
            case "meta":
                return x.to("meta")
            case "view" if x.ndim > 1:
                return x.transpose(0, -1).contiguous().transpose(0, -1)
            case "step" if x.ndim and x.shape[dimension]:
                return x.repeat_interleave(2, dimension).unfold(dimension, 1, 2).squeeze(-1)
            case "wide" if x.ndim:
                return torch.cat([x, x], -1)[..., : x.shape[-1]]
            case "expand" if x.ndim:
                return x.narrow(dimension, 0, min(1, x.shape[dimension])).expand_as(x) if x.shape[dimension] else x
            case "less" if x.ndim and x.shape[dimension]:
                return x.narrow(dimension, 0, x.shape[dimension] - 1)
            case "more" if x.ndim:
                return torch.cat([x, x.narrow(dimension, 0, min(1, x.shape[dimension]))], dimension)
            case "none":
                return None
            case "empty" if x.ndim:
                return x.narrow(dimension, 0, 0)
            case "drop" if x.ndim:
                return x.sum(dimension).to(x.dtype)
            case "add":
                return x.unsqueeze(dimension)
            case "sparse":
                return x.to_sparse()
            case "list":
                return x.tolist()
        return x

    def spoilt_sequences(self, value: Sequences) -> Any:
        field = self.random.choice(("slots", "accepted", "past", "lengths", "page_tables", "page_size"))
        now = getattr(value, field)
        if field == "page_size":
            new: Any = self.random.choice((*ODD, *STRANGE))
        elif field == "page_tables":
            new = tuple(tuple(self.random.choice((*ODD, page)) for page in table) for table in now)
            odd = tuple((*table[1:], self.random.choice(STRANGE)) for table in now)
            new = self.random.choice((new, odd, tuple(table[:1] for table in now), now[1:]))
        else:
            place = self.whole(0, len(now) - 1)
            new = self.random.choice(((*now[:place], self.random.choice((*ODD, *STRANGE)), *now[place + 1 :]), now[1:]))
        return lambda: replace(value, **{field: new})  # made where an error is seen

    def call(self) -> Any:
        return self.function(**{name: x() if callable(x) else x for name, x in self.arguments.items()})


def attention(m: Made) -> tuple[Callable[..., Any], dict[str, Any]]:
    b, t, kv, d = m.whole(1, 2), m.whole(0, 9), m.whole(1, 2), m.whole(1, 20)
    cu = m.edges(b * t)
    s = t if cu is not None else t + m.random.choice((0, 0, 3))
    shapes = {"q": (b, t, kv * m.whole(1, 2), d), "k": (b, s, kv, d), "v": (b, s, kv, d)}
    return ops.attention, {name: m.floats(*shape).requires_grad_() for name, shape in shapes.items()} | {
        "cu_seqlens": cu
    }


def delta_rule(m: Made) -> tuple[Callable[..., Any], dict[str, Any]]:
    b, t, hk, dk, dv = m.whole(1, 2), m.whole(0, 9), m.whole(1, 2), m.whole(1, 9), m.whole(1, 9)
    hv, cu = hk * m.whole(1, 2), m.edges(b * t)
    shapes = {"q": (b, t, hk, dk), "k": (b, t, hk, dk), "v": (b, t, hv, dv)}
    made: dict[str, Any] = {name: m.floats(*shape).requires_grad_() for name, shape in shapes.items()}
    n = b if cu is None else len(cu) - 1
    state = m.random.choice((None, m.floats(n, hv, dk, dv)))
    made |= {"g": -m.floats(b, t, hv).abs(), "beta": m.floats(b, t, hv).sigmoid()}
    return ops.delta_rule, made | {"initial_state": state, "cu_seqlens": cu}


def short_conv(m: Made) -> tuple[Callable[..., Any], dict[str, Any]]:
    b, t, channels, kernel_size = m.whole(1, 2), m.whole(0, 9), m.whole(1, 40), m.whole(1, 9)
    cu = m.edges(b * t)
    state = m.random.choice((None, m.floats(b if cu is None else len(cu) - 1, kernel_size - 1, channels)))
    made = {"x": m.floats(b, t, channels).requires_grad_(), "weight": m.floats(channels, kernel_size).requires_grad_()}
    return ops.short_conv, made | {"initial_state": state, "cu_seqlens": cu}


def rms_norm(m: Made) -> tuple[Callable[..., Any], dict[str, Any]]:
    shape = [m.whole(1, 5) for _ in range(m.whole(0, 3))] + [m.whole(1, 40)]
    return ops.rms_norm, {"x": m.floats(*shape).requires_grad_(), "weight": m.floats(shape[-1]), "eps": 1e-6}


def gated_rms_norm(m: Made) -> tuple[Callable[..., Any], dict[str, Any]]:
    shape = [m.whole(1, 3), m.whole(0, 5), m.whole(1, 3), m.whole(1, 40)]
    x, gate = m.floats(*shape).requires_grad_(), m.floats(*shape).requires_grad_()
    return ops.gated_rms_norm, {"x": x, "gate": gate, "weight": m.floats(shape[-1]), "eps": 1e-6}


def grouped_mlp(m: Made) -> tuple[Callable[..., Any], dict[str, Any]]:
    n, k, e, h, i = m.whole(0, 9), m.whole(1, 2), m.whole(2, 9), m.whole(1, 20), m.whole(1, 9)
    made: dict[str, Any] = {
        "x": m.floats(n, h).requires_grad_(),
        "expert_indices": m.ids(e, n, k),
        "expert_weights": m.floats(n, k),
    }
    weights = {"gate_up_proj": m.floats(e, 2 * i, h).requires_grad_(), "down_proj": m.floats(e, h, i)}
    return ops.grouped_mlp, made | weights


def linear_cross_entropy(m: Made) -> tuple[Callable[..., Any], dict[str, Any]]:
    n, h, v = m.whole(0, 9), m.whole(1, 20), m.whole(1, VOCAB)
    labels = m.ids(v, n)
    labels[m.floats(n) > 1] = -100
    made: dict[str, Any] = {"hidden": m.floats(n, h).requires_grad_(), "weight": m.floats(v, h).requires_grad_()}
    return ops.linear_cross_entropy, made | {"labels": labels, "bias": m.random.choice((None, m.floats(v)))}


def token_logprobs(m: Made) -> tuple[Callable[..., Any], dict[str, Any]]:
    _, made = linear_cross_entropy(m)
    made.pop("bias")
    return ops.token_logprobs, made


def orthogonalize(m: Made) -> tuple[Callable[..., Any], dict[str, Any]]:
    m.comparable = False  # a product in bfloat16 is another answer; its tests say how near it is
    return ops.orthogonalize, {"matrices": m.floats(*[m.whole(1, 3)] * m.whole(0, 2), m.whole(1, 9), m.whole(1, 9))}


def small_linear(m: Made) -> tuple[Callable[..., Any], dict[str, Any]]:
    t, rows, width = m.whole(0, 70), m.whole(1, 20), m.whole(1, 40)
    int8 = Int8Matrix(m.ids(100, rows, width).to(torch.int8), m.floats(rows))
    return ops.small_linear, {"x": m.floats(t, width), "weight": m.random.choice((m.floats(rows, width), int8))}


def sample_tokens(m: Made) -> tuple[Callable[..., Any], dict[str, Any]]:
    r, v = m.whole(0, 5), m.whole(1, VOCAB)
    return ops.sample_tokens, {
        "logits": m.floats(r, v),
        "temperatures": m.floats(r).clamp(min=0),
        "keys": m.ids(2**60, r),
    }


def paged_attention(m: Made) -> tuple[Callable[..., Any], dict[str, Any]]:
    kv, d, size = m.whole(1, 2), m.whole(1, 20), m.whole(4, 8)
    sequences = m.sequences(3, 9, size, 3)
    made: dict[str, Any] = {"q": m.floats(sum(sequences.lengths), kv * m.whole(1, 2), d), "sequences": sequences}
    return ops.paged_attention, made | {name: m.floats(9, size, kv, d) for name in ("k_pages", "v_pages")}


def delta_step(m: Made) -> tuple[Callable[..., Any], dict[str, Any]]:
    hk, r, dk, dv, kernel_size = m.whole(1, 2), m.whole(1, 2), m.whole(1, 9), m.whole(1, 9), m.whole(1, 4)
    max_tokens, slots = 3, 4
    hv, channels = hk * r, 2 * hk * dk + hk * r * dv
    sequences = m.sequences(slots, 12, 4, max_tokens)
    tokens = sum(sequences.lengths)
    weights = DeltaWeights(m.floats(channels, kernel_size), m.floats(hv), m.floats(hv), m.floats(dv), 1e-6)
    state = DeltaState(
        m.floats(slots, kernel_size - 1 + max_tokens, channels), m.floats(slots, hv, dk, dv),
        m.floats(slots, max_tokens, hk, dk), m.floats(slots, max_tokens, hv, dv),
        -m.floats(slots, max_tokens, hv).abs(),
    )  # fmt: skip
    made = {"qkvz": m.floats(tokens, 2 * (hk * dk + hv * dv)), "ba": m.floats(tokens, 2 * hv)}
    return ops.delta_step, made | {"weights": weights, "state": state, "sequences": sequences}


def _decoder() -> Decoder:
    torch.manual_seed(0)
    model = CausalLM(CONFIG).eval().requires_grad_(False)
    return Decoder(model, StatePool(CONFIG, 4, 12, 4, 3, CPU, torch.float32))


def decode_layers(m: Made) -> tuple[Callable[..., Any], dict[str, Any]]:
    layers, sequences, number = _decoder()._trunk, m.sequences(4, 12, 4, 3), m.whole(0, 3)
    m.comparable = False  # PyTorch's form runs the network's own modules, which are not spoilt

    def call(x: Tensor, sequences: Sequences, speculative: bool, tensors: Any, final_norm: Any) -> Tensor:
        every = (*layers.tensors[:number], tensors, *layers.tensors[number + 1 :])
        changed = replace(layers, tensors=every, final_norm=final_norm)
        return decode.decode_layers(x, changed, sequences, speculative)

    made = {
        "x": m.floats(sum(sequences.lengths), CONFIG.hidden_size),
        "sequences": sequences,
        "speculative": m.whole(0, 1) > 0,
    }
    return call, made | {"tensors": layers.tensors[number], "final_norm": layers.final_norm}


def draft_tokens(m: Made) -> tuple[Callable[..., Any], dict[str, Any]]:
    head, sequences = _decoder()._head, m.sequences(4, 12, 4, 3)
    assert head is not None
    counts = tuple(m.whole(0, 3) for _ in sequences.slots)
    sampling = DraftSampling(counts, m.floats(len(counts)).clamp(min=0), m.ids(2**60, len(counts), 3))
    parts = ("embed_tokens", "pre_fc_norm_embedding", "pre_fc_norm_hidden", "fc", "lm_head")
    m.comparable = False

    def call(next_token_ids: Any, hidden: Any, sequences: Any, sampling: Any, **changed: Any) -> Any:
        return decode.draft_tokens(next_token_ids, hidden, replace(head, **changed), sequences, sampling)

    tokens = sum(sequences.lengths)
    made = {
        "next_token_ids": m.ids(VOCAB, tokens),
        "hidden": m.floats(tokens, CONFIG.hidden_size),
        "sequences": sequences,
    }
    return call, made | {"sampling": sampling} | {part: getattr(head, part) for part in parts}


def network(m: Made) -> tuple[Callable[..., Any], dict[str, Any]]:
    torch.manual_seed(0)
    model = CausalLM(CONFIG)
    b, t = m.whole(1, 2), m.whole(1, 9)
    ids = m.ids(VOCAB, b, t)
    labels = m.random.choice((ids, ids, ids.masked_fill(m.floats(b, t) > 0.5, -100), None))

    def call(input_ids: Any, labels: Any, cu_seqlens: Any, divisors: Any) -> Any:
        out = model(input_ids, labels=labels, cu_seqlens=cu_seqlens, mtp=MTPTraining(2), divisors=divisors)
        return out.logits if out.loss is None else out.loss + out.mtp_loss + out.aux_loss

    divisors = m.random.choice((None, (3.0, 2.0, 1.0), [3.0, 2.0, 1.0]))
    return call, {"input_ids": ids, "labels": labels, "cu_seqlens": m.edges(b * t), "divisors": divisors}


CALLS: dict[str, Callable[[Made], tuple[Callable[..., Any], dict[str, Any]]]] = {
    function.__name__: function
    for function in (
        attention, decode_layers, delta_rule, delta_step, draft_tokens, gated_rms_norm, grouped_mlp,
        linear_cross_entropy, network, orthogonalize, paged_attention, rms_norm, sample_tokens, short_conv,
        small_linear, token_logprobs,
    )
}  # fmt: skip


def outcome(seed: int, implementation: dict[str, str]) -> tuple[str, Any, bool]:
    """What a call gives: "refused" and the words, or "done" and the result; and whether results can be compared."""
    made = Made(seed)
    with ops.forced(**implementation):
        try:
            result = made.call()
            results = [x for x in (result if isinstance(result, tuple) else [result]) if isinstance(x, Tensor)]
            total = [x.sum() for x in results if x.requires_grad]
            if total:
                torch.stack([x.double() for x in total]).sum().backward(create_graph=seed % 16 == 0)
        except UserError as error:
            return "refused", str(error), made.comparable
    return "done", [x.detach() for x in results], made.comparable


def check(seed: int) -> str:
    """Make a call through every implementation; what it came to. AssertionError where it is not as it must be."""
    name = Made(seed).name
    if name == "network":
        choices = [{}, ops.pytorch_only(), dict.fromkeys(ops.OPERATIONS, "reference")]
    else:
        able = [one.name for one in ops.OPERATIONS[name].implementations if not one.obstacle(CPU)]
        choices = [{name: one} for one in able]
    first, *others = (outcome(seed, choice) for choice in choices)
    narrow = any(isinstance(x, Tensor) and x.dtype in NARROW for x in Made(seed).arguments.values())
    near = 0.1 if narrow else 2e-3
    twice = seed % 16 == 0  # the references alone have a gradient of the gradient
    for other in others:
        if twice and "create_graph" in f"{first[1]}{other[1]}":
            continue
        assert other[0] == first[0], f"{name}, call {seed}: {first} but {other}"
        if first[0] == "refused":
            assert other[1] == first[1], f"{name}, call {seed}: {first[1]!r} but {other[1]!r}"
        elif first[2]:
            for one, two in zip(first[1], other[1], strict=True):
                assert one.shape == two.shape and one.dtype == two.dtype, f"{name}: {one.shape}, {two.shape}"
                assert torch.allclose(two, one, near, near, equal_nan=True), f"{name}, call {seed}: {one} but {two}"
    return f"{name} {first[0]}"


if __name__ == "__main__":
    faulthandler.enable()
    begin, count = map(int, sys.argv[1:])
    came_to: Counter[str] = Counter()
    failed = 0
    for seed in range(begin, begin + count):
        print(f"\r{seed}", end="", flush=True)
        try:
            came_to[check(seed)] += 1
        except Exception as error:
            failed += 1
            print(f"\nFAILED {seed} {Made(seed).name}: {type(error).__name__}: {str(error)[:400]}", flush=True)
    print("\n" + "\n".join(f"{number} {what}" for what, number in sorted(came_to.items())))
    sys.exit(bool(failed))
