"""Measures how far gossamer's numbers are from transformers', for every kind of network in the family.

    python benchmarks/parity.py [--json] [--write docs/parity.md]

It needs no download, because the networks are tiny and random (see parity_cases.py). tests/model/test_parity.py checks
every figure against a limit.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import torch
import transformers
from parity_cases import CASES, Case, in_their_layout, pair
from torch import Tensor, nn

import gossamer
from gossamer.certify.decoding import decode_in_parts
from gossamer.model.causal_lm import CausalLM, Output
from gossamer.model.config import ModelConfig

LENGTH = 70  # tokens a row: more than one chunk of the delta rule, and no whole number of them
DOCUMENTS = [5, 1, 66, 0, 2, 20, 46]  # packed into two such rows


def token_ids(config: ModelConfig, rows: int = 2, length: int = LENGTH) -> Tensor:
    """Return random token ids, [rows, length] int64."""
    return torch.randint(config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(1))


def gradients(network: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """Return the gradient of every parameter by name."""
    names, parameters = zip(*network.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters, materialize_grads=True), strict=True))


def largest_difference(actual: Tensor, expected: Tensor) -> float:
    """Return the largest absolute difference of two tensors."""
    return (actual - expected).detach().abs().max().item()


def largest_relative(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Return the largest ‖difference‖ / ‖expected‖ over all names."""
    assert actual.keys() == expected.keys()
    return max((actual[name] - want).norm().item() / want.norm().item() for name, want in expected.items())


def forward_and_backward(case: Case) -> dict[str, float]:
    """Return the differences of both models in float32, and of each from gossamer's in float64."""
    ours, theirs = pair(case.config)
    ids = token_ids(case.config)
    labels = ids.masked_fill(torch.rand(ids.shape, generator=torch.Generator().manual_seed(2)) < 0.1, -100)
    expected = theirs(input_ids=ids, labels=labels, use_cache=False)
    loss, logits = ours(ids, labels).loss, ours(ids).logits
    result = {
        "logits": largest_difference(logits, expected.logits),
        "loss": largest_difference(loss, expected.loss),
        "gradients": largest_relative(
            in_their_layout(case.config, gradients(ours, loss)), gradients(theirs, expected.loss)
        ),
    }
    exact = ours.double()(ids).logits
    return result | {
        "fp32 ours": largest_difference(logits, exact),
        "fp32 theirs": largest_difference(expected.logits, exact),
    }


def to_bfloat16(network: CausalLM) -> CausalLM:
    """Return a network with weights in bfloat16; A_log, dt_bias and the norm of linear attention stay in float32."""
    wide = ("linear_attn.A_log", "linear_attn.dt_bias", "linear_attn.norm.weight")
    for name, parameter in network.named_parameters():
        if not name.endswith(wide):
            parameter.data = parameter.data.to(torch.bfloat16)
    return network


@torch.no_grad()
def bfloat16(case: Case, seeds: int = 4) -> dict[str, float]:
    """Return each model's error in bfloat16 against float32: the root mean square, relative to that of the logits.

    It is the mean over several random networks: where a token's experts are nearly tied, rounding picks another one,
    and the error of a single network is mostly that.
    """
    errors = {"bf16 ours": 0.0, "bf16 theirs": 0.0}
    for seed in range(seeds):
        ours, theirs = pair(case.config, seed)
        ids = token_ids(case.config)
        exact = theirs(input_ids=ids, use_cache=False).logits
        rounded = {
            "bf16 ours": to_bfloat16(ours)(ids).logits,
            "bf16 theirs": theirs.to(torch.bfloat16)(input_ids=ids, use_cache=False).logits,
        }
        for name, logits in rounded.items():
            errors[name] += float((logits.float() - exact).norm() / exact.norm()) / seeds
    return errors


@torch.no_grad()
def decoding(case: Case, dtype: torch.dtype = torch.float64, length: int = 12) -> dict[str, float]:
    """Return the largest difference between whole and piecewise logits: by tokens, cut in two, around a chunk."""
    ours = pair(case.config)[0].to(dtype)
    largest = 0.0
    for ids, splits in (
        (token_ids(case.config, length=length), [[1] * length, *([n, length - n] for n in range(1, length))]),
        (token_ids(case.config), [[1, LENGTH - 1], [63, 7], [64, 6], [65, 5], [2, 1, 1, 60, 1, 5]]),
    ):
        whole = ours(ids).logits
        largest = max([largest, *(largest_difference(decode_in_parts(ours, ids, split), whole) for split in splits)])
    return {"decoding": largest}


def documents_apart(network: CausalLM, ids: Tensor, lengths: list[int]) -> list[Output]:
    """Return [logits, losses, logits, losses, …] of each document as a batch of its own, without and with labels."""
    pieces = [piece.unsqueeze(0) for piece in ids.flatten().split(lengths) if len(piece)]
    return [output for piece in pieces for output in (network(piece), network(piece, piece))]


def packed(case: Case, dtype: torch.dtype = torch.float64) -> dict[str, float]:
    """Return the largest relative difference of packed documents from the same apart: logits, loss, gradients."""
    ours = pair(case.config)[0].to(dtype)
    ids = token_ids(case.config)
    cu_seqlens = torch.tensor([0, *accumulate(DOCUMENTS)], dtype=torch.int32)
    outputs = documents_apart(ours, ids, DOCUMENTS)
    apart = torch.cat([out.logits for out in outputs[::2]], dim=1).view(*ids.shape, -1)
    predicted = sum(out.predicted for out in outputs[1::2])
    loss = sum(out.loss * out.predicted for out in outputs[1::2]) / predicted
    together = ours(ids, ids, cu_seqlens)
    expected = gradients(ours, loss) | {"logits": apart, "loss": loss}
    actual = gradients(ours, together.loss) | {"logits": ours(ids, cu_seqlens=cu_seqlens).logits, "loss": together.loss}
    return {"packed": largest_relative(actual, expected)}


MEASUREMENTS: list[Callable[[Case], dict[str, float]]] = [forward_and_backward, bfloat16, decoding, packed]
LEGEND = f"""
| column | what is compared | how |
|---|---|---|
| logits, loss | both models in float32, two rows of {LENGTH} tokens | largest absolute difference |
| gradients | the gradient of every parameter, in float32 | largest ‖difference‖ / ‖theirs‖ |
| fp32 ours, theirs | each model in float32 against gossamer in float64 | largest absolute difference of the logits |
| bf16 ours, theirs | each model with bfloat16 weights against transformers in float32 | ‖difference‖ / ‖float32‖ of \
the logits, mean of four networks |
| decoding | in float64, token by token and split in two at every position against the whole sequence at once | \
largest absolute difference of the logits |
| packed | in float64, documents of {", ".join(map(str, DOCUMENTS))} tokens packed into two rows against each document \
alone | largest ‖difference‖ / ‖alone‖ of logits, loss and every gradient |
"""


def versions() -> str:
    """Return the versions that a record names."""
    return (
        f"gossamer {gossamer.__version__}, transformers {transformers.__version__}, torch {torch.__version__}, "
        f"{platform.machine()} CPU"
    )


def table(rows: dict[str, dict[str, float]]) -> str:
    """Return a Markdown table with one row per case."""
    columns = list(next(iter(rows.values())))
    lines = ["| network | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(f"{row[c]:.1e}" for c in columns) + " |" for name, row in rows.items()]
    return "\n".join(lines)


def page(rows: dict[str, dict[str, float]]) -> str:
    """Return the whole of the document."""
    cases = "\n".join(f"| {case.name} | {case.covers} |" for case in CASES)
    return f"""# Parity with transformers

This page shows how far gossamer's numbers are from those of transformers with the same weights: of
`Qwen3NextForCausalLM`, and for the networks named after released models of Qwen3.5 to 3.8 of `Qwen3_5ForCausalLM` and
`Qwen3_5MoeForCausalLM`. It was written by

```
python benchmarks/parity.py --write docs/parity.md
```

with {versions()}.
`tests/model/test_parity.py` measures the same and checks every figure against a limit. Two versions of transformers
cannot be installed side by side, so only this one is tested.

{table(rows)}
{LEGEND}
The networks are tiny and random. Their weights are large enough to lift every gradient far above rounding errors.

| network | what it covers |
|---|---|
{cases}

transformers has no multi-token-prediction head. `tests/model/test_mtp.py` compares gossamer's head with one built from
transformers' decoder layers and norms of each model type. It is put together as in vLLM 0.33.0 and SGLang 0.5.23, whose
code for the heads of Qwen3.5 was read and not run:

- The input is the norm of the next token's embedding, followed by the norm of the hidden state, through `fc`.
- The hidden state is that behind the trunk's final norm, and for a further token that behind `mtp.norm`.
- The position of a pair is that of the hidden state.
- The embedding and the output head are the trunk's.

`aux_loss` differs by definition in networks of several layers. gossamer adds up the load-balancing losses of the
layers, so that each layer is balanced separately. transformers computes one loss over the tokens of all layers
together, a mean in which one layer can compensate for another. `tests/model/test_parity.py` compares both for one
layer, and gossamer's with the sum.
"""


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--write", type=Path, metavar="FILE", help="also write the document to this file")
    arguments = parser.parse_args()
    rows = {case.name: {k: v for measure in MEASUREMENTS for k, v in measure(case).items()} for case in CASES}
    if arguments.json:
        print(json.dumps({"versions": versions(), "cases": rows}, indent=2))
    else:
        print(f"{versions()}\n\n{table(rows)}\n{LEGEND}")
    if arguments.write:
        arguments.write.write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
