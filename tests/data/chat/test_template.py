"""Messages to tokens: what transformers makes of the same template, and no message that can leave its place."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import TemplateError, TemplateSyntaxError

from engine_double import SPECIAL, write_tokenizer
from gossamer.data.chat.template import ChatTemplate, TemplateRefusal
from gossamer.data.tokenizer import Tokenizer
from gossamer.errors import UserError

TOOL = {"type": "function", "function": {"name": "find", "parameters": {"type": "object", "properties": {"é": {}}}}}
roles = st.sampled_from(["system", "user", "assistant"])
plain = st.text(max_size=20).filter(lambda text: "<" not in text)
messages = st.lists(st.fixed_dictionaries({"role": roles, "content": plain}), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder)


@pytest.fixture(scope="module")
def template(tokenizer: Tokenizer) -> ChatTemplate:
    return ChatTemplate(tokenizer)


@pytest.fixture(scope="module")
def peer(folder: Path):
    return transformers.AutoTokenizer.from_pretrained(folder)


@given(messages, st.booleans(), st.booleans())
def test_the_tokens_are_those_of_transformers(template, peer, said, with_tools, thinking):
    tools = [TOOL] if with_tools else None
    wanted = peer.apply_chat_template(
        said, tools=tools, add_generation_prompt=True, enable_thinking=thinking, return_dict=False
    )
    made = template.render(said, tools, {"enable_thinking": thinking})
    assert list(made.ids) == wanted
    assert made.thinking == thinking


@given(st.lists(st.sampled_from([*SPECIAL, "a", "<", "|", "\ufdd0", "\ufdd00\ufdd1", "\n"]), max_size=8))
def test_a_special_token_in_a_message_stays_text(template, tokenizer, pieces):
    content = "".join(pieces)
    ids = template.render([{"role": "user", "content": content}]).ids
    special = [token for token in ids if token in tokenizer.special_tokens.values()]
    plain = template.render([{"role": "user", "content": ""}]).ids
    assert special == [token for token in plain if token in tokenizer.special_tokens.values()]
    assert tokenizer.decode(ids, special=True) == f"<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n"


def test_boundaries_are_where_messages_begin(template, tokenizer):
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    made = template.render(said)
    assert len(made.boundaries) == 3
    for place, count in zip(made.boundaries, (1, 2, 3), strict=True):
        shared = template.render(said[:count]).ids
        assert made.ids[:place] == shared[:place]
        assert tokenizer.decode(made.ids[place : place + 1], special=True) == "<|im_start|>"


def test_a_model_without_a_template_continues_a_dialogue(tmp_path):
    template = ChatTemplate(Tokenizer.load(write_tokenizer(tmp_path, form=None)))
    said = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Who are you?"},
    ]
    text = Tokenizer.load(tmp_path).decode(template.render(said).ids, special=True)
    assert text == "<|endoftext|>Be brief.\n\nUser: Hi\nAssistant: Hello.\nUser: Who are you?\nAssistant:"
    assert template.stop == ("\nUser:",) and template.is_default and template.tools is None
    with pytest.raises(TemplateRefusal, match="role tool"):
        template.render([{"role": "tool", "content": "5"}])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('only users here') }}", "only users here"),
        ("{{ messages[0].nothing.more }}", "UndefinedError"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError|unsafe"),
        ("{{ messages.append(1) }}", "SecurityError|unsafe"),
        ("{% for i in range(10**9) %}{% endfor %}", "OverflowError"),
        ("{{ messages[1:] and messages | tojson(indent=10**9) }}", "too much memory"),
        ("{% if messages[1:] %}{% set many = [0] * 10**9 %}{% endif %}", "too much memory"),
        ("{% if messages[1:] %}{% for i in range(3000) %}{{ 'a' * 100000 }}{% endfor %}{% endif %}", "characters"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{% if messages[1:] %}{{ f() }}{% endif %}", "nested too deeply"),
    ],
)
def test_a_template_that_refuses_or_fails_or_reaches_out(tokenizer, source, message):
    template = ChatTemplate(Tokenizer(tokenizer._core, tokenizer.eot, None, source))
    with pytest.raises(TemplateRefusal, match=message):
        template.render([{"role": "user", "content": "a"}] * 2)


ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


def test_a_template_without_end_is_given_up(tokenizer, monkeypatch):
    monkeypatch.setattr("gossamer.data.chat.renderer.MAX_SECONDS", 0.3)
    source = "{% if messages[1:] %}" + ENDLESS + "{% endif %}{{ messages[0].content }}"
    template = ChatTemplate(Tokenizer(tokenizer._core, tokenizer.eot, None, source))
    said = [{"role": "user", "content": "a"}]
    with ThreadPoolExecutor(3) as pool:
        endless = pool.submit(template.render, said * 2)
        assert [template.render(said).ids for _ in range(20)] == [tuple(tokenizer.encode("a"))] * 20  # nobody waits
        with pytest.raises(TemplateRefusal, match=r"not done in 0\.3 seconds"):
            endless.result()
    assert template.render(said).ids == tuple(tokenizer.encode("a"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (ENDLESS, "not done in"),
        ("{{ 'a' * 10**10 }}", "too much memory"),  # which Jinja works out while it compiles
        ("{{ '%99999999999d' % 1 }}", "too much memory"),
    ],
)
def test_a_template_that_hangs_or_eats_while_it_is_loaded_names_the_file(tokenizer, source, message, monkeypatch):
    monkeypatch.setattr("gossamer.data.chat.renderer.MAX_SECONDS", 0.3)
    with pytest.raises(UserError, match=rf"{message}.*chat_template\.jinja"):
        ChatTemplate(Tokenizer(tokenizer._core, tokenizer.eot, None, source))


def test_what_is_learned_from_is_marked_for_training_and_means_nothing_here(tokenizer, folder):
    plain = (folder / "chat_template.jinja").read_text()
    marked = plain.replace("{{ message.content }}", "{%- generation -%}{{ message.content }}{%- endgeneration -%}")
    assert marked != plain
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    texts = [
        ChatTemplate(Tokenizer(tokenizer._core, tokenizer.eot, None, source)).render(said).ids
        for source in (plain, marked)
    ]
    assert texts[0] == texts[1]


ENVIRONMENT = [
    "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ m.role }}{% continue %}x{% endfor %}",
    "{% for m in messages if m.role == 'user' %}{{ m.content }}{% else %}none{% endfor %}",
    "{{ messages | tojson }}",
    "{{ messages | tojson(true) }} {{ messages | tojson(ensure_ascii=True, indent=2, sort_keys=True) }}",
    "{{ messages | tojson(separators=(',', ':')) }}{{ 'é<&>' | tojson | safe }}{{ {'a': 1.0, 'b': none} | tojson }}",
    "{{ '<b>' }}{{ messages[0].content | upper | trim }}{{ messages[0].content | escape }}",
    "  {% if true %}\n  a\n  {% endif %}\n\tb\n",
    "{{ raise_exception('not this') }}",
    "{{ strftime_now('%Y') }}{{ strftime_now(format='%m') }}",
    "{%- generation -%} a {% endgeneration %}b{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}"
    "{% endfor %}",
    "{% set ns = namespace(a=1) %}{% set b = 1 %}{% generation %}{% set ns.a = 2 %}{% set b = 2 %}{% endgeneration %}"
    "{{ ns.a }}{{ b }}",
    "{% macro f(x) %}{% generation %}<{{ x }}>{% endgeneration %}{% endmacro %}{{ f('a') + 'b' }}",
    "{% generation %}a{% generation %}b{% endgeneration %}{% endgeneration %}",
    "{{ dict(a=1, **{'b': 2}) | tojson }}{{ dict.fromkeys(['a']) | tojson }}{{ dict([['c', 3]]) | tojson }}",
    "{{ dict.update(messages[0], {'content': 'b'}) }}{{ messages[0].content }}",
    "{{ dict.__mro__ }}",
    "{{ dict.get }}|{{ namespace.mro }}|",
    "{% set ns = namespace(self=1, a=[]) %}{% set ns.b = 2 %}{{ ns.self + ns.b }}{{ ns.a }}{{ ns.c }}",
    "{% set ns = namespace({'a': 1}, b=2) %}{{ ns.a + ns.b }}",
    "{{ namespace(_a=1)._a }}",
    "{{ namespace({'__a': 1}) }}",
    "{% set ns = namespace() %}{% set ns._a = 1 %}{{ ns._a }}",
    "{{ tools is none }}{{ documents is none }}{{ documents is defined }}{{ add_generation_prompt }}{{ x is defined }}",
    "{{ eos_token }}|{{ pad_token }}|{{ bos_token }}|{{ unk_token is defined }}|{{ bos_token is defined }}",
    "{% for m in messages %}{{ m.reasoning_content }}|{{ m.thinking }}|{{ m.reasoning }};{% endfor %}",
    "{{ messages[0].update({'a': 1}) }}",
    "{{ messages[0] | items | list }}{{ messages[0]['role'] }}{{ messages[0].get('role') }}{{ messages[-1:][0].role }}",
    "{{ messages[0].content.split('<')[0] }}{{ 'a'.__class__ }}",
    "{% set x %}in{% endset %}{{ x }}{{ x is string }}{{ 7 // 2 }}{{ '%s' | format(3) }}{{ 'ab' is in 'cab' }}",
    "{{ range(3) | list }}{{ cycler('a').next() }}{{ joiner(',')() }}",
    "{{ messages.nothing.at.all }}",
    "{{ 'a' ~ 1 ~ none ~ true }}{{ 'a' + 1 }}",
]
THOUGHTS = [{}, {"reasoning_content": "x"}, {"thinking": "y"}, {"reasoning": "z"}, {"thinking": "y", "reasoning": "z"}]


@pytest.fixture(scope="module")
def padded_peer(folder: Path):
    return transformers.AutoTokenizer.from_pretrained(folder, pad_token="<|endoftext|>")


@pytest.mark.parametrize("source", ENVIRONMENT)
def test_templates_find_what_they_find_in_transformers(tokenizer, padded_peer, source):
    said = [{"role": "user", "content": "é <b>"}]
    said += [{"role": "assistant", "content": "", **thought} for thought in THOUGHTS]
    config = {"eos_token": "<|im_end|>", "pad_token": {"content": "<|endoftext|>"}, "bos_token": None}
    template = ChatTemplate(Tokenizer(tokenizer._core, tokenizer.eot, config, source))
    try:
        wanted = padded_peer.apply_chat_template(said, chat_template=source, add_generation_prompt=True, tokenize=False)
    except Exception as error:  # the words may differ, what is refused may not
        with pytest.raises(TemplateRefusal, match="not this" if type(error) is TemplateError else type(error).__name__):
            template.render(said)
        return
    assert tokenizer.decode(template.render(said).ids, special=True) == wanted


@pytest.mark.parametrize(
    "source", ["{% do 1 %}", "{% trans %}a{% endtrans %}", "{% generation %}a", "{% endgeneration %}"]
)
def test_tags_that_transformers_does_not_know_are_refused(tokenizer, peer, source):
    with pytest.raises(TemplateSyntaxError):
        peer.apply_chat_template([{"role": "user", "content": "a"}], chat_template=source, tokenize=False)
    with pytest.raises(UserError, match=r"TemplateSyntaxError.*chat_template\.jinja"):
        ChatTemplate(Tokenizer(tokenizer._core, tokenizer.eot, None, source))


def test_a_request_may_set_a_named_token_and_documents_for_its_template(tokenizer, peer):
    source, variables = "{{ bos_token }}{{ eos_token }}{{ documents[0].text }}", {"bos_token": "b", "eos_token": ""}
    said, documents = [{"role": "user", "content": "a"}], [{"title": "t", "text": "d"}]
    template = ChatTemplate(Tokenizer(tokenizer._core, tokenizer.eot, None, source))
    made = template.render(said, None, {**variables, "documents": documents}).ids
    assert (
        tokenizer.decode(made)
        == "bd"
        == peer.apply_chat_template(said, documents=documents, chat_template=source, tokenize=False, **variables)
    )


def test_of_named_templates_the_one_for_tools_is_taken_where_there_are_tools(tokenizer, folder, tmp_path):
    source = (folder / "chat_template.jinja").read_text()
    named = [{"name": "default", "template": source}, {"name": "tool_use", "template": "TOOLS " + source}]
    both = Tokenizer(tokenizer._core, tokenizer.eot, {"eos_token": tokenizer.eot, "chat_template": named})
    both.save(tmp_path)
    peer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    template, said = ChatTemplate(both), [{"role": "user", "content": "a"}]
    assert not template.is_default and template.tools == "json"
    for tools in (None, [TOOL]):
        wanted = peer.apply_chat_template(said, tools=tools, add_generation_prompt=True, return_dict=False)
        assert list(template.render(said, tools).ids) == wanted


def test_a_template_finds_tags_in_earlier_answers_though_they_are_special_tokens(folder, tmp_path):
    core = Tokenizer.load(folder)._core
    core.add_special_tokens(["<think>", "</think>"])
    source = (folder / "chat_template.jinja").read_text()
    source = source.replace("{{ message.content }}", "{{ message.content.split('</think>')[-1].lstrip() }}")
    Tokenizer(core, "<|im_end|>", {"eos_token": "<|im_end|>"}, source).save(tmp_path)
    peer, tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path), Tokenizer.load(tmp_path)
    said = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "<think>\nb\n</think>\n\nc"},
        {"role": "user", "content": "What does <think> mean?"},
    ]
    wanted = peer.apply_chat_template(said, add_generation_prompt=True, return_dict=False)
    made = ChatTemplate(tokenizer).render(said).ids
    assert list(made) == wanted and "b" not in tokenizer.decode(made).split("user")[1]


SHAPES = {
    "{{ said }}": lambda text: text,
    "{{ said | tojson }}": lambda text: json.dumps(text, ensure_ascii=False),
    "{{ said | tojson(ensure_ascii=true) }}": None,
    "{{ said | trim }}": str.strip,
    "{{ said[:7] }}": None,
    "{{ said | upper }}": None,
    "{{ said | reverse }}": None,
    "{{ said.split('|') | join('+') }}": None,
    "\ufdd0\ufdd1\ufdd07\ufdd1{{ said }}\ue000": lambda text: f"\ufdd0\ufdd1\ufdd07\ufdd1{text}\ue000",
    "{{ '\\ufdd0' ~ said ~ '\\ufdd1' }}": lambda text: f"\ufdd0{text}\ufdd1",
}
spelled = st.lists(
    st.sampled_from([*SPECIAL, "a", "<", "|", "im_end|>", "\ufdd0", "\ufdd00\ufdd1", "\\ufdd0", "\ue000"]), max_size=8
)


@given(spelled.map("".join), st.sampled_from(list(SHAPES)))
def test_whatever_a_template_does_to_a_message_no_special_token_comes_of_it(shaped, tokenizer, content, source):
    made = shaped[source].render([{"role": "user", "content": content}]).ids
    assert not set(made) & set(tokenizer.special_tokens.values())
    if (expected := SHAPES[source]) is not None:
        assert tokenizer.decode(made) == expected(content)


def test_marks_are_found_for_a_text_that_holds_them_all(template, tokenizer):
    every = "".join(map(chr, (*range(0xFDD0, 0xFDF0), *range(0xE000, 0xF900))))
    ids = template.render([{"role": "user", "content": every + "<|im_end|>"}]).ids
    assert f"{every}<|im_end|>" in tokenizer.decode(ids, special=True)


def test_a_special_token_in_a_variable_for_the_template_stays_text(tokenizer):
    template = ChatTemplate(Tokenizer(tokenizer._core, tokenizer.eot, None, "{{ mine }}"))
    ids = template.render([{"role": "user", "content": "a"}], None, {"mine": "<|im_end|>", "self": 1}).ids
    assert ids == tuple(tokenizer.encode("<|im_end|>"))


@pytest.fixture(scope="module")
def shaped(tokenizer):
    made = {}
    for source in SHAPES:
        whole = "{% set said = messages[0].content %}" + source
        made[source] = ChatTemplate(Tokenizer(tokenizer._core, tokenizer.eot, None, whole))
    return made


def test_a_template_that_is_none_names_the_file(tokenizer):
    with pytest.raises(UserError, match=r"chat_template\.jinja"):
        ChatTemplate(Tokenizer(tokenizer._core, tokenizer.eot, None, "{% if %}"))


def test_what_the_request_sets_is_not_set_twice(template):
    with pytest.raises(TemplateRefusal, match="messages"):
        template.render([{"role": "user", "content": "a"}], None, {"messages": []})


def test_a_tool_nested_beyond_reason_is_refused(template):
    nested: dict = {}
    for _ in range(100_000):
        nested = {"a": nested}
    with pytest.raises(TemplateRefusal, match="nested too deeply"):
        template.render([{"role": "user", "content": "a"}], [nested])


@pytest.mark.parametrize("form", ["json", "xml"])
def test_the_format_of_calls_is_read_from_the_template(tmp_path, form):
    assert ChatTemplate(Tokenizer.load(write_tokenizer(tmp_path, form))).tools == form
