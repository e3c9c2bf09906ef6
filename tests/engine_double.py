"""An engine without a model: what it answers stands in the prompt. It fails on demand, in every way the real one may.

The last `SAY text` of a prompt, up to the end of its message, is the answer; a prompt without one goes on with
`word word …`. These words in the prompt do something instead: REFUSE and BREAK when it is submitted, FAIL, NANS,
RAISE, CRASH and SEGV at its first step. SLOW makes every step take 20 ms, and HOLD stops behind the first token as
long as a file `held` lies in the tokenizer's folder.
"""

from __future__ import annotations

import os
import re
import signal
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from tokenizers import Tokenizer as Core
from tokenizers import decoders, models, pre_tokenizers

from gossamer.data.tokenizer import Tokenizer
from gossamer.errors import UserError
from gossamer.infer.options import EngineStats
from gossamer.infer.request import Delta, Grammar, Request, TokenLogprobs, Usage
from gossamer.serve.engine_worker import ModelInfo

TEMPLATE = """\
{%- if tools %}<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}FORMAT<|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{% if message.reasoning_content is defined and message.reasoning_content %}<think>
{{ message.reasoning_content }}
</think>

{% endif %}{{ message.content }}
{%- for call in message.tool_calls %}
<tool_call>
{{ call.function | tojson }}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and enable_thinking %}<think>
{% endif %}{% endif %}"""
FORMATS = {"json": '<tool_call>{"name": ...}', "xml": "<tool_call><function=...>"}
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def write_tokenizer(folder: Path, form: str | None = "json") -> Path:
    """A byte-level tokenizer with ChatML's tokens; `form`: of tool calls, None: no chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Core(models.BPE(vocab={token: index for index, token in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(SPECIAL)
    template = None if form is None else TEMPLATE.replace("FORMAT", FORMATS[form])
    config = {"eos_token": "<|im_end|>"} if form else None  # without a form as those that are trained here
    Tokenizer(core, "<|im_end|>" if form else "<|endoftext|>", config, template).save(folder)
    return folder


@dataclass
class _Running:
    request: Request
    text: str
    left: list[int]
    orders: set[str]
    made: int = 0
    stream: object = field(default=None)


class EngineDouble:
    """One token a step for each of `max_batch` requests, first come first served."""

    def __init__(self, tokenizer: Tokenizer, max_batch: int, held: Path | None = None) -> None:
        self._tokenizer = tokenizer
        self._max_batch = max_batch
        self._held = held
        self._all: dict[str, _Running] = {}

    @property
    def has_work(self) -> bool:
        return bool(self._all)

    def matcher(self, grammar: Grammar) -> None:
        if "FORBID" in grammar.text:
            raise UserError("grammar: this one asks to be refused")

    def submit(self, request: Request, matcher: None = None) -> None:
        prompt = self._tokenizer.decode(request.prompt, special=True)
        turn = prompt.split("<|im_start|>user")[-1]
        orders = set(re.findall(r"\b[A-Z]{4,}\b", turn.split("SAY")[0]))
        if "REFUSE" in orders:
            raise UserError("this prompt asks to be refused")
        if "BREAK" in orders:
            raise RuntimeError("this prompt breaks the engine's door")
        said = re.search(r"SAY (.*?)(?:<\|im_end\|>|\Z)", turn, re.DOTALL)
        text = said.group(1) if said else "word " * request.sampling.max_tokens
        ids = self._tokenizer.encode(text)
        if said:
            ids.append(self._tokenizer.eot_id)
        self._all[request.id] = _Running(request, text, ids, orders, stream=self._tokenizer.stream())

    def abort(self, id: str) -> Delta | None:
        self._all.pop(id, None)
        return None

    def step(self) -> list[Delta]:
        deltas = []
        running = list(self._all.values())[: self._max_batch]
        if any("SLOW" in item.orders for item in running):
            time.sleep(0.02)
        if any("HOLD" in item.orders and item.made for item in running) and self._held and self._held.exists():
            running = [item for item in running if "HOLD" not in item.orders or not item.made]
            time.sleep(0.0 if running else 0.005)
        for item in running:
            if "RAISE" in item.orders:
                raise RuntimeError("this prompt breaks a step")
            if "CRASH" in item.orders:
                os.kill(os.getpid(), signal.SIGKILL)
            if "SEGV" in item.orders:
                os.kill(os.getpid(), signal.SIGSEGV)
            deltas.append(self._next(item))
        return deltas

    def stats(self) -> EngineStats:
        running = min(len(self._all), self._max_batch)
        return EngineStats(len(self._all) - running, running, *[0] * 13, finished={})

    def _next(self, item: _Running) -> Delta:
        request = item.request
        usage = Usage(len(request.prompt), item.made + 1, 0, 0, 0)
        if "NANS" in item.orders:
            self._all.pop(request.id)
            line = "the model's logits are not finite"
            return Delta(request.id, finish_reason="error", usage=usage, error=line, cause="logits")
        if "FAIL" in item.orders:
            self._all.pop(request.id)
            return Delta(request.id, finish_reason="error", usage=usage, error="this prompt asks to fail")
        token = item.left.pop(0)
        item.made += 1
        if token == self._tokenizer.eot_id:
            self._all.pop(request.id)
            return Delta(request.id, finish_reason="stop", usage=usage, text=item.stream.finish())
        count = request.sampling.logprobs
        delta = Delta(request.id, (token,), item.stream.push(token))
        if count is not None:
            top = tuple((other, -0.5 - place) for place, other in enumerate(range(count)))
            delta = replace(delta, logprobs=(TokenLogprobs(token, -0.5, top),))
        if item.made == request.sampling.max_tokens:
            self._all.pop(request.id)
            delta = replace(delta, text=delta.text + item.stream.finish(), finish_reason="length", usage=usage)
        return delta


def build(folder: Path, max_batch: int = 4, max_model_len: int = 4096, first: str = ""):
    """What `gossamer.serve.engine_worker.build_engine` is for the real one.

    Args:
        first: a file with an order for the loading: "die", "wait" until the file is gone, or what the user did wrong.
    """
    if first and Path(first).exists():
        order = Path(first).read_text()
        if order == "die":
            os._exit(3)
        if order != "wait":
            raise UserError(order)
        while Path(first).exists():
            time.sleep(0.01)
    tokenizer = Tokenizer.load(folder)
    held = folder / "held"
    return lambda: (EngineDouble(tokenizer, max_batch, held), ModelInfo(max_model_len, tokenizer.vocab_size, max_batch))


def build_by(folder: Path, config: object, order: str):
    """The same, called as `build_engine` is, whose configuration means nothing here."""
    return build(folder, first=order)
