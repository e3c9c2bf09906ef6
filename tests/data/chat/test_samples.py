"""Samples: contexts are the prompts of serving, targets what is generated there, and nothing else is learned."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import transformers
from hypothesis import given, settings

from chat_strategies import conversation, tools_or_none
from engine_double import write_tokenizer
from family_templates import TEMPLATES, write_family_tokenizer
from gossamer.data.chat.chatml import missing_tokens
from gossamer.data.chat.forms import form_of, read_record
from gossamer.data.chat.records import Records
from gossamer.data.chat.samples import Examples, Sample, build_examples
from gossamer.data.chat.template import ChatTemplate
from gossamer.data.chat.turns import with_reasoning_split
from gossamer.data.tokenizer import Tokenizer, char_tokenizer
from gossamer.errors import UserError

USER = {"role": "user", "content": "q"}
TOOLS = [{"type": "function", "function": {"name": "f", "description": "d"}}]


def answer(text: str = "a", reasoning: str | None = None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **({"reasoning_content": reasoning} if reasoning else {}), **more}


def records_of(*lines: dict[str, Any]) -> Records:
    places = [f"F:{number}" for number in range(1, len(lines) + 1)]
    found = [read_record(form_of(place, line), place, line, {}) for place, line in zip(places, lines, strict=True)]
    return Records(form_of("F:1", lines[0]).method, tuple(found), (), 0, ())


def build(tokenizer: Tokenizer, *lines: dict[str, Any], context: int = 4096, **options: Any) -> Examples:
    return build_examples(records_of(*lines), tokenizer, context=context, **options)


def spans(tokenizer: Tokenizer, sample: Sample) -> list[tuple[bool, str]]:
    """The text of a sample, cut where learned and other tokens meet."""
    cuts = np.flatnonzero(np.diff(sample.labels != -100)) + 1
    parts = zip(np.split(sample.input_ids, cuts), np.split(sample.labels, cuts), strict=True)
    return [(bool(labels[0] != -100), tokenizer.decode(ids.tolist(), special=True)) for ids, labels in parts]


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, SimpleNamespace]:
    made = {}
    for form in TEMPLATES:
        folder = write_family_tokenizer(tmp_path_factory.mktemp(form), form)
        tokenizer, peer = Tokenizer.load(folder), transformers.AutoTokenizer.from_pretrained(folder)
        made[form] = SimpleNamespace(tokenizer=tokenizer, template=ChatTemplate(tokenizer), peer=peer)
    return made


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A tokenizer as those that are trained here, without a chat template."""
    return Tokenizer.load(write_tokenizer(tmp_path_factory.mktemp("base"), form=None))


CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}


@pytest.mark.parametrize("form", TEMPLATES)
def test_contexts_are_prompts_of_serving_and_targets_follow(families, form):
    tokenizer, template = families[form].tokenizer, families[form].template
    messages = [
        USER,
        answer("", tool_calls=[CALL]),
        {"role": "tool", "content": "7"},
        answer("b", "r"),
        USER,
        answer("c"),
    ]
    made = build(tokenizer, {"messages": messages, "tools": TOOLS})
    plain, thought = ({"enable_thinking": wish} for wish in (False, True))
    wanted = [
        (messages[:1], plain),
        (messages[:3], thought),
        (messages[:5], plain),
    ]
    contexts = [list(template.render(said, TOOLS, variables).ids) for said, variables in wanted]
    found = []
    for example in made.examples:
        (sample,) = example.samples
        starts = np.flatnonzero(np.diff((sample.labels != -100).astype(int)) == 1) + 1
        found += [sample.input_ids[:start].tolist() for start in starts]
        assert sample.input_ids[-1] == sample.labels[-1] == tokenizer.special_tokens["<|im_end|>"]
    assert found == contexts
    targets = [
        text for example in made.examples for is_target, text in spans(tokenizer, example.samples[0]) if is_target
    ]
    thought_text = "r\n</think>\n\nb<|im_end|>"
    assert targets[1:] == [thought_text if form == "qwen3_5" else f"<think>\n{thought_text}", "c<|im_end|>"]
    assert "tool_call" in targets[0] and targets[0].endswith("</tool_call><|im_end|>")
    assert made.end_ids == (tokenizer.eot_id,)


def test_turns_that_are_shown_otherwise_later_are_samples_of_their_own(families):
    tokenizer = families["qwen3_5"].tokenizer
    line = {"messages": [USER, answer("a"), USER, answer("b")]}
    made = build(tokenizer, line)
    assert [spans(tokenizer, example.samples[0])[-1] for example in made.examples] == [
        (True, "a<|im_end|>"),
        (True, "b<|im_end|>"),
    ]
    assert any("1 conversations → 2 samples" in line for line in made.summary)
    (last,) = build(tokenizer, line, turns="last").examples
    assert spans(tokenizer, last.samples[0])[-1] == (True, "b<|im_end|>")


def test_without_reasoning_in_the_data_none_is_asked_for_by_default(families):
    tokenizer = families["qwen3_5"].tokenizer
    made = build(tokenizer, {"messages": [USER, answer()]})
    assert made.disable_thinking and any("asks for none" in line for line in made.summary)
    served = ChatTemplate(made.tokenizer)
    ids = list(served.render([USER]).ids)
    assert ids == made.examples[0].samples[0].input_ids[: len(ids)].tolist()
    assert served.render([USER], None, {"enable_thinking": True}).thinking
    mixed = build(tokenizer, {"messages": [USER, answer()]}, {"messages": [USER, answer("b", "r")]})
    assert not mixed.disable_thinking and mixed.tokenizer is tokenizer


def test_plain_texts_begin_and_end_as_serving_expects(base):
    made = build(base, {"prompt": "ab", "completion": "cd"}, {"text": "xy"})
    end = base.eot_id
    first, second = (example.samples[0] for example in made.examples)
    assert first.input_ids.tolist() == [*base.prefix_ids, *base.encode("abcd"), end]
    assert first.labels.tolist() == [-100] * (1 + 2) + [*base.encode("cd"), end]
    assert second.input_ids.tolist() == [end, *base.encode("xy"), end]
    assert second.labels.tolist() == [-100, *base.encode("xy"), end]


def test_messages_need_a_template(base):
    with pytest.raises(UserError, match=r"F:1: messages need a chat template.*--template chatml"):
        build(base, {"messages": [USER, answer()]})


@pytest.mark.parametrize("too_long", ["drop", "cut", "refuse"])
def test_samples_that_are_too_long(base, too_long):
    lines = [{"prompt": "a" * 30, "completion": "b" * 30}, {"prompt": "a" * 90, "completion": "b"}, {"text": "c"}]
    if too_long == "refuse":
        with pytest.raises(UserError, match="F:1: a sample of 62 tokens is longer than the context of 50"):
            build(base, *lines, context=50, too_long=too_long)
        return
    made = build(base, *lines, context=50, too_long=too_long)
    assert [example.where for example in made.examples] == (["F:3"] if too_long == "drop" else ["F:1", "F:3"])
    assert any(f"{1 if too_long == 'cut' else 2} examples of more than 50 tokens" in line for line in made.summary)
    if too_long == "cut":
        assert len(made.examples[0].samples[0]) == 50 and made.examples[0].samples[0].num_targets == 50 - 31
    with pytest.raises(UserError, match="no sample fits into 10 tokens"):
        build(base, *lines[:2], context=10, too_long=too_long)


def test_pairs_share_their_context(families):
    tokenizer = families["qwen3_5"].tokenizer
    line = {"prompt": [USER], "chosen": [answer("a", "r")], "rejected": [answer("b")]}
    (example,) = build(tokenizer, line).examples
    chosen, rejected = (spans(tokenizer, sample) for sample in example.samples)
    assert chosen[0] == rejected[0] and chosen[0][1].endswith("<think>\n")
    assert (chosen[1][1], rejected[1][1]) == ("r\n</think>\n\na<|im_end|>", "\n</think>\n\nb<|im_end|>")


def test_ratings_have_their_completion_behind_the_next_prompt_too(base):
    lines = [{"prompt": f"p{n}", "completion": f"c{n}", "label": n % 2} for n in range(3)]
    made = build(base, *lines)
    texts = [[base.decode(sample.input_ids.tolist()) for sample in example.samples] for example in made.examples]
    assert texts == [["p0c0", "p1c0"], ["p1c1", "p2c1"], ["p2c2", "p0c2"]]
    assert [[sample.num_targets for sample in example.samples] for example in made.examples] == [[3, 3]] * 3
    assert [example.label for example in made.examples] == [False, True, False]
    for same in (lines[:1], [lines[0], lines[0] | {"label": 1}]):
        assert {len(example.samples) for example in build(base, *same).examples} == {1}


def test_the_next_prompt_is_another_one(base):
    """Several answers to a prompt are often rated one after the other."""
    lines = [{"prompt": prompt, "completion": f"c{n}", "label": n % 2} for n, prompt in enumerate("aabbbca")]
    texts = [base.decode(example.samples[1].input_ids.tolist()) for example in build(base, *lines).examples]
    assert texts == ["bc0", "bc1", "cc2", "cc3", "cc4", "ac5", "bc6"]


# Whole transcripts.


@pytest.mark.parametrize("form", TEMPLATES)
def test_without_the_tag_every_answer_of_a_transcript_is_learned(families, form):
    plain = families[form].tokenizer
    source = re.sub(r"\{%- (end)?generation %\}", "", plain.chat_template)
    tokenizer = plain.with_chat(source)
    messages = [USER | {"content": "q<|im_end|>"}, answer("a", "r"), USER, answer("b", weight=0), USER, answer("c")]
    made = build(tokenizer, {"messages": messages}, turns="joined")
    (sample,) = (example.samples[0] for example in made.examples)
    assert [text for is_target, text in spans(tokenizer, sample) if is_target] == ["a<|im_end|>", "c<|im_end|>"]
    whole = ChatTemplate(tokenizer).conversation(messages)
    assert sample.input_ids.tolist() == whole.encode(whole.transcript(len(messages)))
    assert "1 of 2 answers stand in a context that serving never builds (--turns joined)" in made.summary
    alone = build(tokenizer, {"messages": messages[:1] + messages[-1:]}, turns="joined")
    assert "0 of 1 answers stand in a context that serving never builds (--turns joined)" in alone.summary


# A template of our own.


def test_a_base_learns_conversations_in_chatml(base, tmp_path):
    assert missing_tokens(base) == ()
    bare = char_tokenizer(["".join(map(chr, range(10, 127)))])
    assert missing_tokens(bare) == ("<|im_start|>", "<|im_end|>")
    lines = [
        {"messages": [{"role": "system", "content": "s"}, USER, answer("a", "r"), USER, answer("b")]},
        {
            "messages": [USER, answer("", tool_calls=[CALL]), {"role": "tool", "content": "7"}, answer("c")],
            "tools": TOOLS,
        },
    ]
    for tokenizer in (base, bare):
        made = build(tokenizer, *lines, template="chatml")
        assert len(made.examples) == 2  # nothing is unfolded
        end = made.tokenizer.special_tokens["<|im_end|>"]
        assert made.end_ids == (end, tokenizer.eot_id) and end < made.tokenizer.vocab_size
        targets = [
            [text for is_target, text in spans(made.tokenizer, example.samples[0]) if is_target]
            for example in made.examples
        ]
        call = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call><|im_end|>'
        assert targets == [["<think>\nr\n</think>\n\na<|im_end|>", "b<|im_end|>"], [call, "c<|im_end|>"]]
        assert ChatTemplate(made.tokenizer).tools == "json" and ChatTemplate(made.tokenizer).thinks
    assert made.tokenizer.kind == "char" and made.tokenizer.decode([end], special=True) == "<|im_end|>"
    made.tokenizer.save(tmp_path)
    peer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    wanted = peer.apply_chat_template(lines[1]["messages"], tools=TOOLS, return_dict=False)
    assert made.examples[1].samples[0].input_ids.tolist() == wanted[: len(made.examples[1].samples[0])]


def test_calls_are_refused_where_the_template_writes_none(base):
    tokenizer = base.with_chat("{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}")
    line = {"messages": [USER, answer("", tool_calls=[CALL])]}
    with pytest.raises(UserError, match=r"F:1: messages\.1\.tool_calls: this model's chat template cannot call any"):
        build(tokenizer, line)
    with pytest.raises(UserError, match="F:1: tools: this model's chat template cannot call any"):
        build(tokenizer, {"messages": [USER, answer()], "tools": TOOLS})


def test_what_a_template_does_not_take_names_the_answer(families):
    tokenizer = families["qwen3"].tokenizer
    for messages, place in (
        ([answer(), USER, answer()], r"messages\.0: an answer that nothing was asked for"),
        ([{"role": "system", "content": "s"}, answer()], r"messages\.1: the chat template does not take this answer"),
    ):
        with pytest.raises(UserError, match=f"F:1: {place}"):
            build(tokenizer, {"messages": messages})
    strict = tokenizer.with_chat(
        "{% for m in messages %}{{ m.content }}{% endfor %}{{ 'A:' if add_generation_prompt }}"
    )
    with pytest.raises(UserError, match=r"F:1: messages\.1: .* asks for this answer with …'qA:' and writes …'qa'"):
        build(strict, {"messages": [USER, answer()]})


def test_a_template_that_ends_no_answer_is_followed_by_the_end_of_the_text(base):
    tokenizer = base.with_chat(
        "{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}"
        "{{ 'assistant: ' if add_generation_prompt }}"
    )
    made = build(tokenizer, {"messages": [USER, answer("a")]})
    assert spans(tokenizer, made.examples[0].samples[0]) == [(False, "user: q\nassistant: "), (True, "a<|endoftext|>")]


def test_answers_without_a_thought_behind_an_open_one_are_counted(families):
    tokenizer = families["qwen3_5"].tokenizer
    always = tokenizer.with_chat(tokenizer.chat_template.replace("enable_thinking is false", "false"))
    always = always.with_chat(always.chat_template.replace("enable_thinking", "thinking"))
    made = build(always, {"messages": [USER, answer("a")]})
    assert spans(always, made.examples[0].samples[0])[-1] == (True, "\n</think>\n\na<|im_end|>")
    assert any("1 answers without reasoning follow a prompt that opens <think>" in line for line in made.summary)


@pytest.mark.parametrize("form", TEMPLATES)
def test_arguments_may_be_texts_or_objects_and_thoughts_may_stand_in_the_content(families, form):
    tokenizer = families[form].tokenizer
    called = {"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    first = build(tokenizer, {"messages": [USER, answer("b", "r", tool_calls=[CALL])], "tools": TOOLS})
    second = build(
        tokenizer, {"messages": [USER, answer("<think>\nr\n</think>\n\nb", tool_calls=[called])], "tools": TOOLS}
    )
    ids = [made.examples[0].samples[0].input_ids.tolist() for made in (first, second)]
    assert ids[0] == ids[1]


def test_what_a_template_marks_otherwise_is_said(families):
    tokenizer = families["qwen3_5"].tokenizer  # whose tag leaves out the token that ends an answer
    made = build(tokenizer, {"messages": [USER, answer("a"), USER, answer("b")]})
    assert any(
        "marks other text than what is generated as what is learned, in 2 answers" in line for line in made.summary
    )
    tokenizer = families["qwen3"].tokenizer  # whose prompt opens no thought
    source = tokenizer.chat_template.replace("{%- endgeneration %}", "").replace(
        "<|im_end|>\\n' }}\n    {%- else", "<|im_end|>' }}{% endgeneration %}{{- '\\n' }}\n    {%- else"
    )
    same = build(tokenizer.with_chat(source), {"messages": [USER, answer("a", "r")]})
    assert not any("marks other text" in line for line in same.summary), same.summary


def test_the_line_that_disables_thoughts_is_obeyed_by_transformers(families, tmp_path):
    for form in TEMPLATES:
        made = build(families[form].tokenizer, {"messages": [USER, answer("a")]})
        made.tokenizer.save(tmp_path / form)
        peer = transformers.AutoTokenizer.from_pretrained(tmp_path / form)
        ids = peer.apply_chat_template([USER], add_generation_prompt=True, return_dict=False)
        assert ids == made.examples[0].samples[0].input_ids[: len(ids)].tolist()
        assert peer.decode(ids).endswith("<think>\n\n</think>\n\n")
        asked = peer.apply_chat_template([USER], add_generation_prompt=True, enable_thinking=True, tokenize=False)
        assert not asked.endswith("</think>\n\n")


def test_the_prompt_behind_which_a_rating_is_measured_is_another(base):
    lines = [{"prompt": p, "completion": c, "label": 1} for p, c in (("p", "a"), ("p", "b"), ("q", "c"))]
    texts = [base.decode(example.samples[1].input_ids.tolist()) for example in build(base, *lines).examples]
    assert texts == ["qa", "qb", "pc"]
    alone = build(base, *lines[:2]).examples
    assert [len(example.samples) for example in alone] == [1, 1]


def test_a_character_that_the_tokenizer_does_not_know_names_the_line():
    tokenizer = char_tokenizer(["abc"])
    with pytest.raises(UserError, match=r"^F:2: .*'x'"):
        build(tokenizer, {"text": "a"}, {"text": "x"})


# Conversations of any kind.


@pytest.mark.parametrize("form", TEMPLATES)
@settings(max_examples=20)  # each starts a process for its template
@given(said=conversation, tools=tools_or_none)
def test_whatever_is_said_contexts_are_the_prompts_of_transformers(families, form, said, tools):
    tokenizer, peer = families[form].tokenizer, families[form].peer
    values = {"messages": said} | ({"tools": tools} if tools else {})
    try:
        record = read_record(form_of("F:1", values), "F:1", values, {})
        made = build_examples(Records("sft", (record,), (), 0, ()), tokenizer, context=10**6)
    except UserError as error:
        assert str(error).startswith("F:1: ") and "\n" not in str(error)
        return
    messages = list(map(with_reasoning_split, record.messages))
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    contexts = []
    for example in made.examples:
        is_target = example.samples[0].labels != -100
        for start in np.flatnonzero(is_target[1:] & ~is_target[:-1]) + 1:
            contexts.append(example.samples[0].input_ids[:start].tolist())
    wanted = [
        [
            peer.apply_chat_template(
                messages[:index], tools=tools, add_generation_prompt=True, return_dict=False, enable_thinking=wish
            )
            for wish in (False, True)
        ]
        for index in answers
    ]
    assert len(contexts) == len(wanted)
    assert all(context in prompts for context, prompts in zip(contexts, wanted, strict=True))


def test_both_sides_of_a_pair_follow_one_prompt_whichever_of_them_thinks(families):
    for form in TEMPLATES:
        tokenizer = families[form].tokenizer
        for chosen, rejected in ((answer("a"), answer("b", "r")), (answer("a", "r"), answer("b"))):
            (example,) = build(tokenizer, {"prompt": [USER], "chosen": [chosen], "rejected": [rejected]}).examples
            contexts = [spans(tokenizer, sample)[0] for sample in example.samples]
            assert contexts[0] == contexts[1] and not contexts[0][1].endswith("</think>\n\n")


def test_the_first_mistake_is_told_and_the_order_is_kept(families):
    tokenizer = families["qwen3"].tokenizer
    good = [{"messages": [USER | {"content": f"q{n}"}, answer(f"a{n}")]} for n in range(100)]
    made = build(tokenizer, *good)
    assert [example.where for example in made.examples] == [f"F:{n}" for n in range(1, 101)]
    assert spans(tokenizer, made.examples[70].samples[0])[-1] == (True, "a70<|im_end|>")
    bad = {"messages": [answer("x"), USER, answer("y")]}
    with pytest.raises(UserError, match=r"^F:51: "):
        build(tokenizer, *good[:50], bad, *good[50:], bad)
