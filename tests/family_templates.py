"""Tokenizers and chat templates made like those of Qwen3 and Qwen3.5, but small and written here."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import transformers
from tokenizers import AddedToken, Tokenizer, pre_tokenizers, trainers

SPECIAL = "<|endoftext|> <|im_start|> <|im_end|> <|vision_start|> <|vision_end|> <|image_pad|> <|video_pad|>".split()
PLAIN = "<tool_call> </tool_call> <tool_response> </tool_response> <think> </think>".split()
CLASSES = {"qwen3": "Qwen2Tokenizer", "qwen3_5": "Qwen3_5Tokenizer"}
PROSE = "def stream(text):\n    return [text, 'naïve café', 12345]  # don't\n\n\t日本語 😀 हिन्दी " * 20

_BEGIN = """\
{%- macro text_of(content) %}
    {%- if content is string %}{{- content }}
    {%- elif content is iterable and content is not mapping %}
        {%- for part in content %}
            {%- if part.type == 'text' %}{{- part.text }}
            {%- elif 'image' in part %}{{- '<|vision_start|><|image_pad|><|vision_end|>' }}
            {%- else %}{{- raise_exception('no such part') }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
{%- endmacro %}
{%- if not messages %}{{- raise_exception('nobody has said anything') }}{%- endif %}
{%- set begins_with_system = messages[0].role == 'system' %}
{%- if tools or begins_with_system %}
    {{- '<|im_start|>system\\n' }}
    {%- if begins_with_system %}{{- text_of(messages[0].content) | trim + '\\n' }}{%- endif %}
    {%- if tools %}
        {{- '<tools>' }}
        {%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}
        {{- '\\n</tools>\\nCall one as HOW' }}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(searching=true, last_query=-1) %}
{%- for message in messages[::-1] if ns.searching %}
    {%- if message.role == 'user' and not text_of(message.content).startswith('<tool_response>') %}
        {%- set ns.searching = false %}
        {%- set ns.last_query = messages | length - loop.index %}
    {%- endif %}
{%- endfor %}
{%- if ns.searching %}{{- raise_exception('nobody has asked anything') }}{%- endif %}
{%- for message in messages %}
    {%- set content = text_of(message.content) | trim %}
    {%- if message.role == 'system' %}
        {%- if not loop.first %}{{- raise_exception('system comes first') }}{%- endif %}
    {%- elif message.role == 'user' %}
        {{- '<|im_start|>user\\n' + content + '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.previtem and loop.previtem.role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
        {%- if loop.last or loop.nextitem.role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- elif message.role == 'assistant' %}
        {%- set thought = '' %}
        {%- if message.reasoning_content is string %}
            {%- set thought = message.reasoning_content | trim %}
        {%- elif '</think>' in content %}
            {%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- generation %}
        {%- if loop.index0 > ns.last_query or preserve_thinking %}
            {{- '<think>\\n' + thought + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- content }}
        {%- for call in message.tool_calls %}
            {%- set call = call.function if call.function is defined else call %}
            {%- if content or not loop.first %}{{- '\\n' }}{%- endif %}
"""
_JSON_CALL = """\
            {{- '<tool_call>\\n{"name": "' ~ call.name ~ '", "arguments": ' }}
            {{- call.arguments if call.arguments is string else call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
"""
_XML_CALL = """\
            {{- '<tool_call>\\n<function=' + call.name + '>\\n' }}
            {%- for name, value in call.arguments | items %}
                {{- '<parameter=' + name + '>\\n' }}
                {{- value if value is string else value | tojson | safe }}
                {{- '\\n</parameter>\\n' }}
            {%- endfor %}
            {{- '</function>\\n</tool_call>' }}
"""
_END = """\
        {%- endfor %}
        {%- endgeneration %}
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- raise_exception('no role ' + message.role) }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- elif OPENS %}
        {{- '<think>\\n' }}
    {%- endif %}
{%- endif %}
"""
TEMPLATES = {
    "qwen3": _BEGIN.replace("HOW", '{"name": …}') + _JSON_CALL + _END.replace("OPENS", "false"),
    "qwen3_5": _BEGIN.replace("HOW", "<function=…>") + _XML_CALL + _END.replace("OPENS", "true"),
}
"""Qwen3 writes JSON and may think of its own accord; Qwen3.5 writes `<function=`, and its prompt begins a thought."""


@functools.cache
def _vocabulary(form: str) -> tuple[dict[str, int], list[tuple[str, str]]]:
    core: Tokenizer = getattr(transformers, CLASSES[form])().backend_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core.train_from_iterator(
        [PROSE], trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    )
    model = json.loads(core.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


def write_family_tokenizer(folder: Path, form: str, template: str | None = None) -> Path:
    """Write a tokenizer as transformers' own class for the family saves it, with a small vocabulary.

    Args:
        folder: where to
        form: "qwen3" or "qwen3_5"
        template: the chat template, by default that of the form
    """
    vocabulary, merges = _vocabulary(form)
    made = getattr(transformers, CLASSES[form])(
        vocab=dict(vocabulary), merges=list(merges), eos_token="<|im_end|>", pad_token="<|endoftext|>", unk_token=None
    )
    made.add_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    made.add_tokens([AddedToken(token, special=False, normalized=False) for token in PLAIN])
    made.chat_template = TEMPLATES[form] if template is None else template
    made.save_pretrained(folder)
    return folder
