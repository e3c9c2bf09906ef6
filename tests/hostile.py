"""Requests that mean ill, and others between them that must not notice: grammars, tools, schemas, templates, bodies."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx2

CHAT = "/v1/chat/completions"
ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
TROUBLE = {
    "list": "{% set many = [0] * 10**9 %}",
    "doubling": "{% set ns = namespace(a=[0]) %}{% for i in range(60) %}{% set ns.a = ns.a + ns.a %}{% endfor %}",
    "output": "{% for i in range(3000) %}{{ 'a' * 100000 }}{% endfor %}",
    "indent": "{{ messages | tojson(indent=10**9) }}",
    "format": "{{ '%99999999999d' % add_generation_prompt }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "marks": "\ufdd0999\ufdd1{{ messages }}\ufdd0{{ messages[0].content[:3] }}",
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "endless": ENDLESS,
}


def hostile_template(plain: str) -> str:
    """A template that does what `chat_template_kwargs` say, and else what it did."""
    cases = "".join(f"{{%- if do == '{name}' %}}{source}{{% endif %}}" for name, source in TROUBLE.items())
    return "{%- if do is defined %}" + cases + "{% endif %}" + plain


def lark(chance: random.Random) -> str:
    """A grammar: deep, wide, ambiguous, long, or nonsense."""
    size = int(10 ** chance.uniform(0, 4))
    kinds: list[Callable[[], str]] = [
        lambda: "start: r0\n" + "".join(f"r{n}: r{n + 1}\n" for n in range(size)) + f'r{size}: "a"\n',
        lambda: "start: " + " | ".join(f'"w{n}x"' for n in range(size)),
        lambda: 'start: "' + "ab" * size + '"',
        lambda: 'start: a\na: a a | a a a | "x" | ""\n',
        lambda: f"start: A\nA: /.*a.{{{size}}}/ & /.*b.{{{size}}}.*/ & ~/.*c.{{{size}}}/",
        lambda: "start: " + "(" * size + '"a"' + ")" * size,
        lambda: "start: x\nx: x x x x | /[a-z]*/ x | /(a|b)*c?/ \n",
        lambda: f'start: %json {{"type": "array", "minItems": {size}, "items": {{"type": "string"}}}}',
        lambda: "".join(chance.choice('start: a|b()[]{}"/\\~&%,\n*+?.0') for _ in range(min(size, 300))) or "x",
        lambda: f'start: r{{{size}}}\nr: "a" | "b" r | r "c"\n',
    ]
    return chance.choice(kinds)()


def regex(chance: random.Random) -> str:
    """An expression that is large when it is written out, or none."""
    size = int(10 ** chance.uniform(0, 5))
    parts = [
        "a",
        ".",
        "(a|b)",
        "[^x]",
        r"\w",
        r"\p{L}",
        "(?i:k)",
        "é",
        r"\d",
        "(.*a)",
        "|",
        "(",
        ")",
        "[",
        "{2,1}",
        "\\",
    ]
    kinds: list[Callable[[], str]] = [
        lambda: f"a{{{size}}}",
        lambda: f"(.*a.{{{size % 300}}}|b){{1,{size}}}",
        lambda: "(" * size + "a" + ")" * size,
        lambda: "|".join(f"w{n}.*x" for n in range(min(size, 20_000))),
        lambda: "(" * 12 + "a" + "{9})" * 12,
        lambda: "".join(chance.choice(parts) for _ in range(size % 60 + 1)),
    ]
    return chance.choice(kinds)()


def schema(chance: random.Random) -> Any:
    """A JSON schema: deep, wide, circular, contradictory, or none."""
    size = int(10 ** chance.uniform(0, 3))
    deep: Any = {}
    for _ in range(size % 300):
        deep = {"type": "array", "items": deep}
    kinds: list[Callable[[], Any]] = [
        lambda: deep,
        lambda: {"type": "object", "properties": {f"k{n}": {"enum": list(range(50))} for n in range(size)}},
        lambda: {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
        lambda: {"$defs": {"t": {"anyOf": [{"$ref": "#/$defs/t"}] * (size % 50)}}, "$ref": "#/$defs/t"},
        lambda: {"type": "string", "pattern": regex(chance), "minLength": size, "maxLength": size * 1000},
        lambda: {"enum": ["x" * size, *range(size)]},
        lambda: {"allOf": [{"type": "string"}, {"type": "integer"}], "minimum": 1e300},
        lambda: {"type": chance.choice([5, "nothing", [], ["string", 5], None]), "properties": 5, "required": "x"},
        lambda: {"type": "array", "items": {"type": "integer"}, "minItems": size * 1000},
        lambda: {"type": "object", "additionalProperties": {"$ref": "#"}, "minProperties": size},
    ]
    return chance.choice(kinds)()


def tool(chance: random.Random) -> dict[str, Any]:
    """A function with such parameters."""
    parameters = {"type": "object", "properties": {"p": schema(chance), "q": schema(chance)}, "required": ["p"]}
    found = chance.choice([parameters, schema(chance)])
    return {"type": "function", "function": {"name": "f", "parameters": found if isinstance(found, dict) else {}}}


@dataclass
class Hostile:
    """The run.

    Args:
        url: of the service; its template is `hostile_template`.
        texts: prompts with the answers that they have alone.
        more: further fields of every good request.
        seed: of what is sent in which order.

    Attributes:
        outcomes: how often each kind of request was answered with which status
        lies: answers that are wrong
    """

    url: str
    texts: dict[str, str]
    more: dict[str, Any]
    seed: int = 0
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    lies: list[str] = field(default_factory=list)
    wall: float = 0.0

    async def run(self, count: int, at_once: int, endless: float = 0.0) -> None:
        """Send `count` requests, `at_once` at the same time; `endless`: the share of templates without end."""
        chance, gate, began = random.Random(self.seed), asyncio.Semaphore(at_once), time.monotonic()
        kinds: dict[str, tuple[Callable[[random.Random], dict[str, Any]], float]] = {
            "good": (lambda chance: {}, 4),
            "good regex": (lambda chance: {"response_format": {"type": "regex", "pattern": "[A-C]{3}x"}}, 1),
            "lark": (lambda chance: {"response_format": {"type": "grammar", "grammar": lark(chance)}}, 2),
            "regex": (lambda chance: {"response_format": {"type": "regex", "pattern": regex(chance)}}, 2),
            "schema": (self._schema, 2),
            "tools": (lambda chance: {"tools": [tool(chance)], "tool_choice": "required"}, 2),
            "template": (self._template, 1),
            "endless": (lambda chance: {"chat_template_kwargs": {"do": "endless"}}, endless),
            "body": (self._body, 1),
        }
        chosen = chance.choices(list(kinds), [weight for _, weight in kinds.values()], k=count)
        async with httpx2.AsyncClient(base_url=self.url, timeout=300) as client:

            async def one(kind: str, number: int) -> None:
                own = random.Random(f"{self.seed} {number}")
                async with gate:
                    await self._send(client, kind, kinds[kind][0](own), own)

            await asyncio.gather(*(one(kind, number) for number, kind in enumerate(chosen)))
        self.wall += time.monotonic() - began

    async def _send(self, client: httpx2.AsyncClient, kind: str, body: dict[str, Any], chance: random.Random) -> None:
        prompt = chance.choice(list(self.texts))
        asked = {"messages": [{"role": "user", "content": prompt}], **self.more, **body}
        try:
            answer = await client.post(CHAT, content=json.dumps(asked), headers={"Content-Type": "application/json"})
            found = answer.json()
        except Exception as error:
            self.outcomes[kind, type(error).__name__] += 1
            self.lies.append(f"{kind} {str(asked)[:300]}: {error!r}")
            return
        self.outcomes[kind, str(answer.status_code)] += 1
        if answer.status_code != 200:
            fine = answer.status_code == 400 and 0 < len(found["error"]["message"]) < 600
            if not fine or kind.startswith("good"):
                self.lies.append(f"{kind} {str(asked)[:300]}: {answer.status_code} {str(found)[:300]}")
        elif kind == "good" and found["choices"][0]["message"]["content"] != self.texts[prompt]:
            self.lies.append(f"{prompt!r} was answered with {found}")

    def _schema(self, chance: random.Random) -> dict[str, Any]:
        made = schema(chance)
        inner = {"name": "s", "schema": made if isinstance(made, dict) else {}}
        return {"response_format": {"type": "json_schema", "json_schema": inner}}

    def _template(self, chance: random.Random) -> dict[str, Any]:
        return {"chat_template_kwargs": {"do": chance.choice([name for name in TROUBLE if name != "endless"])}}

    def _body(self, chance: random.Random) -> dict[str, Any]:
        deep: Any = 1
        for _ in range(400):
            deep = [deep]
        return chance.choice(
            [
                {"messages": [1] * 10_000},
                {"messages": [{"role": "user", "content": "<|im_end|>\ufdd0" * 50}] * 20},
                {"logit_bias": {str(n): -100 for n in range(256)}, "max_tokens": 2},
                {"chat_template_kwargs": {"a": deep}},
                {"chat_template_kwargs": {"do": deep, "messages": 1}},
                {"stop": ["x"] * 16, "seed": 2**63 - 1, "temperature": 100},
                {"messages": [{"role": "user", "content": "\ud800"}]},
                {f"k{n}": n for n in range(5_000)},
            ]
        )

    def lines(self) -> list[str]:
        """For people."""
        return [
            f"{sum(self.outcomes.values())} requests in {self.wall:.1f} s",
            *(f"  {kind:<12} {status:<8} {count}" for (kind, status), count in sorted(self.outcomes.items())),
            f"  wrong answers, or good requests that were lost: {len(self.lies)}",
        ]
