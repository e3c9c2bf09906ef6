"""Messages to tokens: what transformers makes of the same template, and no message that can leave its place."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

from engine_double import SPECIAL, write_tokenizer
from gossamer.data.tokenizer import Tokenizer
from gossamer.errors import UserError
from gossamer.serve.template import ChatTemplate, TemplateRefusal

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
    ],
)
def test_a_template_that_refuses_or_fails_or_reaches_out(tokenizer, source, message):
    template = ChatTemplate(Tokenizer(tokenizer._core, tokenizer.eot, None, source))
    with pytest.raises(TemplateRefusal, match=message):
        template.render([{"role": "user", "content": "a"}])


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
