"""A chat template of our own in ChatML, with tools and reasoning, for models that have none.

Every message is written where it stands and never otherwise later, so a conversation of many turns is one sample.
"""

from __future__ import annotations

from gossamer.data.tokenizer import Tokenizer

__all__ = ["CHATML", "missing_tokens", "with_chatml"]

TOKENS = ("<|im_start|>", "<|im_end|>")
"""The special tokens that begin and end a message."""

CHATML = """\
{%- set begins_with_system = messages and messages[0].role == 'system' -%}
{%- if tools -%}
    {{- '<|im_start|>system\\n' -}}
    {%- if begins_with_system -%}{{- messages[0].content + '\\n\\n' -}}{%- endif -%}
    {{- 'These functions can be called:\\n<tools>\\n' -}}
    {%- for tool in tools -%}{{- tool | tojson + '\\n' -}}{%- endfor -%}
    {{- '</tools>\\nA call is written as:\\n' -}}
    {{- '<tool_call>\\n{"name": "NAME", "arguments": {}}\\n</tool_call><|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
    {%- if not (loop.first and tools and begins_with_system) -%}
        {{- '<|im_start|>' + message.role + '\\n' -}}
        {%- if message.role == 'assistant' and message.reasoning_content -%}
            {{- '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' -}}
        {%- endif -%}
        {{- message.content -}}
        {%- if message.role == 'assistant' -%}
            {%- for call in message.tool_calls -%}
                {%- if message.content or not loop.first -%}{{- '\\n' -}}{%- endif -%}
                {{- '<tool_call>\\n{"name": ' + call.function.name | tojson -}}
                {{- ', "arguments": ' + call.function.arguments | tojson + '}\\n</tool_call>' -}}
            {%- endfor -%}
        {%- endif -%}
        {{- '<|im_end|>\\n' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
"""The template."""


def missing_tokens(tokenizer: Tokenizer) -> tuple[str, ...]:
    """Return the special tokens of the template that a tokenizer lacks; each takes a row of embedding and head."""
    return tuple(token for token in TOKENS if token not in tokenizer.special_tokens)


def with_chatml(tokenizer: Tokenizer) -> Tokenizer:
    """Return a tokenizer with the template, and with the special tokens of it that it lacks, after all others."""
    return tokenizer.with_chat(CHATML, missing_tokens(tokenizer))
